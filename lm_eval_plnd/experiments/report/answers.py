"""What the model writes, without and with neurons switched off: the first answers of each task side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_plnd.experiments import results
from lm_eval_plnd.experiments.report.page import Cell, Section, Table
from lm_eval_plnd.experiments.report.words import setting_in_words
from lm_eval_plnd.experiments.results import Answer, Row
from plnd.inspection.text import visible
from plnd.plot_style import in_words

PROMPT = 160
"""Letters of a prompt that are shown, its last ones."""


def answers_section(folder: Path, rows: Sequence[Row]) -> Section:
    """A table for each generated task: of its first documents what was asked, what is right, and what was written by
    the original and without each set of the task's language; controls and other languages' sets are left out."""
    section = Section("answers", "What the model writes")
    kept = {row.setting: results.read_answers(folder, row.setting) for row in results.first_of_each(rows)}
    for task in dict.fromkeys(row.task for row in rows):
        here = [row for row in results.first_of_each(row for row in rows if row.task == task) if _is_shown(row)]
        found = [(row, kept[row.setting][task]) for row in here if kept[row.setting].get(task)]
        if found:
            section.tables.append(_table(task, here[0].task_language, found))
    if section.tables:
        section.findings = [
            "The first documents of each task: they show what answers look like, not how good they are."
        ]
    return section


def _is_shown(row: Row) -> bool:
    return row.original or (not row.control and row.language == row.task_language)


def _table(task: str, language: str, found: Sequence[tuple[Row, Sequence[Answer]]]) -> Table:
    first = found[0][1]
    rows = [
        [Cell("asked"), *(_words(f"…{one['prompt'][-PROMPT:]}") for one in first)],
        [Cell("right"), *(_words(one["target"]) for one in first)],
    ]
    rows += [[Cell(setting_in_words(row), hint=row.setting), *_in_order(first, of)] for row, of in found]
    caption = f"{in_words(language)} ({task})" if language else task
    header = ["switched off", *(f"document {number}" for number in range(1, len(first) + 1))]
    return Table(caption, header, rows, ["original", "original"], folded=True)


def _in_order(first: Sequence[Answer], found: Sequence[Answer]) -> list[Cell]:
    """The answers to the same prompts; a dash where there is none."""
    answers = {one["prompt"]: one["answer"] for one in found}
    return [_words(answers[one["prompt"]]) if one["prompt"] in answers else Cell("–") for one in first]


def _words(text: str) -> Cell:
    return Cell(visible(text) or "(nothing)", kind="words")
