"""Sums, shares and peaks of neurons' values against the whole of them, which is never kept."""

from __future__ import annotations

import numpy as np
import pytest

from plnd.inspection.firing import Firings, Tokens, large_from, size_bin


def read(values: list[np.ndarray], contexts: int) -> Firings:
    """What is kept of some documents, [tokens, neurons] each."""
    kept = Firings(values[0].shape[1], contexts)
    for number, one in enumerate(values):
        kept.add(one, Tokens(number, list(range(len(one))), np.ones(len(one), dtype=bool)))
    return kept


@pytest.mark.parametrize("documents, contexts", [(20, 5), (3, 5), (1, 4), (5, 5)])
def test_peaks_are_the_best_of_each_document_then_of_all(documents, contexts):
    """One token a document where there are enough; where there are few, the best of the rest follow."""
    generator = np.random.default_rng(documents)
    values = [generator.normal(size=(generator.integers(4, 9), 3)) for _ in range(documents)]
    kept = read(values, contexts)
    for neuron in range(3):
        peaks = kept.peaks(neuron)
        every = sorted(
            ((abs(v), d, t) for d, one in enumerate(values) for t, v in enumerate(one[:, neuron])), reverse=True
        )
        best = [next(one for one in every if one[1] == d) for d in range(documents)]
        best = sorted(best, reverse=True)[:contexts]
        rest = [one for one in every if one not in best][: contexts - len(best)]
        assert [(peak.size, *peak.place) for peak in peaks] == sorted([*best, *rest], reverse=True)
        assert all(values[d][t, neuron] == peak.value for peak in peaks for d, t in [peak.place])
        assert kept.largest(neuron) == every[0][0]


def test_of_equal_values_the_first_is_kept():
    """In a document, and among documents."""
    kept = read([np.ones((3, 1)), np.ones((2, 1)), -np.ones((2, 1))], 2)
    assert [(peak.place, peak.value) for peak in kept.peaks(0)] == [((0, 0), 1.0), ((1, 0), 1.0)]


def test_zero_is_no_firing():
    """A neuron that is silent has no peaks, and no size from which values are large."""
    kept = read([np.zeros((4, 1)), np.array([[0.0], [0.5]])], 5)
    assert [peak.place for peak in kept.peaks(0)] == [(1, 1)]
    assert read([np.zeros((4, 1))], 5).peaks(0) == [] and large_from(0.0) == 0.0


def test_shares_are_counted_exactly():
    """The share of values from the edge on is that of all values, as float32; the edge is 0.4 to 0.5 of the largest."""
    generator = np.random.default_rng(0)
    values = [generator.normal(size=(50, 4)) * 10.0 ** generator.integers(-6, 6, (50, 4)) for _ in range(7)]
    kept, every = read(values, 3), np.abs(np.concatenate(values))
    for neuron in range(4):
        edge = large_from(kept.largest(neuron))
        assert 0.4 <= edge / kept.largest(neuron) <= 0.5
        share = (every[:, neuron].astype(np.float32) >= np.float32(edge)).mean()
        assert kept.share_from(neuron, edge) == share > 0
    np.testing.assert_allclose(kept.total, np.concatenate(values).sum(0))
    np.testing.assert_allclose(kept.total_size, every.sum(0))


def test_bins_are_in_the_order_of_sizes():
    """From the smallest to the largest float32 a larger size is never in a smaller bin, and signs do not count."""
    sizes = np.geomspace(1e-45, 3e38, 5000).astype(np.float32)
    assert (np.diff(size_bin(sizes)) >= 0).all() and size_bin(sizes).max() < 1024
    assert (size_bin(-sizes) == size_bin(sizes)).all()


def test_what_does_not_count_is_left_out():
    """Tokens that are not counted are in no sum and no peak; positions stay those of the document."""
    kept = Firings(1, 3)
    kept.add(np.array([[9.0], [1.0], [8.0], [-2.0]]), Tokens(0, [5, 6, 7, 8], np.array([False, True, False, True])))
    assert kept.tokens == 2 and kept.total == [-1.0] and kept.total_size == [3.0]
    assert [(peak.place, peak.value) for peak in kept.peaks(0)] == [((0, 3), -2.0), ((0, 1), 1.0)]


def test_what_is_kept_does_not_grow():
    """After a thousand documents there are as many peaks as after ten."""
    generator = np.random.default_rng(1)
    kept = read([generator.normal(size=(3, 2)) for _ in range(1000)], 4)
    assert len(kept.peaks(0)) == len(kept.peaks(1)) == 4 and kept.sizes.shape == (2, 1024)
