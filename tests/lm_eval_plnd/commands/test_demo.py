"""`plnd demo`: its help and its table, and, slowly, the whole story held to what the README prints."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from lm_eval_plnd.bridge import register
from lm_eval_plnd.commands.demo import LANGUAGES, bits_per_byte, demo, table
from lm_eval_plnd.task_folder import tasks_folder
from plnd import NeuronSet, PLNDError, Scores, load_model
from plnd.commands.main import main
from plnd.demo_data import demo_corpus, demo_model
from plnd.models.layout import Layout
from programs import parsed

README = Path(__file__).resolve().parents[3] / "README.md"


def test_help(capsys):
    """The subcommand is listed, says what it takes and where it writes, and its example parses."""
    with pytest.raises(SystemExit) as end:
        main(["demo", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "offline, in two minutes on two cores" in out and "(default: plnd-demo)" in out
    example = out.rpartition("example:\n")[2].split()
    assert example[0] == "plnd" and parsed(main, example[1:]).output == "plnd-demo"
    assert parsed(main, ["demo"]).output == "plnd-demo"


def test_a_place_that_is_a_file_is_refused(tmp_path, capsys):
    """Before anything is loaded, in one line."""
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file" / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plnd demo: ") and error.endswith("choose another folder with --output\n")
    with pytest.raises(PLNDError, match="cannot be made"):
        demo(tmp_path / "file")


def test_the_table_by_hand():
    """Random rows are means over draws; own / others and own / random are ratios of changes, or no harm at all."""
    changes = []
    for language in LANGUAGES:
        own = dict.fromkeys(LANGUAGES, 0.01) | {language: 0.05}
        changes.append({"off": language, "seed": None, "neurons": 7, **own})
        harm = -0.001 if language == "zh" else 0.01
        changes += [{"off": language, "seed": s, "neurons": 7, **dict.fromkeys(LANGUAGES, harm * s)} for s in (0, 1, 2)]
    rows = [
        line.split() for line in table({"bits_per_byte": dict.fromkeys(LANGUAGES, 2.0), "change": changes}).splitlines()
    ]
    assert rows[2] == ["nothing", *["2.000"] * 6]
    assert rows[3] == ["en", "7", "+0.050", *["+0.010"] * 5, "5.0", "5.0"]
    assert rows[4] == ["random", "7", *["+0.010"] * 6]
    assert rows[13][-3:] == ["5.0", "no", "harm"] and rows[14][2:] == ["-0.001"] * 6


def numbers(text: str) -> dict[str, list[float]]:
    """Row of the demo's table to its numbers, random neurons' rows left out."""
    rows = re.findall(rf"^(nothing|{'|'.join(LANGUAGES)}) +([-+\d. ]+)$", text, re.MULTILINE)
    return {name: [float(number) for number in row.split()] for name, row in rows}


def test_the_readmes_table_is_read():
    """The reading above sees all seven rows of the README's table."""
    expected = numbers(README.read_text(encoding="utf-8"))
    assert len(expected) == 7 and expected["zh"][0] == 87 and len(expected["en"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"control": "random", "seed": 1}], ids=["the set", "random"])
def test_simple_evaluate_finds_the_same(tmp_path, monkeypatch, given):
    """The demo's evaluations, which share what does not change, and lm-eval's own front door: the same, bit for bit."""
    register()
    monkeypatch.setattr("lm_eval_plnd.commands.demo.LANGUAGES", ("zh",))
    common = {"dtype": "bfloat16", "softmax_dtype": "float32", "max_length": 512}
    description = Layout(load_model(str(demo_model()), device="cpu")).description()
    some = {name: np.arange(0, width, 9, dtype=np.int32) for name, width in description["widths"].items()}
    importance = {name: np.zeros(len(indices), np.float32) for name, indices in some.items()}
    mask = str(tmp_path / "zh.safetensors")
    NeuronSet(some, importance, {"model": description, "language": "zh"}).save(mask)
    metadata = {"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"}
    found = lm_eval.simple_evaluate(
        model="plnd", model_args={"mask": mask, **given, **common}, tasks=["plnd_text_zh"], batch_size=2, device="cpu",
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata),
    )  # fmt: skip
    assert bits_per_byte({"mask": mask, **given, **common}) == {
        "zh": found["results"]["plnd_text_zh"]["bits_per_byte,none"]
    }


@pytest.mark.slow
def test_the_whole_story(tmp_path, capsys):
    """Offline, from corpus to table: the README's neurons and bits per byte; each language is hurt most by its own."""
    assert main(["demo", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    found, expected = numbers(out), numbers(README.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name][:7] == pytest.approx(row[:7], abs=0.004), name  # the ratios behind follow from these
    results = json.loads((tmp_path / "results.json").read_text())
    for row in (row for row in results["change"] if row["seed"] is None):
        own = row["off"]
        assert row[own] == max(row[language] for language in LANGUAGES)
        assert row["neurons"] == len(NeuronSet.load(tmp_path / f"{own}_specific.safetensors"))
        controls = [r[own] for r in results["change"] if r["off"] == own and r["seed"] is not None]
        assert len(controls) == 3 and row[own] > 5 * sum(controls) / 3
        assert Scores.load(tmp_path / f"{own}.scores.safetensors").metadata["language"] == own
    assert (tmp_path / "changes.png").stat().st_size > 10_000
    with (tmp_path / "overlap.csv").open() as stream:
        overlaps = {(r["structure"], r["x"], r["y"]): float(r["overlap"]) for r in csv.DictReader(stream)}
    en, zh = (NeuronSet.load(tmp_path / f"{language}.safetensors") for language in ("en", "zh"))
    assert overlaps["all", "en", "zh"] == pytest.approx(len(en & zh) / len(zh))
