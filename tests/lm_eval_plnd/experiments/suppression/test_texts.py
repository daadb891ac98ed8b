"""Texts for detection, to choose by and to report, from one corpus."""

from __future__ import annotations

import pytest

from lm_eval_plnd.experiments.suppression.texts import read_texts
from plnd.demo_data import demo_model
from plnd.errors import CorpusError
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton, load_tokenizer

LONG = [f"Text number {n} " + "has enough words to be read and scored by a model " * 8 for n in range(12)]


@pytest.fixture(scope="module")
def model():
    """Layout and tokenizer."""
    return Layout(load_skeleton(str(demo_model()))), load_tokenizer(str(demo_model()))


def read(model, documents, **changes):
    """Two, three and four of them."""
    return read_texts(
        *model, documents, "en", **{"detection": 2, "validation": 3, "report": 4, "max_length": 64, **changes}
    )


def test_no_text_has_two_purposes(model):
    """One purpose after the other, in the corpus's order; what is short or comes again is left out, the rest unread."""
    corpus = iter([LONG[0], "short", LONG[0], *LONG[1:5], LONG[1], *LONG[5:]])
    found = read(model, corpus)
    decoded = [model[1].decode(one.ids[1:]) for one in (*found.validation, *found.report)]
    assert found.detection == LONG[:2]
    assert [text.split()[2] for text in decoded] == [str(n) for n in range(2, 9)]
    assert next(corpus) == LONG[9]


def test_documents_of_scores_are_passed_over(model):
    """So many at the beginning, also where they come again."""
    found = read(model, [*LONG[:3], LONG[2], *LONG[3:]], detection=0, skipped=3)
    assert found.detection == [] and model[1].decode(found.validation[0].ids[1:]).split()[2] == "3"


def test_too_few_are_refused(model):
    """Saying how many of what."""
    with pytest.raises(CorpusError) as caught:
        read(model, LONG[:8], skipped=2)
    assert str(caught.value) == (
        "en: 6 documents of 32 tokens or more behind the 2 that its scores are of, expected 9 (2 for detection, 3 to"
        " choose by, 4 to report): give more, or ask for fewer"
    )
