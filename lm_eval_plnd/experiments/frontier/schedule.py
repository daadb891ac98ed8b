"""Which runs there are and which of them can begin: rates by successive halving, then the best one with every seed.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all rates on few documents, the best share of them
on more, until one is left. It is chosen by the gain on documents that are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lm_eval_plnd.experiments.frontier.settings import FrontierSettings


@dataclass(frozen=True)
class Cell:
    """One place of the comparison.

    Attributes:
        language: that is trained.
        method: its name.
        budget: share of the model's parameters; None for full training.
    """

    language: str
    method: str
    budget: float | None

    @property
    def name(self) -> str:
        """Unique in an experiment."""
        return f"{self.language}.{self.method}.{'all' if self.budget is None else f'{self.budget:g}'}"


@dataclass(frozen=True)
class Run:
    """One training, and the evaluation after it.

    Attributes:
        cell: where it belongs.
        rate: the peak learning rate.
        documents: how many are trained on.
        seed: of all that is random.
        final: whether it is reported; otherwise it is part of the search.
    """

    cell: Cell
    rate: float
    documents: int
    seed: int
    final: bool

    @property
    def name(self) -> str:
        """Unique in an experiment."""
        stage = "final" if self.final else "search"
        return f"{self.cell.name}.{stage}.{self.rate:g}.{self.documents}.r{self.seed}"


def cells(settings: FrontierSettings) -> list[Cell]:
    """All places, in order."""
    return [
        Cell(language, name, budget)
        for language in settings.trained
        for name, method in settings.methods.items()
        for budget in ([None] if method.kind == "full" else method.budgets or settings.budgets)
    ]


def rounds(settings: FrontierSettings, rates: int) -> list[tuple[int, int]]:
    """Rates and documents of each round of the search; none where there is one rate.

    The last round has the documents of a final run over `factor`, and at least one batch.
    """
    left = []
    while rates > 1:
        left.append(rates)
        rates = math.ceil(rates / settings.factor)
    training = settings.training
    return [
        (count, max(training.batch_size, training.documents // settings.factor ** (len(left) - place)))
        for place, count in enumerate(left)
    ]


def due(settings: FrontierSettings, cell: Cell, gains: Mapping[str, float]) -> list[Run]:
    """The runs of a cell that can begin and are not done; none when all are.

    Args:
        settings: of the experiment.
        cell: the place.
        gains: of runs that are done, by name: what they gain on the documents for choosing.
    """
    rates = list(settings.methods[cell.method].grid)
    for place, (_, documents) in enumerate(found := rounds(settings, len(rates))):
        runs = [Run(cell, rate, documents, settings.search_seed, False) for rate in rates]
        if missing := [run for run in runs if run.name not in gains]:
            return missing
        left = found[place + 1][0] if place + 1 < len(found) else 1
        rates = best(runs, gains)[:left]
    runs = [Run(cell, rates[0], settings.training.documents, seed, True) for seed in settings.seeds]
    return [run for run in runs if run.name not in gains]


def best(runs: list[Run], gains: Mapping[str, float]) -> list[float]:
    """The rates of some runs, that of the largest gain first, of equal ones the smaller; nan is last."""

    def place(run: Run) -> tuple[float, float]:
        gain = gains[run.name]
        return (math.inf if math.isnan(gain) else -gain, run.rate)

    return [run.rate for run in sorted(runs, key=place)]


def sizes(settings: FrontierSettings) -> Iterator[tuple[bool, int]]:
    """Of every run that there will be, whether it is final, and its documents."""
    for cell in cells(settings):
        for count, documents in rounds(settings, len(settings.methods[cell.method].grid)):
            yield from [(False, documents)] * count
        yield from [(True, settings.training.documents)] * len(settings.seeds)
