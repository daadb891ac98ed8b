"""Numbers as languages write them, by hand."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_plnd.scoring.numerals import DECIMAL_COMMA, final_number, number_scores, numbers

POINT = ["en", "zh", "ja", "th", "sw", "bn", "te", "hi", "ar"]
COMMA = ["de", "es", "fr", "ru"]


@pytest.mark.parametrize(
    ("languages", "text", "expected"),
    [
        # thousands: the comma in every language, the point and the plain space where the comma is the decimal mark
        ("en de fr es ru zh ja th sw bn te", "1,234", "1234"),
        ("en de fr es ru zh ja th sw bn te", "2,125,000", "2125000"),
        ("de es fr ru", "1.234", "1234"),
        ("de es fr ru", "70.000", "70000"),
        ("de es fr ru", "1 234", "1234"),
        ("en de fr ru th", "1\u202f234", "1234"),
        ("en zh ja th sw bn te", "1.234", "1.234"),
        ("en zh ja th sw bn te", "70.000", "70"),
        ("en zh ja th sw bn te", "1 234", "1234"),
        ("en de", "1'234", "1234"),
        ("en de", "1’234’567", "1234567"),
        ("bn te hi en", "1,23,456", "123456"),
        ("de", "1.234.567,89", "1234567.89"),
        ("en de", "1,234.50", "1234.5"),
        ("en", "0.125", "0.125"),
        ("de", "0,125", "0.125"),
        ("de fr es ru", "3,5", "3.5"),
        ("en zh th", "3,5", "5"),
        ("de", "1,2345", "1.2345"),
        ("en", "12,34", "34"),
        ("en", "1{,}234", "1234"),
        # signs
        ("en de zh ar", "−5", "-5"),
        ("en", "-5", "-5"),
        ("en", "–5", "-5"),
        ("zh", "答案是-5。", "-5"),
        ("ja", "－７", "-7"),
        ("en", "-$5", "-5"),
        ("en", "$-5", "-5"),
        ("en", "10-5", "5"),
        ("en", "top-5", "5"),
        ("en", "(3)-4", "4"),
        ("en", "9 - 4", "4"),
        # digits of other scripts
        ("ar", "١٬٢٣٤", "1234"),
        ("ar", "١٢٫٥", "12.5"),
        ("ar", "الجواب هو ١٨.", "18"),
        ("th", "๗๐,๐๐๐ บาท", "70000"),
        ("th", "ตอบ๑๘บาท", "18"),
        ("zh", "７０，０００元", "70000"),
        ("ja", "７．５キロ", "7.5"),
        ("zh", "３，５", "5"),
        ("bn", "উত্তর ১৮", "18"),
        ("te", "సమాధానం ౧౮", "18"),
        # Chinese and Japanese multipliers, and units that only look like them
        ("zh ja", "7万5千元", "75000"),
        ("ja", "1億2000万円", "120000000"),
        ("zh", "2千万", "20000000"),
        ("zh", "1.5万", "15000"),
        ("zh", "5千克", "5"),
        ("zh", "3千米", "3"),
        ("en", "7万", "7"),
        # text around
        ("en", "She makes $18.", "18"),
        ("en", "**18**", "18"),
        ("en", "\\boxed{18}", "18"),
        ("en", "16 - 3 - 4 = 9, and 9 * 2 = 18 dollars a day", "18"),
        ("en", "18.00", "18"),
        ("en", "50%", "50"),
        ("en", "5²", "5"),
        ("es", "en 2020 100 personas", "100"),
        ("en", "x5", "5"),
    ],
)
def test_the_last_number(languages, text, expected):
    """One spelling in each language that it is tried in."""
    for language in languages.split():
        assert final_number(text, language) == Decimal(expected), language


def test_no_number():
    """A text without digits has none."""
    for text in ("", "eighteen", "十八", "²"):
        assert final_number(text, "en") is None
        assert number_scores({"language": "en", "answer": "18"}, [text]) == {"exact_match": 0.0, "unreadable": 1.0}


def test_all_numbers_in_order():
    """Numbers come in the order of the text."""
    assert list(numbers("3 apples, 1,200 pears and -4.5", "en")) == [3, 1200, Decimal("-4.5")]
    assert list(numbers("7万5千-3千", "zh")) == [75000, -3000]  # a sign begins a number of its own


def test_scores_compare_values():
    """Spelling does not matter, the value does; the gold number is read as the data writes it."""
    doc = {"language": "de", "answer": "2,125"}
    assert [number_scores(doc, [text])["exact_match"] for text in ("2.125", "2125,00 €", "2 125", "2,13", "2")] == [
        *(1.0, 1.0, 1.0),
        *(0.0, 0.0),
    ]


@given(st.integers(-(10**9), 10**9), st.sampled_from(POINT + COMMA))
def test_grouped_integers_are_read_back(number, language):
    """An integer with commas is read back in every language, one with points where the comma is the decimal mark."""
    assert final_number(f"a {number:,}.", language) == number
    if language in DECIMAL_COMMA:
        assert final_number(f"{number:,}".replace(",", "."), language) == number
        assert final_number(f"{number:,}".replace(",", " "), language) == number
