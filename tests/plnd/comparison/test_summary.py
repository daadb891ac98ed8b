"""Changes, ratios, intervals and tests, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plnd.comparison.summary import Outcome, compare, holm, ratio, summarise


def made(own: float, others: float, *, samples: int = 3, documents: int = 4, spread: float = 0.0) -> Outcome:
    """Own documents change by `own` bits per byte on average, others by `others`; with random sets by 0.01."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 200, (2, documents)).astype(float)
    change = np.where(np.eye(2, dtype=bool)[:, :, None], own, others) * np.ones((samples, 2, 2, documents))
    change = change * (1 + spread * generator.normal(size=change.shape))
    nats = change * sizes * math.log(2)
    controls = np.full((samples, 2, 2, documents), 0.01) * sizes * math.log(2)
    return Outcome(np.full((samples, 2), 7), nats, controls, sizes)


def test_changes_are_in_bits_per_byte():
    """Nats of all documents over ln 2 and their bytes; the mean of the others leaves the own language out."""
    mean, first, second = summarise(made(0.5, 0.02), ("en", "zh"))
    for line in (mean, first, second):
        assert line.neurons == 7
        assert [line.values[name][0] for name in ("own", "others", "own/others", "own/random")] == pytest.approx(
            [0.5, 0.02, 25, 50]
        )
        for value, low, high in line.values.values():
            assert low == pytest.approx(value) and high == pytest.approx(value), "where all documents agree"
    assert (mean.language, first.language, second.language) == (None, "en", "zh")


def test_intervals_hold_the_value_and_widen_with_the_spread():
    """The interval of documents that differ holds the value, and is wider than that of documents that differ less."""
    widths = []
    for spread in (0.05, 0.5):
        value, low, high = summarise(made(0.5, 0.02, spread=spread, documents=20), ("en", "zh"))[0].values["own"]
        assert low < value < high
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_samples_are_resampled_too():
    """Documents that agree leave the interval of samples that do not."""
    outcome = made(0.5, 0.02)
    outcome.nats[0] *= 2
    _, low, high = summarise(outcome, ("en", "zh"))[0].values["own"]
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)


def test_ratios_are_always_numbers():
    """Nothing lost elsewhere is inf, nothing lost anywhere 0, and a gain of the own language is below 0."""
    assert ratio(np.array([2.0, 1, 0, -1, -1]), np.array([4.0, 0, 0, -1, 2])).tolist() == [0.5, np.inf, 0, 0, -0.5]
    assert made(0.3, 0.1).shares() == pytest.approx(np.full((3, 2), 0.75))
    assert (made(-0.3, 0.1).shares() == 0).all() and (made(0.3, -0.1).shares() == 1).all()


def test_without_controls_there_is_no_ratio_to_them():
    """It is not a number, not a large one."""
    outcome = made(0.5, 0.02)
    bare = Outcome(outcome.neurons, outcome.nats, outcome.controls[:, :0], outcome.sizes)
    assert np.isnan(summarise(bare, ("en", "zh"))[0].values["own/random"]).all()


def test_holm_by_hand():
    """Step down: the smallest times their number, never below the one before, at most 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_detectors_are_tested_in_pairs():
    """One that is always worse is told from the reference, one that is the same is not; there are 2 ** 12 signs."""
    outcomes = {"a": made(0.5, 0.02, samples=6, spread=0.1), "b": made(0.1, 0.1, samples=6)}
    outcomes["c"] = outcomes["a"]
    found = compare(outcomes, "a")
    assert found == {"b": pytest.approx(2 * 2 / 2**12), "c": 1.0}
