"""Means and their errors, bootstrap intervals and paired tests, against what can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plnd.errors import PLNDError
from plnd.statistics import bootstrap_interval, paired_p_value, ratio_error, relative_lengths, weighted_mean


def test_mean_and_its_standard_error():
    """Standard deviation over the root of the documents; none for one document."""
    values = [0.0, 1.0, 1.0, 4.0]
    middle, stderr = weighted_mean(values)
    assert middle == 1.5 and stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert weighted_mean([2.0]) == (2.0, None)


def test_the_order_of_documents_does_not_matter():
    """Sums are exact: what cancels leaves nothing behind, and any order gives the same bits."""
    values = [1e16, 1.0, -1e16, 0.1, 3.0, 1e-3]
    assert weighted_mean([1e16, 1.0, -1e16])[0] == 1 / 3
    assert len({weighted_mean(values[n:] + values[:n]) for n in range(len(values))}) == 1
    weights = [3.0, 1e16, 3.0, 0.1, 1e8, 7.0]
    assert len({weighted_mean(values[n:] + values[:n], weights[n:] + weights[:n]) for n in range(len(values))}) == 1


def test_weighted_mean_and_its_standard_error():
    """A document that is three times as long counts as three; the error is that of a ratio, as resampling finds it."""
    random_state = np.random.default_rng(0)
    values, weights = random_state.normal(2, 1, 400), random_state.uniform(1, 5, 400)
    middle, stderr = weighted_mean(list(values), list(weights))
    assert middle == pytest.approx(np.average(values, weights=weights))
    again = random_state.integers(0, 400, (2000, 400))
    resampled = (values * weights)[again].sum(1) / weights[again].sum(1)
    assert stderr == pytest.approx(resampled.std(), rel=0.1)


def test_the_error_of_a_ratio_is_that_of_the_weighted_mean():
    """Both ways to it agree: exact sums, and the spread of values `as_ratio`; lengths have the mean 1."""
    random_state = np.random.default_rng(6)
    values, lengths = random_state.normal(2, 1, 30), random_state.integers(1, 90, 30)
    relative = relative_lengths(lengths)
    middle, stderr = weighted_mean(list(values), list(lengths))
    assert relative.mean() == pytest.approx(1) and (relative * values).mean() == pytest.approx(middle)
    assert ratio_error(relative * values, relative) == pytest.approx(stderr)
    assert math.isnan(ratio_error(np.ones(1), np.ones(1)))


def test_interval_of_many_values_is_that_of_the_normal():
    """For many values the interval is the mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).normal(3, 2, 2000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth():
    """Of 200 samples of 40 coin tosses, about 95 % have an interval with the true mean in it."""
    tosses = np.random.default_rng(2).integers(0, 2, (200, 40))
    intervals = [bootstrap_interval(sample, resamples=500) for sample in tosses]
    assert 0.9 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.99


def test_interval_of_two_values():
    """Four resamples are possible; the ends are the two values themselves."""
    assert bootstrap_interval([0, 1]) == (0, 1)


def test_interval_repeats_with_its_seed():
    """The same seed gives the same interval, another one another; so does the order that memory allows."""
    values = np.random.default_rng(3).normal(size=50)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(list(values), seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_interval_in_batches_is_the_same(monkeypatch):
    """How many resamples are held at a time changes nothing."""
    values = np.random.default_rng(3).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("plnd.statistics.AT_ONCE", 7 * 50)
    assert bootstrap_interval(values) == whole


@pytest.mark.parametrize("values", [[], [0.5], [0.1, math.nan, 0.3], [0.1, math.inf]])
def test_no_interval(values):
    """Nothing, one value, or a value that is not finite: nothing can be said, and that is nan."""
    assert np.isnan(bootstrap_interval(values)).all()


def test_constant_values():
    """Values without spread have an interval without width."""
    assert bootstrap_interval([0.25] * 8) == (0.25, 0.25)


@pytest.mark.parametrize(
    "values, baseline, expected",
    [
        ([1, 1, 1, 1], [0, 0, 0, 0], 2 / 16),  # one of 16 sign patterns is as large, on each side
        ([0, 0, 0, 0], [1, 1, 1, 1], 2 / 16),
        ([1, 1, 1, 0], [0, 0, 0, 1], 2 * 5 / 16),  # +++- and its kind, four, and ++++
        ([1, 1, 0.5], [0, 0, 0.5], 2 / 4),  # a document without difference decides nothing
        ([1, 0], [0, 1], 1),
        ([2], [1], 1),  # one document is no evidence
        ([1, 0.5], [1, 0.5], 1),
    ],
)
def test_p_value_by_counting_signs(values, baseline, expected):
    """Few documents: the share of sign patterns with a mean difference as large, of both sides."""
    assert paired_p_value(values, baseline) == pytest.approx(expected)


def test_p_value_of_many_documents():
    """Against the sign test, which has a closed form where all differences are 0 or ±1."""
    values, baseline = np.zeros(200), np.zeros(200)
    values[:60], baseline[60:100] = 1, 1  # 60 documents better, 40 worse
    exact = 2 * sum(math.comb(100, k) for k in range(60, 101)) / 2**100
    found = paired_p_value(values, baseline)
    assert found == pytest.approx(exact, rel=0.15)
    assert found == paired_p_value(values, baseline, seed=0) != paired_p_value(values, baseline, seed=1)
    assert paired_p_value(np.arange(1, 60), np.zeros(59)) == 2 / 10000


def test_p_value_sees_pairs():
    """Small differences that all point one way are evidence, however much the documents differ among each other."""
    documents = np.random.default_rng(5).normal(0, 100, 30)
    assert paired_p_value(documents + 0.01, documents) < 0.001
    assert paired_p_value(documents + 0.01, np.roll(documents, 1)) > 0.1


@pytest.mark.parametrize("values, baseline", [([], []), ([1, math.nan], [1, 0]), ([1, 2], [math.inf, 0])])
def test_no_p_value(values, baseline):
    """No documents or a value that is not finite: nan."""
    assert math.isnan(paired_p_value(values, baseline))


def test_wrong_values():
    """Other documents, or several values per document: one line."""
    with pytest.raises(PLNDError, match="^a paired test of 2 and 3 documents: expected the same documents$"):
        paired_p_value([1, 2], [1, 2, 3])
    with pytest.raises(PLNDError, match="expected one number per document"):
        bootstrap_interval([[1.0, 2.0]])
