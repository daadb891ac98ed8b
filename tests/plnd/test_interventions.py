"""Interventions change exactly the named neurons' values, and leave no trace."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from plnd.deactivation import deactivated
from plnd.errors import FamilyError, ModelMismatchError, PLNDError
from plnd.interventions import Intervention, intervened, steered
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from plnd.references.config import ReferenceConfig
from plnd.references.run import reference
from tiny import MASKED, TINY, VARIANTS, logits, tiny_model

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
    if any(target.experts for target in Layout(model).targets.values()):  # those of experts: test_experts.py
        neurons = neurons.restrict(projections=["q_proj", "k_proj", "v_proj", "o_proj"])
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
        "unknown kind 'double': expected one of zero, mean, scale, steer": dict(kind="double"),
        "means belongs to kind=mean; zero has none": dict(kind="zero", means=values),
        "factor belongs to kind=scale; mean has none": dict(kind="mean", means=values, factor=2.0),
        "kind=mean needs means, which `plnd reference` writes": dict(kind="mean"),
        "kind=scale needs factor": dict(kind="scale"),
        "factor=nan: expected a finite number": dict(kind="scale", factor=float("nan")),
        "kind=steer needs direction": dict(kind="steer", strength=2.0),
        "kind=mean adds a constant, which weights": dict(kind="mean", means=values, mode="weights"),
        "unknown mode 'both'": dict(kind="scale", factor=2.0, mode="both"),
        "0.down_proj: no values, expected the mean of each of its 36 neurons": dict(kind="mean", means={}),
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


def plain_hooks(model, neurons: NeuronSet, change) -> ExitStack:
    """`change(name, values)` of the neurons' values, by hooks written here; closing the stack takes them away."""
    stack = ExitStack()
    for name, chosen in neurons.items():
        target = Layout(model).targets[name]
        where = target.storage(torch.as_tensor(chosen).long())

        def changed(values, name=name, where=where):
            values = values.clone()
            values[..., where] = change(name, values[..., where])
            return values

        if target.projection.axis == "column":
            hook = target.module.register_forward_pre_hook(lambda m, args, f=changed: (f(args[0]), *args[1:]))
        else:
            hook = target.module.register_forward_hook(lambda m, args, output, f=changed: f(output))
        stack.callback(hook.remove)
    return stack


BY_STRUCTURE = ("phi3", "mixtral")
EVERY = [n if n in BY_STRUCTURE else pytest.param(n, marks=pytest.mark.slow) for n in sorted(TINY | VARIANTS | MASKED)]


@pytest.mark.parametrize("name", EVERY)
def test_scale_and_steer_equal_plain_hooks(name):
    """In every family: hooks bit for bit, weights to rounding; both leave every bit as it was."""
    model = tiny_model(name, torch.float32 if name == "xglm" else torch.float64)
    neurons, values = some_neurons(model), some_values(model)
    experts = any(target.experts for target in Layout(model).targets.values())
    if experts:  # whose values no plain hook sees: those of attention, and below all in the weights
        neurons = neurons.restrict(projections=["q_proj", "k_proj", "v_proj", "o_proj"])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = {key: torch.from_numpy(v[neurons.indices[key]]) for key, v in values.items() if key in neurons.indices}
    with torch.no_grad():
        plain = logits(model, IDS)
        with plain_hooks(model, neurons, lambda key, v: v * 0.37):
            expected = logits(model, IDS)
        with intervened(model, neurons, kind="scale", factor=0.37, mode="activations"):
            assert torch.equal(logits(model, IDS), expected)
        with intervened(model, neurons, kind="scale", factor=0.37, mode="weights"):
            torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-5)  # norms are float32
        with plain_hooks(model, neurons, lambda key, v: v + (1.5 * chosen[key]).to(v.dtype)):
            expected = logits(model, IDS)
        with intervened(model, neurons, kind="steer", direction=values, strength=1.5):
            assert torch.equal(logits(model, IDS), expected)
        assert not torch.allclose(expected, plain, rtol=1e-3) and torch.equal(logits(model, IDS), plain)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_scaled_experts():
    """Fused experts are scaled in the weights, bit for bit as by hand, and with hooks to rounding."""
    model, by_hand = tiny_model("mixtral"), tiny_model("mixtral")
    neurons = some_neurons(model, projections=("gate_proj", "down_proj"))
    for name, chosen in neurons.items():
        for tensor in Layout(by_hand).targets[name].parameters():
            tensor[Layout(by_hand).targets[name].position(torch.as_tensor(chosen).long())] *= 3
    with torch.no_grad():
        with intervened(model, neurons, kind="scale", factor=3.0):
            assert torch.equal(logits(model, IDS), logits(by_hand, IDS))
        with intervened(model, neurons, kind="scale", factor=3.0, mode="activations"):
            torch.testing.assert_close(logits(model, IDS), logits(by_hand, IDS), rtol=1e-12, atol=1e-12)


def test_both_modes_of_a_power_of_two_are_one():
    """Such a factor rounds nothing, so weights and hooks agree bit for bit, in bfloat16 too."""
    model = tiny_model("llama", torch.bfloat16)
    neurons, found = some_neurons(model), []
    with torch.no_grad():
        for mode in ("weights", "activations"):
            with intervened(model, neurons, kind="scale", factor=0.25, mode=mode):
                found.append(logits(model, IDS))
    assert torch.equal(*found)


def test_a_factor_of_one_changes_nothing():
    """Also no bit."""
    model = tiny_model("qwen2")
    with torch.no_grad():
        plain = logits(model, IDS)
        for mode in ("weights", "activations"):
            with intervened(model, some_neurons(model), kind="scale", factor=1, mode=mode):
                assert torch.equal(logits(model, IDS), plain)


def test_factors_multiply_and_zero_inside_stays_zero():
    """Nested contexts, in the weights too, and neurons that are off before or while others are scaled."""
    model = tiny_model("llama")
    neurons, state = some_neurons(model), {k: v.clone() for k, v in tiny_model("llama").state_dict().items()}
    with torch.no_grad():
        with intervened(model, neurons, kind="scale", factor=4):
            four = logits(model, IDS)
        with deactivated(model, neurons):
            off = logits(model, IDS)
        for mode in ("weights", "activations"):
            with intervened(model, neurons, kind="scale", factor=2, mode=mode):
                with intervened(model, neurons, kind="scale", factor=2, mode=mode):
                    assert torch.equal(logits(model, IDS), four)
                with deactivated(model, neurons):
                    torch.testing.assert_close(logits(model, IDS), off, rtol=1e-10, atol=1e-10)
            with deactivated(model, neurons), intervened(model, neurons, kind="scale", factor=-2, mode=mode):
                torch.testing.assert_close(logits(model, IDS), off, rtol=1e-10, atol=1e-10)
        with intervened(model, neurons, kind="mean", means=some_values(model)):
            with intervened(model, neurons, kind="zero"):
                torch.testing.assert_close(logits(model, IDS), off, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_cast_inside_is_a_cast_outside():
    """Weights that are scaled come back as if they had been cast before, and no buffer is left."""
    model, twin = tiny_model("llama"), tiny_model("llama").to(torch.bfloat16)
    with intervened(model, some_neurons(model), kind="scale", factor=0.3, mode="weights"):
        model.to(torch.bfloat16)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert {name for name, _ in model.named_buffers()} == {name for name, _ in twin.named_buffers()}


def test_scaled_weights_that_are_written_to_are_said():
    """They stay as written, and all others are restored; an adapter around one is said in the next pass."""
    model = tiny_model("llama", torch.float32)
    neurons, state = some_neurons(model), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PLNDError, match="0.up_proj: its weight was written to while its neurons were scaled"):
        with intervened(model, neurons, kind="scale", factor=0.3, mode="weights"), torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(1)
    differing = [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])]
    assert differing == ["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(PLNDError, match="0.q_proj has become Linear, from Linear"):
        with intervened(model, neurons, kind="scale", factor=0.3, mode="weights"):
            inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), model)
            logits(model, IDS)


@pytest.fixture(scope="module")
def measured():
    """A tiny model and its reference over three languages of random tokens."""
    model, generator = tiny_model("gemma3_text", torch.float32), np.random.default_rng(0)
    corpora = {x: [generator.integers(3, 97, 9).tolist() for _ in range(3)] for x in ("de", "en", "zh")}
    return model, reference(model, corpora, ReferenceConfig(min_length=4))


def test_means_and_directions_of_a_reference(measured):
    """Artifacts do what the numbers in them do, and those of another model are refused."""
    model, found = measured
    neurons, direction = some_neurons(model), found.direction("de")
    cases = {
        "mean": (dict(means=found.means), dict(means=found.means.neurons)),
        "steer": (dict(direction=direction, strength=2), dict(direction=direction.neurons, strength=2)),
    }
    with torch.no_grad():
        for kind, options in cases.items():
            one, other = [], []
            for kept, given in zip((one, other), options, strict=True):
                with intervened(model, neurons, kind=kind, **given):
                    kept.append(logits(model, IDS))
            assert torch.equal(one[0], other[0])
    with pytest.raises(ModelMismatchError, match="means: made for"):
        other = tiny_model("llama")
        with intervened(other, some_neurons(other), kind="mean", means=found.means):
            pass
    assert Intervention("mean", means=found.means).record() == {"kind": "mean", "means": found.means.digest}


@contextmanager
def added(model, vectors: dict[str, torch.Tensor]):
    """Vectors added to what leaves blocks, by hooks written here."""
    with ExitStack() as stack:
        for name, vector in vectors.items():
            block = model.model.layers[int(name)]

            def hook(module, args, output, vector=vector):
                return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

            stack.callback(block.register_forward_hook(hook).remove)
        yield


def test_steering_adds_to_what_leaves_blocks(measured):
    """All or some of them, with any strength, together with neurons that are amplified; nothing is left."""
    model, found = measured
    direction, neurons = found.direction("zh"), some_neurons(model)
    vectors = {name: 1.5 * torch.from_numpy(vector) for name, vector in direction.blocks.items()}
    with torch.no_grad():
        plain = logits(model, IDS)
        with added(model, vectors):
            expected = logits(model, IDS)
        with steered(model, direction, strength=1.5):
            torch.testing.assert_close(logits(model, IDS), expected)
        with added(model, {"1": vectors["1"]}):
            expected = logits(model, IDS)
        with steered(model, direction, strength=1.5, blocks=[1]):
            torch.testing.assert_close(logits(model, IDS), expected)
        with added(model, vectors), plain_hooks(model, neurons, lambda key, v: v * 2):
            expected = logits(model, IDS)
        with intervened(model, neurons, kind="scale", factor=2), steered(model, direction, strength=1.5):
            torch.testing.assert_close(logits(model, IDS), expected)
        with steered(model, direction, strength=1.5), intervened(model, neurons, kind="scale", factor=2):
            torch.testing.assert_close(logits(model, IDS), expected)
        assert torch.equal(logits(model, IDS), plain) and not torch.allclose(expected, plain, rtol=1e-3)
    for options, words in (({"blocks": [7]}, "no block '7': the direction has 0, 1"), ({"strength": np.inf}, "finite")):
        with pytest.raises(PLNDError, match=words), steered(model, direction, **options):
            pass
