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
        text: of which the tokens are the beginning, or all.
    """

    number: int
    ids: list[int]
    size: int
    text: str = ""


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
    """The first long enough of `chosen`, sample after sample, and the last of `held_out`; no text of a language twice.

    Detection reads a text as `plnd.detect` does, with what the tokenizer puts before it; evaluation as
    `documents_to_score` says.

    Raises:
        CorpusError: if there are too few documents.
        PLNDError: if there are fewer than two languages, a text is on both sides, of whatever languages, or texts may
            be longer than the model takes.
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
        first = []
        for number, text in different(enumerate(chosen[language])):
            ids = tokenizer(text, truncation=True, max_length=config.max_length)["input_ids"]
            if len(ids) >= config.min_length:
                first.append(_document(layout, tokenizer, number, ids, language, text))
            if len(first) == config.samples * config.documents:
                break
        for n, sample in enumerate(samples):
            sample[language] = _enough(first, config.documents * (n + 1), language, "detection")[n * config.documents :]
        backwards = different(reversed(list(enumerate(held_out[language]))))
        scored = documents_to_score(layout, tokenizer, backwards, language, config.max_length, config.min_length)
        found = list(islice(scored, config.held_out))
        last[language] = _enough(found, config.held_out, language, "evaluation")[::-1]
    check_apart({x: [d.text for sample in samples for d in sample[x]] for x in chosen}, last)
    return Documents(samples, last)


def different(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Each text once, the first time that it comes; white space around it makes no other one."""
    seen: set[str] = set()
    for number, text in texts:
        if text.strip() not in seen:
            yield number, text
        seen.add(text.strip())


def check_apart(seen: Mapping[str, Iterable[str]], scored: Mapping[str, Iterable[Document]]) -> None:
    """Refuses texts to be scored that are among those that numbers of any language come from.

    Args:
        seen: language to the texts that a choice or a training sees.
        scored: language to documents.

    Raises:
        PLNDError: naming both languages.
    """
    origin = {text.strip(): language for language, texts in seen.items() for text in texts}
    for language, documents in scored.items():
        both = [text for document in documents if (text := document.text.strip()) in origin]
        if both:
            raise PLNDError(
                f"{language}: {len(both)} texts for evaluation are for detection or training too, in"
                f" {origin[both[0]]} ({both[0]!r:.40}): leave them out of one of the corpora"
            )


def documents_to_score(
    layout: Layout,
    tokenizer: Any,
    texts: Iterable[tuple[int, str]],
    language: str,
    max_length: int,
    min_length: int,
) -> Iterator[Document]:
    """Texts as evaluation reads them, those that are long enough.

    A text stands after `beginning`.

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
    start = beginning(tokenizer)
    for number, text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length - len(start))
        ids = [*start, *ids["input_ids"]]
        if len(ids) >= min_length:
            yield _document(layout, tokenizer, number, ids, language, text)


def beginning(tokenizer: Any) -> list[int]:
    """What a text stands after where it is scored, so that all of its tokens are predicted.

    The beginning-of-text token, or the end-of-text token where there is none. Where there is neither it is nothing, and
    a text's first token is not predicted.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if start is None else [start]


def _document(layout: Layout, tokenizer: Any, number: int, ids: list[int], language: str, text: str) -> Document:
    layout.check_tokens(ids, f"{language}, document {number}")
    return Document(number, list(ids), size_of(tokenizer, ids), text)


def size_of(tokenizer: Any, ids: Sequence[int]) -> int:
    """Bytes of UTF-8 that all tokens but the first stand for, at least 1."""
    return max(1, len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode()))


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
