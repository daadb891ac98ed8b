"""What a generated answer says where it has to be one of a few: XNLI's answer words, X-CSQA's letters, capitals.

Text is compared by the tokens of `lm_eval_plnd.scoring.answers`, so that letter case, punctuation, width and Unicode
form do not matter, words are whole words, and Chinese and Thai need no spaces. What languages say to deny or doubt is
in `lm_eval_plnd.scoring.wording`. An answer that names none, or several, is not read: never the first by luck.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from lm_eval_plnd.scoring import wording
from lm_eval_plnd.scoring.answers import ARABIC_PARTICLE, TURKISH_ENDING, UNSPACED, first_line, tokens
from lm_eval_plnd.scoring.wording import Table, phrases

_LETTERS = "ABCDE"
_LOOK_ALIKES = str.maketrans("АВСЕавсе", "ABCEABCE")  # Cyrillic
_CLOSED = r"(?=[\p{P}\p{S}\s]*$|\s*[\p{Pe}\p{Pf}.:;*、,،。](?:\s|\*|\p{L}{2}|[^\p{L}])|\s+\p{Pd}\s)"
_ANY_LETTER = "[A-Ea-eАВСЕавсе]"
_LEADING_LETTER = regex.compile(rf"^[\p{{P}}\p{{S}}\s]*({_ANY_LETTER}){_CLOSED}")
_LONE_LETTER = regex.compile(
    r"(?<![\p{Latin}\p{Cyrillic}\p{N}'°.-])[A-E](?![\p{Latin}\p{Cyrillic}\p{N}']|[.-]\p{L})(?!\.\p{L}\.)"
)
_PAIR = regex.compile(r"(?<!\p{L})([A-E])\s+\p{L}{1,5}\s+([A-E])(?!\p{L}|\s+\p{L})")  # A or B
_ELISION = regex.compile(r"(?<!\p{L})(?:[cdjlmnst]|qu|un|dell|nell|all|sull|dall)['’](?=\p{L})", regex.I)  # l'école
_NEXT_WORD = regex.compile(r"\s+(\p{L}[\p{L}\p{M}]*)")

_QUESTION_MARKS = {"el": "?;\u037e"}
_SENTENCE = regex.compile(r"[^.!?;\u037e。！？؟।۔\n]*[.!?;\u037e。！？؟।۔\n]*")
_CLAUSE = regex.compile(r"[,;:.!?…、，。；：！？،؛؟।۔|()（）\[\]\n—–·]+")
_QUOTES = ("„“", "„”", "“”", "«»", "‹›", "「」", "『』", "《》", '""', "``")
_QUOTED = [regex.compile(rf"{pair[0]}(?P<said>[^{pair}]*){pair[1]}") for pair in _QUOTES] + [
    regex.compile(r"(?<![\p{L}\p{N}])['‘](?P<said>.*?)['’](?!\p{L})"),  # not isn't
    regex.compile(r"""(?:[“„«‹「『《"`]|(?<![\p{L}\p{N}])['‘])(?P<said>.*)$"""),  # cut off before its end
]
_UNIT = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s\p{{P}}\p{{S}}{UNSPACED}]+")
_RUN = {"th": 10, "zh": 10}  # so many units in a row are no coincidence: characters, elsewhere 5 words


def word_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated answer says the right one of a few words; lm-eval's `process_results`.

    Args:
        doc: a row with `language`, `choices` (the words), `label` (the position of the right one) and, where it has
            them, `premise` and `hypothesis`, whose repetition in the answer says nothing.
        results: what the model generated, one string, of which the first line that says something is the answer.
    Returns:
        `acc` and `unreadable` (the answer names no word, or several), each 0 or 1.
    """
    repeated = [doc.get("premise", ""), doc.get("hypothesis", "")]
    return _scores(named_word(first_line(results[0]), doc["choices"], doc["language"], repeated), doc)


def letter_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated answer chooses the right one of five lettered choices; as `word_scores`, with `chosen`."""
    return _scores(chosen(first_line(results[0]), doc["choices"], doc["language"]), doc)


def _scores(read: int | None, doc: Mapping[str, Any]) -> dict[str, float]:
    """Right or wrong, and whether anything was read."""
    return {"acc": float(read == doc["label"]), "unreadable": float(read is None)}


def name_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a generated continuation begins with the right name; lm-eval's `process_results`.

    Args:
        doc: a row with `language`, `answers` (names that are right), `prompt` (which the answer may repeat first) and,
            where it has one, `subject` (whose repetition is no answer, unless a right name is longer or the same).
        results: what the model generated, one string, of which the first line that says something is the answer.
    Returns:
        `acc`, 0 or 1.
    """
    line = first_line(results[0])
    asked = (doc["prompt"], doc["language"], doc.get("subject", ""))
    return {"acc": float(any(begins_with(line, name, *asked) for name in doc["answers"]))}


class _Word(NamedTuple):
    """One place in a clause where an answer word stands."""

    start: int
    end: int
    word: int


class _Clause(NamedTuple):
    """The tokens of a clause and of those that complete it (I do not think, that …), and where each of these begins."""

    said: tuple[str, ...]
    joints: tuple[int, ...] = ()


class _Claim(NamedTuple):
    """That an answer word, by its position, holds or does not."""

    word: int
    denied: bool


def named_word(text: str, words: Sequence[str], language: str, repeated: Sequence[str] = ()) -> int | None:
    """The position among `words` of the only one that a text claims.

    Args:
        text: a line of an answer.
        words: answer words or phrases, at least two; `wording.FORMS` has other forms of them.
        language: two-letter code.
        repeated: texts of the question; the answer may repeat them, whole or five words in a row, without saying them.
    Returns:
        None if the text claims none of them, or several. A negated word (`not true`, `不正确`) is not claimed, nor one
        in a question, after `whether`, or in a quotation of more than the word. A hedged one (`not necessarily true`)
        claims the word for "inconclusive".
    """
    forms = _forms(tuple(words), language)
    text = _without_quotations(_without(text, repeated, language, forms), language, forms)
    claims = [
        claim
        for sentence in _SENTENCE.findall(text)
        if not sentence.rstrip().endswith(tuple(_QUESTION_MARKS.get(language, "?？؟")))
        for clause in _clauses(_without_idioms(sentence, language), language)
        for claim in _claims(clause, forms, words, language)
    ]
    claimed = {claim.word for claim in claims if not claim.denied}
    denied = {claim.word for claim in claims if claim.denied}
    if not claimed and len(denied) == len(words) - 1:  # neither true nor false
        return (set(range(len(words))) - denied).pop()
    return claimed.pop() if len(claimed) == 1 else None


def _clauses(sentence: str, language: str) -> Iterator[_Clause]:
    """A sentence's clauses; a hedge between commas belongs to the next one, a `that` clause to the one before it."""
    before: tuple[str, ...] = ()
    last: _Clause | None = None
    for clause in _CLAUSE.split(sentence):
        said = before + _phrase(clause, language)
        hedge_alone = any((0, len(said)) == place for place in _found(said, wording.HEDGES, language))
        before = said if hedge_alone else ()
        if hedge_alone or not said:
            continue
        if last and any(start == 0 for start, _ in _found(said, wording.COMPLEMENTIZERS, language)):
            last = _Clause(last.said + said, (*last.joints, len(last.said)))
            continue
        if last:
            yield last
        last = _Clause(said)
    if last:
        yield last


@lru_cache(maxsize=64)
def _forms(words: tuple[str, ...], language: str) -> list[tuple[tuple[str, ...], bool, int]]:
    """Tokens of every form of the words, whether its last word has any ending, and the word's position."""
    found = []
    for index, word in enumerate(words):
        for form in [word, *phrases(wording.FORMS.get(language, {}), word)]:
            found.append((*_pattern(form, language), index))
    return sorted(found, key=lambda form: -len(form[0]))


def _claims(
    clause: _Clause, forms: Sequence[tuple[tuple[str, ...], bool, int]], words: Sequence[str], language: str
) -> Iterator[_Claim]:
    """What a clause claims and denies."""
    said = clause.said
    places = list(_words_in(said, forms, language))
    inside = {n for place in places for n in range(place.start, place.end)}
    breaks = [found for found in _found(said, wording.BREAKS, language) if found[0] not in inside]
    doubtful = _doubtful(words, language)
    for number, place in enumerate(places):
        left = max((end for _, end in breaks if end <= place.start), default=0)
        ends = [*(start for start, _ in breaks), *clause.joints]
        right = min((end for end in ends if end >= place.end), default=len(said))
        if number + 1 < len(places):
            right = min(right, places[number + 1].start)
        before, after = said[left : place.start], said[place.end : right]
        if place.word != doubtful:
            if any(left <= p.start < place.start and p.word == doubtful for p in places):
                continue  # cannot be determined to be true
            if _found(before, wording.WHETHER, language) or _found(after, wording.WHETHER, language):
                continue
        if _hedged(before, after, language):
            if doubtful is not None:
                yield _Claim(doubtful, denied=False)
        else:
            yield _Claim(place.word, _negated(before, after, language))


def _doubtful(words: Sequence[str], language: str) -> int | None:
    """The position of the word that says "inconclusive", if it is among them."""
    known = list(wording.FORMS.get(language, {}))[-1:]
    return words.index(known[0]) if known and known[0] in words else None


def _words_in(
    said: tuple[str, ...], forms: Sequence[tuple[tuple[str, ...], bool, int]], language: str
) -> Iterator[_Word]:
    """Where forms stand, from left to right, the longest at each place."""
    start = 0
    while start < len(said):
        for form, any_ending, index in forms:
            if _stands_at(said, start, form, any_ending, language):
                yield _Word(start, start + len(form), index)
                start += len(form)
                break
        else:
            start += 1


def _hedged(before: tuple[str, ...], after: tuple[str, ...], language: str) -> bool:
    """Whether a word between these tokens is said to be possible, or not certain."""
    for part in (before, after):
        for start, end in _found(part, wording.HEDGES, language):
            denials = _found(part, wording.NEGATORS_BEFORE, language)
            denied = [n for n in denials if n[1] == start or n[0] <= start < end < n[1]]  # nicht möglich, kann nicht
            if not denied or end - start > 1 and language == "en":
                return True
    certain = _found(before, wording.CERTAINTY, language)
    denials = _found(before, wording.NEGATORS_BEFORE, language)
    return any(no[0] < sure[0] for no in denials for sure in certain) or (
        bool(certain) and bool(_found(after, wording.NEGATORS_AFTER, language))
    )


def _negated(before: tuple[str, ...], after: tuple[str, ...], language: str) -> bool:
    """Whether a word between these tokens is negated."""
    return bool(_found(before, wording.NEGATORS_BEFORE, language) or _found(after, wording.NEGATORS_AFTER, language))


def _without(text: str, repeated: Sequence[str], language: str, forms: Sequence[Any]) -> str:
    """A text without what it repeats of others: a whole one, or many words in a row; an answer word alone stays."""
    units = list(_UNIT.finditer(text))
    said = [unit[0].casefold() for unit in units]
    alone = {form for form, _, _ in forms}
    others = [
        [unit.casefold() for unit in _UNIT.findall(other)]
        for other in repeated
        if _phrase(other, language) not in alone
    ]
    if len(said) > 1 and tuple(said) not in alone and any(_is_beginning(said, theirs) for theirs in others):
        return ""
    covered: set[int] = set()
    for whole in (True, False):  # first what is repeated as a whole, then runs in what is left
        for theirs in sorted(others, key=len, reverse=True):
            size = len(theirs) if whole else _RUN.get(language, 5)
            runs = {tuple(theirs[n : n + size]) for n in range(len(theirs) - size + 1)} if theirs else set()
            places = [range(n, n + size) for n in range(len(said) - size + 1) if tuple(said[n : n + size]) in runs]
            covered |= {n for place in places if covered.isdisjoint(place) for n in place}
    kept, position = [], 0
    for number in sorted(covered):
        kept.append(text[position : units[number].start()])
        position = units[number].end()
    return " ".join([*kept, text[position:]]) if covered else text


def _is_beginning(said: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether units are another text's first ones, the last perhaps cut off."""
    size = len(said)
    return len(theirs) >= size and list(said[:-1]) == list(theirs[: size - 1]) and theirs[size - 1].startswith(said[-1])


def _without_quotations(text: str, language: str, forms: Sequence[Any]) -> str:
    """A text without quotations of more than an answer word, unless it is nothing else; words lose their quotes."""

    def said(found: "regex.Match[str]") -> str:
        inside = found["said"]
        whole = not _phrase(text.replace(found[0], ""), language)
        word = any(form == _phrase(inside, language) for form, _, _ in forms)
        return f" {inside} " if whole or word else " "

    for quoted in _QUOTED:
        text = quoted.sub(said, text)
    return text


def _without_idioms(text: str, language: str) -> str:
    """A text without the phrases of `wording.IDIOMS`."""
    idioms = _idioms(language)
    return idioms.sub(" ", text) if idioms else text


@lru_cache(maxsize=64)
def _idioms(language: str) -> "regex.Pattern[str] | None":
    """Any of a language's idioms, as whole words where there are spaces between words."""
    known = "|".join(map(regex.escape, sorted(phrases(wording.IDIOMS, language), key=len, reverse=True)))
    letter = rf"[[\p{{L}}\p{{M}}]--[{UNSPACED}]--[\p{{Thai}}]]"
    return regex.compile(rf"(?<!{letter})(?:{known})(?!{letter})", regex.V1 | regex.I) if known else None


def chosen(text: str, choices: Sequence[str], language: str) -> int | None:
    """The position of the choice that a text names by its letter, A for the first, or by its words.

    In this order, the first that applies: the whole text is one choice's words; one letter stands in the text, as a
    capital, or in any case where something closes it at the beginning or behind a word for "answer" (`c`, `(c)`,
    `Answer: c`); one choice's words are in the text. A capital that is part of a choice's words (vitamin C) or a word
    of the language (`A hospital`) is no letter. Cyrillic look-alikes are letters only where something closes them:
    `В больнице` is "in hospital".

    Args:
        text: a line of an answer; full-width letters are letters.
        choices: at most five.
        language: two-letter code.
    Returns:
        None if the text names none, or several, or a letter with another choice's words, or if it denies what it names.
    """
    said, *wanted = (_phrase(_ELISION.sub("", words), language) for words in (text, *choices))
    whole = [index for index, words in enumerate(wanted) if words == said]
    if len(whole) == 1:
        return whole[0]
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    letters = _named_letters(text, choices, language)
    if len(letters) > 1:  # C, not D
        letters = {index for index in letters if not _denied(text, _LETTERS[index].casefold(), language)}
    if len(letters) > 1:
        return None
    if letters:
        (index,) = letters
        rest = said[1:] if said[:1] == (_LETTERS[index].casefold(),) else ()
        other = rest in wanted and rest != wanted[index]
        return None if other or _denied(text, _LETTERS[index].casefold(), language) else index
    named = _named_choices(said, wanted)
    if len(named) != 1:
        return None
    (index,) = named
    return None if _denies(_ELISION.sub("", text), wanted[index], language) else index


def _named_letters(text: str, choices: Sequence[str], language: str) -> set[int]:
    """The positions of the letters that a text names."""
    for choice in choices:
        if len(choice) > 1 and _LONE_LETTER.search(choice):
            text = regex.sub(regex.escape(choice), "…", text, flags=regex.I)
    found = set(_PAIR.findall(text)[0]) if _PAIR.search(text) else set()
    leading = _LEADING_LETTER.match(text)
    closed = [leading[1]] if leading else []
    closed += _cue(language).findall(text)
    found |= {letter.translate(_LOOK_ALIKES).upper() for letter in closed}
    if leading and leading[1].islower():  # c, d
        found |= {word.upper() for word in _phrase(text[leading.end() :], language) if word in ("b", "c", "d")}
    verbs = {word for table in (wording.LINKS, wording.BREAKS) for word in phrases(table, language)}
    for letter in _LONE_LETTER.finditer(text):
        word = _NEXT_WORD.match(text, letter.end())
        if letter[0] in phrases(wording.LETTER_WORDS, language) and word and word[1].casefold() not in verbs:
            continue  # A hospital
        found.add(letter[0])
    return {_LETTERS.index(letter) for letter in found}


@lru_cache(maxsize=64)
def _cue(language: str) -> "regex.Pattern[str]":
    """A letter in any case behind a word for "answer", and something that closes it."""
    names = "|".join(map(regex.escape, phrases(wording.ANSWER_WORDS, language))) or r"(?!)"
    links = "|".join(map(regex.escape, phrases(wording.LINKS, language))) or r"(?!)"
    start, alone = ("", "") if language in ("ja", "th", "zh") else (r"(?<!\p{L})", r"(?<!\p{L})")
    end = rf"(?:{_CLOSED}|(?=\s+(?:{links})(?!\p{{L}})))"
    marks = r"[\p{P}\p{S}\s]*"
    return regex.compile(rf"{start}(?i:{names})\s*(?i:{links})?{marks}{alone}({_ANY_LETTER}){end}")


def _named_choices(said: tuple[str, ...], wanted: Sequence[tuple[str, ...]]) -> list[int]:
    """The positions of the choices whose words are in a text, and not only as a part of a longer choice's."""
    inside = [index for index, words in enumerate(wanted) if words and _places(said, words)]
    return [i for i in inside if not any(wanted[i] != wanted[j] and _places(wanted[j], wanted[i]) for j in inside)]


def _denied(text: str, letter: str, language: str) -> bool:
    """Whether a clause with a letter has a negator."""
    return _denies(text.translate(_LOOK_ALIKES), (letter,), language)


def _denies(text: str, words: tuple[str, ...], language: str) -> bool:
    """Whether every clause of a text that has these words has a negator, too, outside of them."""
    denials = []
    for clause in _CLAUSE.split(_without_idioms(text, language)):
        said = _phrase(clause, language)
        breaks = [0, *(n for found in _found(said, wording.BREAKS, language) for n in found), len(said)]
        for start, end in zip(breaks, breaks[1:], strict=False):
            for place in _places(said[start:end], words):
                before, after = said[start : start + place], said[start + place + len(words) : end]
                every = (wording.NEGATORS_BEFORE, wording.NEGATORS_AFTER)
                denied = any(_found(part, table, language) for part in (before, after) for table in every)
                denials.append(denied or bool(_found(after, wording.WRONG, language)))
    return bool(denials) and all(denials)


# Endings that a name may have: Turkish cases and copulas, Russian cases, the German genitive.
_ENDINGS: Mapping[str, frozenset[str]] = {
    "de": frozenset(["s"]),
    "tr": frozenset(
        "dir dur dür tir tur tür da de ta te dan den tan ten ya ye a e yi yu yü i u ü nin nun nün in un ün dadir dedir "
        "tadir tedir ydi ydu ydü di du dü ti tu tü yla yle la le ndan nden nda nde ni nu nü na ne daki deki "
        "taki teki".replace("ü", "u").split()
    ),
}
_NAME_ARTICLES: Mapping[str, frozenset[str]] = {"fr": frozenset(["le", "la", "les"]), "pt": frozenset("oa")}
"""Articles of names; those of other languages are no tokens (`lm_eval_plnd.scoring.answers.ARTICLES`)."""
_RUSSIAN_STEM = regex.compile(r"^(\p{L}{3,}?)(?:[ыи]й|ая|яя|ое|ее|ые|ие|[аяоеиыьй])?$")
_RUSSIAN_ENDING = frozenset(
    "а я ы и у ю е о ой ей ою ью ом ем ам ям ами ями ах ях ов ев ь й ый ий ого его ому ему ым им ая яя ую юю ое ее ые "
    "ие ых их ыми ими".split()
)
_POSSESSIVE = regex.compile(r"(?<=\p{L})['’]s\b")
_LATIN_LETTERS = str.maketrans({"ı": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe"})
_ARABIC_LETTERS = str.maketrans("أإآةى", "اااهي", "ـ")
_LATIN_MARK = regex.compile(r"(?<=\p{Latin}\p{M}*)\p{M}")
_ARABIC_MARK = regex.compile(r"[\u064b-\u0652\u0670]")


def begins_with(text: str, name: str, prompt: str, language: str, subject: str = "") -> bool:
    """Whether a text begins with a name, perhaps after the prompt again.

    Accents (San Jose), hyphens, the writing of hamzas and what the name's case adds (Ankaradır, Москвы) may differ;
    Vietnamese marks may not. Where the subject's own name begins with the name (Colombo District), the subject again
    is no answer, but may stand before it.

    Args:
        text: a line that continues the prompt, or repeats it first.
        name: with at least one token.
        prompt: what was asked.
        language: two-letter code.
        subject: what the prompt asks about.
    """
    asked = _spelled(prompt, language)
    about, wanted = (_without_article(_spelled(text, language), language) for text in (subject, name))
    lines = [text, TURKISH_ENDING.sub("", text) if language == "tr" else _POSSESSIVE.sub("", text)]
    for line in dict.fromkeys(lines):
        said = _spelled(line, language)
        said = said[len(asked) :] if asked and said[: len(asked)] == asked else said
        said = _without_article(said, language)
        if _begins(said, wanted, language) and not _echoes(said, wanted, about, language):
            return True
        behind = _without_article(said[len(about) :], language)
        if about and _begins(said, about, language) and _begins(behind, wanted, language):
            return True
    return False


def _without_article(said: tuple[str, ...], language: str) -> tuple[str, ...]:
    """Tokens without an article at their beginning: o Cairo, Le Caire."""
    return said[1:] if len(said) > 1 and said[0] in _NAME_ARTICLES.get(language, ()) else said


def _echoes(said: tuple[str, ...], wanted: tuple[str, ...], about: tuple[str, ...], language: str) -> bool:
    """Whether what a text begins with is not the name but the longer name of the subject, which begins with it."""
    size = len(wanted)
    if len(about) <= size or len(said) <= size or not _begins(about, wanted, language):
        return False
    return said[size].startswith(about[size]) or _same_name(said[size], about[size], language)


def _begins(said: tuple[str, ...], wanted: tuple[str, ...], language: str) -> bool:
    """Whether tokens begin with others, up to endings and to where words are joined; wanted is not empty."""
    if all(_same_name(a, b, language) for a, b in zip(said, wanted, strict=False)) and len(said) >= len(wanted):
        return True
    joined, whole = "", "".join(wanted)
    for token in said:
        if len(joined) >= len(whole):
            break
        joined += token
    return bool(joined) and not regex.search(rf"[{UNSPACED}]", whole) and _same_name(joined, whole, language)


def _same_name(said: str, wanted: str, language: str) -> bool:
    """Whether one token is another one with a case's ending, or an Arabic particle before it."""
    if said == wanted:
        return True
    if language == "ar":
        return ARABIC_PARTICLE.sub("", said) == wanted
    if language == "ru":
        stem = _RUSSIAN_STEM.match(wanted)
        return bool(stem) and said.startswith(stem[1]) and said[len(stem[1]) :] in _RUSSIAN_ENDING
    endings = _ENDINGS.get(language, ())
    return len(wanted) > 2 and said.startswith(wanted) and said[len(wanted) :] in endings


@lru_cache(maxsize=4096)
def _spelled(text: str, language: str) -> tuple[str, ...]:
    """The tokens of a name, without what people leave out: accents of Latin letters, Arabic hamzas and vowel signs."""
    found = tokens(text, language)
    if language == "vi":
        return tuple(found)
    if language == "ar":
        return tuple(_ARABIC_MARK.sub("", word).translate(_ARABIC_LETTERS) for word in found)
    plain = (
        _LATIN_MARK.sub("", unicodedata.normalize("NFD", _unmarked(word, language))).translate(_LATIN_LETTERS)
        for word in found
    )
    return tuple(unicodedata.normalize("NFC", word) for word in plain)


@lru_cache(maxsize=4096)
def _phrase(text: str, language: str) -> tuple[str, ...]:
    """The tokens of an answer word, a negation, a short answer: the same few come again and again."""
    return tuple(tokens(_unmarked(text, language), language)) if any(map(str.isalnum, text)) else ()


def _unmarked(text: str, language: str) -> str:
    """A text without marks that are written or not by habit: Arabic vowel signs, Greek accents (not in capitals)."""
    if language in ("ar", "ur"):
        return _ARABIC_MARK.sub("", text)
    if language == "el":
        return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).replace("\u0301", ""))
    return text


def _pattern(phrase: str, language: str) -> tuple[tuple[str, ...], bool]:
    """The tokens of a table's phrase, and whether its last word may have any ending."""
    return _phrase(phrase.rstrip("*"), language), phrase.endswith("*")


@lru_cache(maxsize=512)
def _patterns(row: str, language: str) -> list[tuple[tuple[str, ...], bool]]:
    """The patterns of a table's row."""
    return [_pattern(phrase, language) for phrase in row.split("|") if phrase]


def _found(said: tuple[str, ...], table: Table, language: str) -> list[tuple[int, int]]:
    """Where the phrases of a table stand: first token, and the one behind the last."""
    return [
        (start, start + len(phrase))
        for phrase, any_ending in _patterns(table.get(language, ""), language)
        for start in range(len(said) - len(phrase) + 1)
        if _stands_at(said, start, phrase, any_ending, language)
    ]


def _stands_at(said: tuple[str, ...], start: int, phrase: tuple[str, ...], any_ending: bool, language: str) -> bool:
    """Whether a phrase stands at a place; its first word may have an Arabic particle before it."""
    there = said[start : start + len(phrase)]
    if len(there) < len(phrase) or not phrase:
        return False
    first = there[0] if there[0] == phrase[0] or language != "ar" else ARABIC_PARTICLE.sub("", there[0])
    there = (first, *there[1:])
    if not any_ending:
        return there == phrase
    return there[:-1] == phrase[:-1] and there[-1].startswith(phrase[-1])


def _places(said: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """Where in `said` the tokens `wanted` begin."""
    size = len(wanted)
    return [start for start in range(len(said) - size + 1) if said[start : start + size] == wanted]
