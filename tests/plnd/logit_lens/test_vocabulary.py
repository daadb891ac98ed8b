"""Coverage of a vocabulary, counted by hand."""

from __future__ import annotations

from functools import partial

import pytest

from plnd.demo_data import demo_model
from plnd.errors import CorpusError
from plnd.logit_lens.vocabulary import Coverage, coverage, tokens, words
from plnd.models.loading import load_tokenizer


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The café, the Straße!", ["the", "café", "the", "strasse"]),
        ("don't 3 times x2", ["don", "t", "times", "x"]),
        ("Привет, мир", ["привет", "мир"]),
        ("中国人 OK 语言。", ["中", "国", "人", "ok", "语", "言"]),
        ("漢字とカナ", ["漢", "字", "と", "カ", "ナ"]),
        ("ที่นี่", ["ที่", "นี่"]),  # marks belong to their letter
        ("한국어 말", ["한국어", "말"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("123 … 😀", []),
    ],
)
def test_words(text, expected):
    """Letters in a row, in lower case; each letter where words are not spaced."""
    assert list(words(text)) == expected


def test_coverage():
    """Different words of a corpus, of a vocabulary, of both; and of the running text of the reference."""
    found = coverage(["A cat sat.", "A dog"], ["a cat a dog", "the cat the", "bird a"])
    # counts of the reference: a 3, cat 2, the 2, dog 1, bird 1; corpus: a, cat, sat, dog
    assert found == Coverage(documents=2, corpus=4, vocabulary=3, covered=2, running=6 / 9)
    assert found.share == 2 / 3
    assert coverage(["a"], ["a b"], min_count=1) == Coverage(1, 1, 2, 1, 0.5)
    with pytest.raises(CorpusError, match="nothing in it occurs 2 times, expected a larger corpus"):
        coverage(["a"], ["a b c"])


def test_tokens_are_those_of_the_tokenizer_with_letters():
    """Pieces of words count, special tokens, digits and signs do not."""
    tokenizer = load_tokenizer(str(demo_model()))
    text = "The rivers, 1234, shape valleys…"
    found = [tokenizer.decode([token]) for token in tokens(tokenizer, text)]
    assert "".join(found).replace(" ", "") == "Theriversshapevalleys"
    assert coverage([text], [text * 2], partial(tokens, tokenizer)).share == 1
