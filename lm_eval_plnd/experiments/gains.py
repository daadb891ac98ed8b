"""What training changed, over languages, benchmarks and seeds, and how sure that is: Figure 4 and Table 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_plnd.experiments.changes import Estimate, Folder, Groups, estimate, weighted
from lm_eval_plnd.experiments.conditions import Setting
from lm_eval_plnd.experiments.enhancement import Tuning
from plnd.errors import PLNDError


@dataclass(frozen=True)
class Gain:
    """The score of trained models on some items, and the change from the original.

    Attributes:
        languages: whose models.
        items: those that count, of each language those that it has.
        original: the original model's score, the mean over languages of the mean over items.
        value: the trained models'.
        change: their difference, positive where the metric rose.
        draws: the change of each seed alone.
    """

    languages: tuple[str, ...]
    items: tuple[str, ...]
    original: float
    value: float
    change: Estimate
    draws: list[float]


def gain(
    folder: Folder, items: Sequence[str], state: str, documents: int, languages: Sequence[str], *, english: bool = False
) -> Gain:
    """What one state is worth, each language's models in their own language or, with `english`, in English.

    Args:
        folder: the experiment.
        items: of one unit, over which each language's score is a mean.
        state: what was trained.
        documents: on how many.
        languages: whose models; those that have none of the items are left out.
        english: evaluate them in English.

    Raises:
        PLNDError: if no language has an item, or something was not evaluated.
    """
    has = {x: [item for item in items if x in folder.settings.languages_of(item)] for x in languages}
    has = {x: found for x, found in has.items() if found}
    if not has:
        raise PLNDError(f"{folder.path}: none of {', '.join(languages)} has an item of {', '.join(items)}")

    def groups(seeds: Sequence[int]) -> Groups:
        found: dict[tuple[str, str], tuple[float, np.ndarray, np.ndarray]] = {}
        for language, owned in has.items():
            whose = folder.settings.english if english else language
            for item in owned:
                before = folder.documents(Setting(()), item, whose)
                tuned = [Tuning((), state, language, documents, seed) for seed in seeds]
                moved = np.mean([folder.documents(tuning, item, whose) for tuning in tuned], axis=0) - before
                weight = 1 / len(owned) / len(has)
                if (item, whose) in found:  # English documents, which the models of several languages answered
                    known, differences, lengths = found[item, whose]
                    total = known + weight
                    found[item, whose] = (total, (known * differences + weight * moved) / total, lengths)
                else:
                    found[item, whose] = (weight, moved, folder.lengths(item, whose))
        return list(found.values())

    def mean_score() -> float:
        scores = [
            np.mean(
                [folder.documents(Setting(()), item, folder.settings.english if english else x).mean() for item in own]
            )
            for x, own in has.items()
        ]
        return float(np.mean(scores))

    original, change = mean_score(), estimate(groups(folder.settings.seeds))
    return Gain(
        languages=tuple(has),
        items=tuple(item for item in items if any(item in owned for owned in has.values())),
        original=original,
        value=original + change.value,
        change=change,
        draws=[weighted(groups([seed])) for seed in folder.settings.seeds],
    )
