"""Weights that bitsandbytes packed in 8 or 4 bits are measured as what they stand for, and switched off exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plnd.deactivation import deactivated
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.models.quantised import dequantised, quantisation

CONFIG = DetectConfig(min_length=4, batch_size=2, qk="exact")
ROUNDING = {"8bit": 0.05, "4bit": 0.02}
"""What the kernels may round in a pass (8 bits: the activations too), relative to the largest value."""


def documents() -> list[list[int]]:
    """Random token ids."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 96, length).tolist() for length in (12, 20, 9, 15)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request, tmp_path_factory):
    """A checkpoint whose matrices are of sizes that the kernels take."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    shape = dict(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    kind, config = (
        (LlamaForCausalLM, LlamaConfig) if request.param == "llama" else (Gemma3ForCausalLM, Gemma3TextConfig)
    )
    torch.manual_seed(0)
    model = kind(config(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def models(request, folder):
    """How it is packed, the packed model, and a dense one with the weights that the packed ones stand for."""
    pytest.importorskip("bitsandbytes")
    packed = load_model(folder, device="cpu", dtype="float32", quantize=request.param)
    dense = load_model(folder, device="cpu", dtype="float32")
    with torch.no_grad():
        for name, target in Layout(packed).targets.items():
            Layout(dense).targets[name].plain.weight.copy_(dequantised(target.plain))
    return request.param, packed, dense


def distance(found, expected) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_scores_are_those_of_the_weights_that_are_packed(models, folder):
    """Packed weights give the importances of the dense ones they stand for; of 4 bits, not those of the original's."""
    kind, packed, dense = models
    scores, expected = (detect(model, documents(), CONFIG) for model in (packed, dense))
    original = detect(load_model(folder, device="cpu", dtype="float32"), documents(), CONFIG)
    assert scores.metadata["quantisation"] == f"bitsandbytes {kind}"
    assert scores.metadata["model"]["widths"] == expected.metadata["model"]["widths"]
    assert scores.minimum.keys() == expected.minimum.keys()
    for name, minimum in scores.minimum.items():
        assert distance(minimum, expected.minimum[name]) < ROUNDING[kind]
        if kind == "4bit":
            assert distance(original.minimum[name], expected.minimum[name]) > ROUNDING[kind]
    assert detect(packed, documents(), CONFIG).digest == scores.digest


def test_a_first_pass_does_not_change_what_is_read(models):
    """Kernels that pack the weight anew when it is first used still give the same matrix."""
    _, packed, _ = models
    before = {name: target.weight() for name, target in Layout(packed).targets.items()}
    with torch.no_grad():
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


def test_a_packed_checkpoint_needs_no_word(models, tmp_path):
    """What was saved packed is loaded packed."""
    kind, packed, _ = models
    packed.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
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


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_other_packings_are_refused(dtype):
    """What cannot be read is never taken for what it is not."""
    linear = torch.nn.Linear(4, 4)
    linear.weight = torch.nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(FamilyError, match=f"Linear: a weight packed as Parameter of {dtype}, expected a dense one or"):
        dequantised(linear)


def test_quantize_is_checked(folder, monkeypatch):
    """An unknown number of bits, and a missing package, are said before anything is loaded."""
    with pytest.raises(PLNDError, match="unknown quantize '3bit': expected one of 8bit, 4bit"):
        load_model(folder, quantize="3bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PLNDError, match="8bit weights need bitsandbytes: pip install bitsandbytes"):
        load_model(folder, quantize="8bit", device="cpu")
