"""Merging into one layer and out of it again, dense and quantised."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_plnd import NeuronSelectConfig
from peft_plnd.tuner.errors import NeuronSelectError
from plnd.models.quantised import dequantised
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


OUTLIERS = torch.logspace(-2, 0, 64)[:, None]
"""Scales of rows, so that a scale in another row's place shows."""
BITSANDBYTES = {
    "8bit": {},
    "nf4": dict(quant_type="nf4", compute_dtype=torch.float32, compress_statistics=False),
    "double": dict(quant_type="nf4", compute_dtype=torch.float32, compress_statistics=True),
    "fp4": dict(quant_type="fp4", compute_dtype=torch.bfloat16, compress_statistics=False),
    "storage": dict(quant_type="nf4", quant_storage=torch.bfloat16, compress_statistics=False),
}
TORCHAO = {"Int8WeightOnlyConfig": {}, "Float8WeightOnlyConfig": {}}
TORCHAO |= {"IntxWeightOnlyConfig": {"weight_dtype": torch.int4}}


class Model(nn.Sequential):
    """A model that says by what config it was quantised, as transformers' do."""

    def __init__(self, layer, config):
        super().__init__(layer)
        if config is not None:
            self.hf_quantizer = SimpleNamespace(
                quantization_config=SimpleNamespace(get_apply_tensor_subclass=lambda: config)
            )


def dense_layer():
    """[64, 64], with fixed weights."""
    torch.manual_seed(0)
    dense = nn.Linear(64, 64)
    with torch.no_grad():
        dense.weight.mul_(OUTLIERS)
    return dense


def packed(kind, dense, named=True):
    """A model of one layer, quantised on the CPU; `named`: it knows its config."""
    config = None
    if kind in TORCHAO:
        torchao = pytest.importorskip("torchao.quantization")
        config, layer = getattr(torchao, kind)(**TORCHAO[kind]), dense.requires_grad_(False)
        torchao.quantize_(layer, config)
    else:
        layers = pytest.importorskip("bitsandbytes").nn
        make = partial(layers.Linear8bitLt, has_fp16_weights=False) if kind == "8bit" else layers.Linear4bit
        layer = make(64, 64, **BITSANDBYTES[kind])
        layer.load_state_dict(dense.state_dict())
        layer = layer.to("cpu")
    return Model(layer, config if named else None).eval()


def tuned_packed(kind, named=True):
    """The same, tuned in two rows and three columns by random deltas, in evaluation mode."""
    model = packed(kind, dense_layer(), named)
    tuned = get_peft_model(model, NeuronSelectConfig(neurons={"0": NEURONS}, bias="selected"))
    fill(tuned, 0.5)
    return tuned.eval()


@pytest.mark.parametrize("kind", ["8bit", "nf4", *TORCHAO])
def test_quantised_bases_train(kind):
    """The deltas receive gradients."""
    tuned = get_peft_model(packed(kind, dense_layer()), NeuronSelectConfig(neurons={"0": NEURONS}))
    layer, x = layer_of(tuned), torch.randn(8, 64)
    assert layer.quantization_backend is not None and "quantization_backend=" in repr(layer)
    optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(20):
        loss = (tuned(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("passed", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("kind", [*BITSANDBYTES, *TORCHAO])
@torch.no_grad()
def test_merging_into_packed_weights(kind, passed):
    """Before and after a first pass the result is the sum packed by the library itself, and unmerging is bit for bit.

    After saving, after merging again, and merged for good, too.
    """
    tuned = tuned_packed(kind)
    layer, x = layer_of(tuned), torch.randn(8, 64)
    before = tuned(x) if passed else None
    weight, dense = layer.get_base_weight(), dense_layer()
    dense.weight.copy_(weight.float() + layer.get_delta_weight("default"))
    dense.bias[NEURONS["out"]] += layer.neuron_select_bias["default"]
    change = (dense.weight - weight).norm() / dense.weight.norm()
    expected = packed(kind, dense)
    with pytest.warns(UserWarning, match="Merging into .* weights quantises them again"):
        tuned.merge_adapter()
    torch.testing.assert_close(layer.get_base_weight(), dequantised(expected[0]))
    answer = tuned(x)
    torch.testing.assert_close(answer, expected(x))
    tuned.unmerge_adapter()
    assert torch.equal(layer.get_base_weight(), weight)
    after = tuned(x)
    assert before is None or torch.equal(after, before)
    assert (answer - after).norm() / after.norm() < 0.25 < change
    tuned.state_dict()
    assert torch.equal(tuned(x), after)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.merge_adapter()
        assert torch.equal(tuned(x), answer)
        tuned.unmerge_adapter()
        assert torch.equal(tuned.merge_and_unload(safe_merge=True)(x), answer)


@torch.no_grad()
def test_adapters_merged_one_after_the_other_are_packed_once():
    """The second merge starts from the weights before the first, and unmerging takes both back."""
    tuned = tuned_packed("nf4")
    tuned.add_adapter("other", NeuronSelectConfig(neurons={"0": {"out": [0, 1], "in": [0, 1]}}))
    tuned.base_model.set_adapter(["default", "other"])
    fill(tuned, 0.5, seed=1)
    layer, x = layer_of(tuned.eval()), torch.randn(4, 64)
    before = tuned(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.merge_adapter()
        together = layer.get_base_weight()
        tuned.unmerge_adapter()
        tuned.merge_adapter(["other"])
        tuned.merge_adapter(["default"])
    assert torch.equal(layer.get_base_weight(), together) and set(layer.merged_adapters) == {"default", "other"}
    tuned.unmerge_adapter()
    assert torch.equal(tuned(x), before) and not layer.merged_adapters


@pytest.mark.parametrize("kind", ["8bit", "nf4", "Int8WeightOnlyConfig"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_packing_refuses_what_is_not_finite(kind, value):
    """One such number spoils its whole row or block where it is packed: the layer stays as it was."""
    tuned, x = tuned_packed(kind), torch.randn(4, 64)
    layer, before = layer_of(tuned), tuned(x)
    layer.neuron_select_out["default"][0, 5] = value
    weight = layer.get_base_weight()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="NaNs detected in the merged .*default seems"):
        layer.merge()
    assert not layer.merged and torch.equal(layer.get_base_weight(), weight)
    layer.neuron_select_out["default"][0, 5] = 0
    assert torch.equal(tuned(x)[:, 1:3], before[:, 1:3])


def test_torchao_without_its_config_trains_and_refuses_to_merge():
    """As LoRA does: a layer quantised by hand does not say how to pack it again."""
    tuned, x = tuned_packed("Int8WeightOnlyConfig", named=False), torch.randn(4, 64)
    tuned(x).sum().backward()
    assert layer_of(tuned).neuron_select_out["default"].grad is not None
    with pytest.raises(NeuronSelectError, match="Int8Tensor .*: adapters train on it, but nothing can be merged"):
        tuned.merge_adapter()


class Rounding(nn.Linear):
    """A layer whose dense weights are rounded in the pass."""

    def forward(self, x):
        """One of fifteen values for each weight."""
        scale = self.weight.abs().amax() / 7
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


@pytest.mark.parametrize("kind", ["rounding", "float8"])
def test_unknown_packings_refuse_to_merge_before_anything_is_merged(kind):
    """One line that names the kind; the dense layer before it is as it was, in merging for good too."""
    layer = Rounding(6, 6)
    if kind == "float8":
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    config = NeuronSelectConfig(neurons={"0": NEURONS, "1": NEURONS})
    tuned = get_peft_model(nn.Sequential(nn.Linear(6, 6), layer), config)
    fill(tuned)
    first = tuned.base_model.model[0]
    weight = first.base_layer.weight.clone()
    deltas = tuned.base_model.model[1].neuron_select_out["default"]
    assert deltas.dtype == torch.float32
    reasons = {"rounding": "does not multiply by its weight", "float8": "packed as Parameter of torch.float8_e4m3fn"}
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(NeuronSelectError, match=f"Rounding: .*{reasons[kind]}.*nothing can be merged into it"):
            merge()
        assert not first.merged and torch.equal(first.base_layer.weight, weight)
        assert tuned.base_model.model[0] is first


@torch.no_grad()
def test_packing_refuses_what_is_too_large():
    """bitsandbytes packs 8 bits from half precision: a finite number beyond it is infinite there."""
    tuned = tuned_packed("8bit")
    layer = layer_of(tuned)
    layer.neuron_select_out["default"][0, 5] = 1e6
    weight = layer.get_base_weight()
    with pytest.warns(UserWarning), pytest.raises(NeuronSelectError, match="values too large to be packed again"):
        layer.merge()
    assert not layer.merged and torch.equal(layer.get_base_weight(), weight)


@pytest.mark.parametrize("name", ["a.b", ".", "", "keys", "train", "_buffers"])
def test_adapter_names_that_torch_cannot_keep(name):
    """One line, and the model is as it was: for the first adapter, for a further one, and for a weighted sum."""
    base, tuned = nn.Sequential(nn.Linear(6, 5)), adapted()
    plain = base[0]
    config = NeuronSelectConfig(neurons={"0": NEURONS})
    for attempt in (
        lambda: get_peft_model(base, config, adapter_name=name),
        lambda: tuned.add_adapter(name, config),
        lambda: tuned.add_weighted_adapter(["default"], [1.0], name),
    ):
        with pytest.raises(NeuronSelectError, match=f"adapter name {name!r}: expected a word without a dot"):
            attempt()
    assert base[0] is plain and list(tuned.peft_config) == ["default"]


@pytest.mark.parametrize("name", ["zh", "a/b", "a b", "neuron_select_", "weight", "base_layer", "1"])
def test_other_adapter_names_work(name, tmp_path):
    """Saved and loaded again under their own name, as PEFT's own methods do."""
    base, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 6)
    loaded_base = copy.deepcopy(base)
    tuned = get_peft_model(base, NeuronSelectConfig(neurons={"0": NEURONS}), adapter_name=name)
    fill(tuned)
    tuned.save_pretrained(tmp_path, selected_adapters=[name])
    assert torch.equal(PeftModel.from_pretrained(loaded_base, tmp_path / name, adapter_name=name)(x), tuned(x))
