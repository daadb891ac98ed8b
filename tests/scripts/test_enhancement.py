"""scripts/enhancement.py: runs of equal steps, each once, and a table of what they changed."""

from __future__ import annotations

import json

import pytest

from lm_eval_plnd.experiments.results import read_sealed
from peft_plnd import fine_tuning
from plnd import load_model
from plnd.demo_data import demo_corpus
from programs import run_script, script
from tuning import make_mask

TASKS = ("plnd_text_en", "plnd_text_zh")


def metrics(english: float, chinese: float) -> dict[str, dict[str, float]]:
    """Bits per byte in two languages."""
    return {task: {"bits_per_byte": value} for task, value in zip(TASKS, (english, chinese), strict=True)}


@pytest.fixture
def done(tmp_path):
    """An experiment whose evaluations and runs are there: no model is needed any more."""
    (tmp_path / "base.json").write_text(json.dumps(metrics(2.0, 3.0)))
    for documents, method, after in ((4, "neurons", (1.75, 2.5)), (4, "random", (2.125, 3.0))):
        folder = tmp_path / f"zh-{documents}-{method}"
        folder.mkdir()
        row = {"trained_parameters": 1234, "after": metrics(*after)}
        (folder / "results.json").write_text(json.dumps(row))
    return tmp_path


def enhancement(output, *options, model="absent", masks="absent", corpora="absent") -> None:
    """The script on one language, four documents, evaluated in two languages."""
    paths = ("--model", model, "--masks", masks, "--corpora", corpora, "--output", output)
    run_script("enhancement", *paths, "--languages", "zh", "--evaluate", "en,zh", "--documents", "4", *options)


def test_finished_runs_are_read(done, capsys):
    """Nothing is repeated; the table shows the base model, and the change of each run."""
    enhancement(done, "--methods", "neurons,random")
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split() for line in lines] == [
        ["trained", "on", "documents", "method", "parameters", "en", "zh"],
        ["nothing", "2.000", "3.000"],
        ["zh", "4", "neurons", "1,234", "-0.250", "-0.500"],
        ["zh", "4", "random", "1,234", "+0.125", "+0.000"],
    ]
    written = json.loads((done / "results.json").read_text())
    assert written["base"] == metrics(2.0, 3.0) and list(written["runs"]) == ["zh-4-neurons", "zh-4-random"]


@pytest.mark.parametrize(
    "options, line",
    [
        (("--methods", "neurons,lore"), "unknown method 'lore': expected some of neurons, random, lora, full"),
        (("--rates", "lore=1"), "unknown method 'lore': expected"),
        (("--evaluate", "en,zh,ru"), "base.json: without plnd_text_ru: give another --output, or delete the folder"),
    ],
)
def test_refusals(done, capsys, options, line):
    """One line and status 2."""
    written = {"model's content": "unknown", "data": "the hub's", "dtype": "bfloat16", "limit": None}
    (done / "inputs.json").write_text(json.dumps(written))
    with pytest.raises(SystemExit) as end:
        enhancement(done, *options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and line in error and error.startswith("enhancement: ") and error.count("\n") == 1


@pytest.mark.slow
def test_a_whole_experiment(small_model, tmp_path, capsys):
    """Neurons and random ones of equal number are trained and evaluated; the numbers printed are those of the runs."""
    mask = make_mask(load_model(small_model, dtype="float32", device="cpu"), tmp_path / "zh.safetensors")
    data = ("--data-dir", demo_corpus("evaluate"), "--limit", 1, "--dtype", "float32")
    sizes = ("--max-length", 16, "--batch-size", 2, "--rates", "neurons=0.01,random=0.01")
    paths = dict(model=small_model, masks=tmp_path, corpora=demo_corpus("detect") / "corpora")
    enhancement(tmp_path / "out", "--methods", "neurons,random", *data, *sizes, **paths)
    last = capsys.readouterr().out.splitlines()[-2:]
    runs = [
        json.loads((tmp_path / "out" / f"zh-4-{name}" / "results.json").read_text()) for name in ("neurons", "random")
    ]
    base = read_sealed(tmp_path / "out" / "base.json")
    assert runs[0]["trained_parameters"] == runs[1]["trained_parameters"] > 0
    assert runs[0]["mask"]["neurons"] == len(mask) and runs[1]["settings"]["control"] == "random"
    for line, run in zip(last, runs, strict=True):
        assert run["training"]["steps"] == 2 and run["before"] == base
        change = run["after"]["plnd_text_zh"]["bits_per_byte"] - base["plnd_text_zh"]["bits_per_byte"]
        assert float(line.split()[-1]) == pytest.approx(change, abs=6e-4) and change != 0


def test_each_method_is_a_run_of_the_training_script():
    """What the table calls a method is what `scripts/finetune.py` is told."""
    finetune = script("finetune")
    for how in script("enhancement").METHODS.values():
        settings = finetune.Settings(model="m", corpus="c", output="o", **how)
        assert settings.method in fine_tuning.METHODS
