"""Parallel inputs: the same text in several languages, one example after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plnd.errors import CorpusError
from plnd.io.corpus import read_rows

MAX_LANGUAGES = 16


@dataclass(frozen=True)
class Parallel:
    """Examples in several languages.

    Attributes:
        languages: names of the languages, 2 to 16.
        prompts: for each example, for each language, the text that a model reads.
        answers: likewise the text that should follow, with the white space before it; None where it is not known.
        source: where they come from.
        tasks: for each language the lm-eval task that asks these prompts; None for other sources.
        documents: for each example, for each language, its number in its task or file, counted from 0.
        fewshot: worked examples in front of each prompt.
    """

    languages: Sequence[str]
    prompts: Sequence[Sequence[str]]
    answers: Sequence[Sequence[str]] | None = None
    source: str | None = None
    tasks: Sequence[str] | None = None
    documents: Sequence[Sequence[int]] | None = None
    fewshot: int = 0

    def __post_init__(self) -> None:
        if not 2 <= len(self.languages) <= MAX_LANGUAGES or len(set(self.languages)) < len(self.languages):
            raise CorpusError(f"languages {', '.join(self.languages)}: expected 2 to {MAX_LANGUAGES} different ones")
        if not self.prompts:
            raise CorpusError(f"{self.source}: no example that all of {', '.join(self.languages)} have")
        if self.documents is None:
            numbers = [[n] * len(self.languages) for n in range(len(self.prompts))]
            object.__setattr__(self, "documents", numbers)

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"Parallel({len(self):,} examples in {', '.join(self.languages)}, source={self.source!r})"

    def of(self, languages: Sequence[str]) -> Parallel:
        """The same examples in some of the languages."""
        missing = [name for name in languages if name not in self.languages]
        if missing:
            raise CorpusError(f"no language {', '.join(missing)} in {self.source}: it has {', '.join(self.languages)}")
        places = [list(self.languages).index(name) for name in languages]

        def chosen(rows: Any) -> Any:
            return None if rows is None else [[row[place] for place in places] for row in rows]

        tasks = None if self.tasks is None else [self.tasks[place] for place in places]
        return replace(
            self,
            languages=list(languages),
            prompts=chosen(self.prompts),
            answers=chosen(self.answers),
            tasks=tasks,
            documents=chosen(self.documents),
        )

    def digests(self) -> np.ndarray:
        """What tells prompts apart: [examples, languages] int64, the beginning of each prompt's SHA-256."""
        return np.array([[prompt_digest(text) for text in row] for row in self.prompts], dtype=np.int64)

    def token_ids(self, tokenizer: Any) -> list[list[list[int]]]:
        """The prompts' tokens, with the special tokens that the tokenizer adds.

        Raises:
            CorpusError: if a prompt has none.
        """
        flat = tokenizer([text for row in self.prompts for text in row])["input_ids"]
        empty = next((n for n, ids in enumerate(flat) if not ids), None)
        if empty is not None:
            example, place = divmod(empty, len(self.languages))
            raise CorpusError(f"{self.source}: example {example} has no text in {self.languages[place]}")
        step = len(self.languages)
        return [flat[start : start + step] for start in range(0, len(flat), step)]

    def answer_ids(self, tokenizer: Any, *, separate: bool = False) -> list[list[list[int]]]:
        """The answers' tokens, as they follow the prompt's.

        Args:
            tokenizer: the model's.
            separate: the answer goes to a decoder, so it is tokenised alone.
        Raises:
            CorpusError: if answers are not known, or one has no tokens of its own.
        """
        if self.answers is None:
            raise CorpusError(f"{self.source}: effective scores (eq. 10) need the correct answers, and it has none")
        rows = []
        for number, (prompts, answers) in enumerate(zip(self.prompts, self.answers, strict=True)):
            row = []
            for language, prompt, answer in zip(self.languages, prompts, answers, strict=True):
                if separate:
                    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
                else:
                    ids = tokenizer(prompt + answer)["input_ids"][len(tokenizer(prompt)["input_ids"]) :]
                if not ids:
                    raise CorpusError(f"{self.source}: the answer of example {number} in {language} has no tokens")
                row.append(ids)
            rows.append(row)
        return rows


def prompt_digest(text: str) -> int:
    """The first 8 bytes of a text's SHA-256 as a signed number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def read_parallel(
    path: str | Path,
    *,
    languages: Sequence[str] | None = None,
    answers: str | Path | None = None,
    limit: int | None = None,
) -> Parallel:
    """Parallel examples from rows with one field per language: JSON lines, or another form that `read_rows` reads.

    Args:
        path: each row an object `{"en": "…", "de": "…"}`.
        languages: which fields to read; by default those of the first line.
        answers: a second file with the same rows and fields, with the text that should follow each prompt.
        limit: at most so many examples.
    Raises:
        CorpusError: naming the line that is not what is expected.
    """
    rows = _rows(path, limit)
    languages = list(rows[0] if languages is None else languages)
    prompts = [_fields(path, number, row, languages) for number, row in enumerate(rows, 1)]
    expected = None
    if answers is not None:
        second = _rows(answers, limit)
        if len(second) != len(rows):
            raise CorpusError(f"{answers}: {len(second)} examples, but {path} has {len(rows)}")
        expected = [
            [" " + text.lstrip() for text in _fields(answers, n, row, languages)] for n, row in enumerate(second, 1)
        ]
    return Parallel(languages, prompts, expected, source=str(path))


def _rows(path: str | Path, limit: int | None) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for where, row in read_rows(path):
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected a JSON object with one field per language")
        rows.append(row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise CorpusError(f"{path}: no example in it")
    return rows


def _fields(path: str | Path, number: int, row: Mapping[str, Any], languages: Sequence[str]) -> list[str]:
    for name in languages:
        if not isinstance(row.get(name), str) or not row[name].strip():
            content = f"{row[name]!r:.40}" if name in row else "missing"
            raise CorpusError(f"{path}, example {number}: field {name!r} is {content}, expected text")
    return [row[name] for name in languages]
