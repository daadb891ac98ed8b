"""What switching neurons off changed, over languages and draws, and how sure that is: the numbers of the tables.

ΔEng, Δn-Eng and Δ = ΔEng − Δn-Eng of arXiv:2402.18815, section 3.2, with bootstrap intervals and paired tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lm_eval_plnd.experiments.conditions import Setting
from lm_eval_plnd.experiments.enhancement import Tuning
from lm_eval_plnd.experiments.results import (
    BITS,
    SETTINGS,
    Samples,
    document_weights,
    less_is_better,
    read_results,
    read_samples,
)
from lm_eval_plnd.experiments.settings import load_settings
from plnd.errors import PLNDError
from plnd.numbers import signed
from plnd.statistics import as_ratio, bootstrap_interval, paired_p_value, relative_lengths


class Folder:
    """What `plnd experiment` left in a folder: settings, rows and values per document."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = load_settings(self.path / SETTINGS)
        self.rows = read_results(self.path)
        self.known: dict[str, Samples] = {}
        self.metrics: dict[str, str] = {}
        for row in self.rows:
            self.metrics.setdefault(row.item, self.settings.tasks[row.item].metric or row.metric)
        self.first = {row.setting: row for row in reversed(self.rows)}

    def samples(self, setting: str) -> Samples:
        """A setting's values per document."""
        if setting not in self.known:
            self.known[setting] = read_samples(self.path, setting)
        return self.known[setting]

    def documents(self, setting: Setting | Tuning, item: str, language: str) -> np.ndarray:
        """Values of an item's documents in one language, [documents], whose mean is the score.

        Per cent, but for bits per byte, where each is multiplied by its `lengths`.

        Raises:
            PLNDError: if the experiment did not evaluate that.
        """
        task, metric = self.settings.tasks[item].task_of(language), self.metrics.get(item, "")
        metrics = self.samples(setting.name).get(task, {})
        if metric not in metrics:
            raise PLNDError(f"{self.path}: no {metric or item} of {task} for {setting.name}; run `plnd experiment` on")
        values = np.array(metrics[metric], dtype=np.float64)
        return values * self.lengths(item, language) if metric == BITS else 100 * values

    def lengths(self, item: str, language: str) -> np.ndarray:
        """What an item's documents count for, [documents] of mean 1: their bytes, for bits per byte, else the same."""
        metrics, metric = (
            self.samples(Setting(()).name)[self.settings.tasks[item].task_of(language)],
            self.metrics[item],
        )
        weights = document_weights(metrics, metric)
        return np.ones(len(metrics[metric])) if weights is None else relative_lengths(weights)

    def deactivated(self, settings: Sequence[Setting]) -> float:
        """Neurons that some settings switch off, on average."""
        return _average([self.first[setting.name].deactivated for setting in settings])

    def items(self, table: str) -> list[str]:
        """The items of a table.

        Raises:
            PLNDError: if the experiment has no such table.
        """
        items = self.settings.experiments.get(table)
        if items is None:
            names = ", ".join(self.settings.experiments)
            raise PLNDError(
                f"{self.path}: an experiment of {names}, without {table}; add it to the settings' experiments"
            )
        return items

    def draws(self, setting: Setting, random: bool) -> list[Setting]:
        """A setting with each seed, if its neurons are random, or of each sample of documents."""
        if random:
            return [replace(setting, seed=seed) for seed in self.settings.seeds]
        return [replace(setting, sample=sample) for sample in range(self.settings.samples)]


@dataclass(frozen=True)
class Estimate:
    """A mean over documents with its 95 % bootstrap interval and the p-value of being 0, by paired permutation."""

    value: float
    low: float
    high: float
    p: float

    def shown(self, places: int) -> str:
        """With so many decimal places."""
        return f"{signed(self.value, places)} [{signed(self.low, places)}, {signed(self.high, places)}] p {self.p:.2g}"


Groups = list[tuple[float, np.ndarray, np.ndarray]]
"""Of each group a weight, differences of its documents (multiplied by lengths), and the lengths, [documents] both."""


def weighted(groups: Groups) -> float:
    """Σ weight · mean(differences)."""
    return float(sum(weight * values.mean() for weight, values, _ in groups))


def estimate(groups: Groups) -> Estimate:
    """Σ weight · mean(differences) over groups of documents, such as languages, and how sure it is.

    Groups of one size are taken as parallel: a document of all languages is drawn at once, as in MGSM, XQuAD and XNLI.
    Otherwise each group is drawn for itself: every difference counts by its weight over its group's size, and the
    bootstrap sees each group around one common mean, so that it measures what varies within groups. The bootstrap is
    of differences `as_ratio`; the permutation, under which the mean is 0, of the differences themselves.
    """
    drawn = [(weight, as_ratio(values, lengths)) for weight, values, lengths in groups]
    if len({len(values) for _, values in drawn}) == 1:
        differences = np.sum([weight * values for weight, values, _ in groups], axis=0)
        low, high = bootstrap_interval(np.sum([weight * values for weight, values in drawn], axis=0))
    else:
        total = sum(len(values) for _, values in drawn)
        differences = np.concatenate([(weight * total / len(values)) * values for weight, values, _ in groups])
        centred = [(weight * total / len(values)) * (values - values.mean()) for weight, values in drawn]
        low, high = bootstrap_interval(np.concatenate(centred) + differences.mean())
    return Estimate(weighted(groups), low, high, paired_p_value(differences, np.zeros(len(differences))))


@dataclass(frozen=True)
class Change:
    """What switching off did to one item, in English and in the languages whose neurons they were.

    Attributes:
        english, others: scores, the mean over languages.
        of_english, of_others: ΔEng and Δn-Eng, changes from the original (a loss is negative).
        delta: Δ = ΔEng − Δn-Eng, high where English is spared; turned where less is better (bits per byte).
        draws: ΔEng − Δn-Eng of each draw alone.
        by_language: of each language the English score, its own score, and the changes of both.
        deactivated: neurons, on average.
    """

    english: float
    others: float
    of_english: Estimate
    of_others: Estimate
    delta: Estimate
    draws: list[float]
    by_language: dict[str, tuple[float, float, Estimate, Estimate]]
    deactivated: float


def change(folder: Folder, item: str, template: Setting, random: bool, languages: Sequence[str]) -> Change:
    """What one row of the tables says, over several languages and all draws.

    Args:
        folder: the experiment.
        item: what was evaluated.
        template: the setting; its language is filled in.
        random: whether it is the random control.
        languages: whose neurons; those without the item are left out.
    """
    english = folder.settings.english
    languages = [x for x in languages if x in folder.settings.languages_of(item)]
    if not languages:
        raise PLNDError(f"{folder.path}: no language but {english} has the item {item}")
    settings = {x: folder.draws(replace(template, language=x), random) for x in languages}
    count = len(settings[languages[0]])
    original = {x: folder.documents(Setting(()), item, x) for x in (english, *languages)}
    lengths = {x: folder.lengths(item, x) for x in original}

    def shift(language: str, draws: Sequence[Setting], whose: str) -> np.ndarray:
        after = [folder.documents(draw, item, whose) for draw in draws]
        return np.mean(after, axis=0) - original[whose]

    sign = -1 if less_is_better(folder.metrics[item]) else 1

    def groups(draws: slice) -> tuple[Groups, Groups]:
        of_english = np.mean([shift(x, settings[x][draws], english) for x in languages], axis=0)
        of_others = [(1 / len(languages), shift(x, settings[x][draws], x), lengths[x]) for x in languages]
        return [(1.0, of_english, lengths[english])], of_others

    def difference(draws: slice) -> Groups:
        of_english, of_others = groups(draws)
        return [(sign * w, v, n) for w, v, n in of_english] + [(-sign * w, v, n) for w, v, n in of_others]

    of_english, of_others = (estimate(found) for found in groups(slice(None)))
    details = {}
    for x in languages:
        both = [shift(x, settings[x], whose) for whose in (english, x)]
        scores = [float((original[whose] + moved).mean()) for whose, moved in zip((english, x), both, strict=True)]
        moves = [estimate([(1.0, moved, lengths[whose])]) for whose, moved in zip((english, x), both, strict=True)]
        details[x] = (scores[0], scores[1], moves[0], moves[1])
    return Change(
        english=float(original[english].mean()) + of_english.value,
        others=float(np.mean([original[x].mean() for x in languages])) + of_others.value,
        of_english=of_english,
        of_others=of_others,
        delta=estimate(difference(slice(None))),
        draws=[weighted(difference(slice(n, n + 1))) for n in range(count)],
        by_language=details,
        deactivated=_average([folder.deactivated(draws) for draws in settings.values()]),
    )


def _average(counts: Sequence[float]) -> float:
    """Their mean, a whole number where it is one."""
    mean = float(np.mean(counts))
    return int(mean) if mean.is_integer() else mean
