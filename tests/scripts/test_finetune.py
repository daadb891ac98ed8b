"""The training script, on the demo's model and a few short documents."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from peft_plnd import fine_tuning
from plnd.demo_data import demo_corpus, demo_model
from plnd.errors import PLNDError
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from programs import script
from tuning import make_mask

finetune = script("finetune")
CORPUS = str(demo_corpus("detect") / "corpora" / "zh.jsonl")


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """A mask of the demo's model."""
    path = tmp_path_factory.mktemp("mask") / "zh.safetensors"
    make_mask(load_model(str(demo_model()), dtype="float32", device="cpu"), path, every=100)
    return str(path)


def settings(folder, **changes):
    """A run of two steps on four documents of 16 tokens."""
    few = {"documents": 4, "max_length": 16, "batch_size": 2, "dtype": "float32", "save_steps": 1}
    return finetune.Settings(model=str(demo_model()), corpus=CORPUS, output=str(folder), **{**few, **changes})


@pytest.mark.slow
def test_a_run_leaves_an_adapter_and_its_results(mask, tmp_path, monkeypatch, capfd):
    """The adapter loads and has moved; the JSON says what was trained, on what, and what the evaluation found.

    In a folder that git does not know, of which nothing is said.
    """
    monkeypatch.chdir(tmp_path)
    evaluation = {"data_dir": str(demo_corpus("evaluate")), "limit": 1}
    finetune.run(settings(tmp_path, mask=mask), ["plnd_text_zh"], **evaluation)
    assert "not a git repository" not in capfd.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"]["steps"] == 2 and results["settings"]["learning_rate"] == fine_tuning.RATES["neurons"]
    assert results["mask"]["neurons"] > 0 and 0 < results["share"] < 0.05
    before, after = (results[when]["plnd_text_zh"]["bits_per_byte"] for when in ("before", "after"))
    assert 0.5 < before < 10 and before != after
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    deltas = [p for name, p in model.named_parameters() if ".neuron_select_" in name]
    assert sum(p.numel() for p in deltas) == results["trained_parameters"]
    assert max(p.abs().max() for p in deltas) > 1e-5


@pytest.mark.slow
def test_a_killed_run_goes_on(mask, tmp_path):
    """With `resume`, from its last checkpoint to the weights of an uninterrupted run."""
    whole = finetune.run(settings(tmp_path / "whole", mask=mask))
    folder = tmp_path / "part"
    finetune.run(settings(folder, mask=mask))
    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-2"]  # one is kept
    (folder / "results.json").unlink()
    with pytest.raises(PLNDError, match="holds another training, whose seed is 0 and not 1; choose another folder"):
        finetune.run(settings(folder, mask=mask, seed=1), resume=True)
    resumed = finetune.run(settings(folder, mask=mask), resume=True)
    assert resumed["training"]["steps"] == whole["training"]["steps"] == 2
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "part"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_what_training_would_refuse_is_said_first(mask, tmp_path, monkeypatch, capsys):
    """A corpus that is too short or a mask that is none, before the model is evaluated; what is not resumed, too."""
    monkeypatch.setattr(finetune, "evaluate", lambda *arguments: pytest.fail("evaluated"))
    for changes, words in (({"documents": 1000}, "24 documents, but"), ({"mask": CORPUS}, "not a whole safetensors")):
        with pytest.raises(PLNDError, match=words):
            finetune.run(settings(tmp_path, **{"mask": mask, **changes}), ["plnd_text_zh"], resume=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(pytest.fail.Exception, match="evaluated"):
        finetune.run(settings(tmp_path, mask=mask), ["plnd_text_zh"], resume=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{tmp_path}: no checkpoint to go on from, starts from the beginning"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_comparisons_train_what_they_say(method, tmp_path):
    """LoRA on every projection of the table; every parameter."""
    model = fine_tuning.prepare(settings(tmp_path, method=method))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    projections = len(Layout(model).targets)
    assert len(trained) == (2 * projections if method == "lora" else len(list(model.parameters())))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "--method neurons needs --mask FILE"),
        ({"mask": "a", "method": "lora"}, "no other method takes one"),
        ({"method": "prompt"}, "--method prompt: expected one of neurons, lora, full"),
        ({"mask": "MASK", "documents": 10**6}, "documents, but --documents asks for 1000000"),
    ],
)
def test_bad_input_is_one_line(mask, changes, words, tmp_path):
    """As everywhere in plnd."""
    changes = {**changes, **({"mask": mask} if changes.get("mask") == "MASK" else {})}
    with pytest.raises(PLNDError) as caught:
        finetune.run(settings(tmp_path, **changes))
    assert words in str(caught.value)
