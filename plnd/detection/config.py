"""How to detect; knows which measures there are, but not who measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from plnd.errors import PLNDError
from plnd.numbers import is_real, is_whole

QK = Literal["exact", "first_order", "off"]
Method = Literal["plnd", "relevance", "activation", "lape"]
Scoring = Literal["paper", "official"]
SCORINGS: dict[str, tuple[str, ...]] = {
    "plnd": ("paper", "official"),
    "relevance": ("paper",),
    "activation": ("paper",),
    "lape": ("paper",),
}
"""The ways to measure that each method has."""

TOGETHER = 8
"""Documents that shards and processes share out as one where `batch_size` is `auto`."""


@dataclass(frozen=True)
class DetectConfig:
    """How to detect. Each field says what it is, here and in `plnd detect --help`.

    Importances are not divided by length, and a rule over *every* document would follow the shortest: hence
    `min_length`. The measures are in `plnd.detection.measures`; from the scores of `lape` selects `plnd.lape`. Q and K
    have one form in the official scoring and in relevance, so that `qk` says no more than whether they are scored. With
    `epsilon`, rows that failed it score 0 and the others have no ranks (see `Scores`).
    """

    language: str | None = field(
        default=None, metadata={"help": "language code of the corpus, recorded in the artifact, never guessed"}
    )
    qk: QK = field(
        default="first_order",
        metadata={"help": "rows of q_proj and k_proj: eq. 10 exactly, to first order, or off: not at all"},
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "stop after this many documents that are long enough (default: all)"}
    )
    max_length: int = field(default=512, metadata={"help": "tokens kept of each document"})
    min_length: int = field(default=32, metadata={"help": "skip documents of fewer tokens, and count them"})
    batch_size: int | Literal["auto"] = field(
        default=8,
        metadata={
            "help": "documents in one forward pass, or auto: as many as fit into the free memory, fewer when they do"
            " not; changes the result by no more than float rounding"
        },
    )
    method: Method = field(
        default="plnd",
        metadata={
            "help": "what is measured: plnd, importance (eq. 1); relevance, how much the loss hangs on it (a backward"
            " pass); or of feed-forward neurons activation, the mean |activation|, or lape, how often they are"
            " active (for plnd select --against)"
        },
    )
    scoring: Scoring = field(
        default="paper",
        metadata={"help": "of plnd: the paper's formulas, or official: what its published code computes instead"},
    )
    epsilon: float | None = field(
        default=None,
        metadata={
            "help": "the rule is known ahead: do not measure rows of q_proj and k_proj again that were below this in a"
            " document"
        },
    )

    def __post_init__(self) -> None:
        if self.method not in SCORINGS:
            raise PLNDError(f"unknown method {self.method!r}: expected {', '.join(SCORINGS)}")
        if self.scoring not in SCORINGS["plnd"]:
            raise PLNDError(f"unknown scoring {self.scoring!r}: expected paper or official")
        if self.scoring not in SCORINGS[self.method]:
            raise PLNDError(f"scoring={self.scoring} is a way to measure with method=plnd, not with {self.method}")
        if self.qk not in ("first_order", "exact", "off"):
            raise PLNDError(f"unknown qk {self.qk!r}: expected first_order, exact or off")
        for name in ("max_documents", "max_length", "min_length", "batch_size"):
            value = getattr(self, name)
            if (name, value) in (("max_documents", None), ("batch_size", "auto")):
                continue
            if not is_whole(value) or value < 1:
                expected = "1 or more" if is_whole(value) else "a whole number"
                raise PLNDError(f"{name}={value!r}: expected {expected}{', or auto' if name == 'batch_size' else ''}")
            object.__setattr__(self, name, int(value))
        if self.epsilon is not None and self.method == "relevance":
            raise PLNDError("epsilon= says ahead which importances eq. 2 will keep, for method=plnd; leave it out")
        if self.epsilon is not None and not (is_real(self.epsilon) and 0 < self.epsilon < math.inf):
            raise PLNDError(f"epsilon={self.epsilon!r}: expected a number above 0")
        if self.min_length > self.max_length:
            raise PLNDError(
                f"min_length={self.min_length} is above max_length={self.max_length}: no document could be scored"
            )

    @property
    def documents_together(self) -> int:
        """Documents that one shard, or one process, scores as one: a batch, unless its size is found on the way."""
        return self.batch_size if isinstance(self.batch_size, int) else TOGETHER

    @property
    def measured_qk(self) -> QK:
        """How rows of `q_proj` and `k_proj` are measured: `off` with activations; the one official form is exact."""
        if self.method not in ("plnd", "relevance") or self.qk == "off":
            return "off"
        if self.method == "relevance":
            return "first_order"
        return "exact" if self.scoring == "official" else self.qk

    @property
    def per_token(self) -> bool:
        """Whether the mean is over all tokens of the corpus; of importances it is over documents."""
        return mean_is_per_token(self.method)


def mean_is_per_token(method: str) -> bool:
    """Whether a method's mean is one over tokens."""
    return method != "plnd"
