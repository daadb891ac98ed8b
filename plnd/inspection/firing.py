"""What is kept of neurons' values while the documents of a language go by: sums, and the tokens of largest size."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BITS = 21
"""Of a float32, what is left below its exponent and the first two bits of its fraction."""
_BINS = 2**10


@dataclass(frozen=True)
class Tokens:
    """A document as some neurons see it.

    Attributes:
        document: its number among the language's.
        ids: of its tokens.
        counted: which of them count: not those that a tokenizer puts around a text, bool [tokens].
    """

    document: int
    ids: Sequence[int]
    counted: np.ndarray


@dataclass(frozen=True, order=True)
class Peak:
    """A token of large value; of equal sizes, the larger is the one that came first."""

    size: float
    document: int
    position: int
    value: float
    ids: Sequence[int]

    @property
    def place(self) -> tuple[int, int]:
        """Document and position."""
        return -self.document, -self.position


class Firings:
    """Sums and peaks of some neurons over the tokens of one language; what is kept does not grow with the text.

    Args:
        neurons: how many.
        contexts: peaks kept of each.

    Attributes:
        tokens: read so far.
        total, total_size: of each neuron the sum of its values and of their sizes, float64 [neurons].
        sizes: how many values of each neuron are in each quarter of an octave, int64 [neurons, 1024].
    """

    def __init__(self, neurons: int, contexts: int) -> None:
        self.contexts, self.tokens = contexts, 0
        self.total, self.total_size = np.zeros(neurons), np.zeros(neurons)
        self.sizes = np.zeros((neurons, _BINS), dtype=np.int64)
        self._best: list[list[Peak]] = [[] for _ in range(neurons)]
        self._best_of_documents: list[list[Peak]] = [[] for _ in range(neurons)]

    def add(self, values: np.ndarray, tokens: Tokens) -> None:
        """Takes in a document.

        Args:
            values: [tokens, neurons], float32 or float64.
            tokens: the document.
        """
        positions = np.flatnonzero(tokens.counted)
        values = values[positions]
        sizes = np.abs(values)
        self.tokens += len(positions)
        self.total += values.sum(0, dtype=np.float64)
        self.total_size += sizes.sum(0, dtype=np.float64)
        bins = size_bin(values) + np.arange(values.shape[1]) * _BINS
        self.sizes += np.bincount(bins.ravel(), minlength=self.sizes.size).reshape(self.sizes.shape)
        order = (-sizes).argsort(axis=0, kind="stable")[: self.contexts]
        for neuron, places in enumerate(order.T.tolist()):
            for rank, place in enumerate(places):
                value = float(values[place, neuron])
                if value == 0:
                    break
                peak = Peak(abs(value), -tokens.document, -int(positions[place]), value, tokens.ids)
                self._push(self._best[neuron], peak)
                if rank == 0:
                    self._push(self._best_of_documents[neuron], peak)

    def peaks(self, neuron: int) -> list[Peak]:
        """The best tokens of a neuron, the largest first: one a document, and more of them where documents are few."""
        chosen = list(self._best_of_documents[neuron])
        places = {peak.place for peak in chosen}
        further = (peak for peak in sorted(self._best[neuron], reverse=True) if peak.place not in places)
        chosen += [peak for peak, _ in zip(further, range(self.contexts - len(chosen)), strict=False)]
        return sorted(chosen, reverse=True)

    def largest(self, neuron: int) -> float:
        """The largest |value| of a neuron; 0 if it never fired."""
        return max((peak.size for peak in self._best[neuron]), default=0.0)

    def share_from(self, neuron: int, edge: float) -> float:
        """The share of tokens with a |value| of at least `edge`, which is one that `large_from` gave."""
        first = int(size_bin(np.float32(edge)))
        return float(self.sizes[neuron, first:].sum()) / max(self.tokens, 1)

    def _push(self, heap: list[Peak], peak: Peak) -> None:
        if len(heap) < self.contexts:
            heapq.heappush(heap, peak)
        elif peak > heap[0]:
            heapq.heapreplace(heap, peak)


def size_bin(values: np.ndarray | np.float32) -> np.ndarray:
    """The quarter of an octave in which |value| lies, int32 from 0 to 1023: the first bits of the float32."""
    return np.abs(values).astype(np.float32).view(np.int32) >> _BITS


def large_from(largest: float) -> float:
    """Where large values begin: the lower end of the quarter octave in which half of the largest |value| lies.

    Between 0.4 and 0.5 of the largest, so that counts by quarter octaves are exact.
    """
    return float((size_bin(np.float32(largest / 2)) << _BITS).view(np.float32))
