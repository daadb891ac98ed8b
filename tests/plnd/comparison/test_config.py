"""Settings of the arena that make no sense are refused."""

from __future__ import annotations

import pytest

from plnd.comparison.config import ArenaConfig
from plnd.errors import PLNDError


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(documents=0), "documents=0: expected 1 or more"),
        (dict(share=2.0), "share=2.0: expected a number above 0"),
        (dict(draws=-1), "draws=-1: expected 0 or more"),
        (dict(min_length=300), "min_length=300: expected 2"),
        (dict(detectors="plnd"), "unknown detectors 'plnd': expected some of plnd-threshold, "),
        (dict(ablations="scale"), "unknown ablations 'scale': expected some of zero, mean"),
        (dict(curve="time"), "unknown curve 'time': expected some of documents, neurons, languages"),
        (dict(detectors=" , "), "expected at least one of detectors"),
    ],
)
def test_refused(options, message):
    """With what was found and what was expected."""
    with pytest.raises(PLNDError, match=message):
        ArenaConfig(**options)


def test_words_are_listed_once():
    """In the order given, whatever the spaces."""
    assert ArenaConfig(detectors="lape, weight,lape").listed("detectors") == ("lape", "weight")
