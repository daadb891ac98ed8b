"""The documents of a comparison: samples for detection and, apart from them, those for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from plnd.comparison.config import ArenaConfig
from plnd.errors import CorpusError, PLNDError
from plnd.models.layout import Layout


@dataclass(frozen=True)
class Document:
    """A document as the model takes it.

    Attributes:
        number: its position in the corpus, from 0.
        ids: its token ids; all but the first are predicted.
        size: bytes of UTF-8 that the predicted tokens stand for.
    """

    number: int
    ids: list[int]
    size: int


@dataclass(frozen=True)
class Documents:
    """Documents of every language.

    Attributes:
        samples: of each sample, language to documents for detection, as many of each.
        held_out: language to documents for evaluation, as many of each.
    """

    samples: list[dict[str, list[Document]]]
    held_out: dict[str, list[Document]]

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order in which they were given."""
        return tuple(self.held_out)

    def description(self) -> dict[str, Any]:
        """Which they are: positions in their corpora, and SHA-256 of the token ids."""
        samples = [{x: _described(found) for x, found in sample.items()} for sample in self.samples]
        return {"samples": samples, "held_out": {x: _described(found) for x, found in self.held_out.items()}}


def read_halves(
    layout: Layout,
    tokenizer: Any,
    chosen: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]],
    config: ArenaConfig,
) -> Documents:
    """The first long enough of `chosen`, sample after sample, and the last of `held_out`.

    Detection reads a text as `plnd.detect` does, with what the tokenizer puts before it; evaluation reads it after the
    beginning-of-text token (the end-of-text token where there is none), so that all of its tokens are predicted.

    Raises:
        CorpusError: if there are too few documents.
        PLNDError: if there are fewer than two languages, a text is on both sides, or texts may be longer than the
            model takes.
    """
    if len(chosen) < 2 or list(chosen) != list(held_out):
        raise PLNDError(
            f"languages {', '.join(chosen)} for detection and {', '.join(held_out)} for evaluation: expected the same"
            " ones, two or more"
        )
    layout.check_length(config.max_length)
    samples: list[dict[str, list[Document]]] = [{} for _ in range(config.samples)]
    last = {}
    for language in chosen:
        both = set(chosen[language]) & set(held_out[language])
        if both:
            raise PLNDError(
                f"{language}: {len(both)} texts are for detection and for evaluation ({min(both)!r:.40}): results would"
                " be of documents that the choice has seen"
            )
        first = []
        for number, text in enumerate(chosen[language]):
            ids = tokenizer(text, truncation=True, max_length=config.max_length)["input_ids"]
            if len(ids) >= config.min_length:
                first.append(_document(layout, tokenizer, number, ids, language))
            if len(first) == config.samples * config.documents:
                break
        for n, sample in enumerate(samples):
            sample[language] = _enough(first, config.documents * (n + 1), language, "detection")[n * config.documents :]
        backwards = reversed(list(enumerate(held_out[language])))
        scored = documents_to_score(layout, tokenizer, backwards, language, config.max_length, config.min_length)
        found = list(islice(scored, config.held_out))
        last[language] = _enough(found, config.held_out, language, "evaluation")[::-1]
    return Documents(samples, last)


def documents_to_score(
    layout: Layout,
    tokenizer: Any,
    texts: Iterable[tuple[int, str]],
    language: str,
    max_length: int,
    min_length: int,
) -> Iterator[Document]:
    """Texts as evaluation reads them, those that are long enough.

    A text stands after the beginning-of-text token (the end-of-text token where there is none), so that all of its
    tokens are predicted.

    Args:
        layout: of the model.
        tokenizer: the model's.
        texts: each with its number.
        language: for errors.
        max_length, min_length: tokens kept of each, and how many it must have, the beginning of the text among them.

    Raises:
        TokenError: if the model has no embedding for a token.
        PLNDError: if texts may be longer than the model takes.
    """
    layout.check_length(max_length)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for number, text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length - 1)
        ids = [start, *ids["input_ids"]]
        if len(ids) >= min_length:
            yield _document(layout, tokenizer, number, ids, language)


def _document(layout: Layout, tokenizer: Any, number: int, ids: list[int], language: str) -> Document:
    layout.check_tokens(ids, f"{language}, document {number}")
    size = len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode())
    return Document(number, list(ids), max(size, 1))


def _enough(found: list[Document], wanted: int, language: str, what: str) -> list[Document]:
    if len(found) < wanted:
        raise CorpusError(
            f"{language}: {len(found)} documents that are long enough for {what}, expected {wanted}: give more, or ask"
            " for fewer documents or samples"
        )
    return found[:wanted]


def _described(documents: Sequence[Document]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.array([len(document.ids), *document.ids], dtype="<i8").tobytes())
    return {"documents": [document.number for document in documents], "sha256": digest.hexdigest()}
