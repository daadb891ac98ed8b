"""Means over documents, plain or weighted by their lengths, and how sure they are: errors, intervals, paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from plnd.errors import PLNDError

CONFIDENCE = 0.95
AT_ONCE = 4_000_000
"""Values drawn anew at one time, which bounds memory."""


def weighted_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float | None]:
    """Σ w·v / Σ w, and its standard error (None for one document).

    With equal weights that is the standard deviation over √documents; otherwise that of a ratio of two means, to first
    order. Sums are exact, so that the order of documents does not matter.
    """
    weights = weights or [1.0] * len(values)
    total, count = math.fsum(weights), len(values)
    middle = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    if count < 2:
        return middle, None
    squares = math.fsum((w * (v - middle)) ** 2 for w, v in zip(weights, values, strict=True))
    return middle, math.sqrt(squares * count / (count - 1)) / total


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 9999
) -> tuple[float, float]:
    """The 95 % interval of the mean over documents (bias-corrected and accelerated bootstrap; Efron 1987).

    Args:
        values: one per document, [documents].
        seed: of the resamples; the same values and seed give the same interval.
        resamples: how many.

    Returns:
        Its two ends: equal where all values are; nan where there are fewer than two values or one is not finite.

    Raises:
        PLNDError: if there is more than one value per document.
    """
    sample = _sample(values)
    if len(sample) < 2 or not np.isfinite(sample).all():
        return np.nan, np.nan
    if (sample == sample[0]).all():
        return float(sample[0]), float(sample[0])
    from scipy.stats import bootstrap

    resampled = bootstrap(
        (sample,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // len(sample)),
        rng=seed,
    )
    return float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)


def paired_p_value(
    values: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = 9999,
) -> float:
    """How often a mean difference of the same documents is this large where the two settings differ by chance only.

    The two-sided permutation test of paired samples: each document's difference keeps or changes its sign. With few
    documents (2 ** documents at most `resamples`) all signs are tried and the value is exact; otherwise as many are
    drawn, and it is at least 2 / (resamples + 1).

    Args:
        values: one per document, [documents].
        baseline: of the same documents in the same order, [documents].
        seed: of the signs.
        resamples: how many.

    Returns:
        The p-value; 1 for one document and where none differs; nan where there is no document or a value is not finite.

    Raises:
        PLNDError: if the two are not of the same documents.
    """
    sample, other = _sample(values), _sample(baseline)
    if len(sample) != len(other):
        raise PLNDError(f"a paired test of {len(sample)} and {len(other)} documents: expected the same documents")
    difference = sample - other
    if not len(difference) or not np.isfinite(difference).all():
        return np.nan
    if len(difference) == 1 or not difference.any():
        return 1.0
    from scipy.stats import permutation_test

    test = permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // len(difference)),
        rng=seed,
    )
    return float(test.pvalue)


def smallest_p_value(documents: int, resamples: int = 9999) -> float:
    """The smallest value that `paired_p_value` can have with so many documents: two of all signs."""
    return max(2.0 / 2.0 ** min(documents, 1000), 2 / (resamples + 1)) if documents > 1 else 1.0


def relative_lengths(lengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """Lengths of documents over their mean, [documents] float64.

    Multiplied by them, values have Σ length·value / Σ length as their plain mean.
    """
    sample = _sample(lengths)
    return sample / sample.mean()


def as_ratio(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values of the same mean that vary as Σ length·value / Σ length does, to first order (the delta method).

    Args:
        values: length · value of each document, [documents].
        lengths: of mean 1, [documents].

    Returns:
        [documents] float64.
    """
    return values + (1 - lengths) * values.mean()


def ratio_error(values: np.ndarray, lengths: np.ndarray) -> float:
    """The standard error of Σ length·value / Σ length; nan for one document. Arguments are those of `as_ratio`."""
    spread = as_ratio(values, lengths)
    return float(spread.std(ddof=1) / np.sqrt(len(spread))) if len(spread) > 1 else math.nan


def _sample(values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise PLNDError(f"values of shape {sample.shape}: expected one number per document")
    return sample
