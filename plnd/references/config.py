"""Which documents a reference is made of; knows nothing of what is measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from plnd.detection.config import DetectConfig


@dataclass(frozen=True)
class ReferenceConfig:
    """Which documents are read. Each field says what it is, here and in `plnd reference --help`."""

    max_documents: int | None = field(
        default=None, metadata={"help": "of each language, stop after this many that are long enough (default: all)"}
    )
    max_length: int = field(default=512, metadata={"help": "tokens kept of each document"})
    min_length: int = field(default=32, metadata={"help": "skip documents of fewer tokens, and count them"})
    batch_size: int = field(default=8, metadata={"help": "documents in one forward pass"})

    def __post_init__(self) -> None:
        self.of(None)

    def of(self, language: str | None) -> DetectConfig:
        """How detection would read a language's documents; refuses what it would."""
        return DetectConfig(
            language,
            max_documents=self.max_documents,
            max_length=self.max_length,
            min_length=self.min_length,
            batch_size=self.batch_size,
        )
