"""An adapter as LoRA, entry for entry."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from torch import nn

from peft_plnd import NeuronSelectConfig, save_as_lora, to_lora
from tiny import tiny_model
from tuning import batch, fill


def tuned_model(name="llama", **arguments):
    """A tiny model in float64 with random deltas in float64."""
    model = get_peft_model(tiny_model(name, torch.float64), NeuronSelectConfig(**{"fraction": 0.2, **arguments}))
    fill(model)
    return model.eval()


@pytest.mark.parametrize("bias", ["none", "selected"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bloom"])
def test_the_lora_answers_as_the_adapter_does(name, bias, tmp_path):
    """To 1e-10 in float64, saved and loaded by PEFT alone, and its factors multiply to the very same changes."""
    tuned = tuned_model(name, bias=bias)
    save_as_lora(tmp_path, tuned)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    lora = PeftModel.from_pretrained(tiny_model(name, torch.float64), tmp_path).eval()
    assert isinstance(lora.peft_config["default"], LoraConfig)
    ids = batch()
    torch.testing.assert_close(lora(input_ids=ids).logits, tuned(input_ids=ids).logits, rtol=0, atol=1e-10)
    ours = {n: m for n, m in tuned.named_modules() if hasattr(m, "neuron_select_out")}
    theirs = {n: m for n, m in lora.named_modules() if hasattr(m, "lora_A")}
    assert ours and ours.keys() == theirs.keys()
    for key, layer in ours.items():
        assert torch.equal(theirs[key].get_delta_weight("default"), layer.get_delta_weight("default"))
        assert theirs[key].scaling["default"] == 1


def test_the_rank_is_the_number_of_neurons():
    """Rows and columns of one layer: |R| + |C| ranks."""
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5)),
        NeuronSelectConfig(neurons={"0": {"out": [0, 3], "in": [1, 2, 5]}, "1": {"in": [4]}}),
    )
    fill(model)
    config, state = to_lora(model)
    assert state["base_model.model.0.lora_A.weight"].shape == (5, 6)
    assert state["base_model.model.1.lora_B.weight"].shape == (5, 1)
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (5, 5, {"1": 1}, {"1": 1})
    layer = model.base_model.model[0]
    product = state["base_model.model.0.lora_B.weight"] @ state["base_model.model.0.lora_A.weight"]
    torch.testing.assert_close(product, layer.get_delta_weight("default"))


def test_modules_trained_in_full_go_along(tmp_path):
    """`modules_to_save` of the adapter are those of the LoRA."""
    tuned = tuned_model(modules_to_save=["lm_head"])
    save_as_lora(tmp_path, tuned)
    lora = PeftModel.from_pretrained(tiny_model("llama", torch.float64), tmp_path).eval()
    torch.testing.assert_close(lora(input_ids=batch()).logits, tuned(input_ids=batch()).logits, rtol=0, atol=1e-10)


def test_pefts_own_conversion_works_too():
    """By singular values, so approximately, and exactly enough where it may keep all of them."""
    tuned = tuned_model()
    assert tuned.supports_lora_conversion()
    config, state = convert_to_lora(tuned, rank=8)
    assert config.peft_type == "LORA" and len(state) == 28


def test_what_cannot_be_converted_is_refused():
    """No model; no such adapter; biases that train in place, which LoRA's files do not carry in the same way."""
    with pytest.raises(ValueError, match=r"type str, expected a torch module: save_as_lora\(folder, model\)"):
        save_as_lora(tuned_model(), "lora")
    with pytest.raises(ValueError, match="the model has no neuron-select adapter 'other'"):
        to_lora(tuned_model(), "other")
    with pytest.raises(ValueError, match="bias='all' trains biases outside the adapter"):
        to_lora(tuned_model(bias="all"))
