"""The texts of the experiment: of every language some to choose rates on, some to report, the rest to learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval_plnd.experiments.frontier.settings import FrontierSettings
from plnd.comparison.documents import Document, beginning, size_of
from plnd.errors import CorpusError
from plnd.neurons.random_draw import draw


@dataclass(frozen=True)
class Texts:
    """The texts of one language, no text twice.

    Attributes:
        choice: on which rates are chosen.
        held_out: which are reported.
        rest: for detection and training.
    """

    choice: list[Document]
    held_out: list[Document]
    rest: list[str]


def read_texts(settings: FrontierSettings, language: str, tokenizer: Any) -> Texts:
    """Splits the first texts of a language's corpus that are long enough, at random and for all runs alike.

    What is evaluated stands after `plnd.comparison.documents.beginning`. Two texts of which evaluation would read the
    same are one.

    Raises:
        CorpusError: if there are too few.
    """
    from plnd.io.corpus import read_documents

    wanted, source = settings.evaluation, settings.corpus_of(language)
    texts, ids, start = [], [], beginning(tokenizer)
    length = wanted.max_length - len(start)
    seen: set[Any] = set()
    for text in islice(read_documents(source), settings.pool):
        if text.strip() in seen:
            continue
        found = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
        if len(found) >= wanted.min_length and tuple(found) not in seen:
            texts.append(text)
            ids.append(found)
        seen |= {text.strip(), tuple(found)}
    evaluated = wanted.choice + wanted.held_out
    needed = evaluated + max(settings.detection.documents, settings.training.documents)
    if len(texts) < needed:
        raise CorpusError(
            f"{source}: {len(texts)} of its first {settings.pool} texts differ and are long enough, expected {needed}"
            f" ({wanted.choice} to choose rates, {wanted.held_out} held out, the rest for training and detection); ask"
            " for fewer, or give more"
        )
    held_out = draw(len(texts), evaluated, 0, language, "evaluation").tolist()
    choice = [held_out[n] for n in draw(evaluated, wanted.choice, 0, language, "choice")]

    def documents(numbers: Sequence[int]) -> list[Document]:
        return [Document(n, [*start, *ids[n]], size_of(tokenizer, [*start, *ids[n]]), texts[n]) for n in numbers]

    others = set(held_out)
    return Texts(
        documents(choice),
        documents([n for n in held_out if n not in choice]),
        [text for n, text in enumerate(texts) if n not in others],
    )


def drawn(texts: Texts, count: int, seed: int, *address: str) -> list[str]:
    """Some texts to learn from, at random; a larger draw holds every smaller one."""
    return [texts.rest[n] for n in draw(len(texts.rest), count, seed, *address)]


def write_jsonl(texts: Sequence[str], path: Path) -> None:
    """Writes a corpus."""
    from plnd.io.files import write_bytes

    write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode(), path)
