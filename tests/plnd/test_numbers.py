"""What counts as a number, and that what does not is one line wherever numbers are taken from Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plnd
from handmade import MODEL, make_neurons, make_scores
from plnd.errors import PLNDError
from plnd.numbers import is_real, is_whole, signed

NO_NUMBERS = ["3", None, True, [3], {}, b"3", "\ud800", torch.tensor(3), np.array([3]), np.bool_(True), 3j]


def test_numbers():
    """Of Python and numpy, whole ones also as 3.0; nothing else is taken for one."""
    assert all(is_real(x) and is_whole(x) for x in (3, 3.0, np.int64(3), np.float32(3), -3, 10**30))
    assert all(is_real(x) and not is_whole(x) for x in (1.5, np.float64(1.5), float("inf"), float("nan")))
    assert not any(is_real(x) or is_whole(x) for x in NO_NUMBERS)


SCORES = [
    make_scores({address: np.ones((3, width)) for address, width in MODEL["widths"].items()}, language=language)
    for language in ("zh", "en")
]
NEURONS = make_neurons({"1.down_proj": [0, 1]})
TAKEN = {
    "top_k": lambda x: SCORES[0].select(top_k=x),
    "fraction": lambda x: SCORES[0].select(fraction=x),
    "epsilon": lambda x: SCORES[0].select(epsilon=x),
    "count": lambda x: plnd.contrast(SCORES[0], SCORES[1], count=x),
    "share": lambda x: plnd.contrast(SCORES[0], SCORES[1], share=x),
    "error_rate": lambda x: plnd.contrast(SCORES[0], SCORES[1], error_rate=x),
    "times": lambda x: plnd.contrast(SCORES[0], SCORES[1], times=x),
    "top_rate": lambda x: plnd.lape(SCORES, top_rate=x),
    "top": NEURONS.top,
    "seed": NEURONS.random_like,
    "max_documents": lambda x: plnd.DetectConfig(max_documents=x),
    "batch_size": lambda x: plnd.DetectConfig(batch_size=x),
    "max_length": lambda x: plnd.DetectConfig(max_length=x),
    "detect epsilon": lambda x: plnd.DetectConfig(epsilon=x),
    "samples": lambda x: plnd.ArenaConfig(samples=x),
    "draws": lambda x: plnd.ArenaConfig(draws=x),
    "arena share": lambda x: plnd.ArenaConfig(share=x),
    "contexts": lambda x: plnd.InspectConfig(contexts=x),
}
MAY_BE_NONE = {
    "top_k",
    "fraction",
    "epsilon",
    "count",
    "share",
    "error_rate",
    "top_rate",
    "max_documents",
    "detect epsilon",
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_no_number_is_refused(name):
    """In one line with the argument's name and what was found; `None` where it does not mean that nothing is said."""
    word = name.split()[-1]
    for value in NO_NUMBERS:
        if value is None and name in MAY_BE_NONE:
            continue
        with pytest.raises(PLNDError, match=f"^{word}[= ].*: expected"):
            TAKEN[name](value)


@pytest.mark.parametrize(
    "name", ["top_k", "count", "top", "max_documents", "batch_size", "samples", "draws", "contexts"]
)
def test_halves_are_no_whole_numbers(name):
    """Of documents and neurons."""
    with pytest.raises(PLNDError, match="expected"):
        TAKEN[name](1.5)


def test_nothing_is_not_the_default():
    """A rate of 0 is refused, and not taken for none given."""
    with pytest.raises(PLNDError, match="top_rate=0: expected a number above 0"):
        TAKEN["top_rate"](0)


def test_changes_have_signs_and_zeros_no_minus():
    """What rounds to zero is +0.000, whichever side it is on."""
    assert [signed(x) for x in (-0.0004, 0.0, -0.0, 0.0004, -0.0006, 1.5)] == [*["+0.000"] * 4, "-0.001", "+1.500"]
    assert (signed(-0.00004, 4), signed(-0.04, 1), signed(-2.0, 0)) == ("+0.0000", "+0.0", "-2")
    assert (signed(float("nan")), signed(float("-inf"))) == ("+nan", "-inf")
