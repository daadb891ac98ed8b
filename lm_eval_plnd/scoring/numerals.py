"""Numbers in running text of many languages: `final_number`, the last one, read as its language writes numbers.

1. The decimal digits of every script (Arabic-Indic, Devanagari, Bengali, Telugu, Thai, full-width) are digits.
2. A minus sign (-, −, －, ﹣, –) counts unless a letter, a digit or a closing bracket stands before it: -5, but not
   10-5 nor top-5; letters of scripts without spaces between words (是-5) do not matter. A currency sign may follow it.
3. A comma before groups of three digits separates thousands in every language (1,234; in South Asia 1,23,456): the
   data's own gold numbers and many models write so where a point is customary, too. So do ' and ٬, and spaces that do
   not break the line. A point (1.234) and a plain space (1 234) do where the decimal mark is the comma
   (`DECIMAL_COMMA`); elsewhere that point is a decimal point, and the space stands between two numbers.
4. Otherwise a point before a digit is a decimal point, and a comma is a decimal comma where the language has it; ٫
   always is.
5. In Chinese and Japanese 百, 千, 万, 億 and their variants after digits multiply: 7万5千 is 75000 (but 5千克 is 5 kg).

Numbers in words, fractions and exponents are not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import regex

DECIMAL_COMMA = frozenset("bg de el es fr it nl pl pt ro ru tr vi".split())

_UNITS = {"百": 10**2, "千": 10**3, "仟": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_UNIT = regex.compile(r"[百仟万萬亿億]|千(?![克米瓦卡帕赫焦伏])")  # 千克, 千米, …: kilograms, kilometres, …

_MARKS = str.maketrans({"٬": "'", "’": "'", "\u00a0": "'", "\u202f": "'", "\u2009": "'", "٫": "."})
_WIDE_COMMA = regex.compile(r"(?<=\p{Nd})，(?=[０-９]{3}(?![０-９]))")  # before other digits it is punctuation
_WIDE_POINT = regex.compile(r"(?<=\p{Nd})．(?=\p{Nd})")
_DIGIT = regex.compile(r"\p{Nd}")

_SIGN = r"(?:(?<![[\p{L}\p{M}\p{N})\]%]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]])(?P<sign>[-−－﹣–])\p{Sc}?)?"


def _pattern(separators: str, decimal_marks: str) -> "regex.Pattern[str]":
    """One number, from its sign on: whole part, perhaps in groups, and perhaps decimals."""
    groups = rf"[1-9]\d{{0,2}}(?P<mark>[{separators}])(?:(?:\d{{3}}(?P=mark))*|(?:\d{{2}}(?P=mark))*)\d{{3}}(?!\d)"
    return regex.compile(rf"(?V1){_SIGN}(?P<whole>{groups}|\d+)(?:[{decimal_marks}](?P<decimals>\d+))?")


_WITH_POINT = _pattern("',", ".")
_WITH_COMMA = _pattern("',. ", ".,")


def number_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last number of a generated answer is the right one; lm-eval's `process_results`.

    Args:
        doc: a row with `language` and `answer` (a number).
        results: what the model generated, one string.
    Returns:
        `exact_match`, 0 or 1.
    """
    return {"exact_match": number_match(results[0], doc["answer"], doc["language"])}


def number_match(prediction: str, answer: str, language: str) -> float:
    """1 if the last numbers of prediction and answer are equal (and there are any), else 0."""
    found = final_number(prediction, language)
    return float(found is not None and found == final_number(answer, language))


def final_number(text: str, language: str) -> Decimal | None:
    """The last number in a text, None if there is none.

    Args:
        text: in any script.
        language: two-letter code; it says what points, commas and spaces mean.
    """
    last = None
    for number in numbers(text, language):
        last = number
    return last


def numbers(text: str, language: str) -> Iterator[Decimal]:
    """Every number in a text, in order; arguments as in `final_number`."""
    text = _WIDE_POINT.sub(".", _WIDE_COMMA.sub(",", text)).replace("{,}", ",").translate(_MARKS)  # {,} is LaTeX's
    text = _DIGIT.sub(lambda digit: str(int(digit[0])), text)
    pattern = _WITH_COMMA if language in DECIMAL_COMMA else _WITH_POINT
    position = 0
    while found := pattern.search(text, position):
        value, position = _value(found), found.end()
        total = Decimal(0)
        while language in ("ja", "zh") and (unit := _UNIT.match(text, position)):
            value, position = value * _UNITS[unit[0]], unit.end()
            rest = pattern.match(text, position)
            if rest and not rest["sign"]:
                total, value, position = total + value, _value(rest), rest.end()
        yield total + value


def _value(found: "regex.Match[str]") -> Decimal:
    whole = "".join(filter(str.isdigit, found["whole"]))
    return Decimal(f"{'-' if found['sign'] else ''}{whole}.{found['decimals'] or 0}")
