"""How the arena compares; knows the names of detectors, but not how they detect."""

from __future__ import annotations

from dataclasses import dataclass, field

from plnd.errors import PLNDError
from plnd.numbers import is_real, is_whole

DETECTORS = (
    "plnd-threshold",
    "plnd-rank",
    "plnd-contrast",
    "plnd-excess",
    "lape",
    "lape-contrast",
    "activation-rank",
    "activation-contrast",
    "overlap",
    "attribution-size",
    "attribution-signed",
    "attribution-contrast",
    "relevance-size",
    "relevance-contrast",
    "relevance-excess",
    "diffmean",
    "diffmean-contrast",
    "weight",
    "random",
)
ABLATIONS = ("zero", "mean")
CURVES = ("documents", "neurons", "languages")
REFERENCE = "relevance-excess"
"""The detector that the others are tested against; the first one, where it is not among them."""


@dataclass(frozen=True)
class ArenaConfig:
    """How to compare. Each field says what it is, here and in `plnd arena --help`."""

    documents: int = field(default=8, metadata={"help": "documents of each language that a sample detects on"})
    samples: int = field(default=3, metadata={"help": "disjoint samples of such documents"})
    held_out: int = field(default=24, metadata={"help": "documents of each language for evaluation, seen by no choice"})
    max_length: int = field(default=256, metadata={"help": "tokens kept of each document"})
    min_length: int = field(default=32, metadata={"help": "leave out documents of fewer tokens"})
    batch_size: int = field(default=4, metadata={"help": "documents in one forward pass"})
    share: float = field(default=0.01, metadata={"help": "neurons in each set, as a share of the feed-forward neurons"})
    count: int | None = field(default=None, metadata={"help": "neurons in each set, instead of --share"})
    draws: int = field(
        default=3, metadata={"help": "random controls of each set, as many of each block and projection"}
    )
    detectors: str = field(default=",".join(DETECTORS), metadata={"help": "some of them, comma-separated"})
    ablations: str = field(default=",".join(ABLATIONS), metadata={"help": "some of them, comma-separated"})
    curve: str = field(
        default="",
        metadata={"help": "also over some of documents, neurons, languages (how many others), comma-separated"},
    )

    def __post_init__(self) -> None:
        for name in ("documents", "samples", "held_out", "max_length", "min_length", "batch_size", "count"):
            value = getattr(self, name)
            if value is None and name == "count":
                continue
            if not is_whole(value) or value < 1:
                raise PLNDError(f"{name}={value!r}: expected {'1 or more' if is_whole(value) else 'a whole number'}")
        if not is_whole(self.draws) or self.draws < 0:
            raise PLNDError(f"draws={self.draws!r}: expected 0 or more")
        if not (is_real(self.share) and 0 < self.share <= 1):
            raise PLNDError(f"share={self.share!r}: expected a number above 0 and at most 1")
        if not 2 <= self.min_length <= self.max_length:
            raise PLNDError(
                f"min_length={self.min_length}: expected 2 (one to predict) to max_length={self.max_length}"
            )
        for name, known in (("detectors", DETECTORS), ("ablations", ABLATIONS), ("curve", CURVES)):
            for one in self.listed(name):
                if one not in known:
                    raise PLNDError(f"unknown {name} {one!r}: expected some of {', '.join(known)}")
        if not self.listed("detectors") or not self.listed("ablations"):
            raise PLNDError("expected at least one of detectors and one of ablations")

    def listed(self, name: str) -> tuple[str, ...]:
        """The words of a field that lists some, each once."""
        words = (word.strip() for word in getattr(self, name).split(","))
        return tuple(dict.fromkeys(word for word in words if word))
