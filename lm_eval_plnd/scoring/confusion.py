"""In which language an answer is: metrics of language confusion (arXiv:2406.20052) and of forced language
(arXiv:2601.08331), what the YAML files of `tasks/confusion` and `tasks/forced_language` name as `process_results`.

Two classifiers that know nothing of each other read every line, cld3 and fastText's lid.176. A line is in a language
where both name it, in another where both name others, and else undetermined: nothing is guessed. What is read, in this
order:

1. Code, addresses, formulas and tags are taken out, then the question where the answer repeats it, then the marks of
   Markdown (`prose`). Of what is left, lines with letters count.
2. A line of fewer than `MIN_WORDS` words is too short to be told a language. Scripts that put no spaces between words
   have two characters for a word.

`docs/language-confusion.md` says what the metrics are, and how far the two classifiers agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import regex

from lm_eval_plnd.scoring.answers import UNSPACED
from lm_eval_plnd.scoring.relevance import relevance
from plnd.errors import PLNDError
from plnd.logit_lens import language_id
from plnd.logit_lens.language_id import NON_WORD, Identifier, find_identifier, same_language, scripts_in

IDENTIFIERS = ("cld3", "fasttext")
MIN_WORDS = 5
"""As many as arXiv:2406.20052 asks of a line."""
MIN_LETTERS = 4
"""Of an English word, as in arXiv:2406.20052: shorter ones are in other languages' use."""

_CODE = regex.compile(r"(?P<fence>```|~~~).*?(?:(?P=fence)|\Z)|`[^`\n]+`", regex.DOTALL)
_FORMULA = regex.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\$[^$\n]*[\\^_={}][^$\n]*\$", regex.DOTALL)
_ADDRESS = regex.compile(r"(?:https?://|www\.)[^\s<>()\p{Han}]+|[\w.+-]+@[\w-]+\.[\w.]+")
_TAG = regex.compile(r"</?[A-Za-z][^<>\n]*>")
_LINK = regex.compile(r"!?\[(?P<words>[^\]\n]*)\]\([^)\n]*\)")
_MARKS = regex.compile(r"[*#>|~]+|(?<!\w)_+|_+(?!\w)|(?m:^\s*(?:[-+•]|\p{Nd}+[.)、．])\s)")
_LETTER = regex.compile(r"\p{L}")
_WORD = regex.compile(rf"[\p{{L}}\p{{M}}--[{UNSPACED}]]+(?:['’][\p{{L}}\p{{M}}--[{UNSPACED}]]+)*", regex.V1)
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}]&&\p{{L}}]", regex.V1)
_LATIN_WORD = regex.compile(
    rf"(?<![\p{{Latin}}\p{{N}}_@/\\.])[a-z]{{{MIN_LETTERS},}}(?![\p{{Latin}}\p{{M}}\p{{N}}_@/\\])(?!\.[\p{{Latin}}\p{{N}}])"
)
_DIGITS = regex.compile(r"\p{N}+")
_LATIN_NAME = regex.compile(r"(?<!\p{Latin})\p{Lu}[\p{Latin}\p{M}]*")
_SYMBOL = regex.compile(r"(?<!\p{L})\p{Greek}(?!\p{L})")  # α, μ, π


class Line(NamedTuple):
    """A line, and what each classifier of `IDENTIFIERS` calls it."""

    text: str
    labels: tuple[str, ...]

    def is_in(self, language: str) -> bool | None:
        """Whether it is in a language; None where the classifiers disagree about that, or one names none."""
        if NON_WORD in self.labels:
            return None
        verdicts = {same_language(label, language) for label in self.labels}
        return verdicts.pop() if len(verdicts) == 1 else None

    @property
    def agreed(self) -> bool | None:
        """Whether the classifiers name one language; None where one names none."""
        if NON_WORD in self.labels:
            return None
        return all(same_language(label, self.labels[0]) for label in self.labels)


def confusion_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether an answer stays in its language; lm-eval's `process_results`.

    Args:
        doc: a row with `language`, to be answered in, and `question` and `instruction`, whose repetition is no answer.
        results: what the model generated, one string.
    Returns:
        0 or 1 each; what cannot be told of an answer is left out, and lm-eval's mean is over those of which it can be:

        - `undetermined`: no line can be told a language, of an empty answer, digits or code for instance.
        - `lpr`: all lines that can be told are in the language (line-level pass rate).
        - `wpr`: of an answer that passes on `lpr`, in a language of another script than Latin: no line has an English
          word (word-level pass rate). `lcpr`: both, for the harmonic mean of their means (`harmonic`).
        - `script_pass`: no letter of a script that is neither the language's nor Latin; where a line is long enough.
        - `lpr_cld3`, `lpr_fasttext`: `lpr` by one of them, as in the paper, where a line without a language fails.
        - `agreement`: lines that both call the same, and lines that both call something; for `share`.
    """
    language = doc["language"]
    text = prose(results[0], [doc["question"], doc["instruction"]])
    lines = told(line for line in text if length(line) >= MIN_WORDS)
    scores: dict[str, Any] = {}
    for place, name in enumerate(IDENTIFIERS):
        if lines:
            scores[f"lpr_{name}"] = float(all(same_language(line.labels[place], language) for line in lines))
    if named := [line for line in lines if line.agreed is not None]:
        scores["agreement"] = [sum(bool(line.agreed) for line in named), len(named)]
    verdicts = [verdict for line in lines if (verdict := line.is_in(language)) is not None]
    scores["undetermined"] = float(not verdicts)
    if lines:
        scores["script_pass"] = float(not any(foreign_letters(line, language) for line in text))
    if verdicts:
        scores["lpr"] = float(all(verdicts))
    if verdicts and not _in_latin_letters(language):
        passed = all(verdicts)
        if passed:
            scores["wpr"] = float(not any(english_words(line) for line in text))
        scores["lcpr"] = [scores["lpr"], scores["wpr"] if passed else None]
    return scores


def forced_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether an answer is in the language to which a model is steered, and about its question; `process_results`.

    Args:
        doc: a row as for `confusion_scores`, with `terms`: of each language that matters, the question's concepts.
        results: what the model generated, one string.
    Returns:
        - `reached`: the answer as a whole is in the language; 0, too, where that cannot be told.
        - `relevance`: 0, 0.5 or 1 (`lm_eval_plnd.scoring.relevance`), in the language asked or the one wanted.
        - `forced`: their product.
        - `steering`: both, for the harmonic mean of their means (`harmonic`).
        - `reached_cld3`, `reached_fasttext`: by one of them.
        - `undetermined`: too short, or the classifiers disagree whether it is in the language.
        - `agreement`: as in `confusion_scores`, of answers.
    """
    language = doc["language"]
    whole = " ".join(prose(results[0], [doc["question"], doc["instruction"]]))
    (line,) = told([whole]) if length(whole) >= MIN_WORDS else [Line(whole, (NON_WORD,) * len(IDENTIFIERS))]
    reached = float(line.is_in(language) is True)
    about = relevance(whole, {row["language"]: row["concepts"] for row in doc["terms"]})
    scores: dict[str, Any] = {
        "reached": reached,
        "relevance": about,
        "forced": reached * about,
        "steering": [reached, about],
        "undetermined": float(line.is_in(language) is None),
    }
    for label, name in zip(line.labels, IDENTIFIERS, strict=True):
        scores[f"reached_{name}"] = float(same_language(label, language))
    if line.agreed is not None:
        scores["agreement"] = [int(line.agreed), 1]
    return scores


def harmonic(pairs: Sequence[Sequence[float | None]]) -> float:
    """Harmonic mean of the means of first and second numbers, each over the pairs that have one; 0 if either is 0.

    lm-eval's aggregation of `lcpr` (2 · LPR · WPR / (LPR + WPR), arXiv:2406.20052) and `steering` (arXiv:2601.08331).
    Where no pair has a second number, which is where no answer passes on the first, it is 0.
    """
    means = [_mean([pair[place] for pair in pairs]) for place in (0, 1)]
    return 2 * means[0] * means[1] / sum(means) if all(means) else 0.0


def share(counts: Sequence[Sequence[int]]) -> float:
    """The sum of first numbers over that of second ones; lm-eval's aggregation of `agreement`."""
    return sum(part for part, _ in counts) / sum(whole for _, whole in counts)


def _mean(numbers: Iterable[float | None]) -> float:
    there = [number for number in numbers if number is not None]
    return sum(there) / len(there) if there else 0.0


def prose(answer: str, repeated: Sequence[str] = ()) -> list[str]:
    """The lines of an answer that are language: with letters, and without code, marks and what only is repeated.

    Args:
        answer: what a model wrote, perhaps with Markdown.
        repeated: texts of the prompt; they are taken out, whatever their case and white space.
    """
    text = answer
    for what in (_CODE, _FORMULA, _ADDRESS, _TAG):
        text = what.sub(" ", text)
    text = _MARKS.sub(" ", _LINK.sub(r"\g<words>", text))
    for words in filter(None, (said.split() for said in repeated)):
        text = regex.sub(r"\s+".join(map(regex.escape, words)), " ", text, flags=regex.IGNORECASE)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if _LETTER.search(line)]


def length(line: str) -> float:
    """How many words a line has; two characters of a script without spaces are one, digits and signs are none."""
    return len(_WORD.findall(line)) + len(_UNSPACED_LETTER.findall(line)) / 2


def told(lines: Iterable[str]) -> list[Line]:
    """Lines with what each classifier calls them.

    It is not shown what says nothing: digits, and, among letters of another script, names in Latin letters.

    Raises:
        PLNDError: if a classifier is not installed.
    """
    return [Line(line, _labels(line)) for line in lines]


@lru_cache(maxsize=2**16)
def _labels(line: str) -> tuple[str, ...]:
    words = _DIGITS.sub(" ", line)
    scripts = scripts_in(words)
    if max(scripts, key=scripts.__getitem__, default="Latin") != "Latin":
        words = _LATIN_NAME.sub(" ", words)
    return tuple(identifier.identify(words) for identifier in _identifiers())


def english_words(text: str) -> list[str]:
    """The lower-case English words of at least `MIN_LETTERS` letters in a text of another script, in order.

    Names (Python, YouTube), and what stands in an address or beside a digit or an underscore, are none; nor are words
    of other languages in Latin letters.

    Raises:
        PLNDError: if simplemma, whose English dictionary says what is a word, is not installed.
    """
    return [word for word in _LATIN_WORD.findall(text) if _is_english(word)]


@lru_cache(maxsize=2**16)
def _is_english(word: str) -> bool:
    try:
        import simplemma
    except ImportError:
        raise PLNDError("English words are told by simplemma: pip install 'plnd[langid]'") from None
    return simplemma.is_known(word, lang="en")


def foreign_letters(text: str, language: str) -> int:
    """How many letters of a text are neither of the language's scripts nor Latin; α and π alone are signs."""
    own = {*language_id.labels("script", language), "Latin"}
    return sum(count for script, count in scripts_in(_SYMBOL.sub(" ", text)).items() if script not in own)


def require_identifiers() -> None:
    """See that what tells languages is installed: before hours of generation, not after.

    Raises:
        PLNDError: if it is not.
    """
    _identifiers()
    _is_english("language")


@cache
def _identifiers() -> tuple[Identifier, ...]:
    return tuple(find_identifier(name) for name in IDENTIFIERS)


def _in_latin_letters(language: str) -> bool:
    return "Latin" in language_id.labels("script", language)
