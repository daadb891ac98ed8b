"""Neurons on a terminal: columns under their headings, and nothing that steers it."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from plnd.inspection.profiles import (
    CorpusRead,
    Firing,
    Inspection,
    LanguageProfile,
    NeuronProfile,
    Writing,
    WrittenToken,
)
from plnd.inspection.table import neuron_lines, number


def inspection(text: str, measure: str = "importance") -> Inspection:
    """One neuron and two languages by hand."""
    firing = Firing(-3.5, text, "before ", " after", 0, 4, 9)
    languages = (
        LanguageProfile("zh", 12.5, -0.25, 0.5, 0.125, (firing,)),
        LanguageProfile("en", None, 0.001234, 0.1, 0.0, ()),
    )
    written = WrittenToken(3, text, 1.0)
    writing = Writing("column of down_proj", (written,), (written,))
    neuron = NeuronProfile(
        "0.down_proj", 7, 9.0, ("0.up_proj.7",), "input column of down_proj", 1.5, languages, writing
    )
    corpora = {"zh": CorpusRead(10, 1234), "en": CorpusRead(3, 99)}
    return Inspection("tiny", "zh", None, 1, measure, corpora, (neuron,))


def test_a_paragraph_a_neuron():
    """What it is, a line a language with its strongest token in its context, and what it writes under either sign."""
    assert list(neuron_lines(inspection(" 我"))) == [
        "zh: 10 documents, 1,234 tokens",
        "en: 3 documents, 99 tokens",
        "",
        "0.down_proj.7   importance 9   the same as 0.up_proj.7   value: input column of down_proj   large: |value|"
        " from 1.5",
        "      importance  mean |value|      mean  large  value  fires most on",
        "  zh        12.5           0.5     −0.25  12.5%   −3.5  before »␣我« after",
        "  en           –           0.1  +0.00123   0.0%      –",
        "  writes column of down_proj",
        "    value > 0: ␣我",
        "    value < 0: ␣我",
    ]


def test_without_scores_there_is_no_importance():
    """The mean size, which is always there, is the measure."""
    lines = list(neuron_lines(inspection("x", "mean |value|")))
    assert lines[4].split() == ["mean", "|value|", "mean", "large", "value", "fires", "most", "on"]
    assert lines[5].split()[:3] == ["zh", "0.5", "−0.25"]


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x9b2J", "a\nb\rc", "\u202e", "\ud800"])
def test_a_terminal_is_not_steered(text):
    """Whatever tokens, texts, languages and addresses are: no control character, and no line that was not meant."""
    plain, hostile = inspection("x"), inspection(text)
    (neuron,) = hostile.neurons
    languages = tuple(replace(one, language=text) for one in neuron.languages[:1])
    neuron = replace(neuron, address=text, also=(text,), languages=languages)
    hostile = replace(hostile, corpora={text: CorpusRead(1, 1), "en": CorpusRead(1, 1)}, neurons=(neuron,))
    lines = list(neuron_lines(hostile))
    assert len(lines) == len(list(neuron_lines(plain))) - 1
    for line in lines:
        assert not {unicodedata.category(letter) for letter in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_numbers_have_three_digits():
    """Or, of large ones, the whole number; and a true minus sign."""
    assert [number(value) for value in (0.0, 12345.6, -0.012345)] == ["0", "12,346", "−0.0123"]
    assert [number(value, signed=True) for value in (0.5, -0.5)] == ["+0.5", "−0.5"]
