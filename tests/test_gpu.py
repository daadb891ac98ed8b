"""What needs an accelerator to be tried: `python -m pytest -m gpu -n 0`. Elsewhere each test is skipped."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import plnd
from attention_cases import CASES, FURTHER_CASES, error, single, trace
from plnd.detection import run as detection
from plnd.importance.attention import attention_importance
from plnd.importance.softmax import engine
from tiny import tiny_model

DEVICE = "cuda"
DOCUMENTS = [[3 + (7 * row + 3 * place) % 90 for place in range(12 + row)] for row in range(6)]
CONFIG = dict(min_length=1, max_length=32, batch_size=2)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here: expected a CUDA or ROCm device"),
]


def there(t, device: str = DEVICE):
    """Attention in float32 on the device."""
    import dataclasses

    def move(x):
        if isinstance(x, torch.Tensor):
            return x.to(device)
        return dataclasses.replace(x, **{k: move(v) for k, v in vars(x).items()}) if hasattr(x, "__dict__") else x

    return move(single(t))


@pytest.mark.parametrize("on", ["triton", "torch"])
@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
@pytest.mark.parametrize("name", [*CASES, *FURTHER_CASES])
def test_attention_agrees_with_float64(name, algorithm, on):
    """Every kind of attention, in the kernels that were compiled here and in PyTorch, is what float64 says."""
    if on == "triton":
        assert engine(torch.float32, torch.device(DEVICE)) == "triton"
    t = trace(**(CASES | FURTHER_CASES)[name])
    found = [x.cpu() for x in attention_importance(there(t), algorithm, on=on)]
    largest = float((t.query_rotated @ t.key_rotated[:1].mT).abs().max()) * t.scaling
    rounding = 2e-2 if "shared" in name and algorithm == "first_order" else 5e-6 * max(4.0, largest)
    assert error(found, attention_importance(t, algorithm)) < rounding


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one accelerator here: expected two")
@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_kernels_run_on_the_card_of_their_tensors(algorithm):
    """On the second card, while the first is the current one, they give the bits that the first gives."""
    t = trace(**CASES["halves"])
    first, second = (attention_importance(there(t, f"cuda:{n}"), algorithm, on="triton") for n in range(2))
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(first, second, strict=True))


def test_batches_that_fit_change_nothing_but_roundings():
    """With `batch_size=auto` scores are those of any other batch size."""
    model = tiny_model("llama", torch.float32).to(DEVICE)
    expected = plnd.detect(model, DOCUMENTS, plnd.DetectConfig(**CONFIG))
    found = plnd.detect(model, DOCUMENTS, plnd.DetectConfig(**{**CONFIG, "batch_size": "auto"}))
    for address, values in expected.minimum.items():
        assert abs(found.minimum[address] - values).max() < 2e-3 * values.max(), address


@pytest.mark.parametrize("qk", ["exact", "first_order", "off"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "t5"])
def test_detection_is_that_of_the_cpu(family, qk):
    """Scores of a model on the device are those of the same model on the CPU, to float32 rounding."""
    model = tiny_model(family, torch.float32)
    config = plnd.DetectConfig(qk=qk, **CONFIG)
    expected = plnd.detect(model, DOCUMENTS, config)
    found = plnd.detect(model.to(DEVICE), DOCUMENTS, config)
    for address, values in expected.minimum.items():
        assert abs(found.minimum[address] - values).max() < 2e-3 * values.max(), address


def test_a_run_that_is_resumed_gives_the_same_bits(tmp_path, monkeypatch):
    """Killed between two windows and resumed on the device, detection ends in the scores of an unbroken run."""
    monkeypatch.setattr(detection, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(detection, "WINDOW", 1)
    model, config = tiny_model("llama", torch.float32).to(DEVICE), plnd.DetectConfig(**CONFIG)
    whole = plnd.detect(model, DOCUMENTS, config)

    def broken():
        yield from DOCUMENTS[:5]
        raise KeyboardInterrupt

    checkpoint = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        plnd.detect(model, broken(), config, checkpoint=checkpoint)
    resumed = plnd.detect(model, DOCUMENTS, config, checkpoint=checkpoint, resume=True)
    for address, values in whole.minimum.items():
        assert (resumed.minimum[address] == values).all() and (resumed.mean[address] == whole.mean[address]).all()


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_casts_and_moves_inside_come_back(mode):
    """A model that goes to the device and to bfloat16 while neurons are off is, outside, what it would be without."""
    model, plain = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    neurons = plnd.detect(model, DOCUMENTS, plnd.DetectConfig(**CONFIG)).select(fraction=0.1)
    with plnd.deactivated(model, neurons, mode=mode):
        model.to(DEVICE)
        assert next(model.parameters()).is_cuda
        model.bfloat16()
    plain.to(DEVICE).bfloat16()
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_both_modes_are_one_on_the_device():
    """Zeroed weights and zeroed activations give the same logits."""
    model = tiny_model("llama", torch.float32).to(DEVICE)
    neurons = plnd.detect(model, DOCUMENTS, plnd.DetectConfig(**CONFIG)).select(fraction=0.1)
    ids, found = torch.tensor([DOCUMENTS[0]], device=DEVICE), []
    for mode in ("weights", "activations"):
        with torch.no_grad(), plnd.deactivated(model, neurons, mode=mode):
            found.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_packed_models_are_measured_and_masked(bits, small_model):
    """A model that bitsandbytes packs on the device is measured, and its neurons are switched off."""
    model = plnd.load_model(small_model, device=DEVICE, quantize=bits)
    neurons = plnd.detect(model, DOCUMENTS, plnd.DetectConfig(**CONFIG)).select(fraction=0.1)
    ids = torch.tensor([DOCUMENTS[0]], device=DEVICE)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with plnd.deactivated(model, neurons):
            assert not torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids).logits, before)
