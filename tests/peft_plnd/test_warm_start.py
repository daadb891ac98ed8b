"""Warm starts: an adapter goes on with further neurons, from what it changes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_plnd import NeuronSelectConfig, warm_start
from plnd.errors import PLNDError
from tiny import tiny_model
from tuning import batch, fill, steps

FEW = {"fraction": 0.1, "seed": 1}
MORE = {"fraction": 0.2, "seed": 2, "bias": "selected"}


def answers(model):
    """Logits of one batch."""
    with torch.no_grad():
        return model.eval()(input_ids=batch()).logits


def test_it_starts_where_the_other_ends_and_goes_on(tmp_path):
    """Of an adapter from a folder: the same answers; then the further neurons move, too, and the start does not."""
    first = get_peft_model(tiny_model("llama"), NeuronSelectConfig(**FEW, task_type="CAUSAL_LM"))
    fill(first)
    first.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    expected = answers(model)
    warm_start(model, NeuronSelectConfig(**MORE))
    assert set(model.peft_config) == {"default", "warm"} and model.active_adapter == "warm"
    torch.testing.assert_close(answers(model), expected, rtol=1e-12, atol=1e-12)
    few, all_of_them = (model.peft_config[name].indices for name in ("default", "warm"))
    assert all(set(values) <= set(all_of_them[m][axis]) for m, axes in few.items() for axis, values in axes.items())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".warm" in name for name in trained)
    steps(model, trained.values(), lambda found: torch.optim.SGD(found, lr=0.1), count=1)
    assert not torch.allclose(answers(model), expected)
    model.set_adapter("default")
    torch.testing.assert_close(answers(model), expected, rtol=0, atol=0)


def test_deltas_stay_float32_over_a_bfloat16_base():
    """What was learnt is not rounded to the base's dtype on its way."""
    model = get_peft_model(tiny_model("llama", torch.bfloat16), NeuronSelectConfig(**FEW))
    fill(model)
    before = {n: p.clone() for n, p in model.named_parameters() if ".default" in n}
    warm_start(model, NeuronSelectConfig(**FEW))
    after = {n.replace(".warm", ".default"): p for n, p in model.named_parameters() if ".warm" in n}
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        torch.testing.assert_close(after[name].data, value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "further, words, arguments",
    [
        (NeuronSelectConfig(**FEW), "no neuron-select adapter 'zh' to start from", {"start": "zh"}),
        (NeuronSelectConfig(**FEW), "has an adapter 'default' already: give name= another", {"name": "default"}),
        (NeuronSelectConfig(**FEW, modules_to_save=["lm_head"]), "no modules_to_save=", {}),
        (NeuronSelectConfig(**FEW, bias="all"), "no bias='all'", {}),
        (NeuronSelectConfig(neurons={"nowhere": {"out": [0]}}), "the model has no such module", {}),
    ],
)
def test_what_cannot_be_a_start_is_refused(further, words, arguments):
    """In one line; the model has the adapters, and gives the answers, that it did."""
    model = get_peft_model(tiny_model("llama"), NeuronSelectConfig(**FEW))
    fill(model)
    expected = answers(model)
    with pytest.raises(PLNDError, match=words):
        warm_start(model, further, **arguments)
    assert set(model.peft_config) == {"default"} and torch.equal(answers(model), expected)


def test_lora_is_no_start():
    """Its change has no neurons."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(PLNDError, match="no neuron-select adapter 'default' to start from"):
        warm_start(model, NeuronSelectConfig(**FEW))
