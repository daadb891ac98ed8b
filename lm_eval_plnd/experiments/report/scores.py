"""The scores of an experiment as tables, with their changes, intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_plnd.experiments.report.certainty import SURE, Scores, read_scores
from lm_eval_plnd.experiments.report.page import (
    Cell,
    Section,
    Table,
    change_cell,
    in_full,
    number_cell,
    share_cell,
    shown,
    signed,
)
from lm_eval_plnd.experiments.report.words import (
    findings,
    regions_in_words,
    score_in_words,
    setting_in_words,
    warnings,
)
from lm_eval_plnd.experiments.results import TEXT, Row
from plnd.plot_style import in_words

if TYPE_CHECKING:
    from lm_eval_plnd.experiments.settings import Settings


def score_sections(folder: Path, rows: Sequence[Row], settings: Settings | None, progress: bool) -> list[Section]:
    """A section per item: all settings against all languages, then each task with its statistics."""
    if not rows:
        return []
    scores = read_scores(folder, rows, progress)
    sections: list[Section] = []
    for item in dict.fromkeys(row.item for row in rows):
        here = [row for row in rows if row.item == item]
        legend = () if any(section.legend for section in sections) else regions_in_words(here, settings)
        section = Section(item, in_words(item).capitalize(), legend=legend)
        for metric in dict.fromkeys(row.metric for row in rows if row.item == item):
            chosen = [row for row in rows if (row.item, row.metric) == (item, metric)]
            section.tables.append(_overview(item, metric, chosen, scores))
            for task in dict.fromkeys(row.task for row in chosen):
                section.tables.append(_task_table([row for row in chosen if row.task == task], scores))
        sections.append(section)
    return sections


def _overview(item: str, metric: str, rows: Sequence[Row], scores: Scores) -> Table:
    """Settings by tasks, and beside them the same settings' bits per byte in the tasks' languages."""
    tasks = {row.task: row for row in rows}
    languages = [row.task_language for row in tasks.values()]
    short = all(languages) and len(set(languages)) == len(tasks)
    header = ["switched off", *(in_words(row.task_language) if short else task for task, row in tasks.items())]
    by_place: dict[tuple[Any, str], list[Row]] = {}
    firsts: dict[Any, Row] = {}
    for row in rows:
        by_place.setdefault((_draws_of(row), row.task), []).append(row)
        firsts.setdefault(_draws_of(row), row)
    settings = list(firsts.values())
    parts = [[[by_place.get((_draws_of(row), task), []) for task in tasks] for row in settings]]
    if item != TEXT and any(scores.bits(row) for row in rows):
        header += [f"bits per byte, {in_words(language)}" for language in dict.fromkeys(languages)]
        beside = {row.task_language: place for place, row in reversed(list(enumerate(tasks.values())))}
        places = [beside[language] for language in dict.fromkeys(languages)]
        parts.append([[list(filter(None, map(scores.bits, line[place]))) for place in places] for line in parts[0]])
    lines = [[_heading(row, draws=True)] for row in settings]
    for part in parts:
        changes = [abs(_change(cell, scores)) for line in part for cell in line if cell]
        most = max(filter(math.isfinite, changes), default=0.0)
        for cells, line in zip(lines, part, strict=True):
            cells += [_tinted(cell, scores, most) for cell in line]
    what = "score of the original, change of every other setting" if scores.plain else "scores"
    caption = f"{score_in_words(item, metric)}; {what}"
    looks = [look_of(row) for row in settings]
    alike = not any(scores.change(row) for row in rows if not row.original)
    return Table(caption, header, lines, looks, alike, findings(rows, scores), warnings(rows))


def _draws_of(row: Row) -> Any:
    """What a setting has in common with those that differ from it by the draw of random neurons alone."""
    return (row.neurons, row.language, row.region, row.sample, row.table) if row.control else row.setting


def _change(rows: Sequence[Row], scores: Scores) -> float:
    """The mean change of some draws."""
    return math.fsum(map(scores.change, rows)) / len(rows)


def _tinted(rows: Sequence[Row], scores: Scores, most: float) -> Cell:
    """The change of a setting, or the mean of its draws, tinted by its size against the largest; its score where there
    is nothing to compare it with."""
    if not rows:
        return Cell("–", kind="number")
    change = _change(rows, scores)
    if not math.isfinite(change):
        return number_cell(rows[0].value)
    sure = len(rows) == 1 and scores.of(rows[0]).p_value < SURE
    return Cell(signed(change), repr(change), "number", change / most if most > 0 else 0.0, strong=sure)


def _task_table(rows: Sequence[Row], scores: Scores) -> Table:
    """One task in one metric: every setting with its statistics and, beside it, the bits per byte of the language."""
    task, metric, language = rows[0].task, rows[0].metric, rows[0].task_language
    beside = rows[0].item != TEXT and any(scores.bits(row) for row in rows)
    lines = []
    for row in rows:
        found = scores.of(row)
        line = [
            _heading(row),
            number_cell(row.value, strong=True),
            change_cell(scores.change(row)),
            _interval_cell(found.change_low, found.change_high, signed),
            Cell(_p_text(found.p_value), in_full(found.p_value), "number", strong=found.p_value < SURE),
            _interval_cell(found.low, found.high, shown),
            number_cell(row.stderr),
        ]
        if beside:
            bits = scores.bits(row)
            value, change = (bits.value, scores.change(bits)) if bits else (math.nan, math.nan)
            line += [number_cell(value), change_cell(change)]
        neurons = [Cell(f"{row.deactivated:,}", kind="number"), share_cell(row.share)]
        lines.append([*line, *neurons, Cell(f"{row.documents:,}", kind="number")])
    header = ["switched off", in_words(metric), "change", "its 95 % interval", "p", "95 % interval", "standard error"]
    header += [f"bits per byte, {in_words(language)}", "their change"] if beside else []
    header += ["neurons off", "of all", "documents"]
    where = f"{in_words(language)} ({task})" if language else task
    caption = f"{where}, {in_words(metric)}: every setting with its statistics"
    return Table(caption, header, lines, [look_of(row) for row in rows], folded=True)


def _heading(row: Row, *, draws: bool = False) -> Cell:
    return Cell(setting_in_words(replace(row, seed="") if draws and row.control else row), hint=row.setting)


def _interval_cell(low: float, high: float, form: Callable[[float], str]) -> Cell:
    return Cell("–" if math.isnan(low) else f"{form(low)} to {form(high)}", kind="number")


def look_of(row: Row) -> str:
    """What the style sheet calls a row of this setting."""
    if row.original:
        return "original"
    return "control" if row.control else ""


def _p_text(p_value: float) -> str:
    if math.isnan(p_value):
        return "–"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
