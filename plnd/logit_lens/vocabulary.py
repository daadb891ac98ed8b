"""How much of a language's vocabulary a corpus covers (table 7 of arXiv:2402.18815).

The paper does not say what a language's vocabulary is. Here it is what occurs at least `MIN_COUNT` times in a reference
corpus of the language, which should be large and share no document with the corpus. It is counted in two units: words,
and tokens of a model's tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from plnd.errors import CorpusError
from plnd.logit_lens.language_id import has_word

MIN_COUNT = 2
"""Occurrences in the reference corpus that make a unit part of the vocabulary: slips and rare names have one."""


@dataclass(frozen=True)
class Coverage:
    """What a corpus has of a vocabulary.

    Attributes:
        documents: in the corpus.
        corpus: different units in it, the paper's “corpus vocab”.
        vocabulary: different units in the vocabulary, the paper's “vocab size”.
        covered: how many of these the corpus has.
        running: share of the units of the reference corpus, each occurrence counted, that the corpus has.
    """

    documents: int
    corpus: int
    vocabulary: int
    covered: int
    running: float

    @property
    def share(self) -> float:
        """Of the vocabulary, the share that the corpus has."""
        return self.covered / self.vocabulary


def words(text: str) -> Iterator[str]:
    """Words of a text in lower case: letters in a row; in scripts without spaces between words, each letter."""
    return (match.casefold() for match in _words().findall(text))


def tokens(tokenizer: Any, text: str) -> Iterator[int]:
    """Tokens of a text that are words or pieces of words, not digits and signs."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return (token for token in ids if _is_word(tokenizer, token))


def coverage(
    documents: Iterable[str],
    reference: Iterable[str],
    units: Callable[[str], Iterable[Any]] = words,
    min_count: int = MIN_COUNT,
) -> Coverage:
    """What `documents` have of the vocabulary of `reference`.

    Args:
        documents: texts of a corpus.
        reference: texts of a larger corpus in the same language.
        units: of a text; `words`, or `functools.partial(tokens, tokenizer)`.
        min_count: occurrences in `reference` that make a unit part of the vocabulary.

    Raises:
        CorpusError: if nothing occurs so often.
    """
    read = 0
    in_corpus: set[Any] = set()
    for text in documents:
        read += 1
        in_corpus.update(units(text))
    counts = Counter(unit for text in reference for unit in units(text))
    vocabulary = {unit for unit, count in counts.items() if count >= min_count}
    if not vocabulary:
        raise CorpusError(f"reference corpus: nothing in it occurs {min_count} times, expected a larger corpus")
    running = sum(count for unit, count in counts.items() if unit in in_corpus) / counts.total()
    return Coverage(read, len(in_corpus), len(vocabulary), len(vocabulary & in_corpus), running)


@cache
def _words() -> Any:
    import regex

    scripts = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
    unspaced = "".join(rf"\p{{{script}}}" for script in scripts)
    alone = rf"[\p{{L}}&&[{unspaced}]]\p{{M}}*"
    return regex.compile(rf"(?V1){alone}|[\p{{L}}--[{unspaced}]][[\p{{L}}\p{{M}}]--[{unspaced}]]*")


@cache
def _is_word(tokenizer: Any, token: int) -> bool:
    return has_word(tokenizer.decode([token], clean_up_tokenization_spaces=False))
