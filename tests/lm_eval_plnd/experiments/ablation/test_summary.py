"""What people read of an ablation, on numbers made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from lm_eval_plnd.experiments.ablation.run import Ablation, effects
from lm_eval_plnd.experiments.ablation.summary import draw, sentence, text, write
from plnd.errors import PLNDError
from plnd.statistics import weighted_mean

BYTES = [10.0, 30.0, 20.0, 40.0]
WITHOUT = {
    "original": ([2.0, 1.0, 3.0, 2.0], [1.0, 1.0, 0.0, 1.0]),
    "neurons": ([2.5, 1.6, 3.4, 2.5], [1.0, 0.0, 0.0, 1.0]),
    "random0": ([2.1, 1.0, 3.1, 2.0], [1.0, 1.0, 0.0, 1.0]),
    "random1": ([2.1, 1.1, 3.0, 2.1], [1.0, 1.0, 0.0, 1.0]),
}
VALUES = {
    name: {"zh": {"bits_per_byte": bits, "bytes": BYTES}, "quiz": {"acc": right}}
    for name, (bits, right) in WITHOUT.items()
}
BETTER = {"zh": {"bits_per_byte": False}, "quiz": {"acc": True}}


def made(values=None, draws: int = 2) -> Ablation:
    """An ablation with these values."""
    return Ablation("m", "zh", 87, 23040, "0" * 64, draws, effects(values or VALUES, BETTER))


def test_scores_and_changes_are_those_of_lm_eval():
    """Bits per byte count by bytes, accuracies alike; a random change is the mean over draws."""
    bits, accuracy = made().effects
    score = {name: weighted_mean(found[0], BYTES)[0] for name, found in WITHOUT.items()}
    random = (score["random0"] + score["random1"]) / 2
    assert (bits.task, bits.metric, bits.documents, bits.higher_is_better) == ("zh", "bits_per_byte", 4, False)
    assert bits.original == pytest.approx(score["original"])
    assert bits.own.value == pytest.approx(score["neurons"] - score["original"])
    assert bits.random.value == pytest.approx(random - score["original"])
    assert bits.beyond.value == pytest.approx(score["neurons"] - random)
    assert bits.own.low < bits.own.value < bits.own.high and bits.harm(bits.own) > 0
    assert (accuracy.original, accuracy.own.value, accuracy.harm(accuracy.own)) == (0.75, -0.25, 0.25)


def test_documents_of_which_a_setting_says_nothing_are_left_out_of_all():
    """Their metric is over the others; one that a setting has of none is no line."""
    nan = float("nan")
    told = {"original": [1.0, nan, 1.0], "neurons": [0.0, 0.0, 1.0], "random0": [1.0, 1.0, nan]}
    values = {name: {"talk": {"lpr": found, "undetermined": [0.0, 1.0, 0.0]}} for name, found in told.items()}
    first, second = effects(values, {})
    assert (first.metric, first.documents, first.original, first.own.value) == ("lpr", 1, 1.0, -1.0)
    assert (second.metric, second.documents) == ("undetermined", 3)
    del values["neurons"]["talk"]["lpr"]
    assert [one.metric for one in effects(values, {})] == ["undetermined"]
    del values["random0"]["talk"]["undetermined"]
    with pytest.raises(PLNDError, match="no metric has a value in every setting"):
        effects(values, {})


def test_the_sentence_names_what_suffers_most_and_by_how_much():
    """In the metric's own unit, beside what as many random neurons cost."""
    found = made({name: {"zh": tasks["zh"]} for name, tasks in VALUES.items()})
    (bits,) = found.effects
    ratio = bits.own.value / bits.random.value
    expected = f"Without 87 neurons (0.378% of all), zh suffers most: from {bits.original:.3f} to "
    assert sentence(found).startswith(expected)
    assert f"{ratio:,.1f} times what as many random ones ({bits.random.value:+.3f}) cost" in sentence(found)


def test_the_sentence_claims_nothing_that_the_documents_do_not_show():
    """Where nothing changes, where things get better, and of one document."""
    same = made({name: VALUES["original"] for name in VALUES})
    better = made({**VALUES, "neurons": {**VALUES["original"], "zh": {"bits_per_byte": [1.0] * 4, "bytes": BYTES}}})
    one = made({n: {"quiz": {"acc": tasks["quiz"]["acc"][1:2]}} for n, tasks in VALUES.items()})
    assert all("no task gets worse beyond what" in sentence(found) for found in (same, better, one))
    assert "one document has no interval" in text(one) and "[–]" in text(one)
    assert "one document has no interval" not in text(same)


def test_without_draws_nothing_is_said_of_random_neurons():
    """The columns are empty."""
    found = made({name: VALUES[name] for name in ("original", "neurons")}, draws=0)
    assert found.effects[0].random is None and "random:" not in text(found) and "random ones" not in sentence(found)


def test_files_hold_the_numbers(tmp_path):
    """JSON, CSV and Markdown say the same; the picture is one."""
    found = made()
    write(found, tmp_path)
    with (tmp_path / "ablation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    read = json.loads((tmp_path / "ablation.json").read_text())
    assert [float(row["change"]) for row in rows] == [one.own.value for one in found.effects]
    assert [one["own"]["low"] for one in read["effects"]] == [float(row["change_low"]) for row in rows]
    assert "87 of 23,040 neurons off" in (tmp_path / "ablation.md").read_text()
    pytest.importorskip("matplotlib")
    draw(found, tmp_path / "ablation.svg")
    assert (tmp_path / "ablation.svg").read_text().lstrip().startswith("<?xml")
    assert "change (%)" in (tmp_path / "ablation.svg").read_text()
    draw(replace(found, effects=found.effects[:1]), tmp_path / "one.svg")
    assert f"change in {found.effects[0].metric}" in (tmp_path / "one.svg").read_text()
