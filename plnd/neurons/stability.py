"""How far a contrast hangs on which documents were read: what others, as many, are expected to choose again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from plnd.errors import PLNDError
from plnd.neurons.contrast import TIMES, Comparison, check_documents
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores
from plnd.numbers import is_whole

ENOUGH = 0.8
"""From here on more documents change little (docs/arena.md)."""


def stability(
    own: Scores | Sequence[Scores],
    others: Scores | Sequence[Scores],
    *,
    count: int | None = None,
    share: float | None = None,
    error_rate: float | None = None,
    times: float = TIMES,
    projections: str | Iterable[str] | None = None,
    regions: Regions | None = None,
    draws: int = 20,
    seed: int = 0,
) -> float:
    """The share of the neurons of `contrast` that as many other documents are expected to choose again.

    Other documents have other mean logs: in each of `draws` draws every neuron's, in every language, moves by a normal
    number of variance 2 s² / n, with s the standard deviation over the n documents, which is that of the difference
    between the means of two samples; and the rule chooses again (with the limit of the p-value that the error rate came
    to). It stands for the documents alone, not for another domain. docs/arena.md holds it to what disjoint samples
    choose; it is too high, by up to 0.2, for sets that hardly exist.

    Args:
        own, others, count, share, error_rate, times, projections, regions: as for `contrast`.
        draws: how many.
        seed: of the draws.

    Raises:
        PLNDError: as `contrast`, or if a language has one document alone, of which no deviation is known.
        ModelMismatchError: as `contrast`.
    """
    if not (is_whole(draws) and draws > 0):
        raise PLNDError(f"draws={draws!r}: expected a whole number above 0")
    found = Comparison.of(own, others, count, share, error_rate, times, projections, regions)
    check_documents([*found.scores[0], *found.scores[1]], "stability takes two or more: detect on more documents")
    chosen, limit = found.chosen(), found.limit()
    random = np.random.default_rng(seed)
    again = [found.moved(random).ordered(limit) for _ in range(draws)]
    return float(np.mean([np.isin(chosen, each).mean() for each in again]))
