"""What came of a frontier experiment: gains and forgetting with intervals and tests, as tables and one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.frontier.schedule import Cell, cells
from lm_eval_plnd.experiments.frontier.settings import FrontierSettings
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.numbers import signed
from plnd.plot_style import in_words
from plnd.statistics import as_ratio, bootstrap_interval, paired_p_value, relative_lengths

NAME = "frontier"
COLUMNS = (
    "language,method,budget,rate,seeds,parameters,share,gain,gain_low,gain_high,gain_seed_deviation,gain_p,"
    "forgetting,forgetting_low,forgetting_high,forgetting_seed_deviation,forgetting_p"
).split(",")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the reported runs of one place did to held-out text, in bits per byte.

    Attributes:
        cell: the place.
        rate: the learning rate that was chosen.
        parameters: that were trained.
        share: of the model's.
        changes: language to the change of each seed's model, [seeds]; above 0 is worse.
        values: language to numbers of each document, [documents], mean over seeds, whose mean is the mean change and
            which vary as the ratio of sums does (`plnd.statistics.as_ratio`).
        tasks: item to language to the mean of its metric over documents and seeds, less the base model's.
    """

    cell: Cell
    rate: float
    parameters: int
    share: float
    changes: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    tasks: Mapping[str, Mapping[str, float]]

    def gain(self) -> np.ndarray:
        """By how much the trained language gets better, [documents]."""
        return -self.values[self.cell.language]

    def forgetting(self) -> np.ndarray:
        """By how much the others get worse, their mean, [documents].

        The n-th document is the n-th of each language: documents of different languages are independent, so that a mean
        over them varies as a mean of separately drawn ones does.
        """
        return np.mean([values for x, values in self.values.items() if x != self.cell.language], axis=0)

    def by_seed(self) -> tuple[np.ndarray, np.ndarray]:
        """Gain and forgetting of each seed, [seeds]."""
        own = self.cell.language
        return -self.changes[own], np.mean([change for x, change in self.changes.items() if x != own], axis=0)


def outcome(cell: Cell, runs: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> Outcome:
    """Of the reported runs of one place, at least one."""
    changes, values = {}, {}
    for language, before in base["held_out"].items():
        nats = np.array([run["nats"][language] for run in runs]) - np.array(before["nats"])  # [seeds, documents]
        sizes = np.array(before["sizes"], dtype=np.float64)
        bits = nats / math.log(2) / sizes.mean()
        changes[language] = bits.mean(1)
        values[language] = as_ratio(bits.mean(0), relative_lengths(sizes))
    tasks = {
        item: {
            x: float(np.mean([np.mean(run["tasks"][item][x]) for run in runs]) - np.mean(before))
            for x, before in by_language.items()
        }
        for item, by_language in base["tasks"].items()
    }
    first = runs[0]
    return Outcome(cell, first["rate"], first["parameters"], first["share"], changes, values, tasks)


def outcomes(
    settings: FrontierSettings, base: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]
) -> list[Outcome]:
    """Of all places that have a reported run, in order."""
    found = []
    for cell in cells(settings):
        place = (cell.language, cell.method, cell.budget)
        runs = [r for r in done.values() if r["final"] and (r["language"], r["method"], r["budget"]) == place]
        if runs:
            found.append(outcome(cell, sorted(runs, key=lambda run: run["seed"]), base))
    return found


def p_values(settings: FrontierSettings, found: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """Place to how often chance alone makes gain, and forgetting, differ this much from the reference at that budget.

    Paired by document; corrected by Holm's method for the number of tests of one language and quantity. A place that
    has nothing to be compared with has none.
    """
    from plnd.comparison.summary import holm

    tests: dict[tuple[str, str], dict[str, float]] = {}
    for one in found:
        cell = one.cell
        for other in found:
            same = (other.cell.language, other.cell.budget) == (cell.language, cell.budget)
            if same and other.cell.method == settings.compared_with and other is not one:
                gains = tests.setdefault((cell.language, "gain"), {})
                gains[cell.name] = paired_p_value(one.gain(), other.gain())
                losses = tests.setdefault((cell.language, "forgetting"), {})
                losses[cell.name] = paired_p_value(one.forgetting(), other.forgetting())
    corrected: dict[str, list[float]] = {}
    for by_place in tests.values():
        for name, p in zip(by_place, holm(list(by_place.values())), strict=True):
            corrected.setdefault(name, []).append(p)
    return {name: (pair[0], pair[1]) for name, pair in corrected.items()}


def write_report(
    settings: FrontierSettings, folder: Path, base: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Writes `frontier.csv`, `.md`, `.tex` and `.png` and `changes.csv`; returns the path of the first."""
    from plnd.io.files import write_csv
    from plnd.plots import FrontierPoint, plot_frontier

    found = outcomes(settings, base, done)
    tests = p_values(settings, found)
    rows, texts = [], []
    panels: dict[str, dict[str, list[FrontierPoint]]] = {}
    for one in found:
        cell, (gains, losses) = one.cell, one.by_seed()
        p = tests.get(cell.name, (math.nan, math.nan))
        gain, forgetting = float(one.gain().mean()), float(one.forgetting().mean())
        ends = bootstrap_interval(one.gain()), bootstrap_interval(one.forgetting())
        seeds = len(gains)
        place = [cell.language, cell.method, "" if cell.budget is None else cell.budget, one.rate, seeds]
        row = [*place, one.parameters, one.share]
        for value, interval, by_seed, test in ((gain, ends[0], gains, p[0]), (forgetting, ends[1], losses, p[1])):
            deviation = float(by_seed.std(ddof=1)) if seeds > 1 else math.nan
            row += [value, *interval, deviation, test]
        rows.append(["" if isinstance(x, float) and math.isnan(x) else x for x in row])
        budget = "all" if cell.budget is None else f"{cell.budget:.2%}"
        told = [
            f"{signed(value, 4)} [{signed(low, 4)}, {signed(high, 4)}]{_star(test)}"
            for value, (low, high), test in ((gain, ends[0], p[0]), (forgetting, ends[1], p[1]))
        ]
        texts.append(
            [in_words(cell.language), in_words(cell.method), budget, f"{one.share:.3%}", f"{one.rate:g}", *told]
        )
        label = "" if cell.budget is None or len(settings.budgets) == 1 else f"{100 * cell.budget:g} %"
        point = FrontierPoint(forgetting, gain, ends[1], ends[0], label)
        panels.setdefault(cell.language, {}).setdefault(cell.method, []).append(point)
    header = ("trained", "method", "budget", "trained parameters", "rate", "gain", "forgetting")
    title = (
        "Bits per byte on held-out text: gain in the trained language, mean loss in the others, 95 % intervals;"
        f" * differs from {in_words(settings.compared_with)} at that budget (p < 0.05, Holm)"
    )
    shown = [Shown(title, header, texts, 2), *_task_tables(settings, found)]
    write_tables(str(folder / NAME), COLUMNS, rows, shown)
    write_csv(folder / "changes.csv", CHANGES, _changes(found, base))
    if panels:
        plot_frontier(panels, folder / f"{NAME}.png", ("the others lose (bits per byte)", "it gains (bits per byte)"))
    return folder / f"{NAME}.csv"


def _star(p: float) -> str:
    return " *" if p < 0.05 else ""


CHANGES = ("trained", "method", "budget", "language", "seed", "base", "change")


def _changes(found: Sequence[Outcome], base: Mapping[str, Any]) -> list[list[Any]]:
    """Bits per byte of the base model, and the change, of every language and seed."""
    rows = []
    for one in found:
        for language, by_seed in one.changes.items():
            before = base["held_out"][language]
            bits = math.fsum(before["nats"]) / math.log(2) / sum(before["sizes"])
            budget = "" if one.cell.budget is None else one.cell.budget
            for number, change in enumerate(by_seed):
                rows.append([one.cell.language, one.cell.method, budget, language, number, bits, float(change)])
    return rows


def _task_tables(settings: FrontierSettings, found: Sequence[Outcome]) -> list[Shown]:
    """A table for each task: its change in every language."""
    tables = []
    for item, options in settings.tasks.items():
        languages = options.languages or settings.languages
        texts = [
            [
                in_words(one.cell.language),
                in_words(one.cell.method),
                "all" if one.cell.budget is None else f"{one.cell.budget:.2%}",
                *(signed(one.tasks[item][x]) for x in languages),
            ]
            for one in found
        ]
        tables.append(Shown(f"Change of {item}", ("trained", "method", "budget", *languages), texts, 2))
    return tables
