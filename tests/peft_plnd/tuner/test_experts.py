"""Adapters of neurons in fused experts."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from detecting import CONFIG, some_documents
from peft_plnd import NeuronSelectConfig, to_lora
from peft_plnd.tuner.experts import NeuronSelectExperts, expert_shape
from plnd.detection.run import detect
from plnd.errors import PLNDError
from tiny import tiny_model
from tuning import batch, fill, make_mask

STORED = ("mixtral", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "llama4_text")))
"""Plain; the other way round with biases, gate and up alternating; the other way round, with scaled inputs."""
IDS = batch()


def tuned(name, tmp_path, dtype=torch.float32, **options):
    """A tiny model with an adapter in all its projections, and that model's copy without."""
    model = tiny_model(name, dtype)
    make_mask(model, tmp_path / "mask.safetensors", experts=True)
    config = NeuronSelectConfig(mask=tmp_path / "mask.safetensors", bias="selected", **options)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    fill(adapted)
    return adapted, model


def logits(model):
    """What a model says of a batch."""
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", STORED)
def test_merged_saved_and_loaded_it_is_the_same(name, tmp_path):
    """Outputs are those of the merged weights and of the loaded adapter; without it, and unmerged, those of before."""
    adapted, model = tuned(name, tmp_path)
    experts = [module for module in adapted.modules() if isinstance(module, NeuronSelectExperts)]
    start = {key: value.clone() for key, value in adapted.state_dict().items()}
    changed, before = logits(adapted), logits(model)
    assert experts and not torch.allclose(changed, before, rtol=1e-2)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
    adapted.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(adapted), changed, rtol=1e-4, atol=1e-5)
    adapted.unmerge_adapter()
    assert all(torch.equal(value, start[key]) for key, value in adapted.state_dict().items())
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), changed)
    merged = again.merge_and_unload()
    assert type(merged) is type(model)
    assert {name: type(module) for name, module in merged.named_modules()} == {
        n: type(m) for n, m in model.named_modules()
    }


def test_what_experts_compute_is_their_merged_weights_bit_for_bit(tmp_path):
    """In bfloat16 too, where a change that is lost in rounding is lost before merging already."""
    adapted, _ = tuned("mixtral", tmp_path, torch.bfloat16, projections=["gate_proj", "up_proj", "down_proj"])
    assert next(p for p in adapted.parameters() if p.requires_grad).dtype == torch.float32
    before = logits(adapted)
    adapted.merge_adapter()
    assert torch.equal(logits(adapted), before)


@pytest.mark.slow
def test_sums_of_adapters(tmp_path):
    """A weighted sum changes the weights by the sum of the changes; two active adapters compute with both."""
    adapted, model = tuned("gpt_oss", tmp_path, torch.float64)
    neurons = {"layers.0.mlp.experts": {"out": [3, 4, 25], "in": [0, 29]}, "layers.1.mlp.experts": {"in": [7]}}
    adapted.add_adapter("other", NeuronSelectConfig(neurons=neurons))
    adapted.set_adapter("other")
    fill(adapted, seed=1)
    adapted.add_weighted_adapter(["default", "other"], [2.0, -0.5], "sum")
    weights = {"default": 2.0, "other": -0.5, "sum": -1.0}
    for layer in (module for module in adapted.modules() if isinstance(module, NeuronSelectExperts)):
        for parameter in ("gate_up_proj", "down_proj"):
            total = sum(layer.get_delta_weight(name, parameter) * weight for name, weight in weights.items())
            assert float(total.abs().max()) < 1e-7
    adapted.base_model.set_adapter(["default", "other"])
    both = logits(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), both, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "llama4_text"])
def test_a_tuned_model_is_measured_as_the_merged_one(name, tmp_path):
    """Detection sees what the adapter changes in the experts, without merging it."""
    adapted, _ = tuned(name, tmp_path, torch.float64)
    documents = some_documents((9, 4, 12))
    found = detect(adapted, documents, CONFIG)
    expected = detect(adapted.merge_and_unload(), documents, CONFIG)
    for address, values in expected.minimum.items():
        torch.testing.assert_close(
            torch.from_numpy(found.minimum[address]), torch.from_numpy(values), rtol=1e-4, atol=1e-6
        )


def test_what_cannot_be_had_is_refused(tmp_path):
    """Adapters by row, and LoRA of the same changes, in one line each; a row that the experts do not have too."""
    adapted, model = tuned("mixtral", tmp_path)
    with pytest.raises(PLNDError, match="names an adapter for each row of the batch, which fused experts do not see"):
        adapted.get_submodule("base_model.model.model.layers.0.mlp.experts")(None, adapter_names=["default"])
    with pytest.raises(PLNDError, match=r"mlp\.experts: neurons of fused experts are not converted"):
        to_lora(adapted)
    rows = expert_shape(model.model.layers[0].mlp.experts)
    last = rows.experts * rows.rows
    with pytest.raises(ValueError, match=f"'out' holds {last}, but the module has {last} features there"):
        get_peft_model(model, NeuronSelectConfig(neurons={"layers.0.mlp.experts": {"out": [last]}}))
