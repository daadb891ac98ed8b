"""Whether an answer is about its question, by the words that the question lists."""

from __future__ import annotations

import pytest

from lm_eval_plnd.scoring.relevance import mentioned, relevance


@pytest.mark.parametrize(
    ("language", "concept", "said", "not_said"),
    [
        ("en", "sleep*", "Sleeping well", "asleep"),
        ("de", "*schlaf*", "die Schlafmaske; MITTAGSSCHLAF", "Schaf"),
        ("de", "ei", "ein weiches Ei.", "ein Eimer"),
        ("fr", "eau", "de l'eau", "bateau"),
        ("fr", "écran*", "L’ÉCRAN", "ecran"),
        ("ru", "вод*", "Воды много", "завод"),
        ("zh", "睡", "早点睡觉", "早点起床"),
        ("ar", "ماء", "والماء مهم", "سماء"),
        ("ar", "ماء", "بِالمَاءِ", "دماء"),  # vowel signs and a joined particle
        ("ar", "أوراق*", "الاوراق", "ورق"),  # a hamza that was left out
        ("de", "*dank", "Vielen Dank", "danken"),
    ],
)
def test_patterns(language, concept, said, not_said):
    """A word that begins so, has it anywhere, or is it; in Chinese anywhere in the text."""
    assert mentioned(said, [[concept]], language) == [True]
    assert mentioned(not_said, [[concept]], language) == [False]


def test_two_concepts_make_an_answer_relevant():
    """0, 1, 2 or 3 of three concepts are 0, 0.5, 1 and 1, however often each is said."""
    terms = {"en": [["sleep*", "asleep"], ["coffee"], ["phone*"]]}
    answers = ["nothing", "Sleep, sleep and sleep asleep.", "Coffee and sleep", "phones, coffee, sleep"]
    assert [relevance(answer, terms) for answer in answers] == [0.0, 0.5, 1.0, 1.0]


def test_languages_are_not_added_up():
    """One concept in each of two languages is one concept: the language that says most counts."""
    terms = {"en": [["sleep"], ["coffee"]], "de": [["schlaf"], ["kaffee"]]}
    assert relevance("Kaffee and sleep", terms) == 0.5
    assert relevance("Kaffee, Schlaf and sleep", terms) == 1.0
    assert relevance("anything", {}) == 0.0
