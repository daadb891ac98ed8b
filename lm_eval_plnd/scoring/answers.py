"""Scores of the tasks in `tasks/`: what their YAML files name as `process_results`.

A prediction is compared with a gold answer as in SQuAD v1.1 (lower case, no punctuation, no articles, bags of words),
carried over from English to every script. On printable ASCII in English the numbers are the official script's, except
where that leaves nothing of an answer: one that is only articles, or only punctuation, keeps them here.

How text becomes tokens, in this order:

1. Compatibility characters are folded (Unicode NFKC: full-width forms, ligatures, Arabic presentation forms), then
   letter case (`str.casefold`: ß is ss, ς is σ), and the decimal digits of every script become 0-9. Marks of letters
   are never removed: Arabic vowel signs, Hindi matras, Thai and Vietnamese tones stay.
2. Spellings that differ by keyboard or habit only become one (`SPELLING`).
3. Punctuation of every script (Unicode category P), the rest of ASCII punctuation, and invisible format characters
   (category Cf: zero-width spaces, joiners, direction marks) are deleted, not replaced by a space, as in SQuAD.
4. Characters of scripts that put no spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) are one token each,
   with their marks; the rest is split at white space. So `24 次` and `24次` are the same two tokens, and
   `Ein neues Lied` in a Chinese answer is three.
5. Articles are dropped in the languages that have them (`ARTICLES`, and in Arabic the prefix ال).
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import regex

# Articles that are words. German and Spanish as in MLQA's official script. Russian, Chinese, Vietnamese, Thai, Turkish
# and Hindi have none: Turkish bir and Vietnamese một are numerals, and MLQA's Vietnamese list (của, là, cái, chiếc,
# những: "of", "is", classifiers, a plural) is not followed. Romanian's definite article is an ending and stays.
ARTICLES: Mapping[str, frozenset[str]] = {
    language: frozenset(words.casefold().split())
    for language, words in {
        "en": "a an the",
        "de": "der die das den dem des ein eine einen einem eines einer",
        "es": "el la los las un una unos unas",
        "el": "ο η το οι τα του της των τον την τη τους τις ένας έναν ενός μια μία μιας ένα",
        "ro": "un o unui unei unor niște",
    }.items()
}
_ARABIC_ARTICLE = regex.compile(r"^ال(?=\p{L}\p{M}*\p{L})")  # a word with fewer than two more letters is left alone
ARABIC_PARTICLE = regex.compile(r"^[وف]?(?:[بك]?ال|لل|[بكل])?(?=\p{L}\p{M}*\p{L})")  # and, in, like, for, before a word
TURKISH_ENDING = regex.compile(r"(?<=\p{L})['’]\p{L}+")  # a case or a copula behind a name

# Turkish pairs I with ı and İ with i; Romanian ș and ț are often typed with a cedilla; Russian ё often without dots.
SPELLING = {
    "tr": str.maketrans("Iİ", "ıi"),
    "ro": str.maketrans("ŞşŢţ", "ȘșȚț"),
    "ru": str.maketrans("Ёё", "Ее"),
}

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+")
_DIGIT = regex.compile(r"\p{Nd}")
_PUNCTUATION = regex.compile(r"[\p{P}\p{Cf}$+<=>^`|~]")
_WORDLESS = regex.compile(r"[^\p{L}\p{N}]*")
_LATEX = regex.compile(r"\$?\\(?:boxed|fbox|text(?:bf|it|rm|tt)?|math(?:bf|it|rm|tt))\s*\{(?P<inside>[^{}]*)\}\$?")
_ANNOUNCEMENT = regex.compile(r".*[:：][^\p{L}\p{N}]*")
_SYLLABLE_START, _SYLLABLE_END = tuple("เแโใไ"), tuple("ะาำๅๆ")  # Thai vowels that are written beside their consonant


def answer_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match, F1 and containment of a generated answer, each the best over all gold answers.

    lm-eval's `process_results`.

    Args:
        doc: a row of a question-answering data set, with `answers` (gold answers, at least one) and `language`.
        results: what the model generated, one string, of which the first line that says something is the prediction.
    Returns:
        `exact_match` and `contains`, 0 or 1, and `f1`, from 0 to 1.
    """
    prediction = first_line(results[0])
    return {
        metric.__name__: max(metric(prediction, answer, doc["language"]) for answer in doc["answers"])
        for metric in (exact_match, f1, contains)
    }


def first_line(text: str) -> str:
    """The first line that says something, without the white space around it; empty if there is none.

    A line without a letter or digit (```, ---) says nothing, nor does one that ends with a colon where another follows.
    What LaTeX puts around words (\\boxed{C}, \\text{true}) goes.
    """
    while (plain := _LATEX.sub(r" \g<inside> ", text)) != text:
        text = plain
    lines = [line.strip() for line in text.split("\n") if not _WORDLESS.fullmatch(line)]
    said = [line for line in lines if not _ANNOUNCEMENT.fullmatch(line)]
    return next(iter(said or lines), text.strip().partition("\n")[0].strip())


def exact_match(prediction: str, answer: str, language: str) -> float:
    """1 if prediction and answer have the same tokens in the same order, and any at all, else 0."""
    predicted = tokens(prediction, language)
    return float(bool(predicted) and predicted == tokens(answer, language))


def f1(prediction: str, answer: str, language: str) -> float:
    """Harmonic mean of precision and recall of the prediction's tokens, as bags; 0 if no token is shared."""
    predicted, gold = tokens(prediction, language), tokens(answer, language)
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def contains(prediction: str, answer: str, language: str) -> float:
    """1 if all the answer's tokens stand in the prediction, one behind the other, else 0.

    Words are whole words. In Thai a consonant is not cut off its vowel; in Arabic a particle may be joined to the first
    word, in Turkish an ending to a name by an apostrophe. It does not depend on the prediction's length.
    """
    gold = tokens(answer, language)
    plain = TURKISH_ENDING.sub("", prediction) if language == "tr" else prediction
    return float(any(_stands_in(tokens(said, language), gold, language) for said in {prediction, plain}))


def _stands_in(said: list[str], gold: list[str], language: str) -> bool:
    """Whether gold tokens, one or more, stand in others, at the boundaries of `contains`."""
    for start in range(len(said) - len(gold) + 1):
        there = said[start : start + len(gold)]
        if language == "ar" and there and there[0] != gold[0]:
            there = [ARABIC_PARTICLE.sub("", there[0]), *there[1:]]
        cut = "".join(said[:start]).endswith(_SYLLABLE_START) or "".join(said[start + len(gold) :]).startswith(
            _SYLLABLE_END
        )
        if there == gold and there and not cut:
            return True
    return False


def tokens(text: str, language: str) -> list[str]:
    """The tokens of an answer, as this module's docstring says; none only if the text is blank.

    Args:
        text: an answer, in any script.
        language: two-letter code that chooses articles and spellings; it may have neither.
    """
    folded = unicodedata.normalize("NFKC", text).translate(SPELLING.get(language, {})).casefold()
    folded = unicodedata.normalize("NFKC", folded)  # case folding takes some letters apart again
    folded = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), folded)
    words = _TOKEN.findall(_PUNCTUATION.sub("", folded)) or _TOKEN.findall(folded)
    if language == "ar":
        words = [_ARABIC_ARTICLE.sub("", word) for word in words]
    return [word for word in words if word not in ARTICLES.get(language, ())] or words
