"""Activations and coefficients, read off a model while it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plnd.errors import FamilyError
from plnd.models.layout import Layout
from plnd.roles.activations import Watch, block_slices, feed_forward_widths, read_chunks
from tiny import tiny_model

INPUTS = [[[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]], [[15], [16, 17]]]


def read(model, **options):
    """All of `INPUTS`, in chunks of two examples."""
    watch = Watch(Layout(model), **options)
    with watch.attached():
        return list(read_chunks(watch, INPUTS, 2))


def test_the_coefficient_of_a_gate_is_the_product():
    """In a gated feed-forward it is the activation times the up projection, so the output is its sum of values."""
    model = tiny_model("mistral")
    layout, outputs = Layout(model), []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda m, a, o: outputs.append(o[0, -1]))
    chunks = read(model, coefficients=True)
    outputs.clear()
    with torch.no_grad():
        model(input_ids=torch.tensor([INPUTS[1][1]]))
    handle.remove()
    place = block_slices(feed_forward_widths(layout))["1"]
    coefficients = chunks[0].coefficients[1, 1, place]
    torch.testing.assert_close(layout.targets["1.down_proj"].weight() @ coefficients, outputs[0])
    assert not torch.allclose(coefficients, chunks[0].activations[1, 1, place])


def test_without_a_gate_coefficient_and_activation_are_one():
    """What goes into `down_proj` is the activation itself."""
    for chunk in read(tiny_model("gpt_neox"), coefficients=True):
        torch.testing.assert_close(chunk.coefficients, chunk.activations)


def test_chunks():
    """Examples keep their order and place; dtype is the model's, but at least float32."""
    chunks = read(tiny_model("llama"))
    assert [(chunk.start, tuple(chunk.activations.shape)) for chunk in chunks] == [(0, (2, 2, 80)), (2, (1, 2, 80))]
    assert chunks[0].coefficients is None and chunks[0].activations.dtype == torch.float64
    assert read(tiny_model("llama", torch.bfloat16))[0].activations.dtype == torch.float32


def test_all_tokens_take_the_largest_activation():
    """The largest over the tokens is at least the last one's, and of an input of one token the same."""
    model = tiny_model("llama")
    last, largest = (torch.cat([c.activations for c in read(model, tokens=t)]) for t in ("last", "all"))
    assert (largest >= last).all() and (largest[0, 0] > last[0, 0]).any()
    torch.testing.assert_close(largest[0, 1], last[0, 1])


def test_what_cannot_be_watched_is_refused():
    """A non-linearity that two blocks share, that is no module, or that never runs."""
    shared = tiny_model("llama")
    shared.model.layers[1].mlp.act_fn = shared.model.layers[0].mlp.act_fn
    function = tiny_model("llama")
    del function.model.layers[0].mlp.act_fn
    function.model.layers[0].mlp.act_fn = nn.functional.silu
    bypassed = tiny_model("llama")
    bypassed.model.layers[1].mlp.forward = lambda x: x
    for model, words in (
        (shared, "block 0: its non-linearity is not a module of its own"),
        (function, "block 0: its non-linearity is not a module of its own"),
        (bypassed, "block 1: its non-linearity did not run"),
    ):
        with pytest.raises(FamilyError, match=words):
            read(model)
