"""What was found in some documents: the numbers of every neuron, and how many documents they are of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plnd.detection.documents import Document, Skipped
from plnd.detection.totals import Totals


@dataclass
class Tally:
    """What was found in some documents. Two of them make one, in whatever order.

    Attributes:
        documents: how many were scored.
        tokens: how many they have together.
        non_finite: section to documents that gave a number that is not finite, and were left out.
        totals: the numbers of every neuron; empty, without a site, as long as no batch was measured.
    """

    documents: int = 0
    tokens: int = 0
    non_finite: dict[int, Skipped] = field(default_factory=dict)
    totals: Totals = field(default_factory=lambda: Totals.empty({}))

    def add(self, batch: list[Document], finite: list[bool], values: Tensor, widths: dict[str, int]) -> None:
        """Takes in one batch.

        Args:
            batch: its documents.
            finite: which of them gave finite numbers only; the others are left out.
            values: `plnd.detection.totals.summarized` of those, all sites one after the other, [5, neurons].
            widths: number of neurons of each site.
        """
        scored = [document for document, good in zip(batch, finite, strict=True) if good]
        self.documents += len(scored)
        self.tokens += sum(len(document.ids) for document in scored)
        for document, good in zip(batch, finite, strict=True):
            if not good:
                self._left_out(document.section).add([document.number])
        self._expect(widths, values.device)
        self.totals.add(values)

    def merge(self, other: Tally) -> None:
        """Takes in what was found in other documents."""
        self.documents += other.documents
        self.tokens += other.tokens
        for section, left_out in other.non_finite.items():
            self._left_out(section).merge(left_out)
        if other.totals.widths:
            self._expect(other.totals.widths, other.totals.values.device)
            self.totals.add(other.totals.values)

    def _left_out(self, section: int) -> Skipped:
        return self.non_finite.setdefault(section, Skipped())

    def _expect(self, widths: dict[str, int], device: torch.device) -> None:
        if not self.totals.widths:
            self.totals = Totals.empty(widths, device)
        assert widths == self.totals.widths, "every pass measures the same sites"
