"""How much to read and to decode; knows nothing of how that is done."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from plnd.errors import PLNDError


@dataclass(frozen=True)
class LensConfig:
    """How much to read and to decode. Each field says what it is, here and in `plnd lens --help`."""

    top_k: int = field(default=10, metadata={"help": "tokens decoded at each position"})
    max_documents: int | None = field(
        default=None, metadata={"help": "stop after this many documents of each corpus (default: all)"}
    )
    max_length: int = field(default=128, metadata={"help": "tokens kept of each document"})
    batch_size: int = field(
        default=8, metadata={"help": "documents in one forward pass; changes the result by no more than float rounding"}
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and value < 1:
                raise PLNDError(f"{one.name}={value}: expected 1 or more")
