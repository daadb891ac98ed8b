"""The documents of a run: tokenised, long enough, counted, and digested as they are read."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plnd.detection.config import DetectConfig
from plnd.models.layout import Layout

NAMED = 100
"""Skipped documents of one kind that are named, the first ones; all are counted."""


@dataclass(frozen=True)
class Document:
    """A document as the model takes it.

    Attributes:
        number: its position in the corpus, from 0.
        ids: its token ids.
    """

    number: int
    ids: list[int]


class SavedTokenizer:
    """The tokenizer saved with the model, loaded when the first text arrives."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tokenizer: Any = None

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """As the tokenizer."""
        if self.tokenizer is None:
            from plnd.models.loading import load_tokenizer

            description = self.layout.description()
            self.tokenizer = load_tokenizer(description["name"], description["revision"])
        return self.tokenizer(text, **kwargs)


@dataclass
class Skipped:
    """Documents left out for one reason: how many, and the first of them by their position in the corpus."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)

    def add(self, numbers: Iterable[int]) -> None:
        """Takes in more."""
        numbers = list(numbers)
        self.merge(Skipped(len(numbers), numbers))

    def merge(self, other: Skipped) -> None:
        """Takes in what others left out, whatever the order of documents."""
        self.count += other.count
        self.numbers = sorted(self.numbers + other.numbers)[:NAMED]


@dataclass
class TokenizedCorpus:
    """Tokenised documents that are long enough, and what was met on the way."""

    documents: Iterable[str | Sequence[int]]
    tokenizer: Any
    config: DetectConfig
    layout: Layout
    read: int = 0
    long_enough: int = 0
    short: Skipped = field(default_factory=Skipped)
    digest: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[Document]:
        config = self.config
        for number, document in enumerate(self.documents):
            self.read += 1
            ids = self._ids(document)
            self.layout.check_tokens(ids, f"document {number} of the corpus")
            if len(ids) < config.min_length:
                self.short.add([number])
                continue
            self.long_enough += 1
            self.digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
            yield Document(number, ids)
            if self.long_enough == config.max_documents:
                return

    def _ids(self, document: str | Sequence[int]) -> list[int]:
        if isinstance(document, str):
            return self.tokenizer(document, truncation=True, max_length=self.config.max_length)["input_ids"]
        return [int(token) for token in document][: self.config.max_length]


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Consecutive lists of `size` items; the last one may have fewer."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
