"""What people read of a suppression, on numbers made by hand."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from handmade import make_neurons
from lm_eval_plnd.experiments.ablation.run import effects
from lm_eval_plnd.experiments.changes import Estimate
from lm_eval_plnd.experiments.questions import Rate
from lm_eval_plnd.experiments.suppression.config import SuppressConfig
from lm_eval_plnd.experiments.suppression.run import Candidate, Point, Suppression
from lm_eval_plnd.experiments.suppression.summary import card, draw, text, write

BITS = {"zh": ([2.0, 1.0], [3.0, 2.5], [2.1, 1.0]), "en": ([1.0, 1.5], [1.1, 1.5], [1.0, 1.5])}
VERDICTS = {
    "slips": ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    "answers": ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]),
    "faithful": ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
    "about": ([0.5, 1.0, 1.0], [0.5, 0.5, 1.0], [0.5, 1.0, 1.0]),
}
SETTINGS = ("original", "neurons", "random0")


def made(factor: float) -> Suppression:
    """Three neurons of which something is chosen."""
    cost = Estimate(0.02, 0.01, 0.03, 0.01)
    one = Point(3, factor, Rate(0, 3), Rate(0, 3), Rate(3, 3), 0.7, cost, {"en": cost})
    values = {
        name: {measure: {"rate": found[n]} for measure, found in VERDICTS.items()}
        | {x: {"bits_per_byte": found[n], "bytes": [10.0, 30.0]} for x, found in BITS.items()}
        for n, name in enumerate(SETTINGS)
    }
    rates = {
        name: {measure: Rate.among(VERDICTS[measure][n]) for measure in ("slips", "answers", "faithful")}
        for n, name in enumerate(("original", "neurons", "random"))
    }
    return Suppression(
        "zh", ("en",), "made/by-hand", SuppressConfig(draws=1),
        Point(0, 1.0, Rate(1, 3), Rate(3, 3), Rate(2, 3), 0.8, cost, {}),
        (one,), one, Candidate(make_neurons({"0.down_proj": [1, 2], "1.q_proj": [3]}), factor),
        tuple(effects(values, {"slips": {"rate": False}})), rates,
        {"en": {name: found["slips"] for name, found in rates.items()}}, ({"id": "sleep", "setting": "neurons"},),
    )  # fmt: skip


def test_the_terminal_shows_curve_choice_and_report():
    """With the rule in the sentence, and what random neurons do beside it."""
    shown = text(made(0.0))
    assert "3 neurons, switched off: of all candidates whose rate of the unwanted language" in shown
    assert "(target 0.02)." in shown and shown.count("chosen") >= 1
    line = next(x for x in shown.split("\n") if x.startswith("answers to zh in zh"))
    assert line.split()[5] == "3" and "1.000 [" in line and "-1.000 [-1.000, -1.000]" in line
    zh = next(x for x in shown.split("\n") if x.startswith("zh "))
    assert "1.250" in zh and "+1.375" in zh  # weighted by bytes


def test_files_hold_every_number(tmp_path):
    """Of the curve and of the report; without a choice the curve alone."""
    found = made(0.5)
    write(found, tmp_path)
    curve = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["neurons"] for row in curve] == ["0", "3"] and [row["chosen"] for row in curve] == ["0", "1"]
    report = list(csv.DictReader((tmp_path / "report.csv").open()))
    own = {(row["measure"], row["setting"]): row for row in report if row["of"] == ""}
    assert own["answers", "random"]["count"] == "2" and own["answers", "neurons"]["change"] == "-1.0"
    assert {row["of"] for row in report} == {"", "zh", "en"}
    kept = json.loads((tmp_path / "suppression.json").read_text())
    assert kept["chosen"]["factor"] == 0.5 and kept["rates"]["random"]["answers"] == {"count": 2, "of": 3}
    none = tmp_path / "none"
    none.mkdir()
    write(dataclasses.replace(found, chosen=None, candidate=None), none)
    assert sorted(path.name for path in none.iterdir()) == ["curve.csv", "curve.md", "curve.tex", "suppression.json"]


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_card_says_how_to_load_it(factor):
    """With the factor, where neurons are damped and not off."""
    said = card(made(factor), "zh.safetensors", "0" * 64, "zh zh.jsonl", "out")
    for words in ("made/by-hand", "| languages kept | en |", "down_proj 2", "0" * 64, "target 0.02, of both"):
        assert words in said
    damped = "mask=zh.safetensors,intervene=scale,factor=0.5" in said and "--intervene scale --factor 0.5" in said
    assert damped == bool(factor) and ('kind="zero"' in said) == (not factor)


def test_the_curve_is_drawn(tmp_path):
    """One file, whatever the number of points."""
    pytest.importorskip("matplotlib")
    draw(made(0.5), tmp_path / "curve.svg", columns=1)
    assert "slips into zh" in (tmp_path / "curve.svg").read_text()
