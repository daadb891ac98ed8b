"""How to detect; knows which measures there are, but not who measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from plnd.errors import PLNDError

QK = Literal["exact", "first_order", "off"]
Method = Literal["plnd", "activation", "lape"]
Scoring = Literal["paper", "official"]
SCORINGS: dict[str, tuple[str, ...]] = {"plnd": ("paper", "official"), "activation": ("paper",), "lape": ("paper",)}
"""The ways to measure that each method has."""


@dataclass(frozen=True)
class DetectConfig:
    """How to detect.

    Attributes:
        language: what the corpus is written in; recorded, never guessed.
        qk: rows of `q_proj` and `k_proj`: `first_order`, `exact`, or `off` (not scored).
        max_documents: stop after this many documents that are long enough; None: all.
        max_length: tokens kept of each document.
        min_length: documents of fewer tokens are skipped (and counted): importances are not divided by length, and a
            rule over *every* document would follow the shortest.
        batch_size: documents in one forward pass; it does not change the result beyond float rounding.
        method: what is measured. `plnd`: the importance of every neuron. For comparison, of feed-forward neurons only,
            `activation`, the mean of |act| over tokens, and `lape`, the share of tokens with act > 0, from which
            `plnd.lape` selects (see `plnd.detection.activations`).
        scoring: of `plnd`: `paper`, the printed formulas, or `official`, what the published code computes instead (see
            `plnd.detection.official`), where Q and K have one form, so that `qk` says no more than whether they are
            scored.
        epsilon: the rule is known ahead: rows of `q_proj` and `k_proj` whose importance was below this in one document
            are not measured in later ones. Their scores become 0, and those that stay have no ranks (see `Scores`).
    """

    language: str | None = None
    qk: QK = "first_order"
    max_documents: int | None = None
    max_length: int = 512
    min_length: int = 32
    batch_size: int = 8
    method: Method = "plnd"
    scoring: Scoring = "paper"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.method not in SCORINGS:
            raise PLNDError(f"unknown method {self.method!r}: expected plnd, activation or lape")
        if self.scoring not in SCORINGS["plnd"]:
            raise PLNDError(f"unknown scoring {self.scoring!r}: expected paper or official")
        if self.scoring not in SCORINGS[self.method]:
            raise PLNDError(f"scoring={self.scoring} is a way to measure with method=plnd, not with {self.method}")
        if self.qk not in ("first_order", "exact", "off"):
            raise PLNDError(f"unknown qk {self.qk!r}: expected first_order, exact or off")
        for name in ("max_documents", "max_length", "min_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PLNDError(f"{name}={value}: expected 1 or more")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise PLNDError(f"epsilon={self.epsilon}: expected a number above 0")
        if self.min_length > self.max_length:
            raise PLNDError(
                f"min_length={self.min_length} is above max_length={self.max_length}: no document could be scored"
            )

    @property
    def measured_qk(self) -> QK:
        """How rows of `q_proj` and `k_proj` are measured: `off` with other methods; the one official form is exact."""
        if self.method != "plnd" or self.qk == "off":
            return "off"
        return "exact" if self.scoring == "official" else self.qk

    @property
    def per_token(self) -> bool:
        """Whether the mean is over all tokens of the corpus; of importances it is over documents."""
        return self.method != "plnd"
