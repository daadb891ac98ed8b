"""Which answer word, letter or name a generated answer says, by hand."""

import pytest

from lm_eval_plnd.scoring.matching import begins_with, chosen, letter_scores, name_scores, named_word, word_scores

WORDS = {
    "en": ["true", "inconclusive", "false"],
    "de": ["wahr", "unklar", "falsch"],
    "es": ["verdadera", "indeterminada", "falsa"],
    "fr": ["vraie", "indéterminée", "fausse"],
    "ru": ["истинно", "неопределённо", "ложно"],
    "ar": ["صحيحة", "غير محسومة", "خاطئة"],
    "hi": ["सही", "अनिर्णायक", "गलत"],
    "sw": ["ya kweli", "isiyo na uhakika", "ya uongo"],
    "th": ["จริง", "สรุปไม่ได้", "เท็จ"],
    "tr": ["doğru", "belirsiz", "yanlış"],
    "ur": ["درست", "غیر فیصلہ کن", "غلط"],
    "vi": ["đúng", "không xác định", "sai"],
    "zh": ["正确", "无法确定", "错误"],
}


@pytest.mark.parametrize("language", WORDS)
def test_each_word_names_itself(language):
    """A word alone, quoted, in a sentence with full stop, or in capitals is that word."""
    for index, word in enumerate(WORDS[language]):
        for said in (word, f"'{word}'", f"„{word}“.", f"「{word}」", f"{word}!"):
            assert named_word(said, WORDS[language], language) == index
        if language != "tr":  # whose i has another capital
            assert named_word(word.upper(), WORDS[language], language) == index


@pytest.mark.parametrize(
    ("language", "said", "expected"),
    [
        ("en", "The statement is 'false', because it is not true.", 2),
        ("en", "False. True would be", None),
        ("en", "untrue", None),
        ("en", "truely", None),
        ("en", "It is not true", None),
        ("en", "It isn't false", None),
        ("en", "'true', 'false', or 'inconclusive'?", None),
        ("en", "", None),
        ("en", "Yes", None),
        ("de", "Die Aussage ist nicht wahr.", None),
        ("de", "unwahr", None),
        ("es", "Verdadero.", 0),
        ("es", "Falso", 2),
        ("es", "No es verdadera", None),
        ("fr", "C'est faux", 2),
        ("fr", "n'est pas vraie", None),
        ("ru", "НЕОПРЕДЕЛЕННО", 1),
        ("ru", "не истинно", None),
        ("ar", "العبارة صحيحة", 0),
        ("ar", "غير صحيحة", None),
        ("ar", "غير محسومة", 1),
        ("hi", "यह सही है", 0),
        ("hi", "सही नहीं है", None),
        ("sw", "si ya kweli", None),
        ("th", "ข้อความนี้เป็นจริง", 0),
        ("th", "ไม่จริง", None),
        ("th", "สรุปไม่ได้", 1),
        ("tr", "Doğru değil", None),
        ("tr", "YANLIŞ", 2),
        ("ur", "یہ درست نہیں", None),
        ("vi", "không đúng", None),
        ("vi", "không xác định", 1),
        ("zh", "这个陈述是正确的。", 0),
        ("zh", "不正确", None),
        ("zh", "“错误”", 2),
        ("zh", "无法确定该陈述是否正确", 1),
        ("zh", "“正确”“错误”还是“无法确定”？", None),
    ],
)
def test_named_word(language, said, expected):
    """The only word claimed counts; a negated one, a part of a longer one and the question again do not."""
    assert named_word(said, WORDS[language], language) == expected


def test_word_scores():
    """The first line that says something is the answer; what cannot be read is kept apart from what is wrong."""
    doc = {"language": "zh", "choices": WORDS["zh"], "label": 2}
    assert word_scores(doc, ["\n\n错误\n正确"]) == {"acc": 1.0, "unreadable": 0.0}
    assert word_scores(doc, ["正确"]) == {"acc": 0.0, "unreadable": 0.0}
    assert word_scores(doc, [""]) == word_scores(doc, ["正确或错误"]) == {"acc": 0.0, "unreadable": 1.0}


CHOICES = ["town", "office", "hospital", "schools", "office building"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("C", 2),
        (" (C)", 2),
        ("C.", 2),
        ("C. hospital", 2),
        ("C. schools", None),
        ("**C**", 2),
        ("Ｃ：", 2),
        ("С", 2),  # Cyrillic
        ("The answer is C.", 2),
        ("C is wrong, B is right", 1),
        ("hospital", 2),
        ("a hospital!", 2),
        ("A hospital", 2),
        ("It is a hospital", 2),
        ("office building", 4),
        ("an office building", 4),
        ("It is an office building", 4),
        ("the office", 1),
        ("town or schools", None),
        ("A, B, C, D, E", None),
        ("A. town B. office C. hospital D. schools E. office building", None),
        ("Abc", None),
        ("F", None),
        ("", None),
        ("I don't know", None),
        ("E's", None),
    ],
)
def test_chosen(said, expected):
    """By letter, in any of its spellings, or by the choice's words."""
    assert chosen(said, CHOICES, "en") == expected


def test_chosen_in_chinese():
    """Words need no spaces around them."""
    choices = ["城镇", "密歇根", "医院", "学校", "办公楼"]
    assert (
        chosen("答案是医院。", choices, "zh") == chosen("Ｃ、医院", choices, "zh") == chosen("选C", choices, "zh") == 2
    )
    assert letter_scores({"language": "zh", "choices": choices, "label": 2}, ["医院"]) == {
        "acc": 1.0,
        "unreadable": 0.0,
    }


@pytest.mark.parametrize(
    ("language", "said", "name", "expected"),
    [
        ("en", "Baku, and its population is", "Baku", True),
        ("en", "**Baku**", "Baku", True),
        ("en", "the Hague.", "The Hague", True),
        ("en", "Parisian", "Paris", False),
        ("en", "called Baku", "Baku", False),
        ("en", "not Baku", "Baku", False),
        ("en", "", "Baku", False),
        ("en", "The capital of Azerbaijan is Baku.", "Baku", True),
        ("en", "The capital of Azerbaijan is Ganja.", "Baku", False),
        ("zh", "巴库。", "巴库", True),
        ("zh", "巴库市", "巴库", True),
        ("zh", "巴黎", "巴库", False),
        ("th", "บากูซึ่งเป็น", "บากู", True),
        ("ar", "مدينة باكو", "باكو", False),
        ("ar", "القاهرة", "القاهرة", True),
        ("tr", "Bakü'dür.", "Bakü", True),
        ("tr", "Bakü’dür.", "Bakü", True),
        ("tr", "N'Djamena'dır", "N'Djamena", True),
        ("tr", "N'Djamena", "N'Djamena", True),
        ("tr", "İZMİR", "İzmir", True),
        ("ru", "Орёл", "Орел", True),
        ("pt", "BRASÍLIA", "Brasília", True),
        ("vi", "Hà Nội", "Hà Nội", True),
        ("vi", "Ha Noi", "Hà Nội", False),
    ],
)
def test_begins_with(language, said, name, expected):
    """All the name's tokens come first, perhaps after the prompt again."""
    assert begins_with(said, name, "The capital of Azerbaijan is", language) is expected


def test_any_right_name_counts():
    """A fact may have several answers."""
    doc = {"language": "en", "prompt": "The capital of Italy is", "answers": ["Richmond, Texas", "Richmond", "Rome"]}
    assert name_scores(doc, ["Richmond is"]) == name_scores(doc, ["Rome"]) == {"acc": 1.0}
    assert name_scores(doc, ["\n"]) == name_scores(doc, ["Turin"]) == {"acc": 0.0}
