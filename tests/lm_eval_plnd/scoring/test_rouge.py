"""ROUGE-L in every script, by hand; the `rouge_score` package's own on English."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lm_eval_plnd.scoring.rouge import UnicodeTokenizer, rouge_l, summary_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The well-known 3.5 café_bar", ["the", "well", "known", "3", "5", "café", "bar"]),
        ("Über den Fluß", ["über", "den", "fluß"]),
        ("«Пётр» — 12", ["пётр", "12"]),
        ("２４次，abc歌", ["24", "次", "abc", "歌"]),
        ("スーパーの卵", ["ス", "ー", "パ", "ー", "の", "卵"]),
        ("กี่ครั้ง", ["กี่", "ค", "รั้", "ง"]),
        ("सारांश लिखिए।", ["सारांश", "लिखिए"]),
        ("بَيت، كبير", ["بَيت", "كبير"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("Đà\u0300 Nẵng", ["đà\u0300", "nẵng"]),
        ("…", []),
    ],
)
def test_tokens(text, expected):
    """Words with their marks, characters of scripts without spaces, digits; no punctuation."""
    assert UnicodeTokenizer().tokenize(text) == expected


def test_scores_by_hand():
    """Three of four tokens of one are, in order, among the six of the other: 2·3/(4+6)."""
    assert rouge_l("b a d f", "a b c d e f") == pytest.approx(2 * 3 / 10)
    assert rouge_l("大雪停课", "北部大雪，学校停课") == pytest.approx(2 * 4 / 12)
    assert rouge_l("снег закрыл школы", "Снег закрыл все школы.") == pytest.approx(2 * 3 / 7)
    assert rouge_l("", "a") == rouge_l("…", "…") == rouge_l("a", "b") == 0.0


def test_the_first_line_is_the_summary():
    """What follows the line, and blank lines before it, are not scored."""
    assert summary_scores({"summary": "Snow closes schools."}, ["\n snow closes schools\n\nmore"]) == {"rougeL": 1.0}
    assert summary_scores({"summary": "Snow"}, ["\n"]) == {"rougeL": 0.0}


words = st.lists(
    st.sampled_from(["the", "Snow", "snow", "U.S.", "well-known", "3.5", "it's", "_x_", "$5", "—", "…"])
    | st.text(string.printable, max_size=5),
    max_size=12,
).map(" ".join)


@given(words, words)
def test_english_agrees_with_rouge_score(prediction, reference):
    """On ASCII letters and any punctuation the F-measure is the package's own."""
    theirs = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == pytest.approx(theirs)
