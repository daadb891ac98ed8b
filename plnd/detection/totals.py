"""What is kept of a corpus: three numbers per neuron, to which each batch is added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Totals:
    """Smallest importance, sum and worst rank of every neuron over the documents seen so far.

    Attributes:
        widths: number of neurons of each site (`"{block}.{kind}"`, see `plnd.detection.observer.SITES`), in order.
        values: of all sites one after the other, [3, neurons] float64.
    """

    widths: dict[str, int]
    values: Tensor

    @classmethod
    def empty(cls, widths: dict[str, int], device: torch.device) -> Totals:
        """Of no document."""
        neurons = sum(widths.values())
        return cls(widths, summarized(torch.empty(0, neurons, device=device), torch.empty(0)))

    def add(self, other: Tensor) -> None:
        """Takes in the values of one batch, [3, neurons]. Sums are added in the order of the calls."""
        minimum, total, worst_rank = self.values
        torch.minimum(minimum, other[0], out=minimum)
        total += other[1]
        torch.maximum(worst_rank, other[2], out=worst_rank)

    def sites(self) -> Iterator[tuple[str, Tensor]]:
        """Each site's values, [3, width]."""
        return zip(self.widths, self.values.split(list(self.widths.values()), dim=1), strict=True)

    def alive(self, epsilon: float) -> dict[str, tuple[Tensor, Tensor]]:
        """Block to the rows of `q_proj` and `k_proj` that a rule of `epsilon` may still keep, both boolean [width]."""
        kept = {site: at_least(epsilon, values[0]) for site, values in self.sites()}
        blocks = [site.removesuffix(".query") for site in kept if site.endswith(".query")]
        return {block: (kept[f"{block}.query"], kept[f"{block}.key"]) for block in blocks}


def summarized(importance: Tensor, weights: Tensor) -> Tensor:
    """Smallest importance, weighted sum and worst rank over documents: [documents, width] to [3, width] float64."""
    result = importance.new_zeros(3, importance.shape[-1], dtype=torch.float64)
    result[0] = torch.inf
    if len(importance):
        result[0] = importance.amin(0)
        result[1] = (importance.double() * weights.to(importance.device, torch.float64)[:, None]).sum(0)
        result[2] = descending_rank(importance).amax(0)
    return result


def at_least(epsilon: float, minimum: Tensor) -> Tensor:
    """Eq. 2, on the float32 values that the artifact holds."""
    return minimum.float().double() >= epsilon


def descending_rank(importance: Tensor) -> Tensor:
    """Rank of every neuron in every document, 0 the most important, [documents, width] int32.

    Equal values share the largest of their ranks, so at most k neurons have a rank below k, whatever their order.
    """
    ascending = importance.sort(-1).values
    below = torch.searchsorted(ascending, importance.contiguous(), right=False)
    return (importance.shape[-1] - 1 - below).to(torch.int32)
