"""Interventions replace exactly the named neurons' values, and leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from plnd.deactivation import deactivated
from plnd.errors import FamilyError, ModelMismatchError, PLNDError
from plnd.interventions import intervened
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from tiny import logits, tiny_model

IDS = torch.tensor([[5, 9, 33, 7, 61, 4], [8, 3, 90, 11, 2, 6]])


def some_neurons(model, *, projections=None, share: float = 0.2) -> NeuronSet:
    """A random share of every projection, or of some."""
    layout, generator = Layout(model), np.random.default_rng(0)
    indices = {
        name: np.flatnonzero(generator.random(width) < share).astype(np.int32)
        for name, width in layout.widths.items()
        if projections is None or name.endswith(projections)
    }
    zeros = {name: np.zeros(len(v), dtype=np.float32) for name, v in indices.items()}
    return NeuronSet(indices, zeros, {"model": layout.description()})


def some_values(model) -> dict[str, np.ndarray]:
    """A random number for every neuron."""
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=width) for name, width in Layout(model).widths.items()}


def by_hand(model, neurons: NeuronSet, values: dict[str, np.ndarray]) -> None:
    """Makes the values constants: rows' weights and biases zero and the value added, or columns zero and W·value added.

    For good, in the weights, without touching what enters a module.
    """
    for name, rows in neurons.items():
        target, index = Layout(model).targets[name], torch.as_tensor(rows).long()
        constant = torch.from_numpy(values[name])[index]
        weight = target.stored.data.T if target.transposed else target.stored.data
        if target.projection.axis == "column":
            addend = weight[:, index] @ constant
            weight[:, index] = 0
        else:
            addend = torch.zeros(len(weight), dtype=weight.dtype)
            addend[target.storage(index)] = constant
            weight[target.storage(index)] = 0
            if target.plain.bias is not None:
                target.plain.bias.data[target.storage(index)] = 0
        target.module.register_forward_hook(lambda module, args, output, addend=addend: output + addend)


def test_mean_equals_a_constant_in_the_weights(variant):
    """In every family, fused projections included; what was there is back afterwards, bit for bit."""
    model, constant = tiny_model(variant), tiny_model(variant)
    neurons, values = some_neurons(model), some_values(model)
    if any(target.experts for target in Layout(model).targets.values()):
        with pytest.raises(FamilyError, match="no hook sees the values of fused experts' neurons: use kind=zero"):
            with intervened(model, neurons, kind="mean", means=values):
                pass
        return
    with torch.no_grad():
        plain = logits(model, IDS)
        by_hand(constant, neurons, values)
        with intervened(model, neurons, kind="mean", means=values):
            changed = logits(model, IDS)
        torch.testing.assert_close(changed, logits(constant, IDS), rtol=1e-5, atol=1e-6)  # norms are float32
        assert not torch.allclose(changed, plain, rtol=1e-3)
        assert torch.equal(logits(model, IDS), plain)


def test_zero_is_deactivation():
    """Bit for bit, biases of rows included."""
    model = tiny_model("llama")
    neurons = some_neurons(model)
    with torch.no_grad():
        with deactivated(model, neurons):
            expected = logits(model, IDS)
        with intervened(model, neurons, kind="zero"):
            assert torch.equal(logits(model, IDS), expected)


def test_a_mean_of_zero_is_deactivation_of_columns():
    """A column whose input is 0 adds what a column of zeros adds."""
    model = tiny_model("gemma3_text")
    neurons = some_neurons(model, projections=("o_proj", "down_proj"))
    zeros = {name: np.zeros(width) for name, width in Layout(model).widths.items()}
    with torch.no_grad():
        with deactivated(model, neurons):
            expected = logits(model, IDS)
        with intervened(model, neurons, kind="mean", means=zeros):
            torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-6, atol=1e-7)


def test_a_neuron_that_always_has_its_mean_changes_nothing():
    """Values that are what the neurons do anyway, for one token that is always the same, leave the logits."""
    model = tiny_model("phi3")
    ids = torch.full((1, 1), 7)
    seen: dict[str, np.ndarray] = {}
    layout, handles = Layout(model), []
    for name, target in layout.targets.items():
        if target.projection.axis == "column":
            handles.append(
                target.module.register_forward_pre_hook(
                    lambda module, args, name=name: seen.update({name: args[0][0, 0].numpy().copy()})
                )
            )
    with torch.no_grad():
        plain = logits(model, ids)
        for handle in handles:
            handle.remove()
        neurons = some_neurons(model, projections=("o_proj", "down_proj"), share=0.5)
        with intervened(model, neurons, kind="mean", means=seen):
            torch.testing.assert_close(logits(model, ids), plain)


def test_contexts_nest_and_an_exception_leaves_nothing():
    """The innermost decides, the outer one goes on afterwards, and no hook is left."""
    model = tiny_model("qwen2")
    neurons, values = some_neurons(model, projections=("down_proj",)), some_values(model)
    other = {name: v + 1 for name, v in values.items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():
        with intervened(model, neurons, kind="mean", means=other):
            expected = logits(model, IDS)
        with pytest.raises(ZeroDivisionError), intervened(model, neurons, kind="mean", means=values):
            outer = logits(model, IDS)
            with intervened(model, neurons, kind="mean", means=other):
                assert torch.equal(logits(model, IDS), expected)
            assert torch.equal(logits(model, IDS), outer)
            1 / 0  # noqa: B018
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_an_adapter_that_is_there_is_part_of_the_value():
    """What leaves a row of a LoRA layer is the constant; one put around the row inside is refused in the next pass."""
    model = tiny_model("llama", torch.float32)
    neurons, values = some_neurons(model, projections=("q_proj",)), some_values(model)
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    with pytest.raises(PLNDError, match=r"0.q_proj has become Linear, from Linear, while its neurons' values were"):
        with intervened(model, neurons, kind="mean", means=values):
            inject_adapter_in_model(config, model)
            logits(model, IDS)
    seen = []
    target = Layout(model).targets["0.q_proj"]
    with torch.no_grad(), intervened(model, neurons, kind="mean", means=values):
        target.module.register_forward_hook(lambda module, args, output: seen.append(output))
        logits(model, IDS)
    rows = neurons.indices["0.q_proj"]
    expected = torch.from_numpy(values["0.q_proj"][rows]).float()
    assert torch.equal(seen[0][..., rows], expected.expand(*seen[0].shape[:-1], -1))


def test_what_cannot_be_done_is_refused():
    """In one line: kinds, values that are missing, too many, of another width, not finite; another model's neurons."""
    model = tiny_model("qwen2")
    neurons, values = some_neurons(model, projections=("down_proj",)), some_values(model)
    wrong = {
        "unknown kind 'scale': expected one of zero, mean": dict(kind="scale"),
        "values belong to kind=mean": dict(kind="zero", values=values),
        "0.down_proj: no values, expected the mean of each of its 36 neurons": dict(kind="mean"),
        r"0.down_proj: values of shape \(3,\)": dict(kind="mean", means={"0.down_proj": np.zeros(3)}),
        "0.down_proj: a mean that is not finite": dict(kind="mean", means={"0.down_proj": np.full(36, np.nan)}),
    }
    for message, options in wrong.items():
        with pytest.raises(PLNDError, match=message), intervened(model, neurons, **options):
            pass
    with pytest.raises(ModelMismatchError), intervened(tiny_model("llama"), neurons, kind="mean", means=values):
        pass


def test_a_block_that_goes_past_its_module_is_refused():
    """Code that multiplies by the weight itself is not seen by hooks: an error, not a plain pass."""
    model = tiny_model("qwen2")
    neurons, values = some_neurons(model, projections=("down_proj",)), some_values(model)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) @ mlp.down_proj.weight.T
    with intervened(model, neurons, kind="mean", means=values):
        with pytest.raises(FamilyError, match="0.down_proj: its block ran without calling Linear"):
            logits(model, IDS)
