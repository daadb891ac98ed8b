"""What scores answers: cases worked out by hand for every script; SQuAD's own script on English."""

import re
import string
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_plnd.rows.benchmarks import xquad
from lm_eval_plnd.scoring.answers import answer_scores, contains, exact_match, f1, first_line, tokens

TOKENS = [
    # English: articles, ASCII punctuation deleted and not replaced, other punctuation and symbols
    ("en", "The Eiffel  Tower!", ["eiffel", "tower"]),
    ("en", "well-known, U.S. $5", ["wellknown", "us", "5"]),
    ("en", "“an” end — of–it’s", ["end", "ofits"]),
    ("en", "10 °C, £5", ["10", "°c", "£5"]),
    ("en", "theatre than Ana", ["theatre", "than", "ana"]),
    # German: ß, articles, low quotation marks, umlauts stay
    ("de", "Die STRASSE „zum“ Fluß", ["strasse", "zum", "fluss"]),
    ("de", "Über den Häusern", ["über", "häusern"]),
    # Spanish: opening question marks, guillemets, a zero-width space
    ("es", "¿Los «niños» y la \u200bniña?", ["niños", "y", "niña"]),
    ("es", "él lo sabe", ["él", "lo", "sabe"]),
    # Russian: no articles; ё is е, й is not и
    ("ru", "«Пётр» — царь", ["петр", "царь"]),
    ("ru", "мой", ["мой"]),
    # Chinese: characters, Latin words, digits, full-width forms, the middle dot
    ("zh", "24 次", ["24", "次"]),
    ("zh", "２４次。", ["24", "次"]),
    ("zh", "培顿·曼宁", ["培", "顿", "曼", "宁"]),
    ("zh", "《Ein neues Lied》（歌）", ["ein", "neues", "lied", "歌"]),
    ("zh", "ＰＳＰＡＣＥ，１２．５％", ["pspace125"]),
    # Vietnamese: words and tones; no articles
    ("vi", "Những cái của Đà Nẵng", ["những", "cái", "của", "đà", "nẵng"]),
    ("vi", "đa", ["đa"]),
    # Thai: a consonant with its marks is one token, spaces are none, Thai digits
    ("th", "กี่ครั้ง", ["กี่", "ค", "รั้", "ง"]),
    ("th", "๒๔ ครั้ง", ["24", "ค", "รั้", "ง"]),
    # Arabic: prefix article, Arabic punctuation, vowel signs stay, Arabic-Indic digits, presentation forms
    ("ar", "الكتاب، والقلم؟", ["كتاب", "والقلم"]),
    ("ar", "سُجِّلت", ["سُجِّلت"]),
    ("ar", "٢٤٪", ["24"]),
    ("ar", "\ufefb", ["لا"]),
    ("ar", "ال آل الم", ["ال", "آل", "الم"]),
    # Greek: sigma, articles, accents stay, the Greek question mark
    ("el", "Ο ΔΡΌΜΟΣ της πόλης;", ["δρόμοσ", "πόλησ"]),
    # Turkish: dotted and dotless i
    ("tr", "ISPARTA İstanbul", ["ısparta", "istanbul"]),
    # Hindi: matras and virama stay, danda goes, both spellings of a nukta letter, joiners, Devanagari digits
    ("hi", "हिन्दी।", ["हिन्दी"]),
    ("hi", "\u0958", ["\u0915\u093c"]),
    ("hi", "क्\u200dष २४", ["क्ष", "24"]),
    # Romanian: comma and cedilla, indefinite articles
    ("ro", "Nişte oraşe, un Ţinut", ["orașe", "ținut"]),
    # Japanese, and a language with no rules of its own
    ("ja", "スーパーの卵", ["ス", "ー", "パ", "ー", "の", "卵"]),
    ("xx", "The end", ["the", "end"]),
]


@pytest.mark.parametrize(("language", "text", "expected"), TOKENS)
def test_tokens(language, text, expected):
    """Each language's traps, worked out by hand."""
    assert tokens(text, language) == expected


@pytest.mark.parametrize(
    ("language", "prediction", "answer"),
    [
        ("en", "a Panthers'", "The Panthers"),
        ("de", "die strasse", "Straße"),
        ("zh", "２４次", "24 次"),
        ("th", "24ครั้ง", "๒๔ ครั้ง"),
        ("ar", "الكتاب", "كتاب"),
        ("tr", "İZMİR", "izmir"),
        ("hi", "\u0915\u093cलम", "\u0958लम"),
        ("vi", "Đa\u0300 Nẵng", "Đà Nẵng"),
    ],
)
def test_exact_match_across_spellings(language, prediction, answer):
    """Spellings of the same answer match exactly."""
    assert exact_match(prediction, answer, language) == f1(prediction, answer, language) == 1.0


@pytest.mark.parametrize(
    ("language", "prediction", "answer"),
    [
        ("vi", "đa", "đá"),
        ("hi", "कि", "की"),
        ("ar", "كَتَبَ", "كُتِبَ"),
        ("th", "ก่า", "ก้า"),
        ("tr", "ışık", "işik"),
        ("ru", "мои", "мой"),
    ],
)
def test_marks_of_letters_distinguish(language, prediction, answer):
    """Two words that differ only in their marks are two words."""
    assert exact_match(prediction, answer, language) == 0.0


def test_f1_by_hand():
    """Three of four predicted tokens are gold, three of five gold tokens are predicted: 2·3/(4+5)."""
    assert f1("one two three seven", "one two three four five", "en") == pytest.approx(6 / 9)
    assert f1("马丁路德", "路德", "zh") == pytest.approx(4 / 6)
    assert f1("no no", "no", "en") == pytest.approx(2 / 3)


@pytest.mark.parametrize("nothing", ["", " \n", "\u200b"])
def test_an_empty_answer_scores_nothing(nothing):
    """An empty prediction scores 0, whatever the gold answer, an empty one too."""
    for answer in ("the", "24", ".", ""):
        for metric in (exact_match, f1, contains):
            assert metric(nothing, answer, "en") == 0.0


@pytest.mark.parametrize("answer", ["The", "&", "…", "a"])
def test_an_answer_keeps_what_is_all_it_has(answer):
    """A gold answer that is only an article or a sign still matches itself."""
    assert exact_match(answer, answer, "en") == f1(answer, answer, "en") == 1.0


def test_the_best_gold_answer_counts():
    """All scores are the maximum over the gold answers."""
    doc = {"language": "en", "answers": ["three hundred and eight", "308"]}
    assert answer_scores(doc, ["308."]) == {"exact_match": 1.0, "f1": 1.0, "contains": 1.0}
    assert answer_scores(doc, ["hundred and eight"]) == {
        **{"exact_match": 0.0, "contains": 0.0},
        "f1": pytest.approx(6 / 7),
    }


def test_the_first_line_that_is_not_blank_is_the_answer():
    """What follows the answer's line, and blank lines before it, are not the answer."""
    assert first_line("\n\n 308 \n\nQuestion: next?") == "308"
    assert first_line(" \n\t") == ""


def squad(prediction: str, answer: str) -> tuple[bool, float]:
    """Exact match and F1 of the official SQuAD v1.1 script (evaluate-v1.1.py), restated."""

    def words(text: str) -> list[str]:
        text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    predicted, gold = words(prediction), words(answer)
    same = sum((Counter(predicted) & Counter(gold)).values())
    if same == 0:
        return predicted == gold, 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return predicted == gold, 2 * precision * recall / (precision + recall)


def english() -> st.SearchStrategy[str]:
    """Short texts of ASCII words, articles, numbers and punctuation, with at least one word."""
    pieces = st.sampled_from(
        ["the", "An", "a", "Tower", "tower", "x", "308", "3.5", "-", "'s", "$5", ", ", " ", "\t", "(A)"]
    )
    return st.lists(pieces | st.text(string.printable[:95], max_size=4)).map(lambda parts: " ".join(["end", *parts]))


@given(english(), english())
def test_english_agrees_with_squad(prediction, answer):
    """On printable ASCII both scores are the official script's."""
    match, overlap = squad(prediction, answer)
    assert exact_match(prediction, answer, "en") == match
    assert f1(prediction, answer, "en") == pytest.approx(overlap)


MLQA_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
}


def mlqa(prediction: str, answer: str, language: str) -> tuple[bool, float]:
    """Exact match and F1 as MLQA's script (mlqa_evaluation_v1.py) normalises answers, restated for en es de zh."""

    def words(text: str) -> list[str]:
        kept = [
            ch for ch in text.lower() if not unicodedata.category(ch).startswith("P") and ch not in string.punctuation
        ]
        text = re.sub(MLQA_ARTICLES.get(language, r"(?!)"), " ", "".join(kept))
        if language == "zh":
            text = re.sub(r"([\u4e00-\u9fa5])", r" \1 ", text)
        return text.split()

    predicted, gold = words(prediction), words(answer)
    same = sum((Counter(predicted) & Counter(gold)).values())
    return predicted == gold, 2 * same / (len(predicted) + len(gold)) if same else 0.0


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("language", ["en", "de", "es", "zh"])
def test_xquad_agrees_with_mlqas_normalisation(language, step, shared_data):
    """Gold answers against themselves, the next row's and the words around score as MLQA's script scores them."""
    questions = list(xquad(language, data_dir=str(shared_data))["validation"])[::step]
    different = set()
    for question, following in zip(questions, questions[1:], strict=False):
        answer = question["answers"][0]
        around = re.split(r"[.。!?？]\s*", question["context"])[0]
        for prediction in (answer, answer + ".", f"“{answer}”", following["answers"][0], around, answer + " " + around):
            match, overlap = mlqa(prediction, answer, language)
            ours = exact_match(prediction, answer, language), f1(prediction, answer, language)
            if ours != (match, pytest.approx(overlap)):
                different.add(question["id"])
    assert different == set()


def test_english_rows_agree_with_squad(shared_data):
    """On XQuAD's English rows, too, both scores are the official SQuAD script's, also for words around the answer."""
    questions = list(xquad("en", data_dir=str(shared_data))["validation"])
    for question, following in zip(questions, questions[1:], strict=False):
        answer = question["answers"][0]
        for prediction in (answer, f"The {answer}.", following["answers"][0], question["context"][:80]):
            if prediction.isascii() and answer.isascii():
                match, overlap = squad(prediction, answer)
                assert exact_match(prediction, answer, "en") == match
                assert f1(prediction, answer, "en") == pytest.approx(overlap)
