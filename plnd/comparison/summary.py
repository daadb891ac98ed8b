"""From losses to a table: changes in bits per byte, their ratios with intervals, and tests between detectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plnd import notebook
from plnd.statistics import CONFIDENCE, paired_p_value

RESAMPLES = 1999
QUANTITIES = ("own", "others", "own/others", "own/random")
"""Change of the own language and mean change of the others, in bits per byte; the first over the second, and over the
mean change with as many random neurons."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one detector's sets did under one ablation.

    Attributes:
        neurons: in each sample's and language's set, [samples, languages].
        nats: of every held-out document less those of the whole model, [samples, languages (whose set), languages (of
            the text), documents].
        controls: the same for the own language's documents with random neurons, [samples, draws, languages, documents].
        sizes: bytes, [languages, documents].
    """

    neurons: np.ndarray
    nats: np.ndarray
    controls: np.ndarray
    sizes: np.ndarray

    def changes(self) -> np.ndarray:
        """In bits per byte, [samples, languages (whose set), languages (of the text)]."""
        return self.nats.sum(-1) / math.log(2) / self.sizes.sum(-1)

    def shares(self) -> np.ndarray:
        """How much of the harm is the own language's, from 0 to 1, for each sample and language, [samples, languages].

        own / (own + mean of the others), both at least 0: another scale for own / others, which always is a number. 0
        where the own language is not harmed.
        """
        own, others = _own_and_others(self.changes())
        own, others = own.clip(min=0), others.clip(min=0)
        return np.divide(own, own + others, out=np.zeros_like(own), where=own > 0)


@dataclass(frozen=True)
class Line:
    """One line of the table: a detector under an ablation, for one language or the mean over all (`None`).

    Attributes:
        language: whose sets.
        neurons: mean number in a set.
        values: quantity to its value and the two ends of its 95 % interval.
    """

    language: str | None
    neurons: float
    values: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Point:
    """How much a detector is given: documents and other languages, and how many neurons it is to find."""

    documents: int
    count: int
    others: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came of it.

    Attributes:
        languages: in order.
        outcomes: (detector, ablation) to what its sets did.
        curves: what is varied to (detector, ablation) to points, in order, and what the sets of each did.
        reference: the detector that the others are tested against.
    """

    languages: tuple[str, ...]
    outcomes: Mapping[tuple[str, str], Outcome]
    curves: Mapping[str, Mapping[tuple[str, str], list[tuple[Point, Outcome]]]]
    reference: str

    def __repr__(self) -> str:
        detectors, ablations = (dict.fromkeys(key[place] for key in self.outcomes) for place in (0, 1))
        return f"Comparison({', '.join(detectors)}; ablations {', '.join(ablations)}; {', '.join(self.languages)})"

    def _repr_html_(self) -> str:
        rows = []
        for (detector, ablation), (mean, *_) in self.lines.items():
            numbers = [_shown(mean.values[name]) for name in QUANTITIES]
            rows.append((detector, ablation, f"{mean.neurons:,.0f}", *numbers))
        facts = {"languages": ", ".join(self.languages), "numbers": "bits per byte, with 95 % intervals"}
        header = ("detector", "ablation", "neurons", *QUANTITIES)
        return notebook.card("Comparison of detectors", facts, notebook.table(header, rows, 2))

    @cached_property
    def lines(self) -> dict[tuple[str, str], list[Line]]:
        """(detector, ablation) to its lines of the table, the mean over languages first."""
        return {key: summarise(outcome, self.languages) for key, outcome in self.outcomes.items()}

    @cached_property
    def p_values(self) -> dict[tuple[str, str], float]:
        """(detector, ablation) to the corrected p-value of its difference from the reference, ablation by ablation."""
        found: dict[tuple[str, str], float] = {}
        for ablation in dict.fromkeys(ablation for _, ablation in self.outcomes):
            of = {detector: outcome for (detector, kind), outcome in self.outcomes.items() if kind == ablation}
            found |= {(detector, ablation): p for detector, p in compare(of, self.reference).items()}
        return found


def _shown(value: tuple[float, float, float]) -> str:
    number, low, high = value
    return "" if math.isnan(number) else f"{number:.3g} [{low:.3g}, {high:.3g}]"


def summarise(outcome: Outcome, languages: Sequence[str], seed: int = 0) -> list[Line]:
    """A line for the mean over languages, then one for each.

    Intervals resample samples of detection documents and, in each language, held-out documents (percentiles of
    `RESAMPLES` bootstrap resamples). Ratios of means over languages are ratios of those means.
    """
    point = _quantities(outcome, *_whole(outcome))
    resampled = _quantities(outcome, *_resampled(outcome, np.random.default_rng(seed)))
    tail = 100 * (1 - CONFIDENCE) / 2
    lines = []
    for column, language in enumerate((None, *languages)):
        values = {}
        for name in QUANTITIES:
            ends = np.percentile(resampled[name][:, column], [tail, 100 - tail], method="nearest")
            values[name] = (float(point[name][0, column]), float(ends[0]), float(ends[1]))
        neurons = outcome.neurons if column == 0 else outcome.neurons[:, column - 1]
        lines.append(Line(language, float(neurons.mean()), values))
    return lines


def compare(outcomes: Mapping[str, Outcome], reference: str) -> dict[str, float]:
    """How sure it is that each other detector is not as specific as the reference: p-values by name, Holm-corrected.

    The paired permutation test of `plnd.statistics.paired_p_value` of `Outcome.shares`, paired by sample and language.
    """
    expected = outcomes[reference].shares().flatten()
    found = {
        name: paired_p_value(outcome.shares().flatten(), expected)
        for name, outcome in outcomes.items()
        if name != reference
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (Holm 1979), in the order given."""
    order, corrected, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for step, n in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[n]))
        corrected[n] = largest
    return corrected


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """One over the other; inf where only the numerator is above 0, and 0 where neither is."""
    above = np.where(numerator > 0, np.inf, 0.0)
    return np.divide(numerator, denominator, out=above, where=denominator > 0)


def _own_and_others(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal, and mean of what is off it, of [..., languages, languages]: both [..., languages]."""
    own = np.diagonal(changes, axis1=-2, axis2=-1)
    return own, (changes.sum(-1) - own) / (changes.shape[-1] - 1)


def _whole(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Every sample and document once: weights as those of `_resampled`."""
    samples = len(outcome.nats)
    return np.full((1, samples), 1 / samples), np.ones((1, *outcome.sizes.shape))


def _resampled(outcome: Outcome, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights of samples, [resamples, samples] of sum 1, and of documents, [resamples, languages, documents]."""
    samples, (languages, documents) = len(outcome.nats), outcome.sizes.shape
    of_samples = generator.multinomial(samples, np.full(samples, 1 / samples), RESAMPLES) / samples
    equal = np.full(documents, 1 / documents)
    return of_samples, generator.multinomial(documents, equal, (RESAMPLES, languages)).astype(float)


def _quantities(outcome: Outcome, of_samples: np.ndarray, of_documents: np.ndarray) -> dict[str, np.ndarray]:
    """`QUANTITIES`, each [resamples, 1 + languages], the mean over languages first."""
    unit = math.log(2) * np.einsum("ld,rld->rl", outcome.sizes, of_documents)
    nats = np.einsum("rs,sotd,rtd->rot", of_samples, outcome.nats, of_documents, optimize=True)
    own, others = _own_and_others(nats / unit[:, None])
    control = np.full_like(own, np.nan)
    if outcome.controls.shape[1]:
        controls = np.einsum("rs,sod,rod->ro", of_samples, outcome.controls.mean(1), of_documents, optimize=True)
        control = controls / unit
    own, others, control = (np.concatenate([x.mean(1, keepdims=True), x], axis=1) for x in (own, others, control))
    random = np.where(np.isnan(control), np.nan, ratio(own, np.nan_to_num(control)))
    return {"own": own, "others": others, "own/others": ratio(own, others), "own/random": random}
