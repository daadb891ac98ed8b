"""The config: what it accepts, refuses, and says in `adapter_config.json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from peft_plnd import NeuronSelectConfig
from plnd.errors import PLNDError
from tiny import tiny_model
from tuning import make_mask


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"mask": "a", "fraction": 0.1}, "mask and fraction are given: name the neurons in one way"),
        ({"neurons": {"a": {"out": [0]}}, "fraction": 0.1}, "neurons and fraction are given"),
        ({"mask": 3}, "mask=3: expected the name of a neurons artifact, or a plnd.NeuronSet"),
        ({"fraction": 0}, "fraction=0: expected a share, more than 0 and at most 1"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": "0.1"}, "fraction='0.1': expected a share, more than 0 and at most 1"),
        ({"mask": "a", "regions": "under", "under": "abc"}, "under='abc': expected a whole number, 0 or more"),
        ({"mask": "a", "regions": "gen", "gen": 2.5}, "gen=2.5: expected a whole number, 0 or more"),
        ({"mask": "a", "control": "random", "seed": "one"}, "seed='one': expected a whole number, 0 or more"),
        ({"fraction": 0.1, "bias": "some"}, "bias='some': expected 'none', 'selected', 'all', 'neuron_select_only'"),
        ({"fraction": 0.1, "control": "random"}, "control='random' draws as many neurons as a mask has"),
        ({"mask": "a", "control": "even"}, "control='even': expected 'random'"),
        ({"neurons": {"a": {"out": [0]}}, "projections": ["q_proj"]}, "narrow mask= or fraction= only"),
        ({"fraction": 0.1, "under": 2}, "name some with regions="),
        ({"fraction": 0.1, "target_modules": ".*a", "layers_to_transform": [0]}, "when target_modules is a str"),
        ({"fraction": 0.1, "layers_pattern": "layers"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_contradictions_are_refused_in_one_line(arguments, words):
    """Each with what was found; as a `ValueError`, which PEFT's callers catch, and as a `PLNDError`."""
    with pytest.raises(ValueError) as caught:
        NeuronSelectConfig(**arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, PLNDError)


def test_the_type_is_a_member_of_pefts_enum():
    """Never a bare string: transformers reads `peft_type.value`."""
    assert NeuronSelectConfig().peft_type.value == "NEURON_SELECT"


def test_a_saved_config_is_the_same_config(tmp_path):
    """`save_pretrained`, then `PeftConfig.from_pretrained`: the right class and every field, sets as sets."""
    config = NeuronSelectConfig(
        fraction=0.25, seed=3, target_modules=["b", "a"], exclude_modules=["c"], modules_to_save=["d"], bias="selected",
        layers_to_transform=[0, 1], layers_pattern="layers", indices={"x.a": {"out": [1, 2]}}, task_type="CAUSAL_LM",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is NeuronSelectConfig and loaded == config
    assert loaded.target_modules == {"a", "b"}


def test_a_config_serves_again_for_another_model():
    """The same object chooses anew on a second model, with what was changed since; the first model stays as it was."""
    config = NeuronSelectConfig(fraction=0.5, target_modules=["0"])
    first = get_peft_model(nn.Sequential(nn.Linear(3, 4)), config)
    assert [len(axes["out"]) for axes in config.indices.values()] == [2]
    second = get_peft_model(nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 8)), config)
    assert {name: len(axes["out"]) for name, axes in config.indices.items()} == {"0": 20}
    config.target_modules = ["1"]
    third = get_peft_model(nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 8)), config)
    assert {name: len(axes["out"]) for name, axes in config.indices.items()} == {"1": 4}
    assert [sum(p.requires_grad for p in model.parameters()) for model in (first, second, third)] == [1, 1, 1]


def test_the_saved_adapter_names_its_neurons_and_its_source(tmp_path):
    """`adapter_config.json` holds plain numbers: the indices of every module."""
    model = get_peft_model(
        nn.Sequential(nn.Linear(3, 4)), NeuronSelectConfig(neurons={"0": {"out": [3, 1], "in": [2]}})
    )
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["indices"] == {"0": {"out": [1, 3], "in": [2]}}
    assert saved["peft_type"] == "NEURON_SELECT"


COMPARISON = sorted((Path(__file__).parents[2] / "method_comparison").rglob("adapter_config.json"))


@pytest.mark.parametrize("path", COMPARISON, ids=lambda path: path.parent.name)
def test_the_settings_for_pefts_comparison_load(path):
    """Two folders, in the format of the benchmark, that train something."""
    assert len(COMPARISON) == 2
    config = PeftConfig.from_pretrained(path.parent)
    model = get_peft_model(tiny_model("llama"), config)
    assert type(config) is NeuronSelectConfig and any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "further",
    [
        {"control": "random", "seed": 3},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"projections": ["down_proj"]}, marks=pytest.mark.slow),
    ],
)
def test_a_set_is_the_same_as_its_file(further, tmp_path):
    """`mask=` takes the object: the same neurons are chosen, and all that is saved but the name."""
    folders = {}
    neurons = make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    for name, mask in {"object": neurons, "file": tmp_path / "mask.safetensors"}.items():
        tuned = get_peft_model(tiny_model("llama"), NeuronSelectConfig(mask=mask, **further))
        tuned.save_pretrained(tmp_path / name)
        folders[name] = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert folders["object"].pop("mask") is None
    assert folders["file"].pop("mask") == str(tmp_path / "mask.safetensors")
    assert sorted(folders["object"].pop("target_modules")) == sorted(folders["file"].pop("target_modules"))
    assert folders["object"] == folders["file"] and folders["object"]["source"]["sha256"] == neurons.digest
    again = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "object").peft_config["default"]
    assert again.indices == folders["file"]["indices"]


def test_a_config_with_a_set_is_saved_only_with_its_indices(tmp_path):
    """Before there is an adapter nothing says which neurons these are, and a line says what to do."""
    neurons = make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    with pytest.raises(PLNDError, match=r"write the set with .save\(…\) and give mask= the file"):
        NeuronSelectConfig(mask=neurons).save_pretrained(tmp_path / "config")
    assert not (tmp_path / "config").exists()


def test_the_repr_is_short(tmp_path):
    """What is not as by default; of thousands of indices, how many."""
    neurons = make_mask(tiny_model("llama"), tmp_path / "mask.safetensors", every=1)
    config = get_peft_model(tiny_model("llama"), NeuronSelectConfig(mask=neurons)).peft_config["default"]
    assert f"indices=<{len(neurons):,} neurons in 14 modules>" in repr(config) and "gen" not in repr(config)
    assert repr(NeuronSelectConfig(fraction=0.5)).startswith("NeuronSelectConfig(peft_type=")
