"""Deactivation switches exactly the named neurons off, both ways alike, and leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plnd.deactivation import deactivate, deactivated
from plnd.errors import FamilyError, ModelMismatchError, PLNDError
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from tiny import logits, tiny_model


def some_neurons(model, seed: int = 0, share: float = 0.2) -> NeuronSet:
    """A random share of every projection."""
    layout = Layout(model)
    generator = np.random.default_rng(seed)
    indices = {
        name: np.flatnonzero(generator.random(width) < share).astype(np.int32) for name, width in layout.widths.items()
    }
    importance = {name: np.ones(len(v), dtype=np.float32) for name, v in indices.items()}
    return NeuronSet(indices, importance, {"model": layout.description()})


def snapshot(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, state) -> bool:
    """Whether the model is bit for bit what the snapshot says."""
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


IDS = torch.tensor([[5, 9, 33, 7, 61, 4]])


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_equals_zeroing_by_hand(variant, mode):
    """The deactivated model is the model whose rows, biases and columns were zeroed in a copy."""
    model, by_hand = tiny_model(variant), tiny_model(variant)
    neurons = some_neurons(model)
    if mode == "activations" and any(target.experts for target in Layout(model).targets.values()):
        with pytest.raises(FamilyError, match="fused experts can be switched off in the weights only"):
            deactivate(model, neurons, mode=mode)
        return
    with torch.no_grad():
        for name, rows in neurons.items():
            target, index = Layout(by_hand).targets[name], torch.as_tensor(rows).long()
            weight, column = target.stored.data, target.projection.name in ("o_proj", "down_proj")
            if target.experts:
                expert, own = index // (target.width // target.experts), index % (target.width // target.experts)
                if column:
                    weight[expert, :, own] = 0
                else:
                    weight[expert, target.storage(own)] = 0
                continue
            out_first = weight.T if target.transposed else weight
            if column:
                out_first[:, index] = 0
                continue
            out_first[target.storage(index)] = 0
            if target.plain.bias is not None:
                target.plain.bias[target.storage(index)] = 0
        plain = logits(model, IDS)
        with deactivated(model, neurons, mode=mode):
            masked = logits(model, IDS)
        torch.testing.assert_close(masked, logits(by_hand, IDS), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(masked, plain)
        assert torch.equal(logits(model, IDS), plain)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_restores_bit_for_bit_also_after_an_exception_and_nested(family, mode):
    """Every parameter is what it was, whatever happens inside, for nested and repeated use."""
    model = tiny_model(family, dtype=torch.bfloat16)
    if mode == "activations" and any(target.experts for target in Layout(model).targets.values()):
        pytest.skip("fused experts are switched off in the weights only")
    state, first, second = snapshot(model), some_neurons(model, 1), some_neurons(model, 2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), deactivated(model, first, mode=mode):
            with deactivated(model, second, mode=mode):
                pass
            raise ZeroDivisionError
        assert same(model, state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_named_neurons_change(family):
    """An unmasked row, column or bias entry keeps its bits while others are zero."""
    model = tiny_model(family)
    state, neurons = snapshot(model), some_neurons(model)
    with deactivated(model, neurons, mode="weights"):
        for name, target in Layout(model).targets.items():
            rows = neurons.indices.get(name, np.empty(0, dtype=int))
            keep = np.setdiff1d(np.arange(target.width), rows)
            original = Layout(_with_state(model, state)).targets[name].weight()
            column = target.projection.axis == "column"
            now = target.weight()
            assert torch.equal(now[:, keep] if column else now[keep], original[:, keep] if column else original[keep])
            assert not (now[:, rows] if column else now[rows]).any()


def _with_state(model, state):
    twin = type(model)(model.config).to(next(iter(state.values())).dtype)
    twin.load_state_dict(state)
    return twin


def test_refuses_another_model_before_changing_anything():
    """A mask made for another family, depth or width is named and nothing is edited."""
    model = tiny_model("llama")
    neurons, state = some_neurons(model), snapshot(model)
    for changed, word in (({"model_type": "gpt2"}, "gpt2"), ({"blocks": 9}, "9 blocks")):
        other = NeuronSet(neurons.indices, neurons.importance, {"model": {**neurons.model, **changed}})
        with pytest.raises(ModelMismatchError, match=word):
            deactivate(model, other)
    widths = {**neurons.widths, "1.k_proj": 4096}
    other = NeuronSet(neurons.indices, neurons.importance, {"model": {**neurons.model, "widths": widths}})
    with pytest.raises(ModelMismatchError, match="1.k_proj has 4096"):
        deactivate(model, other)
    assert same(model, state)


def test_unknown_mode_is_refused():
    """A misspelt mode is an error, not a default."""
    model = tiny_model("llama")
    with pytest.raises(PLNDError, match="unknown mode 'weight'"):
        deactivate(model, some_neurons(model), mode="weight")  # type: ignore[arg-type]


def test_shared_weight_goes_through_activations():
    """A weight that two blocks share cannot be zeroed for one of them: hooks do it, and `weights` refuses."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    neurons = some_neurons(model).restrict(where=lambda block, projection: (block, projection) == (0, "down_proj"))
    with pytest.raises(PLNDError, match="0.down_proj shares its weight"):
        deactivate(model, neurons, mode="weights")
    twin = tiny_model("llama")
    twin.model.layers[1].mlp.down_proj.weight.data = model.model.layers[0].mlp.down_proj.weight.data.clone()
    with deactivated(model, neurons) as masked, deactivated(twin, neurons, mode="weights") as expected:
        torch.testing.assert_close(masked(IDS).logits, expected(IDS).logits)


def test_shared_module_is_refused():
    """One module in two blocks cannot be switched off in one of them by any means."""
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(FamilyError, match="shared with another block"):
        deactivate(model, some_neurons(model))


def test_lora_rows_are_off_with_their_delta():
    """Around a PEFT adapter the neuron of the adapted matrix is off, not only of the base weight."""
    from peft import LoraConfig, get_peft_model

    config = LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(model, lora).double().eval()
    neurons = some_neurons(peft)
    with deactivated(peft, neurons):
        masked = peft(IDS).logits
    with deactivated(peft.merge_and_unload(), neurons, mode="weights") as merged:
        torch.testing.assert_close(masked, merged(IDS).logits)
