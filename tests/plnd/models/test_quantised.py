"""Packed weights are measured as what they stand for, and switched off exactly; what cannot be unpacked is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from plnd.commands.main import main
from plnd.deactivation import deactivated
from plnd.detection.config import DetectConfig
from plnd.detection.oracle import sequential
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.models.quantised import dequantised, guard_order, packing, quantisation
from plnd.roles.activations import feed_forward_widths
from plnd.roles.deactivation import deactivated_rows
from tiny import tiny_model

CONFIG = DetectConfig(min_length=4, batch_size=2, qk="exact")
ROUNDING = {"8bit": 0.05, "4bit": 0.02, "double": 0.02, "storage": 0.02}
"""What the kernels may round in a pass (8 bits: the activations too), relative to the largest value."""
ROUNDING |= {"Int8WeightOnlyConfig": 1e-5, "Float8WeightOnlyConfig": 1e-5, "IntxWeightOnlyConfig": 1e-5}
ROUNDING |= {"Int8DynamicActivationInt8WeightConfig": 0.05}
EVERY = sorted(ROUNDING)


def documents() -> list[list[int]]:
    """Random token ids."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 96, length).tolist() for length in (12, 20, 9, 15)]


def save_model(path, family):
    """Saves a checkpoint whose matrices are of sizes that the kernels take."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    shape = dict(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    kind, config = (LlamaForCausalLM, LlamaConfig) if family == "llama" else (Gemma3ForCausalLM, Gemma3TextConfig)
    torch.manual_seed(0)
    model = kind(config(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of Llama's kind."""
    return save_model(tmp_path_factory.mktemp("model"), "llama")


def load_packed(folder, kind):
    """The checkpoint, packed while it is loaded."""
    if kind in ("8bit", "4bit"):
        pytest.importorskip("bitsandbytes")
        return load_model(folder, device="cpu", dtype="float32", quantize=kind)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    if kind in ("double", "storage"):
        pytest.importorskip("bitsandbytes")
        options = dict(double=dict(bnb_4bit_use_double_quant=True), storage=dict(bnb_4bit_quant_storage=torch.bfloat16))
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options[kind])
    else:
        torchao = pytest.importorskip("torchao.quantization")
        options = {"weight_dtype": torch.int4} if kind.startswith("Intx") else {}
        config = TorchAoConfig(quant_type=getattr(torchao, kind)(**options))
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="float32", device_map="cpu")
    guard_order(model)
    return model.eval()


@pytest.fixture(scope="module", params=[*EVERY, "4bit gemma3"])
def models(request, tmp_path_factory):
    """How it is packed, the packed model, and a dense one with the weights that the packed ones stand for."""
    kind, _, family = request.param.partition(" ")
    folder = save_model(tmp_path_factory.mktemp("model"), family or "llama")
    packed = load_packed(folder, kind)
    dense = load_model(folder, device="cpu", dtype="float32")
    with torch.no_grad():
        for name, target in Layout(packed).targets.items():
            Layout(dense).targets[name].plain.weight.copy_(dequantised(target.plain))
    return kind, packed, dense


def distance(found, expected) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_scores_are_those_of_the_weights_that_are_packed(models):
    """Packed weights give the importances of the dense ones they stand for; of 4 bits, not those of the original's."""
    kind, packed, dense = models
    scores, expected = (detect(model, documents(), CONFIG) for model in (packed, dense))
    original = detect(load_model(packed.name_or_path, device="cpu", dtype="float32"), documents(), CONFIG)
    bits = kind if kind == "8bit" else "4bit"
    assert scores.metadata["quantisation"] == (f"torchao {kind}" if "Config" in kind else f"bitsandbytes {bits}")
    assert scores.metadata["model"]["widths"] == expected.metadata["model"]["widths"]
    assert scores.minimum.keys() == expected.minimum.keys()
    for name, minimum in scores.minimum.items():
        assert distance(minimum, expected.minimum[name]) < ROUNDING[kind]
        if kind != "8bit" and not kind.startswith("Int8Dynamic"):
            assert distance(original.minimum[name], expected.minimum[name]) > ROUNDING[kind]
    assert detect(packed, documents(), CONFIG).digest == scores.digest


def test_a_first_pass_does_not_change_what_is_read(models):
    """Kernels that pack the weight anew when it is first used still give the same matrix, also after `state_dict`."""
    _, packed, _ = models
    before = {name: target.weight() for name, target in Layout(packed).targets.items()}
    with torch.no_grad():
        packed(torch.tensor(documents()[:1]))
        packed.state_dict()
        packed(torch.tensor(documents()[:1]))
    assert all(torch.equal(target.weight(), before[name]) for name, target in Layout(packed).targets.items())


def test_neurons_of_packed_weights_are_switched_off(models):
    """Deactivation goes by activations, does what zeroed weights do, and leaves the model as it was."""
    kind, packed, dense = models
    neurons = detect(dense, documents(), CONFIG).select(fraction=0.1)
    ids = torch.tensor(documents()[:1])
    with torch.no_grad():
        before = packed(ids).logits
        with deactivated(packed, neurons):
            without = packed(ids).logits
        with deactivated(dense, neurons, mode="weights"):
            expected = dense(ids).logits
        assert torch.equal(packed(ids).logits, before)
    assert distance(without.numpy(), expected.numpy()) < ROUNDING[kind] < distance(before.numpy(), expected.numpy())
    with (
        pytest.raises(PLNDError, match="is quantised or sharded .* use mode=activations"),
        deactivated(packed, neurons, mode="weights"),
    ):
        pass


def test_neurons_of_each_row_are_switched_off(models):
    """So are different neurons in every row of a batch, and one at a time is refused where weights are packed."""
    kind, packed, dense = models
    widths, ids = feed_forward_widths(Layout(packed)), torch.tensor([documents()[0], documents()[0][::-1]])
    rows = [{name: np.arange(width) % 3 == row for name, width in widths.items()} for row in (0, 1)]
    with torch.no_grad():
        before = packed(ids).logits
        with deactivated_rows(packed, rows):
            without = packed(ids).logits
        with deactivated_rows(dense, rows):
            expected = dense(ids).logits
    assert distance(without.numpy(), expected.numpy()) < ROUNDING[kind] < distance(before.numpy(), expected.numpy())
    with pytest.raises(FamilyError, match="a weight packed as .*, expected a dense one: it cannot be edited in place"):
        sequential(packed, ids[0], "0.down_proj")


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_packed_checkpoint_needs_no_word(folder, kind, tmp_path):
    """What was saved packed, also after a pass, is loaded packed, and computes the same."""
    packed, ids = load_packed(folder, kind), torch.tensor(documents()[:1])
    with torch.no_grad():
        before = packed(ids).logits
    packed.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
    with torch.no_grad():
        assert distance(again(ids).logits.numpy(), before.numpy()) < ROUNDING[kind]
        assert torch.equal(packed(ids).logits, before)
    assert quantisation(again) == f"bitsandbytes {kind}"
    first, second = (Layout(model).targets["0.down_proj"].plain for model in (packed, again))
    assert distance(dequantised(second).float().numpy(), dequantised(first).numpy()) < ROUNDING[kind]


def test_dense_weights_are_themselves(folder):
    """Nothing is copied where nothing is packed."""
    model = load_model(folder, device="cpu", dtype="float32")
    assert quantisation(model) is None
    linear, norm = model.model.layers[0].mlp.down_proj, model.model.norm
    for module in (linear, norm):
        assert dequantised(module).data_ptr() == module.weight.data_ptr()


def four_bits(**options):
    """A 4-bit layer [64, 64] of bitsandbytes on the CPU, with a bias in bfloat16 and scales that differ."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    dense = nn.Linear(64, 64)
    with torch.no_grad():
        dense.weight.mul_(torch.logspace(-2, 0, 64)[:, None])
    layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compress_statistics=False, **options)
    layer.load_state_dict(dense.state_dict())
    layer = layer.to("cpu").eval()
    layer.bias.data = layer.bias.data.bfloat16()
    return layer


def test_reading_changes_nothing():
    """Neither the dtype that a layer computes in nor that of its bias, nor how it is packed."""
    layer = four_bits()
    data, state = layer.weight.data, layer.weight.quant_state
    dequantised(layer)
    assert layer.compute_dtype is None and not layer.compute_type_is_set and layer.bias.dtype == torch.bfloat16
    assert layer.weight.data.data_ptr() == data.data_ptr() and layer.weight.quant_state is state
    assert not getattr(state, "packing_format_for_cpu", False)


def test_scales_out_of_order_are_refused():
    """What bitsandbytes' own `state_dict` leaves behind on CPUs that pack the weight anew."""
    layer = four_bits()
    with torch.no_grad():
        layer(torch.randn(1, 64))
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU's kernel does not pack the weight anew")
    layer.state_dict()
    if layer.weight.quant_state.absmax.dim() == 1:
        pytest.skip("this bitsandbytes puts the scales back in order")
    with pytest.raises(FamilyError, match="4-bit weights whose scales are out of order: .*: load it again"):
        dequantised(layer)


def stored_as(dtype):
    """A linear layer whose weight is numbers of another kind."""
    layer = nn.Linear(32, 32)
    layer.weight = nn.Parameter(torch.ones(32, 32).to(dtype), requires_grad=False)
    return layer


def without_weight():
    """As GPTQ and AWQ have it: integers under other names."""
    layer = nn.Linear(32, 32)
    del layer.weight
    layer.register_buffer("qweight", torch.ones(4, 32, dtype=torch.int32))
    return layer


class Empty(nn.Linear):
    """As HQQ and FP-Quant have it in transformers: a weight for show."""

    def __init__(self):
        super().__init__(32, 32)
        self.weight = nn.Parameter(torch.empty(0))


class Rounding(nn.Linear):
    """As fake-quantised layers have it: dense weights that are rounded in the pass."""

    def forward(self, x):
        """One of fifteen values for each weight."""
        scale = self.weight.abs().amax() / 7
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


class Subclass(torch.Tensor):
    """A tensor of a library that is not known."""


def subclass():
    """A layer with one."""
    layer = nn.Linear(32, 32)
    layer.weight = nn.Parameter(torch.ones(32, 32).as_subclass(Subclass))
    return layer


def rewired():
    """As compressed-tensors has it: an ordinary layer with another pass on the object."""
    layer = nn.Linear(32, 32)
    layer.forward = lambda x: Rounding.forward(layer, x)
    return layer


def fp8():
    """transformers' own layer of block-wise 8-bit floats."""
    from transformers.integrations.finegrained_fp8 import FP8Linear

    return FP8Linear(32, 32, block_size=(32, 32))


REFUSED = {
    "int8": (lambda: stored_as(torch.int8), "Linear: a weight packed as Parameter of torch.int8"),
    "uint8": (lambda: stored_as(torch.uint8), "Linear: a weight packed as Parameter of torch.uint8"),
    "float8": (lambda: stored_as(torch.float8_e4m3fn), "Linear: a weight packed as Parameter of torch.float8_e4m3fn"),
    "nothing": (without_weight, "Linear: no tensor 'weight', so its weight is packed in a way of its own"),
    "empty": (Empty, r"Empty: a linear layer that does not multiply by its weight \[0\] as it is stored"),
    "rounding": (lambda: Rounding(32, 32), "Rounding: a linear layer that does not multiply by its weight"),
    "subclass": (subclass, "Linear: a weight packed as .* of torch.float32"),
    "rewired": (rewired, "Linear: a linear layer that does not multiply by its weight"),
    "parametrised": (lambda: weight_norm(nn.Linear(40, 24)), "a weight that is computed anew in every pass"),
    "fp8": (fp8, "FP8Linear: a weight packed as Parameter of torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_packings_are_refused(kind):
    """What cannot be unpacked is never taken for numbers: by name in detection and in the weights, and in one line."""
    make, reason = REFUSED[kind]
    model = tiny_model("llama")
    neurons = detect(model, documents(), CONFIG).select(fraction=0.2).restrict(projections=["down_proj"])
    layer = make()
    layer.in_features, layer.out_features = 40, 24
    if kind not in ("nothing", "empty", "parametrised"):
        layer.weight = nn.Parameter(layer.weight.data.new_ones(24, 40), requires_grad=False)
    if kind == "subclass":
        layer.weight = nn.Parameter(layer.weight.data.as_subclass(Subclass))
    if kind in ("rounding", "rewired"):
        layer.weight = nn.Parameter(torch.randn(24, 40))
    if getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(torch.zeros(24))
    model.model.layers[1].mlp.down_proj = layer
    with pytest.raises(FamilyError, match=f"{reason}.*, expected a dense one or one of bitsandbytes, torchao or HQQ"):
        detect(model, documents(), CONFIG)
    with (
        pytest.raises(PLNDError, match=f"1.down_proj is quantised or sharded .*{reason}.*use mode=activations"),
        deactivated(model, neurons, mode="weights"),
    ):
        pass


def test_a_layer_of_its_own_kind_that_multiplies_by_its_weight_is_dense():
    """Falcon's linear layer has its own pass, and computes what `nn.Linear` does, in every dtype."""
    from transformers.models.falcon.modeling_falcon import FalconLinear

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layer = FalconLinear(40, 24).to(dtype)
        assert packing(layer) is None and dequantised(layer).data_ptr() == layer.weight.data_ptr()


@pytest.mark.parametrize("parameter", ["gate_up_proj", "down_proj"])
def test_packed_experts_are_refused(parameter):
    """Fused experts of 8-bit floats, either matrix alone."""
    model = tiny_model("mixtral").float()
    experts = model.model.layers[0].mlp.experts
    setattr(experts, parameter, nn.Parameter(getattr(experts, parameter).to(torch.float8_e4m3fn), requires_grad=False))
    with pytest.raises(FamilyError, match="packed as Parameter of torch.float8_e4m3fn, expected"):
        detect(model, documents(), CONFIG)


def test_hqq_is_unpacked():
    """HQQ's layers say themselves what they stand for."""
    hqq = pytest.importorskip("hqq.core.quantize")
    config = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
    layer = hqq.HQQLinear(nn.Linear(64, 64), config, compute_dtype=torch.float32, device="cpu")
    torch.testing.assert_close(dequantised(layer), layer(torch.eye(64)).T - layer.bias[:, None], atol=1e-5, rtol=1e-4)


def test_a_packed_checkpoint_is_verified_and_not_exported(folder, tmp_path, capsys):
    """`plnd verify` reads a packed checkpoint's widths; `plnd export` refuses it by name."""
    packed = load_packed(folder, "Int8WeightOnlyConfig")
    packed.save_pretrained(tmp_path / "packed")
    detect(packed, documents(), CONFIG).select(fraction=0.1).save(tmp_path / "mask.safetensors")
    mask, model = str(tmp_path / "mask.safetensors"), str(tmp_path / "packed")
    assert main(["verify", mask, "--model", model]) == 0
    assert main(["export", "--model", model, "--mask", mask, "--output", str(tmp_path / "out")]) == 2
    assert "quantised (torchao)" in capsys.readouterr().err


def test_quantize_is_checked(folder, monkeypatch):
    """An unknown number of bits, and a missing package, are said before anything is loaded."""
    with pytest.raises(PLNDError, match="unknown quantize '3bit': expected one of 8bit, 4bit"):
        load_model(folder, quantize="3bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PLNDError, match="8bit weights need bitsandbytes: pip install bitsandbytes"):
        load_model(folder, quantize="8bit", device="cpu")
