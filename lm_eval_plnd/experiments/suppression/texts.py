"""The texts of a suppression: of each language some for detection, others to choose by, others to report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from plnd.comparison.documents import Document, documents_to_score
from plnd.detection.config import DetectConfig
from plnd.errors import CorpusError
from plnd.models.layout import Layout

MIN_LENGTH: int = DetectConfig.min_length
"""Tokens that a document has at least, as in detection."""


@dataclass(frozen=True)
class Texts:
    """Of one language, in the order of its corpus; no text is in two of them.

    Attributes:
        detection: for detection, as text.
        validation: to choose by.
        report: to report.
    """

    detection: list[str]
    validation: list[Document]
    report: list[Document]


def read_texts(
    layout: Layout,
    tokenizer: Any,
    documents: Iterable[str],
    language: str,
    *,
    detection: int,
    validation: int,
    report: int,
    max_length: int,
    skipped: int = 0,
) -> Texts:
    """The first texts of a corpus that are long enough: so many for each purpose, one purpose after the other.

    Args:
        layout: of the model.
        tokenizer: the model's.
        documents: read once, and no further than needed. A text that comes again is left out.
        language: for errors.
        detection, validation, report: how many.
        max_length: tokens kept of each.
        skipped: documents at the beginning that detection has read already.

    Raises:
        CorpusError: if there are too few.
    """
    new = _different(documents, skipped)

    def is_long(text: str) -> bool:
        return len(tokenizer(text, truncation=True, max_length=max_length)["input_ids"]) >= MIN_LENGTH

    own = list(islice(filter(is_long, new), detection))
    scored = documents_to_score(layout, tokenizer, enumerate(new), language, max_length, MIN_LENGTH)
    found = Texts(own, list(islice(scored, validation)), list(islice(scored, report)))
    have, wanted = len(own) + len(found.validation) + len(found.report), detection + validation + report
    if have < wanted:
        behind = f" behind the {skipped:,} that its scores are of" if skipped else ""
        raise CorpusError(
            f"{language}: {have:,} documents of {MIN_LENGTH} tokens or more{behind}, expected {wanted:,} ({detection}"
            f" for detection, {validation} to choose by, {report} to report): give more, or ask for fewer"
        )
    return found


def _different(documents: Iterable[str], skipped: int) -> Iterator[str]:
    """Each text once, but for those among the first ones."""
    seen: set[str] = set()
    for number, text in enumerate(documents):
        if text not in seen and number >= skipped:
            yield text
        seen.add(text)
