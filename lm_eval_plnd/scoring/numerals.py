"""Numbers in running text of many languages: `final_answer`, the one that an answer ends in.

How numbers are written:

1. The decimal digits of every script (Arabic-Indic, Devanagari, Bengali, Telugu, Thai, full-width) are digits.
2. A minus sign (-, −, －, ﹣, –) counts unless a letter, a digit or a closing bracket stands before it: -5, but not
   10-5 nor top-5; letters of scripts without spaces between words (是-5) do not matter. A currency sign may follow it.
3. A comma before groups of three digits separates thousands in every language (1,234; in South Asia 1,23,456): the
   data's own gold numbers and many models write so where a point is customary, too. So do ' and ٬, and spaces. A plain
   space (70 000) does not behind a word that takes a number of its own (`LABELS`: day 2 500 metres), nor where the
   digits begin a word (2 100-metre races). A point (1.234) separates where the decimal mark is the comma
   (`DECIMAL_COMMA`); elsewhere it is a decimal point.
4. Otherwise a point before a digit is a decimal point, and a comma is a decimal comma where the language has it; ٫
   always is.
5. Words for powers of ten multiply (`MULTIPLIERS`: 7 万, 3 million, elfu 70, $70k), and in Chinese and Japanese add up:
   7万5千 is 75000 (but 5千克 is 5 kg).
6. 3/4, 2 1/2, ½ and LaTeX's \\frac{3}{4} are fractions; 3 / 4 with spaces is a calculation.

Which number is the answer:

1. The one behind the last word for "answer" with a copula, colon or equals sign (`wording.ANSWER_WORDS`, `LINKS`), or
   behind \\boxed{ or ####; if calculations follow, what they come to (is 9 * 2 = 18). Behind a colon it is at most one
   word away: `Answer: She has 16 eggs and` begins a solution. A number that is denied (is not 16, 16ではない) is none.
2. Without any, the last number, if the text ends with it: it closes with the end of a sentence, or its last line closes
   with the number, a unit of a few words at most behind it. A text that breaks off in a sentence or a calculation was
   cut at the limit of tokens: its last number is only the last so far.

Numbers in words, dozens, powers and percent signs are not read: `50%` is 50.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from lm_eval_plnd.scoring import wording
from lm_eval_plnd.scoring.answers import UNSPACED
from lm_eval_plnd.scoring.wording import phrases

DECIMAL_COMMA = frozenset("bg de el es fr it nl pl pt ro ru tr vi".split())

# Powers of ten by the words for them, a `*` for any ending; those of `PREFIXED` languages stand before the number.
MULTIPLIERS: Mapping[str, Mapping[str, int]] = {
    "bn": {"শত": 2, "হাজার": 3, "লক্ষ": 5, "লাখ": 5, "কোটি": 7},
    "de": {"Tausend": 3, "Million*": 6, "Mio": 6, "Milliard*": 9, "Mrd": 9},
    "en": {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "billion": 9},
    "es": {"mil": 3, "millón": 6, "millones": 6},
    "fr": {"mille": 3, "million": 6, "millions": 6, "milliard*": 9},
    "ru": {"тыс": 3, "тысяч*": 3, "млн": 6, "миллион*": 6, "млрд": 9, "миллиард*": 9},
    "sw": {"mia": 2, "elfu": 3, "laki": 5, "milioni": 6},
    "te": {"వందల*": 2, "వేల*": 3, "లక్ష*": 5, "కోట్ల*": 7, "కోటి": 7},
    "th": {"ร้อย": 2, "พัน": 3, "หมื่น": 4, "แสน": 5, "ล้าน": 6},
}
PREFIXED = frozenset(["sw"])
_UNITS = {"百": 10**2, "千": 10**3, "仟": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_UNIT = regex.compile(
    r"[ \u00a0']?(?P<unit>[百仟万萬亿億]|千(?![克米瓦卡帕赫焦伏]))"
)  # 千克, 千米, …: kilograms, kilometres

# Words whose number is its own: "on day 2 500 metres" has two numbers; not so behind the words of `EACH`: "per day".
LABELS: Mapping[str, str] = {
    "bn": "ধাপ|পৃষ্ঠা",
    "de": "Tag|Woche|Monat|Jahr|Schritt|Seite|Runde|Klasse|Kapitel|Stunde|Gruppe|Zimmer|Nummer|Nr|Etage",
    "en": "day|week|month|year|step|page|round|grade|chapter|hour|group|room|number|no|question|game|floor|level|part",
    "es": "día|semana|mes|año|paso|página|ronda|grado|capítulo|hora|grupo|sala|número|pregunta|nivel|parte",
    "fr": "jour|semaine|mois|année|étape|page|tour|classe|chapitre|heure|groupe|salle|numéro|question|niveau|partie",
    "ja": "ステップ|ページ",
    "ru": "шаг|страница|раунд|класс|глава|группа|номер|этап|уровень",
    "sw": "siku ya|wiki ya|hatua ya|hatua|ukurasa|darasa|kundi|namba",
    "te": "దశ|పేజీ",
    "th": "วันที่|สัปดาห์ที่|เดือนที่|ขั้นตอนที่|หน้า|รอบที่|ชั้น|ข้อ",
    "zh": "第|步骤|页",
}
EACH: Mapping[str, str] = {
    "de": "pro|je|jeden|jedem|jede|jedes|jeder|einem|einer|einen|diesem|dieser|letzten",
    "en": "per|a|an|each|every|one|this|that|last",
    "es": "por|cada|al|a la|un|una|este|esta",
    "fr": "par|chaque|un|une|ce|cette",
}

_MARKS = str.maketrans(
    {"٬": "'", "’": "'", "\u00a0": "'", "\u202f": "'", "\u2009": "'", "\u2007": "'", "٫": ".", "⁄": "/"}
    | dict(zip("＝＋－／％", "=+-/%", strict=True))
)
_WIDE_COMMA = regex.compile(r"(?<=\p{Nd})，(?=[０-９]{3}(?![０-９]))")  # before other digits it is punctuation
_WIDE_POINT = regex.compile(r"(?<=\p{Nd})．(?=\p{Nd})")
_DIGIT = regex.compile(r"\p{Nd}")
_VULGAR = regex.compile(r"[¼-¾⅐-⅞]")
_LATEX = regex.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")

_SIGN = r"(?:(?<![[\p{L}\p{M}\p{N})\]%]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]])(?P<sign>[-−－﹣–])\p{Sc}?)?"
_FRACTION = regex.compile(
    r"/(?P<below>[1-9]\d*)(?![\d/.,]*\d)(?!\p{L})|[ ']{1,2}(?P<over>\d+)/(?P<under>[1-9]\d*)(?![\d/])"
)


def _pattern(separators: str, decimal_marks: str, labels: str) -> "regex.Pattern[str]":
    """One number, from its sign on: whole part, perhaps in groups, and perhaps decimals."""
    alone = rf"(?<!{labels}[\s.:#]{{1,2}})" if labels else ""
    spaced = rf"{alone}[1-9]\d{{0,2}}(?: \d{{3}})+(?!\d|-\p{{L}}|[ ]?[*×÷/+=]|[.,]\d{{3}}(?!\d))"
    groups = rf"[1-9]\d{{0,2}}(?P<mark>[{separators}])(?:(?:\d{{3}}(?P=mark))*|(?:\d{{2}}(?P=mark))*)\d{{3}}(?!\d)"
    return regex.compile(rf"(?V1){_SIGN}(?P<whole>{groups}|{spaced}|\d+)(?:[{decimal_marks}](?P<decimals>\d+))?")


@lru_cache(maxsize=64)
def _number(language: str) -> "regex.Pattern[str]":
    """A number as a language writes it."""
    labels, each = LABELS.get(language, ""), EACH.get(language, "(?!)")
    start = "" if language in ("ja", "th", "zh") else rf"(?<![\p{{L}}\p{{M}}])(?<!(?<!\p{{L}})(?i:{each})\s)"
    label = rf"{start}(?i:{labels})" if labels else ""
    return _pattern("',.", ".,", label) if language in DECIMAL_COMMA else _pattern("',", ".", label)


@lru_cache(maxsize=64)
def _multiplier(language: str) -> tuple["regex.Pattern[str]", list[int]] | None:
    """A word for a power of ten beside a number, a group for each word, and the powers."""
    words = MULTIPLIERS.get(language)
    if words is None:
        return None
    bound = "" if language == "th" else r"(?![\p{L}\p{M}])"
    each = "|".join(
        rf"({regex.escape(word.rstrip('*'))}" + (r"[\p{L}\p{M}]*)" if word.endswith("*") else f"){bound}")
        for word in words
    )
    if language in PREFIXED:
        return regex.compile(rf"(?<!\p{{L}})(?:{each})\s$", regex.I), list(words.values())
    return regex.compile(rf"[\s'-]?(?:{each})", regex.I), list(words.values())


_CLOSING = " \t\n\r)]}\"'»”’」』*_$\\"
_SENTENCE_END = regex.compile(r"(?<!\b\p{Lu})[.!?](?=[\s\p{P}*]|$)|[。！？।॥۔؟]")
_OPERATOR = regex.compile(r"[-+*×÷·/=≈−–]|\\times|\\cdot|\\div|(?<=[\s\d])x(?=[\s\d])")
_EQUALS = regex.compile(r"[=≈]")
_FULL_STOP = regex.compile(r"(?:(?<!\.)\.|[!?。！？।॥۔؟])$")
_WORD = regex.compile(r"[\p{L}\p{N}]")
_WORDS_BETWEEN = 12  # at most, from the cue to the answer's number
_WORDS_BEHIND_COLON = 1
_UNIT_WORDS = 4  # at most, behind a number that closes a text: dollars a day


class Number(NamedTuple):
    """A number's value and where it stands in the text that `_plain` returns."""

    value: Decimal
    start: int
    end: int


def number_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the number that a generated answer ends in is the right one; lm-eval's `process_results`.

    Args:
        doc: a row with `language` and `answer` (a number).
        results: what the model generated, one string.
    Returns:
        `exact_match` and `unreadable` (the answer ends in no number), each 0 or 1.
    """
    found = final_answer(results[0], doc["language"])
    right = found is not None and found == final_number(doc["answer"], doc["language"])
    return {"exact_match": float(right), "unreadable": float(found is None)}


def number_match(prediction: str, answer: str, language: str) -> float:
    """1 if the prediction's answer (`final_answer`) equals the last number of the gold answer, else 0."""
    found = final_answer(prediction, language)
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
    for number in _numbers(_plain(text), language):
        yield number.value


def final_answer(text: str, language: str) -> Decimal | None:
    """The number that an answer ends in, as the module says; None if it ends in none, or was cut off before.

    Args:
        text: a whole answer, in any script.
        language: two-letter code.
    """
    text = _plain(text).rstrip()
    found = list(_numbers(text, language))
    for cue in reversed(list(_cue(language).finditer(text))):
        position = cue.end()
        behind = [number for number in found if number.start >= position]
        between = text[position : behind[0].start] if behind else text[position:]
        if behind and not _SENTENCE_END.search(between.strip()) and _is_near(between, cue[0]):
            if not _denial(language).search(cue[0] + between) and not _denied_behind(text[behind[0].end :], language):
                return _result(text, behind)
            if len(behind) == 1:
                return None  # the answer is not 16
            break
        if not text[position:].strip(_CLOSING):
            return None  # cut off where the answer begins
    if not found or not _ends(text, found) or _denied_behind(text[found[-1].end :], language):
        return None
    return found[-1].value


def _is_near(between: str, cue: str) -> bool:
    """Whether what stands between a cue and a number still introduces the number.

    Behind a colon a solution may begin (`Answer: She has 16 eggs and`), which is no introduction.
    """
    words = len(regex.findall(rf"[{UNSPACED}]|[\p{{L}}\p{{M}}--[{UNSPACED}]]+", between, regex.V1))
    return words <= (_WORDS_BEHIND_COLON if regex.search(r"[:：=][\s*_]*$", cue) else _WORDS_BETWEEN)


def _result(text: str, found: Sequence[Number]) -> Decimal | None:
    """The first of these numbers, or what a calculation that begins with it comes to; None if it comes to nothing."""
    for number, following in zip(found, found[1:], strict=False):
        between = text[number.end : following.start]
        if not _calculates(between):
            break
        found = found[1:]
        evaluated = bool(_EQUALS.search(between))
        if not evaluated and not _calculates(_between(text, found)):
            return None  # 9 * 2, and nothing behind it
    return None if regex.match(r"\s*(?:[=≈*×÷+−]|\\times)\s*$", text[found[0].end :]) else found[0].value


def _between(text: str, found: Sequence[Number]) -> str:
    """What stands between the first two of these numbers, or behind the only one."""
    return text[found[0].end : found[1].start] if len(found) > 1 else ""


def _calculates(between: str) -> bool:
    """Whether what stands between two numbers makes them a calculation."""
    return bool(_OPERATOR.search(between)) and len(between) <= 40 and not regex.search(r"[.!?。,;，；:：\n]", between)


def _ends(text: str, found: Sequence[Number]) -> bool:
    """Whether a text is at its end, and not in the middle of a sentence or a calculation; it has numbers."""
    start, stop = found[-1].start, found[-1].end
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", stop)
    alone = not _WORD.search(text[line_start:start]) and not _OPERATOR.search(text[line_start:start].strip(_CLOSING))
    if line_end > 0 and alone and _is_unit(text[stop:line_end]):
        return True  # a line that is nothing but the number
    end = text.rstrip(_CLOSING)
    if _FULL_STOP.search(end):
        return True
    if not _is_unit(end[stop:]):
        return False
    before = text[found[-2].end : start] if len(found) > 1 else ""
    if alone or _EQUALS.search(before) and _calculates(before):
        return True
    if _SENTENCE_END.search(text[line_start:start]) or _calculates(before):
        return False  # who closes sentences would have closed this one
    return len(found) == 1 or len(end[stop:].split()) <= 1


def _is_unit(behind: str) -> bool:
    """Whether what stands behind a number is a unit of a few words, or nothing, and no clause begins in it."""
    behind = behind.strip(_CLOSING).rstrip(".")
    return not (
        regex.search(r"[,;:，、；：\n!?]", behind)
        or _SENTENCE_END.search(behind)
        or _OPERATOR.search(behind.replace("/", "", 1))
        or regex.search(rf"[{UNSPACED}]{{13,}}", behind)
        or len(behind.split()) > _UNIT_WORDS
    )


@lru_cache(maxsize=64)
def _cue(language: str) -> "regex.Pattern[str]":
    """What introduces the answer, up to the place where it begins."""
    names = "|".join(map(regex.escape, phrases(wording.ANSWER_WORDS, language))) or r"(?!)"
    links = "|".join(sorted(map(regex.escape, phrases(wording.LINKS, language)), key=len, reverse=True)) or r"(?!)"
    spaced = language not in ("ja", "th", "zh")
    start, stop = (r"(?<![\p{L}\p{M}])", r"(?![\p{L}\p{M}])") if spaced else ("", "")
    middle = r"(?:[^\n.!?।。:=\d]{0,60}?[\s*_]+)?" if spaced else rf"[{wording.BETWEEN[language]}\s*_]{{0,16}}?"
    link = rf"(?:{start}(?:{links}){stop}|[*_\s]*[:：=])[*_\s]*[:：]?"
    return regex.compile(rf"{start}(?:{names}){stop}(?:[*_]*\s*[:：=]|{middle}{link})|\\boxed\{{|####", regex.I)


@lru_cache(maxsize=64)
def _denial(language: str) -> "regex.Pattern[str]":
    """A word that denies what follows it: the answer is not 16."""
    words = "|".join(regex.escape(word) for word in phrases(wording.NEGATORS_BEFORE, language) if "*" not in word)
    bound = r"(?<![\p{L}\p{M}])", r"(?![\p{L}\p{M}])"
    if not words:
        return regex.compile(r"(?!)")
    return regex.compile(words if language in ("th", "zh") else rf"{bound[0]}(?:{words}){bound[1]}", regex.I)


def _denied_behind(behind: str, language: str) -> bool:
    """Whether what stands behind a number, in its clause, denies it in a language that does so there: 16ではない。"""
    denials = [words for words in phrases(wording.NEGATORS_AFTER, language) if "*" not in words]
    clause = regex.split(r"[,;:.!?。，、；：！？।\n\d]", behind, maxsplit=1)[0]
    if language == "ja":
        return any(words in clause for words in denials)
    return language in ("bn", "te") and clause.strip().endswith(tuple(denials))


def _plain(text: str) -> str:
    """A text with 0-9 for all digits, ' for spaces that do not break, and fractions with a slash."""
    text = _WIDE_POINT.sub(".", _WIDE_COMMA.sub(",", text)).replace("{,}", ",").translate(_MARKS)  # {,} is LaTeX's
    text = _DIGIT.sub(lambda digit: str(int(digit[0])), text)
    text = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/"), text)
    return _LATEX.sub(r" \1/\2", text)


def _numbers(text: str, language: str) -> Iterator[Number]:
    """Every number of a plain text, with where it stands."""
    pattern, position = _number(language), 0
    while found := pattern.search(text, position):
        value, position = _value(found), found.end()
        if fraction := _FRACTION.match(text, position):
            value, position = _with_fraction(value, found["sign"], fraction), fraction.end()
        total = Decimal(0)
        while language in ("ja", "zh") and (unit := _UNIT.match(text, position)):
            value, position = value * _UNITS[unit["unit"]], unit.end()
            rest = pattern.match(text, position)
            if rest and not rest["sign"]:
                total, value, position = total + value, _value(rest), rest.end()
        power, position = _power(text, found.start(), position, language)
        yield Number(total + value * power, found.start(), position)


def _power(text: str, start: int, end: int, language: str) -> tuple[int, int]:
    """The power of ten by which a number between these places is multiplied, and where its words end."""
    known = _multiplier(language)
    if known is None:
        return 1, end
    pattern, powers = known
    found = pattern.search(text[max(0, start - 16) : start]) if language in PREFIXED else pattern.match(text, end)
    if not found:
        return 1, end
    power = next(10**power for group, power in zip(found.groups(), powers, strict=True) if group is not None)
    if language in PREFIXED:
        return power, end
    further, stop = _power(text, start, found.end(), language)  # 2 hundred thousand
    return power * further, stop


def _with_fraction(value: Decimal, sign: str | None, found: "regex.Match[str]") -> Decimal:
    """3/4 from its 3 and what follows, 2 3/4 from its 2."""
    if found["below"]:
        return value / Decimal(found["below"])
    part = Decimal(found["over"]) / Decimal(found["under"])
    return value - part if sign else value + part


def _value(found: "regex.Match[str]") -> Decimal:
    whole = "".join(filter(str.isdigit, found["whole"]))
    return Decimal(f"{'-' if found['sign'] else ''}{whole}.{found['decimals'] or 0}")
