"""What is kept of a corpus: five numbers per neuron, to which batches are added, in any order and by anyone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS = 5
"""Of every neuron: smallest importance, worst rank, sum of importances, sum of logs, sum of their squares."""
SUMS = slice(2, NUMBERS)
"""Those of them that are sums; the smallest and the worst are the same in whatever order documents come."""
ROWS = NUMBERS + 3
"""Of totals: a rest of each sum beside them."""
LOG_FLOOR = 1e-3
"""An importance below this share of its projection's median counts as this share of it.

A neuron that does next to nothing has an importance anywhere between a thousandth of the median and 0, and the log of
that accident would outweigh what all other documents say. A neuron that never fires has the log of this instead, so
that one document in which it does cannot make it win.
"""


@dataclass
class Totals:
    """What is known of every neuron over some documents.

    A sum is kept as two float64: what float64 holds of it, and the rest, which is below half a unit in the last place
    of the first. Together they are the sum itself wherever it fits into 106 bits (importances of one neuron may differ
    by fifteen powers of ten, and there may be millions of documents), and are wrong by no more than that bit for each
    document where it does not. So totals do not depend on the order of documents, nor on who added up which of them:
    those of shards, of processes and of a run that was resumed are those of one.

    Attributes:
        widths: number of neurons of each site (`"{block}.{kind}"`, see `plnd.detection.observer.SITES`), in order.
        values: of all sites one after the other, `NUMBERS` and a rest of each of the `SUMS`, [8, neurons] float64.
    """

    widths: dict[str, int]
    values: Tensor

    @classmethod
    def empty(cls, widths: dict[str, int], device: torch.device | str = "cpu") -> Totals:
        """Of no document."""
        values = torch.zeros(ROWS, sum(widths.values()), dtype=torch.float64, device=device)
        values[0] = torch.inf
        return cls(widths, values)

    def add(self, other: Tensor) -> None:
        """Takes in the values of one batch (`summarized`), [5, neurons], or those of other totals, [8, neurons]."""
        minimum, worst_rank, *_ = self.values
        torch.minimum(minimum, other[0], out=minimum)
        torch.maximum(worst_rank, other[1], out=worst_rank)
        sums, rests = self.values[SUMS], self.values[NUMBERS:]
        total, lost = _added(sums, other[SUMS])
        rests += lost
        if len(other) > NUMBERS:
            rests += other[NUMBERS:]
        torch.add(total, rests, out=sums)
        rests -= sums - total

    def sites(self) -> Iterator[tuple[str, Tensor]]:
        """Each site's `NUMBERS`, [5, width]."""
        return zip(self.widths, self.values[:NUMBERS].split(list(self.widths.values()), dim=1), strict=True)

    def alive(self, epsilon: float) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Block to the rows of `q_proj` and `k_proj` that a rule of `epsilon` may still keep, both boolean [width].

        On the CPU; None of a block without `k_proj`.
        """
        minimum = at_least(epsilon, self.values[0]).cpu()  # once, so that no document waits for the device
        kept = dict(zip(self.widths, minimum.split(list(self.widths.values())), strict=True))
        blocks = [site.removesuffix(".query") for site in kept if site.endswith(".query")]
        return {block: (kept[f"{block}.query"], kept.get(f"{block}.key")) for block in blocks}


def summarized(importance: Tensor, weights: Tensor) -> Tensor:
    """The `NUMBERS` of some documents, sums of importances weighted: [documents, width] to [5, width] float64."""
    result = importance.new_zeros(NUMBERS, importance.shape[-1], dtype=torch.float64)
    result[0] = torch.inf
    if len(importance):
        ordered = importance.sort(-1)
        logs = log_over_median(importance, ordered.values)
        result[0] = importance.amin(0)
        result[1] = descending_rank(*ordered).amax(0)
        result[2] = (importance.double() * weights.to(importance.device, torch.float64)[:, None]).sum(0)
        result[3] = logs.sum(0)
        result[4] = logs.square().sum(0)
    return result


def _added(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two float64, rounded, and exactly what rounding took from it (Knuth's TwoSum), of any one shape."""
    total = one + other
    share = total - one
    lost = other - share
    lost += one - (total - share)
    return total, lost


def at_least(epsilon: float, minimum: Tensor) -> Tensor:
    """Eq. 2, on the float32 values that the artifact holds."""
    return minimum.float().double() >= epsilon


def log_over_median(importance: Tensor, ascending: Tensor) -> Tensor:
    """ln(importance / median) of every neuron in every document, [documents, width] float64.

    The median is that of the projection's positive importances in the document. The importance of a document's neurons
    grows with its length, and projections are measured at different places; of both the quotient is free. An importance
    below `LOG_FLOOR` of the median counts as that; where all importances of a document are 0, so are the logs.

    Args:
        importance: of one projection, [documents, width], not negative.
        ascending: the same, each document's sorted.
    """
    width = importance.shape[-1]
    positive = ascending.count_nonzero(-1)[:, None]
    middle = width - (positive + torch.arange(2, 0, -1, device=importance.device)) // 2  # one place twice, or two
    median = ascending.gather(-1, middle.clamp_(max=width - 1)).mean(-1, keepdim=True, dtype=torch.float64)
    logs = (importance / median).clamp_(min=LOG_FLOOR).log_()
    return logs.masked_fill_(median == 0, 0)


def mean_and_deviation(total: Tensor, squares: Tensor, documents: int) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation from the sum and the sum of squares over documents; 0 for one document."""
    mean = total / documents
    if documents == 1:
        return mean, torch.zeros_like(mean)
    variance = (squares - total * mean) / (documents - 1)
    return mean, variance.clamp(min=0).sqrt()  # rounding may leave less than 0 where all documents agree


def descending_rank(ascending: Tensor, neurons: Tensor) -> Tensor:
    """Rank of every neuron in every document, 0 the most important, [documents, width] int32.

    Equal values share the largest of their ranks, so at most k neurons have a rank below k, whatever their order.

    Args:
        ascending: each document's importances, sorted, [documents, width].
        neurons: whose they are, as `Tensor.sort` gives them with it, [documents, width] int64.
    """
    width = ascending.shape[-1]
    smaller = torch.arange(width, device=ascending.device).repeat(len(ascending), 1)
    smaller[:, 1:].masked_fill_(ascending[:, 1:] == ascending[:, :-1], 0)  # as many as of the first of equal ones
    ranks = width - 1 - smaller.cummax(-1).values
    return torch.empty_like(ranks).scatter_(-1, neurons, ranks).int()
