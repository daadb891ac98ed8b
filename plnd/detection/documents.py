"""The documents of a run: tokenised, long enough, counted, and digested as they are read."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plnd.detection.config import DetectConfig
from plnd.detection.prefetch import prefetched
from plnd.detection.shards import Shard
from plnd.io.corpus import Sections
from plnd.models.layout import Layout

NAMED = 100
"""Skipped documents of one kind that are named, the first ones; all are counted."""


@dataclass(frozen=True)
class Document:
    """A document as the model takes it.

    Attributes:
        number: its position in its section of the corpus, from 0.
        ids: its token ids.
        section: number of the section.
    """

    number: int
    ids: list[int]
    section: int = 0


class OwnTokenizer:
    """A tokenizer that nobody uses but who reads the documents, so that a thread may; loaded with the first text.

    Every call of a fast tokenizer sets how it truncates and pads, for whoever uses it at the same time.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load
        self.tokenizer: Any = None

    @classmethod
    def saved(cls, layout: Layout) -> OwnTokenizer:
        """The one saved with the model."""

        def load() -> Any:
            from plnd.models.loading import load_tokenizer

            description = layout.description()
            return load_tokenizer(description["name"], description["revision"])

        return cls(load)

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """As the tokenizer."""
        if self.tokenizer is None:
            self.tokenizer = self.load()
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
class Section:
    """What was met in one section of a corpus: most corpora are one.

    Attributes:
        read: documents, whatever became of them.
        short: those that are not long enough.
        digest: SHA-256 of the token ids of the others, each document's after their number.
    """

    read: int = 0
    short: Skipped = field(default_factory=Skipped)
    digest: Any = field(default_factory=hashlib.sha256)


class TokenizedCorpus:
    """Tokenised documents that are long enough, and what was met on the way.

    Documents are read at most a window ahead of what is counted here, of a corpus of which `max_documents` are wanted
    no more than that takes; a thread tokenises them, if it has an `OwnTokenizer`.

    Attributes:
        count: sections of the whole corpus (`plnd.io.corpus.Sections`). One, where `max_documents` are to be counted.
        sections: number to section, of those that this shard reads, as far as it has come.
        long_enough: documents among them that can be scored.
    """

    def __init__(
        self,
        documents: Iterable[str | Sequence[int]] | Sections,
        tokenizer: Any,
        config: DetectConfig,
        layout: Layout,
        shard: Shard,
    ) -> None:
        several = isinstance(documents, Sections) and config.max_documents is None
        self.documents: Sections | list = documents if several else [documents]  # type: ignore[assignment]
        self.tokenizer, self.config, self.layout, self.shard = tokenizer, config, layout, shard
        self.count = len(self.documents)
        self.sections: dict[int, Section] = {}
        self.long_enough = 0

    def windows(self, size: int) -> Generator[tuple[Shard, int, list[Document]], None, None]:
        """So many documents after the other, of every section that the shard reads; to be closed when left early.

        Yields:
            the shard's share of the section, the number of the window within it, from 0, and its documents.
        """
        for number in range(self.count):
            share = self.shard.within(number, self.count)
            if share is not None:
                with closing(self._section(number, size)) as section:
                    for window, documents in enumerate(batched(section, size)):
                        yield share, window, documents

    @property
    def digest(self) -> str:
        """Of all that was read so far."""
        return combined_digest([section.digest.hexdigest() for section in self.sections.values()])

    def _section(self, number: int, ahead: int) -> Generator[Document, None, None]:
        section = self.sections.setdefault(number, Section())
        where = "" if self.count == 1 else f"section {number} of "
        wanted = self.config.max_documents

        def tokenised(numbered: tuple[int, str | list[int]]) -> tuple[int, list[int]]:
            place, document = numbered
            ids = document if isinstance(document, list) else self._ids(document)
            self.layout.check_tokens(ids, f"document {place} of {where}the corpus")
            return place, ids

        def room() -> int:  # each that is read may be one that is wanted
            return ahead if wanted is None else min(ahead, wanted - self.long_enough)

        with closing(prefetched(enumerate(map(self._read, self.documents[number])), tokenised, room)) as documents:
            for place, ids in documents:
                section.read += 1
                if len(ids) < self.config.min_length:
                    section.short.add([place])
                    continue
                self.long_enough += 1
                section.digest.update(token_bytes(ids))
                yield Document(place, ids, number)

    def _read(self, document: str | Sequence[int]) -> str | list[int]:
        """What is left to the thread; token ids as they are now, as the next document may come in the same list."""
        if not isinstance(document, str):
            return [int(token) for token in document][: self.config.max_length]
        return document if isinstance(self.tokenizer, OwnTokenizer) else self._ids(document)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=self.config.max_length)["input_ids"]


def token_bytes(ids: Sequence[int]) -> bytes:
    """What a document adds to the digest of its corpus: how many tokens, and their ids, as little-endian int64."""
    return np.array([len(ids), *ids], dtype="<i8").tobytes()


def combined_digest(digests: Sequence[str]) -> str:
    """The digest of a corpus from those of its sections: of one section its own, of several the SHA-256 of theirs."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Consecutive lists of `size` items; the last one may have fewer."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
