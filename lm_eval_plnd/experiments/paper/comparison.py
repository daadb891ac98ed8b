"""A table of ΔEng, Δn-Eng and Δ: rows that switch something off, printed, written and drawn."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.changes import Change, Folder, change
from lm_eval_plnd.experiments.conditions import Setting
from lm_eval_plnd.experiments.paper.shown import ablated, digits, picture, unit
from lm_eval_plnd.experiments.results import TEXT, less_is_better
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.numbers import signed
from plnd.plot_style import in_words
from plnd.plots import plot_bars


@dataclass(frozen=True)
class Line:
    """One row of a table: what is written before its numbers, and what was switched off."""

    label: tuple[str, ...]
    template: Setting
    random: bool = False


FIELDS = (
    "neurons,draws,english,others,"
    "delta_english,delta_english_low,delta_english_high,delta_english_p,"
    "delta_others,delta_others_low,delta_others_high,delta_others_p,"
    "delta,delta_low,delta_high,delta_p,delta_sd_of_draws"
).split(",")


def numbers_of(found: Change) -> list[Any]:
    """A change as the CSV has it, in the order of `FIELDS`."""
    estimates = [v for e in (found.of_english, found.of_others, found.delta) for v in (e.value, e.low, e.high, e.p)]
    spread = float(np.std(found.draws, ddof=1)) if len(found.draws) > 1 else ""
    return [found.deactivated, len(found.draws), found.english, found.others, *estimates, spread]


def compared(
    args: argparse.Namespace,
    folder: Folder,
    items: Sequence[str],
    head: Sequence[str],
    lines: Sequence[Line],
    languages: Sequence[str],
) -> dict[str, list[Change]]:
    """Prints and writes a table of ΔEng, Δn-Eng and Δ, for each item and beside it the text; returns its numbers.

    With `--details` the languages of each row are printed as well (Tables 12 to 15).
    """
    written, shown, found = [], [], {}
    beside = [TEXT] if TEXT in folder.settings.tasks and TEXT not in items else []
    for item in [*items, *beside]:
        changes = [change(folder, item, line.template, line.random, languages) for line in lines]
        found[item] = changes
        title = title_of(folder, item, languages)
        print(title)
        width = [max(map(len, column)) for column in zip(head, *(line.label for line in lines), strict=True)]
        print("  ".join(f"{h:<{w}}" for h, w in zip(head, width, strict=True)) + in_line(tuple(WIDTHS)))
        for line, moved in zip(lines, changes, strict=True):
            label = "  ".join(f"{text:<{w}}" for text, w in zip(line.label, width, strict=True))
            print(label + in_line(cells(moved, folder.metrics[item])))
            written.append([item, folder.metrics[item], *line.label, *numbers_of(moved)])
        texts = [[*line.label, *cells(moved, folder.metrics[item])] for line, moved in zip(lines, changes, strict=True)]
        shown.append(Shown(title.replace("\n", "; "), (*head, *WIDTHS), texts, len(head)))
        if args.details:
            print_details(folder, item, lines, changes)
        print()
    write_tables(args.output, ("item", "metric", *(h.lower() for h in head), *FIELDS), written, shown)
    if args.details:
        write_details(args, folder, head, lines, found)
    return found


def title_of(folder: Folder, item: str, languages: Sequence[str]) -> str:
    """What is measured, and what the original model has."""
    metric, english = folder.metrics[item], folder.settings.english
    languages = [x for x in languages if x in folder.settings.languages_of(item)]
    scores = {x: folder.documents(Setting(()), item, x) for x in (english, *languages)}
    task = folder.settings.tasks[item].task
    sizes = "/".join(map(str, dict.fromkeys(len(values) for values in scores.values())))
    original = "  ".join(f"{x} {values.mean():.{digits(metric)}f}" for x, values in scores.items())
    what = f"{item}: {metric} ({unit(metric)}) of {task}, {sizes} documents a language{ablated(folder.settings)}"
    return f"{what}\noriginal: {original}"


WIDTHS = {
    "neurons": 9,
    "Eng": 8,
    "n-Eng": 8,
    "ΔEng": 9,
    "Δn-Eng": 9,
    "Δ": 9,
    "95 % interval of Δ": 23,
    "p": 8,
    "draws": 7,
}
"""Columns of a table behind what was switched off, and how wide they are on the screen."""


def cells(moved: Change, metric: str) -> list[str]:
    """A change as the columns of `WIDTHS` show it; behind the number of draws what they scatter."""
    places = digits(metric)
    scores = [f"{value:.{places}f}" for value in (moved.english, moved.others)]
    changes = [signed(e.value, places) for e in (moved.of_english, moved.of_others, moved.delta)]
    interval = f"[{signed(moved.delta.low, places)}, {signed(moved.delta.high, places)}]"
    scatter = f" ±{np.std(moved.draws, ddof=1):.{places}f}" if len(moved.draws) > 1 else ""
    return [
        f"{moved.deactivated:,.0f}",
        *scores,
        *changes,
        interval,
        f"{moved.delta.p:.2g}",
        f"{len(moved.draws)}{scatter}",
    ]


def in_line(texts: Sequence[str]) -> str:
    """The columns of `WIDTHS` in one line."""
    return "".join(f"{text:>{width}}" for text, width in zip(texts, WIDTHS.values(), strict=True))


def print_details(folder: Folder, item: str, lines: Sequence[Line], changes: Sequence[Change]) -> None:
    """Each language's part of each row, as Tables 12 to 15 have it."""
    places = digits(folder.metrics[item])
    english = folder.settings.english
    for line, moved in zip(lines, changes, strict=True):
        print(" ".join(line.label))
        for language, (score, own, of_english, of_own) in moved.by_language.items():
            parts = [
                f"{name}-D {value:.{places}f}  Δ{name} {e.shown(places)}"
                for name, value, e in ((english, score, of_english), (language, own, of_own))
            ]
            print(f"  {language}:  " + "   ".join(parts))


def write_details(
    args: argparse.Namespace,
    folder: Folder,
    head: Sequence[str],
    lines: Sequence[Line],
    found: Mapping[str, list[Change]],
) -> None:
    """Each language's part of each row: as CSV with intervals, and as Tables 12 to 15 have it."""
    english = folder.settings.english
    rows = [
        [item, folder.metrics[item], *line.label, language, name, value, e.value, e.low, e.high, e.p]
        for item, changes in found.items()
        for line, moved in zip(lines, changes, strict=True)
        for language, (score, own, of_english, of_own) in moved.by_language.items()
        for name, value, e in ((english, score, of_english), (language, own, of_own))
    ]
    shown = []
    for item, changes in found.items():
        places = digits(folder.metrics[item])
        texts = []
        for line, moved in zip(lines, changes, strict=True):
            numbers = [
                text
                for score, own, of_english, of_own in moved.by_language.values()
                for text in (
                    *(f"{value:.{places}f}" for value in (score, own)),
                    *(signed(e.value, places) for e in (of_english, of_own)),
                )
            ]
            texts.append([*line.label, *numbers])
        columns = [f"{sign}{x}-D" for y in changes[0].by_language for sign in ("", "Δ") for x in (english, y)]
        shown.append(Shown(f"{item}: {folder.metrics[item]}, by language", (*head, *columns), texts, len(head)))
    header = ["item", "metric", *(h.lower() for h in head), "neurons_of", "task_language", "value"]
    write_tables(f"{args.output}_details", [*header, "change", "low", "high", "p"], rows, shown)


def draw(args: argparse.Namespace, folder: Folder, names: Sequence[str], found: Mapping[str, Sequence[Change]]) -> None:
    """ΔEng, Δn-Eng and Δ of every row as bars with their intervals, a picture for each item."""
    for item, changes in found.items():
        bars, errors = {}, {}
        for label, pick in (("ΔEng", "of_english"), ("Δn-Eng", "of_others"), ("Δ", "delta")):
            estimates = [getattr(moved, pick) for moved in changes]
            bars[label] = np.array([e.value for e in estimates])
            errors[label] = np.array([[e.low for e in estimates], [e.high for e in estimates]])
        better = "; ΔEng, Δn-Eng: less is better" if less_is_better(folder.metrics[item]) else ""
        label = f"{in_words(item)}: change of {in_words(folder.metrics[item])}{better}"
        plot_bars(bars, names, picture(args, item), label, intervals=errors, columns=args.columns)
