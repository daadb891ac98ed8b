"""What the readers take from tricky answers, worked by hand in `tricky_answers/`: at least 20 rows a family."""

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from lm_eval_plnd.scoring.answers import answer_scores, first_line
from lm_eval_plnd.scoring.matching import begins_with, chosen, named_word
from lm_eval_plnd.scoring.numerals import final_answer
from lm_eval_plnd.scoring.rouge import summary_line

FOLDER = Path(__file__).parent / "tricky_answers"
TASKS = ("xnli", "xcsqa", "mgsm", "facts", "xquad", "xlsum")

# The answer words of tasks/prompts.yaml: true, inconclusive, false.
WORDS = {
    "ar": ["صحيحة", "غير محسومة", "خاطئة"],
    "bg": ["вярно", "неопределено", "грешно"],
    "de": ["wahr", "unklar", "falsch"],
    "el": ["αληθής", "απροσδιόριστη", "ψευδής"],
    "en": ["true", "inconclusive", "false"],
    "es": ["verdadera", "indeterminada", "falsa"],
    "fr": ["vraie", "indéterminée", "fausse"],
    "hi": ["सही", "अनिर्णायक", "गलत"],
    "ru": ["истинно", "неопределённо", "ложно"],
    "sw": ["ya kweli", "isiyo na uhakika", "ya uongo"],
    "th": ["จริง", "สรุปไม่ได้", "เท็จ"],
    "tr": ["doğru", "belirsiz", "yanlış"],
    "ur": ["درست", "غیر فیصلہ کن", "غلط"],
    "vi": ["đúng", "không xác định", "sai"],
    "zh": ["正确", "无法确定", "错误"],
}


def lines(task: str) -> list[tuple[str, list[str]]]:
    """The rows of a task's table, each with its family: fields between bars, \\n a new line."""
    family, found = "", []
    for line in (FOLDER / f"{task}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            family = line[3:]
        elif line and not line.startswith("#"):
            found.append((family, [field.strip(" ").replace("\\n", "\n") for field in line.split("|")]))
    return found


def rows(task: str) -> list[list[str]]:
    """The rows without the families, and without what is no row."""
    return [fields for _, fields in lines(task) if not fields[0].startswith("choices ")]


@pytest.mark.parametrize("task", TASKS)
def test_every_family_has_twenty_rows(task):
    """At least 20 hand-worked answers per task and language family, none of them twice."""
    counts = Counter(family for family, fields in lines(task) if not fields[0].startswith("choices "))
    assert min(counts.values()) >= 20, counts
    answers = [tuple(fields[:-1]) for fields in rows(task)]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("row", rows("xnli"), ids=" ".join)
def test_xnli(row):
    """The only word that the answer claims, or none."""
    language, said, expected, *hypothesis = row
    labels = {"true": 0, "neutral": 1, "false": 2, "none": None}
    assert named_word(first_line(said), WORDS[language], language, hypothesis) == labels[expected]


@pytest.mark.parametrize("row", rows("xcsqa"), ids=" ".join)
def test_xcsqa(row):
    """The only choice that the answer names by its letter or words, or none."""
    language, said, expected = row
    choices = {fields[0][8:]: fields[1:] for _, fields in lines("xcsqa") if fields[0].startswith("choices ")}
    assert chosen(said, choices[language], language) == (None if expected == "none" else "ABCDE".index(expected))


@pytest.mark.parametrize("row", rows("mgsm"), ids=" ".join)
def test_mgsm(row):
    """The number that the answer ends in, or none."""
    language, said, expected = row
    assert final_answer(said, language) == (None if expected == "none" else Decimal(expected))


@pytest.mark.parametrize("row", rows("facts"), ids=" ".join)
def test_facts(row):
    """Whether the answer names the capital."""
    language, subject, capital, said, expected = row
    assert begins_with(said, capital, f"The capital of {subject} is", language, subject) is (expected == "yes")


@pytest.mark.parametrize("row", rows("xquad"), ids=" ".join)
def test_xquad(row):
    """Exact match, and whether the gold answer is contained."""
    language, gold, said, match, contained = row
    scores = answer_scores({"language": language, "answers": [gold]}, [said])
    assert (scores["exact_match"], scores["contains"]) == (float(match), float(contained))


@pytest.mark.parametrize("row", rows("xlsum"), ids=" ".join)
def test_xlsum(row):
    """The line that is the summary."""
    language, said, expected = row
    assert summary_line(said, language) == expected
