"""Numbers that a search cannot take."""

from __future__ import annotations

import pytest

from lm_eval_plnd.experiments.suppression.config import SuppressConfig
from plnd.errors import PLNDError
from plnd.neurons.contrast import TIMES


def test_the_first_bar_is_that_of_a_contrast():
    """So that a suppression without a search would take what `plnd select --against` takes."""
    assert SuppressConfig().times[0] == TIMES


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target": 1.0}, "target=1.0: expected a rate from 0 to below 1"),
        ({"target": float("nan")}, "target=nan"),
        ({"stop": "all"}, "unknown stop='all': expected one of both, slips, answers"),
        ({"shares": ()}, "shares=[]: expected different numbers above 0 and at most 1"),
        ({"shares": (0.1, 0.1)}, "shares=[0.1, 0.1]: expected different numbers"),
        ({"factors": (0.0, 1.0)}, "factors=[0.0, 1.0]: expected different numbers from 0 to below 1"),
        ({"times": (2, 0.5)}, "times=[2, 0.5]: expected different numbers of at least 1"),
        ({"questions": 0}, "questions=0: expected a whole number of at least 1"),
        ({"max_length": 8}, "max_length=8: expected a whole number of at least 32"),
        ({"draws": -1}, "draws=-1: expected a whole number of at least 0"),
    ],
)
def test_bad_numbers_are_a_line(changes, message):
    """Found, and what is expected."""
    with pytest.raises(PLNDError) as caught:
        SuppressConfig(**changes)
    assert message in str(caught.value)
