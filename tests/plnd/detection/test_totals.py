"""Logs of importance over the median, and their mean and deviation: worked by hand, and by numpy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handmade import logs_over_median
from plnd.detection.totals import LOG_FLOOR, Totals, at_least, log_over_median, mean_and_deviation, summarized

LOGS = (3, 4)
"""The rows of a summary that hold the sums of logs and of their squares."""


def logs_of(importance: torch.Tensor) -> torch.Tensor:
    """Of importances, [documents, width]."""
    return log_over_median(importance, importance.sort(-1).values)


@pytest.mark.parametrize(
    "importance, quotients",
    [
        ([4.0, 2.0, 1.0], [2, 1, 1 / 2]),
        ([1.0, 2.0, 4.0, 8.0], [1 / 3, 2 / 3, 4 / 3, 8 / 3]),
        ([0.0, 0.0, 6.0, 3.0, 12.0], [1e-3, 1e-3, 1, 1 / 2, 2]),
        ([0.0, 0.0, 0.0, 5.0], [1e-3, 1e-3, 1e-3, 1]),
        ([0.0, 0.0, 0.0], [1, 1, 1]),
        ([1e-30, 2.0, 2.0, 2.0], [1e-3, 1, 1, 1]),
        ([7.0], [1]),
    ],
    ids=["odd", "even", "zeros do not count", "one that is not 0", "silence", "at the floor", "one neuron"],
)
def test_logs_by_hand(importance, quotients):
    """The median is that of what is above 0; nothing is below a thousandth of it; where all is 0 nothing is more."""
    found = logs_of(torch.tensor([importance]))
    assert found.dtype == torch.float64
    assert found[0].tolist() == pytest.approx([math.log(quotient) for quotient in quotients], abs=1e-12)


IMPORTANCES = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(0, 8, width=32) | st.just(0.0)
)


@settings(max_examples=100, deadline=None)
@given(IMPORTANCES)
def test_logs_by_numpy(importance):
    """Each document by itself, whatever else is in the batch."""
    given = torch.from_numpy(importance)
    expected = np.array([logs_over_median(row) for row in importance])
    np.testing.assert_allclose(logs_of(given).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert np.array_equal(given.numpy(), importance) and (expected >= math.log(LOG_FLOOR) - 1e-12).all()


def test_length_and_scale_drop_out():
    """A document twice as long, or a projection measured elsewhere, has the same logs; the floor is one of shares."""
    importance = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = torch.tensor([[1.0], [1e-20], [3e15]], dtype=torch.float64)
    np.testing.assert_allclose(logs_of(importance * factors), logs_of(importance), atol=1e-12)


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_mean_and_deviation_over_documents(documents):
    """Of batches that are added one after the other: the mean, and the deviation of a sample, 0 of one document."""
    importance = torch.rand(documents, 30, generator=torch.Generator().manual_seed(documents))
    totals = Totals.empty({"0.ffn": 30}, "cpu")
    for batch in importance.split(2):
        totals.add(summarized(batch, torch.full((len(batch),), 7)))  # weights are those of the mean importance
    mean, deviation = mean_and_deviation(*totals.values[list(LOGS)], documents)
    logs = np.array([logs_over_median(row) for row in importance.numpy()])
    np.testing.assert_allclose(mean, logs.mean(0), atol=1e-12)
    np.testing.assert_allclose(deviation, logs.std(0, ddof=1) if documents > 1 else np.zeros(30), atol=1e-7)


def test_documents_that_agree_have_no_deviation():
    """Rounding does not make the variance negative, nor the deviation anything but next to nothing."""
    importance = torch.rand(1, 400, generator=torch.Generator().manual_seed(1)).repeat(7, 1)
    summary = summarized(importance, torch.ones(7))
    _, deviation = mean_and_deviation(*summary[list(LOGS)], 7)
    assert torch.isfinite(deviation).all() and float(deviation.max()) < 1e-6


def test_at_least_is_what_the_artifact_holds():
    """An importance of exactly epsilon is kept, and so is one that float32, which the artifact holds, rounds to it."""
    minimum = torch.tensor([0.5, 0.5 - 1e-12, 0.5 - 1e-6, 0.5 + 1e-12, 1.0, 0.0], dtype=torch.float64)
    assert at_least(0.5, minimum).tolist() == [True, True, False, True, True, False]


SPREAD = st.lists(st.lists(st.floats(2.0**-40, 2.0**30, width=32), min_size=1, max_size=3), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(SPREAD, st.randoms(use_true_random=False))
def test_totals_are_the_sums_themselves_in_any_order(documents, shuffled):
    """Batches added in any order, or to any of several totals first: the same bits, those of the exact sum, rounded."""
    batches = [torch.tensor(batch)[:, None] * torch.tensor([0.7, 1.0, 3.0]) for batch in documents]
    summaries = [summarized(batch, torch.arange(1, 1 + len(batch))) for batch in batches]
    one = Totals.empty({"0.ffn": 3})
    for summary in summaries:
        one.add(summary)
    for row in range(2, 5):
        exact = sum((Fraction(float(summary[row, 0])) for summary in summaries), Fraction(0))
        assert float(one.values[row, 0]) == float(exact)
        assert Fraction(float(one.values[row, 0])) + Fraction(float(one.values[row + 3, 0])) == exact
    shares = [Totals.empty({"0.ffn": 3}) for _ in range(3)]
    shuffled.shuffle(summaries)
    for summary in summaries:
        shuffled.choice(shares).add(summary)
    merged = Totals.empty({"0.ffn": 3})
    for share in shares:
        merged.add(share.values)
    assert torch.equal(merged.values, one.values)


def test_plain_sums_do_depend_on_the_order():
    """Why totals keep rests: what float64 adds up differs with the order, and the mean in the artifact may."""
    values = torch.rand(1000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forward, backward = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    for value in values:
        forward += value
    for value in values.flip(0):
        backward += value
    assert not torch.equal(forward, backward)
