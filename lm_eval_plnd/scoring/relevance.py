"""Whether an answer is about its question, told by words that the question's file lists; no judge model is asked.

A question has a few concepts (sleep; bed or night; a screen, coffee, calm), and each concept the words of every
language that say it, as patterns: `sleep*` is any word that begins so, `*schlaf*` one that has it anywhere, `ei` that
word alone. CLaS-Bench (arXiv:2601.08331) has a language model judge relevance as 0, 1 or 2; here 0, 1, or at least 2
concepts are mentioned.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

import regex

from lm_eval_plnd.scoring.answers import ARABIC_PARTICLE
from plnd.logit_lens.language_id import base_code

ENOUGH = 2
"""So many of a question's concepts make an answer relevant; fewer, in part."""

_UNSPACED = {"zh", "ja", "th", "lo", "km", "my", "yue"}
"""Languages without spaces between words, whose terms are looked for anywhere."""
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_ARABIC_MARKS = regex.compile(r"[\u0640\u064b-\u0655\u0670]")  # tatweel and vowel signs
_ARABIC_FORMS = str.maketrans("أإآٱىة", "اااايه")  # hamza carriers, final ya and ta marbuta as they are often typed


def relevance(text: str, terms: Mapping[str, Sequence[Sequence[str]]]) -> float:
    """How much of a question an answer takes up, in the language in which it takes up most: 0, 0.5 or 1.

    Args:
        text: an answer, without the question.
        terms: language to the question's concepts, each a list of patterns.
    """
    most = max((sum(mentioned(text, concepts, language)) for language, concepts in terms.items()), default=0)
    return min(most, ENOUGH) / ENOUGH


def mentioned(text: str, concepts: Sequence[Sequence[str]], language: str) -> list[bool]:
    """Whether a text has a word of each concept.

    Args:
        text: any text.
        concepts: a list of patterns each.
        language: code of the patterns' language. In Chinese, Japanese, Thai a pattern is found anywhere; in
            Arabic also behind particles that are joined to a word, whatever its vowel signs and hamzas.
    """
    language = base_code(language)
    folded = _folded(text, language)
    if language in _UNSPACED:
        return [any(term in folded for term in concept) for concept in concepts]
    words = set(_WORD.findall(folded))
    if language == "ar":
        words |= {ARABIC_PARTICLE.sub("", word) for word in words}
    return [any(_is(word, _folded(term, language)) for term in concept for word in words) for concept in concepts]


def _is(word: str, pattern: str) -> bool:
    """Whether a word is what a pattern with a star before or behind it, both or none, stands for."""
    part = pattern.strip("*")
    if pattern.startswith("*"):
        return part in word if pattern.endswith("*") else word.endswith(part)
    return word.startswith(part) if pattern.endswith("*") else word == part


@lru_cache(maxsize=2**16)
def _folded(text: str, language: str) -> str:
    """Compatibility forms and letter case aside, and in Arabic what is often left out in writing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if language == "ar":
        return _ARABIC_MARKS.sub("", folded).translate(_ARABIC_FORMS)
    return folded
