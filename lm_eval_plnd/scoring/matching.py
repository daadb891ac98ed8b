"""What a generated answer says where it has to be one of a few: XNLI's answer words, X-CSQA's letters, capitals.

Text is compared by the tokens of `lm_eval_plnd.scoring.answers`, so that letter case, punctuation, width and Unicode
form do not matter, words are whole words, and Chinese and Thai need no spaces.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import regex

from lm_eval_plnd.scoring.answers import first_line, tokens

# What turns an answer word into its opposite when it stands before it, or after it.
NEGATION_BEFORE: Mapping[str, Sequence[str]] = {
    "ar": ["غير", "ليس", "ليست", "لا"],
    "bg": ["не", "не е"],
    "de": ["nicht", "kein", "keine"],
    "el": ["δεν είναι", "μη", "όχι"],
    "en": ["not", "isn't"],
    "es": ["no", "no es"],
    "fr": ["pas"],
    "ru": ["не", "не является"],
    "sw": ["si", "sio", "siyo"],
    "th": ["ไม่", "ไม่ใช่", "ไม่เป็น"],
    "vi": ["không", "không phải", "chưa"],
    "zh": ["不", "不是", "并非", "非"],
}
NEGATION_AFTER: Mapping[str, Sequence[str]] = {"hi": ["नहीं"], "tr": ["değil"], "ur": ["نہیں"]}

# Other genders of the answer words, which agree with the prompt's word for "statement": a model may not.
AGREEMENT: Mapping[str, Mapping[str, str]] = {
    "ar": {"صحيح": "صحيحة", "خاطئ": "خاطئة", "خطأ": "خاطئة", "غير محسوم": "غير محسومة"},
    "bg": {"вярна": "вярно", "верно": "вярно", "грешна": "грешно", "неопределена": "неопределено"},
    "el": {"αληθές": "αληθής", "ψευδές": "ψευδής", "απροσδιόριστο": "απροσδιόριστη"},
    "es": {"verdadero": "verdadera", "falso": "falsa", "indeterminado": "indeterminada"},
    "fr": {"vrai": "vraie", "faux": "fausse", "indéterminé": "indéterminée"},
    "ru": {"истинное": "истинно", "ложное": "ложно", "неопределённое": "неопределённо"},
}

_LETTERS = "ABCDE"
_LOOK_ALIKES = str.maketrans("АВСЕ", "ABCE")  # Cyrillic
_LEADING_LETTER = regex.compile(r"^[\p{P}\p{S}\s]*([A-E])(?=\s*$|\s*[\p{Pe}\p{Pf}.:*、,،。]|\s+\p{Pd})")
_LONE_LETTER = regex.compile(r"(?<![\p{Latin}\p{Cyrillic}\p{N}'’])[A-E](?![\p{Latin}\p{Cyrillic}\p{N}'’])")
_ARTICLE = regex.compile(r"\s*[AE]\s")  # at the beginning of a sentence these two are words
_TURKISH_SUFFIX = regex.compile(r"(?<=\p{L})['’]\p{L}+")


def word_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated answer says the right one of a few words; lm-eval's `process_results`.

    Args:
        doc: a row with `language`, `choices` (the words) and `label` (the position of the right one).
        results: what the model generated, one string, of which the first line that is not blank is the answer.
    Returns:
        `acc`, 0 or 1.
    """
    return {"acc": float(named_word(first_line(results[0]), doc["choices"], doc["language"]) == doc["label"])}


def letter_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated answer chooses the right one of five lettered choices; as `word_scores`, with `chosen`."""
    return {"acc": float(chosen(first_line(results[0]), doc["choices"], doc["language"]) == doc["label"])}


def name_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated continuation begins with the right name; lm-eval's `process_results`.

    Args:
        doc: a row with `language`, `answers` (names that are right) and `prompt` (which the answer may repeat first).
        results: what the model generated, one string, of which the first line that is not blank is the answer.
    Returns:
        `acc`, 0 or 1.
    """
    line = first_line(results[0])
    return {"acc": float(any(begins_with(line, name, doc["prompt"], doc["language"]) for name in doc["answers"]))}


def named_word(text: str, words: Sequence[str], language: str) -> int | None:
    """The position among `words` of the one that a text names first.

    Args:
        text: a line of an answer.
        words: answer words or phrases, at least two; in `AGREEMENT` are other forms of them.
        language: two-letter code.
    Returns:
        None if the text names none, or only under a negation (`not true`, `不正确`), or lists them all, as a model
        does that repeats the question.
    """
    said = _phrase(text, language)
    forms = [(words.index(word), form) for form, word in AGREEMENT.get(language, {}).items() if word in words]
    found = []
    for index, form in [*enumerate(words), *forms]:
        wanted = _phrase(form, language)
        for start in _places(said, wanted):
            if not _negated(said[:start], said[start + len(wanted) :], language):
                found.append((start, -len(wanted), index))
    named = {index for _, _, index in found}
    return min(found)[2] if found and len(named) < len(words) else None


def chosen(text: str, choices: Sequence[str], language: str) -> int | None:
    """The position of the choice that a text names by its letter, A for the first, or by its words.

    In this order, the first that applies: the whole text is one choice's words; a letter stands at the beginning and
    something that closes it behind (`C`, `(C)`, `C. hospital`; `A hospital` begins with an article); one letter stands
    alone elsewhere; one choice's words are in the text.

    Args:
        text: a line of an answer; full-width letters and Cyrillic look-alikes are letters.
        choices: at most five.
        language: two-letter code.
    Returns:
        None if the text names none, or several.
    """
    said = _phrase(text, language)
    wanted = [_phrase(choice, language) for choice in choices]
    whole = [index for index, words in enumerate(wanted) if words == said]
    if len(whole) == 1:
        return whole[0]
    letters = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
    lone = set(_LONE_LETTER.findall(letters))
    if len(lone) == len(_LETTERS):  # the choices again
        return None
    if leading := _LEADING_LETTER.match(letters):
        return _LETTERS.index(leading[1])
    if _ARTICLE.match(letters):
        lone = set(_LONE_LETTER.findall(letters.lstrip()[1:]))
    if len(lone) == 1:
        return _LETTERS.index(lone.pop())
    inside = [index for index, words in enumerate(wanted) if words and _places(said, words)]
    longest = [i for i in inside if not any(wanted[i] != wanted[j] and _places(wanted[j], wanted[i]) for j in inside)]
    return longest[0] if len(longest) == 1 else None


def begins_with(text: str, name: str, prompt: str, language: str) -> bool:
    """Whether a text begins with a name, all its tokens, perhaps after the prompt again.

    Args:
        text: a line that continues the prompt, or repeats it first.
        name: with at least one token.
        prompt: what was asked.
        language: two-letter code; in Turkish what follows an apostrophe in the text, a case ending, may be left out.
    """
    asked, wanted = _phrase(prompt, language), _phrase(name, language)
    for line in [text, _TURKISH_SUFFIX.sub("", text)] if language == "tr" else [text]:
        said = _phrase(line, language)
        said = said[len(asked) :] if said[: len(asked)] == asked else said
        if said[: len(wanted)] == wanted:
            return True
    return False


@lru_cache(maxsize=4096)
def _phrase(text: str, language: str) -> tuple[str, ...]:
    """The tokens of an answer word, a negation, a short answer: the same few come again and again."""
    return tuple(tokens(text, language))


def _places(said: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """Where in `said` the tokens `wanted` begin."""
    size = len(wanted)
    return [start for start in range(len(said) - size + 1) if said[start : start + size] == wanted]


def _negated(before: tuple[str, ...], after: tuple[str, ...], language: str) -> bool:
    """Whether a word between these tokens is negated."""
    negations = [_phrase(no, language) for no in NEGATION_BEFORE.get(language, ())]
    trailing = [_phrase(no, language) for no in NEGATION_AFTER.get(language, ())]
    return any(before[-len(no) :] == no for no in negations) or any(after[: len(no)] == no for no in trailing)
