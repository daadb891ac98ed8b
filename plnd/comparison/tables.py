"""A comparison as tables: CSV files, and text for the screen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plnd.comparison.summary import QUANTITIES, Comparison, Line, summarise
from plnd.io.files import write_csv
from plnd.numbers import signed

COLUMNS = (
    "detector",
    "ablation",
    "language",
    "neurons",
    *(f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high")),
    "p_corrected",
)


def write_tables(comparison: Comparison, folder: Path) -> None:
    """`comparison.csv`, `changes.csv` and, where there are curves, `curves.csv`; settings.json names the documents."""
    rows = []
    for key, lines in comparison.lines.items():
        for line in lines:
            p_value = comparison.p_values.get(key, "") if line.language is None else ""
            values = [value for name in QUANTITIES for value in line.values[name]]
            rows.append((*key, line.language or "mean", line.neurons, *values, p_value))
    write_csv(folder / "comparison.csv", COLUMNS, rows)
    header = ("detector", "ablation", "sample", "set", "language", "neurons", "change", "random")
    write_csv(folder / "changes.csv", header, list(_changes(comparison)))
    points = [
        (name, *key, point.documents, point.count, point.others, *value)
        for name, of in comparison.curves.items()
        for key, found in of.items()
        for point, outcome in found
        for value in [summarise(outcome, comparison.languages)[0].values["own/others"]]
    ]
    if points:
        numbers = ("own/others", "own/others_low", "own/others_high")
        columns = ("curve", "detector", "ablation", "documents", "neurons", "languages", *numbers)
        write_csv(folder / "curves.csv", columns, points)


def _changes(comparison: Comparison) -> Iterator[tuple[Any, ...]]:
    """A row for each sample, set and language of the text; the mean over random controls beside the own language's."""
    for key, outcome in comparison.outcomes.items():
        changes, unit = outcome.changes(), math.log(2) * outcome.sizes.sum(-1)
        for (sample, own, other), change in np.ndenumerate(changes):
            control = outcome.controls[sample, :, own].sum(-1)
            random = float(control.mean() / unit[own]) if own == other and len(control) else ""
            names = comparison.languages[own], comparison.languages[other]
            yield *key, sample, *names, int(outcome.neurons[sample, own]), float(change), random


def table(comparison: Comparison) -> str:
    """The comparison as text: a line for each detector and ablation, the one that is most surely specific first.

    That is by the lower end of own / others, which asks for an effect that is sure before it asks for a large ratio.
    """
    width = max(len(detector) for detector, _ in comparison.outcomes)
    languages = "".join(f"{language:>9}" for language in comparison.languages)
    head = f"{'':{width + 5}}{'neurons':>9}{'own':>9}{'others':>9}{'own/others':>24}{'own/random':>24}{'p':>8}"
    parts = []
    for kind in dict.fromkeys(kind for _, kind in comparison.outcomes):
        parts += [f"{kind} ablation: change in bits per byte, 95 % intervals; own/others by language", head + languages]
        keys = [key for key in comparison.outcomes if key[1] == kind]
        for key in sorted(keys, key=lambda key: -comparison.lines[key][0].values["own/others"][1]):
            mean, *each = comparison.lines[key]
            p_value = comparison.p_values.get(key)
            parts.append(
                f"{key[0]:{width + 5}}{mean.neurons:>9.1f}{signed(mean.values['own'][0], 4):>9}"
                f"{signed(mean.values['others'][0], 4):>9}{_interval(mean, 'own/others'):>24}"
                f"{_interval(mean, 'own/random'):>24}{'' if p_value is None else f'{p_value:.3f}':>8}"
                + "".join(f"{line.values['own/others'][0]:>9.1f}" for line in each)
            )
    tested = f"p: that a detector is as specific as {comparison.reference}, corrected for the number of detectors"
    return "\n".join([*parts, tested])


def _interval(line: Line, name: str) -> str:
    value, low, high = line.values[name]
    return "" if np.isnan(value) else f"{value:.1f} [{low:.1f}, {high:.1f}]"
