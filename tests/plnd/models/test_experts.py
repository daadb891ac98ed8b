"""Values of fused experts' neurons are changed where they arise, held to experts that are computed token by token."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from plnd.deactivation import deactivated
from plnd.detection.run import DetectConfig, detect
from plnd.errors import FamilyError, PLNDError
from plnd.interventions import Intervention, intervened
from plnd.model_description import ModelDescription
from plnd.models.experts import change_values
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.units import neurons_of
from plnd.roles.deactivation import deactivated_rows
from tiny import logits, tiny_model

IDS = torch.tensor([[5, 9, 33, 7, 61, 4], [8, 8, 2, 50, 11, 70]])
EXACT = {"rtol": 1e-12, "atol": 1e-12}
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def some_neurons(model, projections=FEED_FORWARD, share: float = 0.3) -> NeuronSet:
    """A random share of some projections."""
    layout, generator = Layout(model), np.random.default_rng(0)
    names = [name for name in layout.widths if name.split(".")[-1] in projections]
    drawn = {name: np.flatnonzero(generator.random(layout.widths[name]) < share).astype(np.int32) for name in names}
    return NeuronSet(drawn, {n: np.ones(len(v), np.float32) for n, v in drawn.items()}, {"model": layout.description()})


def token_by_token(model, value) -> None:
    """Experts of Mixtral that take one token at a time; `value(address, row, values)` is what values become."""
    for number, block in enumerate(model.model.layers):
        experts = block.mlp.experts

        def forward(hidden, index, weights, experts=experts, number=number):
            output = torch.zeros_like(hidden)
            for token, x in enumerate(hidden):
                row = token // (len(hidden) // len(IDS))
                for expert, share in zip(index[token].tolist(), weights[token], strict=True):
                    gate, up = linear(x, experts.gate_up_proj[expert]).chunk(2)
                    gate = value(f"{number}.gate_proj", row, expert, gate)
                    up = value(f"{number}.up_proj", row, expert, up)
                    inner = value(f"{number}.down_proj", row, expert, nn.functional.silu(gate) * up)
                    output[token] += share * linear(inner, experts.down_proj[expert])
            return output

        experts.forward = forward


@pytest.mark.parametrize("kind", ["zero", "mean", "scale", "steer"])
def test_interventions_equal_experts_token_by_token(kind):
    """What leaves a row, or enters a column, is what the kind makes of it, at every token of the expert."""
    model, literal = tiny_model("mixtral"), tiny_model("mixtral")
    neurons, generator = some_neurons(model), np.random.default_rng(1)
    amounts = {name: generator.normal(size=width) for name, width in Layout(model).widths.items()}
    options = {
        "zero": {},
        "mean": {"means": amounts},
        "scale": {"factor": 1.7},
        "steer": {"direction": amounts, "strength": 2.0},
    }[kind]

    def value(name, row, expert, values):
        each = len(values)
        own = neurons.indices[name]
        own = torch.from_numpy(own[own // each == expert] % each).long()
        addend = torch.from_numpy(amounts[name][expert * each : (expert + 1) * each])[own]
        changed = {"zero": 0 * addend, "mean": addend, "scale": 1.7 * values[own], "steer": values[own] + 2 * addend}
        return values.index_copy(0, own, changed[kind])

    with torch.no_grad():
        plain = logits(model, IDS)
        with intervened(model, neurons, kind=kind, mode="activations", **options):
            found = logits(model, IDS)
        assert torch.equal(logits(model, IDS), plain)
        token_by_token(literal, value)
        torch.testing.assert_close(found, logits(literal, IDS), **EXACT)
        assert not torch.allclose(found, plain, rtol=1e-3)


def test_each_row_has_its_own_neurons_off():
    """In a batch whose rows have other neurons of each expert off, each is as it is token by token."""
    model, literal = tiny_model("mixtral"), tiny_model("mixtral")
    widths = {name.split(".")[0]: width for name, width in Layout(model).widths.items() if "down_proj" in name}
    generator = np.random.default_rng(0)
    rows = [{name: generator.random(width) < 0.4 for name, width in widths.items()} for _ in IDS]

    def value(name, row, expert, values):
        if "down_proj" not in name:
            return values
        off = rows[row][name.split(".")[0]][expert * len(values) : (expert + 1) * len(values)]
        return values.masked_fill(torch.from_numpy(off), 0)

    with torch.no_grad():
        with deactivated_rows(model, rows):
            found = logits(model, IDS)
        with deactivated_rows(model, rows, Intervention("scale", factor=0.0)):
            torch.testing.assert_close(logits(model, IDS), found, **EXACT)
        token_by_token(literal, value)
        torch.testing.assert_close(found, logits(literal, IDS), **EXACT)
        with deactivated_rows(model, [rows[1], rows[0]]):
            assert not torch.allclose(logits(model, IDS), found, rtol=1e-3)
        with pytest.raises(PLNDError, match="a batch of 6 tokens, but neurons were chosen for 4 rows"):
            with deactivated_rows(model, rows * 2):
                logits(model, IDS[:1])


MIXTURES = ("mixtral", "gpt_oss", "qwen3_moe", "phimoe", "olmoe", "minimax_m2", "granitemoe", "deepseek_v2", "dots1")
MIXTURES += ("deepseek_v3", "mistral4", "hunyuan_v1_moe", "qwen2_moe", "ernie4_5_moe", "glm4_moe", "granitemoeshared")
MIXTURES += ("qwen3_next", "qwen3_5_moe_text", "jamba", "exaone_moe", "hy_v3", "solar_open")
OFF = (0, 2)
"""Experts of every block."""


def going_nowhere(experts):
    """The forward pass of experts whose output at tokens that go to one of `OFF` is its bias, or nothing."""
    inner, bias = experts.forward, getattr(experts, "down_proj_bias", None)

    def forward(hidden, index, weights):
        off = torch.isin(index, torch.tensor(OFF))
        output = inner(hidden, index, weights.masked_fill(off, 0))
        return output if bias is None else output + ((weights * off)[..., None] * bias[index]).sum(1)

    return forward


@pytest.mark.parametrize(
    "name", [x if x in ("mixtral", "gpt_oss") else pytest.param(x, marks=pytest.mark.slow) for x in MIXTURES]
)
def test_an_expert_that_is_off_is_not_there(name):
    """All neurons of an expert off, in both modes: the model in which tokens that go there get its bias, or nothing.

    The router chooses as before, and the shares of the other experts are what they were.
    """
    model, without = tiny_model(name), tiny_model(name)
    said = ModelDescription.of(Layout(model).description())
    addresses = [a for a in said.units if a.split(".")[-1] in FEED_FORWARD]
    indices = {address: neurons_of(said, address, OFF) for address in addresses}
    neurons = NeuronSet(indices, indices, {"model": said})
    for block in Layout(without).blocks:
        if block.stack.experts:
            experts = block.at(block.stack.experts)
            experts.forward = going_nowhere(experts)
    with torch.no_grad():
        expected, plain = logits(without, IDS), logits(model, IDS)
        for mode in ("weights", "activations"):
            with deactivated(model, neurons, mode=mode):
                torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(expected, plain, rtol=1e-3)
        assert torch.equal(logits(model, IDS), plain)


def test_other_blocks_and_models_keep_their_own_experts():
    """Only the module that has a change runs as plnd's; contexts end in any order, and copies keep what is off."""
    model = tiny_model("mixtral")
    first, second = (
        some_neurons(model, (name,)).restrict(where=lambda block, _: not block) for name in FEED_FORWARD[1:]
    )
    modules, settings = [layer.mlp.experts for layer in model.model.layers], {**vars(model.config)}
    with torch.no_grad():
        plain = logits(model, IDS)
        with deactivated(model, first, mode="weights"), deactivated(model, second, mode="weights"):
            expected = logits(model, IDS)
        one, two = deactivated(model, first, mode="activations"), deactivated(model, second, mode="activations")
        one.__enter__(), two.__enter__()
        assert modules[0].config is not model.config and modules[1].config is model.config
        assert vars(model.config) == settings
        torch.testing.assert_close(logits(model, IDS), expected, **EXACT)
        twin = copy.deepcopy(model)
        one.__exit__(None, None, None)
        with deactivated(twin, first, mode="weights"):
            torch.testing.assert_close(logits(twin, IDS), expected, **EXACT)
        two.__exit__(None, None, None)
        assert modules[0].config is model.config and torch.equal(logits(model, IDS), plain)
        torch.testing.assert_close(logits(twin, IDS), expected, **EXACT)


def test_experts_that_are_off_are_measured_as_zero():
    """Detection inside `deactivated` gives what it gives where the weights are zero."""
    model, config = tiny_model("mixtral"), DetectConfig("xx", min_length=1, qk="off")
    neurons = some_neurons(model, ("down_proj",))
    found = []
    for mode in ("weights", "activations"):
        with deactivated(model, neurons, mode=mode):
            found.append(detect(model, IDS.tolist(), config))
    for name, values in found[0].mean.items():
        np.testing.assert_allclose(found[1].mean[name], values, rtol=1e-5, atol=1e-7)
        assert not values[neurons.indices.get(name, [])].any()


def test_packed_experts_are_refused():
    """Their values cannot be computed from slices of what is stored; nothing has changed."""
    model = tiny_model("mixtral", torch.bfloat16)
    experts = model.model.layers[0].mlp.experts
    neurons = some_neurons(model, ("up_proj",))
    experts.gate_up_proj = nn.Parameter(experts.gate_up_proj.to(torch.float8_e4m3fn), requires_grad=False)
    before = {**vars(experts)}
    with pytest.raises(FamilyError, match="0.up_proj: .*expected dense experts: load the model unquantised"):
        with deactivated(model, neurons):
            pass
    assert vars(experts) == before


def test_experts_of_a_part_are_refused():
    """Of what one process has of experts that are spread over several, values are not changed; nothing stays behind."""
    target = Layout(tiny_model("mixtral")).targets["0.up_proj"]
    before = {**vars(target.plain)}
    with pytest.raises(FamilyError, match="0.up_proj: values of experts that are spread over processes .*mode=weights"):
        change_values(replace(target, own=True), lambda routed, values: values)
    assert vars(target.plain) == before


def test_generation_and_gradients_heed_what_is_off():
    """Every step of an answer is without the neurons, which get no gradient while they are off."""
    model = tiny_model("mixtral")
    neurons = some_neurons(model)
    with deactivated(model, neurons, mode="weights"):
        expected = model.generate(IDS, max_new_tokens=3, do_sample=False)
    with deactivated(model, neurons, mode="activations"):
        assert torch.equal(model.generate(IDS, max_new_tokens=3, do_sample=False), expected)
        model(IDS, labels=IDS).loss.backward()
    for name, chosen in neurons.items():
        target = Layout(model).targets[name]
        gradient = target.neurons_first(target.stored.grad)[target.position(torch.from_numpy(chosen).long())]
        assert not gradient.any() and bool(target.stored.grad.any())
