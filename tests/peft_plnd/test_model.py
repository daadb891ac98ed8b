"""The manners of a PEFT method: several adapters, switching, saving, adding up."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_model_status, get_peft_model, inject_adapter_in_model
from torch import nn

from peft_plnd import NeuronSelectConfig
from tiny import tiny_model
from tuning import batch, fill, loss_of, make_mask

SHARE = {"fraction": 0.2, "bias": "selected", "task_type": "CAUSAL_LM"}


def tuned_model(name="llama", dtype=torch.float32, **arguments):
    """A tiny model with random deltas."""
    model = get_peft_model(tiny_model(name, dtype), NeuronSelectConfig(**{**SHARE, **arguments}))
    fill(model)
    return model.eval()


def logits(model):
    """Of one fixed batch."""
    with torch.no_grad():
        return model(input_ids=batch()).logits


def test_adapters_are_switched_disabled_and_deleted():
    """Each answers for itself, both together add up at the layer, none is the base model, and a deleted one is gone."""
    base = logits(tiny_model("llama", torch.float32))
    model = tuned_model()
    first = logits(model)
    model.add_adapter("other", NeuronSelectConfig(**SHARE, seed=1))
    model.set_adapter("other")
    torch.testing.assert_close(logits(model), base)  # a new adapter changes nothing
    fill(model, seed=1)
    other = logits(model)
    assert not torch.allclose(first, other) and not torch.allclose(base, other)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    trained = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"default"}
    model.delete_adapter("default")
    assert torch.equal(logits(model), other)
    assert not any(name.endswith(".default") for name, _ in model.named_parameters())


def test_status_and_counts(capsys):
    """`print_trainable_parameters` and `get_model_status` know the method."""
    model = tuned_model()
    model.print_trainable_parameters()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"trainable params: {trained:,}" in capsys.readouterr().out
    status = get_model_status(model)
    assert status.peft_types == {"default": "NEURON_SELECT"} and status.enabled and status.trainable_params == trained
    assert status.num_adapter_layers == 14


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_a_saved_adapter_loads_everywhere_with_the_same_output(name, tmp_path):
    """Into a PEFT model, beside another adapter, and with little memory; the file holds deltas and nothing else."""
    model = tuned_model(name)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = logits(model)
    for low in (False, True):
        again = PeftModel.from_pretrained(tiny_model(name, torch.float32), tmp_path, low_cpu_mem_usage=low).eval()
        assert torch.equal(logits(again), expected)
        assert not any(p.requires_grad for p in again.parameters())
    more = PeftModel.from_pretrained(tiny_model(name, torch.float32), tmp_path, is_trainable=True)
    more.load_adapter(tmp_path, "second")
    more.set_adapter("second")
    assert torch.equal(logits(more.eval()), expected)


def test_an_adapter_that_changes_a_module_the_model_lacks_is_refused(tmp_path):
    """Loading into a shallower model names the module."""
    tuned_model().save_pretrained(tmp_path)
    shallow = tiny_model("llama", torch.float32)
    shallow.model.layers = shallow.model.layers[:1]
    with pytest.raises(
        ValueError, match=r"neurons are named in 'model\.layers\.1\.\S+', but the model has no such module"
    ):
        PeftModel.from_pretrained(shallow, tmp_path)


def test_modules_to_save_train_and_load(tmp_path):
    """A module trained in full goes with the adapter."""
    model = tuned_model(modules_to_save=["lm_head"])
    assert any("lm_head.modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama", torch.float32), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_every_bias_can_train_in_place_as_in_lora(tmp_path):
    """`bias="all"` and `"neuron_select_only"` train the model's own biases, and save them."""
    for bias in ("all", "neuron_select_only"):
        model = tuned_model(bias=bias)
        own = [name for name, p in model.named_parameters() if p.requires_grad and name.endswith(".bias")]
        assert len(own) == 14
        model.save_pretrained(tmp_path / bias)
        again = PeftModel.from_pretrained(tiny_model("llama", torch.float32), tmp_path / bias).eval()
        assert torch.equal(logits(again), logits(model))


def test_several_adapters_may_train_selected_biases():
    """They are deltas, so PEFT's limit of one adapter with biases does not apply."""
    model = tuned_model()
    model.add_adapter("other", NeuronSelectConfig(**SHARE, seed=1))
    assert [config.bias for config in model.peft_config.values()] == ["selected", "selected"]


def test_injecting_into_a_plain_model(tmp_path):
    """`inject_adapter_in_model` adapts the model in place."""
    model = inject_adapter_in_model(NeuronSelectConfig(**SHARE), tiny_model("llama", torch.float32))
    assert sum(p.requires_grad for p in model.parameters()) == 14 + 10  # one part of each projection, ten biases
    loss_of(model, batch()).backward()


def dense_changes(model, adapter):
    """Every layer's change of its weight and of its bias by one adapter."""
    for layer in model.modules():
        if hasattr(layer, "neuron_select_out") and adapter in layer._get_available_adapters():
            bias = torch.zeros(layer.out_features)
            if adapter in layer.neuron_select_bias:
                bias[layer.neuron_select_rows[adapter]] = layer.neuron_select_bias[adapter].detach()
            yield layer, layer.get_delta_weight(adapter).detach(), bias


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_weighted_sum_of_adapters_is_exact(name):
    """The new adapter has the union of the neurons and changes every weight by the weighted sum."""
    model = tuned_model(name)
    model.add_adapter(
        "other", NeuronSelectConfig(**{**SHARE, "fraction": 0.3}, seed=1, projections=["q_proj", "o_proj"])
    )
    model.set_adapter("other")
    fill(model, seed=1)
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    parts = {a: {id(m): (w, b) for m, w, b in dense_changes(model, a)} for a in ("default", "other", "sum")}
    assert parts["sum"].keys() == parts["default"].keys() | parts["other"].keys()
    for key, (weight, bias) in parts["sum"].items():
        for index, value in enumerate((weight, bias)):
            zero = torch.zeros_like(value)
            expected = sum(
                factor * parts[adapter].get(key, (zero, zero))[index]
                for adapter, factor in (("default", 0.5), ("other", -2.0))
            )
            torch.testing.assert_close(value, expected)
    indices = model.peft_config["sum"].indices
    for adapter in ("default", "other"):
        for module, axes in model.peft_config[adapter].indices.items():
            assert all(set(values) <= set(indices[module][axis]) for axis, values in axes.items())


def test_a_weighted_sum_moves_a_columns_entries_to_a_row():
    """Where one adapter's column crosses another's row, the entry belongs to the row in the sum, and counts once."""
    model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), NeuronSelectConfig(neurons={"0": {"out": [1]}}))
    model.add_adapter("columns", NeuronSelectConfig(neurons={"0": {"in": [0, 2]}}))
    for seed, name in enumerate(("default", "columns")):
        model.set_adapter(name)
        fill(model, seed=seed)
    model.base_model.add_weighted_adapter(["default", "columns"], [2.0, 3.0], "sum")
    model.set_adapter("sum")
    layer = model.base_model.model[0]
    expected = 2 * layer.get_delta_weight("default") + 3 * layer.get_delta_weight("columns")
    torch.testing.assert_close(layer.get_delta_weight("sum"), expected)
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), layer.base_layer(x) + x @ expected.T)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((["default", "nobody"], [1, 1], "sum"), "Adapter nobody does not exist"),
        ((["default"], [1, 1], "sum"), "1 adapters and 2 weights: expected one weight for each"),
        ((["default"], [1], "sum", "svd"), "combination_type='svd': expected 'linear'"),
    ],
)
def test_weighted_sums_that_make_no_sense_are_refused(arguments, words):
    """In one line, and no adapter is added."""
    model = tuned_model()
    with pytest.raises(ValueError) as caught:
        model.add_weighted_adapter(*arguments)
    assert words in str(caught.value) and set(model.peft_config) == {"default"}


@pytest.mark.parametrize("whole", [None, ["lm_head"]])
def test_modules_trained_in_full_are_not_added(whole):
    """There is no weighted sum of whole modules, and one that leaves out a single adapter's would be another model."""
    model = tuned_model(modules_to_save=["lm_head"])
    model.add_adapter("other", NeuronSelectConfig(**SHARE, modules_to_save=whole))
    with pytest.raises(ValueError, match="lm_head: an adapter trains it in full"):
        model.add_weighted_adapter(["default", "other"], [1, 1], "sum")
    assert set(model.peft_config) == {"default", "other"}


def test_a_mask_and_its_random_control_train_as_many_parameters(tmp_path):
    """The control differs in which neurons, not in how many."""
    make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    counts = []
    for control in (None, "random"):
        model = tuned_model(fraction=None, mask=tmp_path / "mask.safetensors", control=control)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts[0] == counts[1] > 0
