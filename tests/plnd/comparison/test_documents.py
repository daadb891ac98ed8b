"""Documents for detection and for evaluation are apart, and as many of each language."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from plnd.comparison.config import ArenaConfig
from plnd.comparison.documents import documents_to_score, read_halves
from plnd.demo_data import demo_corpus, demo_model
from plnd.errors import CorpusError, PLNDError
from plnd.io.corpus import read_documents
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton

CONFIG = ArenaConfig(documents=2, samples=3, held_out=4, max_length=40)


@pytest.fixture(scope="module")
def reading():
    """The demo model's layout and tokenizer."""
    return Layout(load_skeleton(str(demo_model()))), AutoTokenizer.from_pretrained(demo_model())


def texts(half: str) -> dict[str, list[str]]:
    """English and Chinese."""
    return {x: list(read_documents(str(demo_corpus(half) / "corpora" / f"{x}.jsonl"))) for x in ("en", "zh")}


def test_samples_are_disjoint_and_in_order(reading):
    """The first documents, sample after sample; the last ones are held out; short ones are left out of both."""
    chosen, held_out = texts("detect"), texts("evaluate")
    chosen["zh"].insert(1, "短")
    found = read_halves(*reading, chosen, held_out, CONFIG)
    positions = [[document.number for document in sample["zh"]] for sample in found.samples]
    assert positions == [[0, 2], [3, 4], [5, 6]]
    last = len(held_out["en"]) - 1
    assert [document.number for document in found.held_out["en"]] == [last - 3, last - 2, last - 1, last]
    assert found.description()["held_out"]["en"]["documents"] == [last - 3, last - 2, last - 1, last]


def test_a_text_that_comes_again_counts_once(reading):
    """In detection the first time, in evaluation the last: samples are disjoint, and documents independent."""
    chosen, held_out = texts("detect"), texts("evaluate")
    again = {**chosen, "zh": [chosen["zh"][0], f"{chosen['zh'][0]}\n", *chosen["zh"][1:]]}
    found = read_halves(*reading, again, {**held_out, "zh": [*held_out["zh"], held_out["zh"][-1]]}, CONFIG)
    expected = read_halves(*reading, chosen, held_out, CONFIG)
    assert [[d.ids for d in sample["zh"]] for sample in found.samples] == [
        [d.ids for d in sample["zh"]] for sample in expected.samples
    ]
    assert [d.ids for d in found.held_out["zh"]] == [d.ids for d in expected.held_out["zh"]]


def test_without_a_token_before_it_the_first_one_is_not_predicted(reading):
    """Of a tokenizer that has neither a beginning- nor an end-of-text token; bytes are those of what is predicted."""
    layout, tokenizer = reading
    bare = AutoTokenizer.from_pretrained(demo_model(), bos_token=None, eos_token=None)
    (found,) = documents_to_score(layout, bare, [(3, texts("evaluate")["en"][0])], "en", 40, 32)
    own = tokenizer(texts("evaluate")["en"][0], add_special_tokens=False)["input_ids"]
    assert found.ids == own[:40] and found.size == len(tokenizer.decode(own[1:40]).encode())


def test_bytes_are_those_of_the_predicted_tokens(reading):
    """In evaluation all tokens of the text, after the beginning-of-text token; in detection all but the first."""
    _, tokenizer = reading
    found = read_halves(*reading, texts("detect"), texts("evaluate"), CONFIG)
    held_out, first = found.held_out["zh"][-1], found.samples[0]["zh"][0]
    assert held_out.ids[0] == tokenizer.bos_token_id and len(held_out.ids) == 40
    text = tokenizer.decode(held_out.ids[1:])
    assert held_out.size == len(text.encode()) and texts("evaluate")["zh"][-1].startswith(text.strip("\ufffd "))
    assert first.ids == tokenizer(texts("detect")["zh"][0], truncation=True, max_length=40)["input_ids"]


def test_what_would_mislead_is_refused(reading):
    """A text on both sides, in one language or two, too few documents, one language, different languages."""
    chosen, held_out = texts("detect"), texts("evaluate")
    for language in ("zh", "en"):
        both = {**held_out, "zh": [*held_out["zh"], f"{chosen[language][5]} "]}
        with pytest.raises(PLNDError, match=f"zh: 1 texts .* are for detection or training too, in {language} "):
            read_halves(*reading, chosen, both, CONFIG)
    with pytest.raises(CorpusError, match="en: 5 documents that are long enough for detection, expected 6"):
        read_halves(*reading, {**chosen, "en": chosen["en"][:5]}, held_out, CONFIG)
    with pytest.raises(CorpusError, match="en: 3 documents that are long enough for evaluation, expected 4"):
        read_halves(*reading, chosen, {**held_out, "en": held_out["en"][:3]}, CONFIG)
    with pytest.raises(PLNDError, match="expected the same ones, two or more"):
        read_halves(*reading, chosen, {"en": held_out["en"]}, CONFIG)
