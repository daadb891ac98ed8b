"""Merging into one layer and out of it again, dense and quantised."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_plnd import NeuronSelectConfig
from tuning import fill

NEURONS = {"out": [0, 3], "in": [1, 2, 5]}


def adapted(base=None, scale=0.1, seed=0, **arguments):
    """A model of one linear layer [5, 6], tuned in two rows and three columns, with random deltas."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5) if base is None else base)
    tuned = get_peft_model(model, NeuronSelectConfig(neurons={"0": NEURONS}, bias="selected", **arguments))
    fill(tuned, scale, seed)
    return tuned


def layer_of(tuned):
    """The layer itself."""
    return tuned.base_model.model[0]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_forward_pass_is_the_formula(transposed):
    """y = base(x); y[..., R] += x·dRᵀ + db; y += x[..., C]·dCᵀ, an entry on both belonging to the row."""
    tuned = adapted(Conv1D(5, 6) if transposed else None)
    layer, x = layer_of(tuned), torch.randn(2, 4, 6)
    rows, columns = NEURONS["out"], NEURONS["in"]
    d_out, d_in = layer.neuron_select_out["default"], layer.neuron_select_in["default"].clone()
    with torch.no_grad():
        d_in[rows] = 0
        expected = layer.base_layer(x) + x[..., columns] @ d_in.T
        expected[..., rows] += x @ d_out.T + layer.neuron_select_bias["default"]
        torch.testing.assert_close(tuned(x), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merging_adds_in_float32_and_unmerging_restores_bit_for_bit(dtype, transposed):
    """For a base of any dtype; the merged layer answers as the unmerged one does, up to one rounding of its dtype."""
    tuned = adapted((Conv1D(5, 6) if transposed else nn.Linear(6, 5)).to(dtype))
    layer, x = layer_of(tuned), torch.randn(4, 6, dtype=dtype)
    weight, bias = layer.base_layer.weight.clone(), layer.base_layer.bias.clone()
    before = tuned(x)
    wide = torch.promote_types(dtype, torch.float32)
    expected = (weight.to(wide) + layer.get_delta_weight("default").to(wide)).to(dtype)
    tuned.merge_adapter()
    assert torch.equal(layer.base_layer.weight, expected) and not torch.equal(expected, weight)
    assert not torch.equal(layer.base_layer.bias, bias)
    torch.testing.assert_close(tuned(x), before, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    tuned.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, weight) and torch.equal(layer.base_layer.bias, bias)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_large_deltas_unmerge_bit_for_bit():
    """Subtracting would not: a delta a million times the weight leaves no bit of it."""
    tuned = adapted(scale=1e6)
    weight = layer_of(tuned).base_layer.weight.clone()
    tuned.merge_adapter()
    tuned.unmerge_adapter()
    assert torch.equal(layer_of(tuned).base_layer.weight, weight)


def test_two_adapters_merge_and_unmerge_together():
    """The sum of both, and bit for bit back."""
    tuned = adapted()
    tuned.add_adapter("other", NeuronSelectConfig(neurons={"0": {"out": [0, 1], "in": [0, 1]}}))
    tuned.base_model.set_adapter(["default", "other"])
    fill(tuned, seed=1)
    layer, x = layer_of(tuned), torch.randn(4, 6)
    weight, before = layer.base_layer.weight.clone(), tuned(x)
    tuned.merge_adapter()
    assert layer.merged_adapters == ["default", "other"]
    torch.testing.assert_close(tuned(x), before)
    tuned.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, weight)


@pytest.mark.parametrize("part", ["neuron_select_out", "neuron_select_in", "neuron_select_bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_safe_merge_refuses_what_is_not_finite(part, value):
    """In PEFT's words; the base is as it was, and an ordinary merge goes through."""
    tuned = adapted()
    layer = layer_of(tuned)
    getattr(layer, part)["default"].data[1] = value
    weight, bias = layer.base_layer.weight.clone(), layer.base_layer.bias.clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights. The adapter default seems to be broken"):
        layer.merge(safe_merge=True)
    assert (
        not layer.merged and torch.equal(layer.base_layer.weight, weight) and torch.equal(layer.base_layer.bias, bias)
    )
    layer.merge()
    assert layer.merged


def test_disabling_a_merged_adapter_unmerges_it():
    """Inside `disable_adapter` the model is the base model, biases included."""
    tuned, x = adapted(), torch.randn(3, 6)
    base = copy.deepcopy(layer_of(tuned).base_layer)
    tuned.merge_adapter()
    with warnings.catch_warnings(), tuned.disable_adapter():
        warnings.simplefilter("error")
        assert torch.equal(tuned(x), base(x))


def quantised(kind):
    """A bitsandbytes layer [64, 64] on the CPU with fixed weights."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    dense = nn.Linear(64, 64)
    if kind == "8bit":
        layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(dense.state_dict())
    return layer.to("cpu")


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_bases_train_and_merge_with_a_warning(kind):
    """The deltas receive gradients; merging says that it quantises again and comes near; unmerging comes back near."""
    tuned = get_peft_model(nn.Sequential(quantised(kind)), NeuronSelectConfig(neurons={"0": NEURONS}))
    layer, x = layer_of(tuned), torch.randn(8, 64)
    assert layer.quantization_backend is not None and "quantization_backend=" in repr(layer)
    base = tuned(x).detach()
    optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(20):
        loss = (tuned(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    before = tuned(x).detach()
    with pytest.warns(UserWarning, match="Merging into bnb .* weights quantises them again"):
        tuned.merge_adapter()
    learned = (before - base).abs().mean()
    assert (tuned(x) - before).abs().mean() < 0.5 * learned
    tuned.unmerge_adapter()
    assert (tuned(x) - before).abs().mean() < 0.5 * learned
