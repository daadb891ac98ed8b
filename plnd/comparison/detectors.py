"""The detectors of the arena: which feed-forward neurons each takes for one language's, so many of them.

Every detector gives each neuron a number, -inf where it takes it in no case, and the highest are its set (of equal
numbers the first ones). docs/arena.md defines them all in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from plnd.comparison.config import DETECTORS
from plnd.comparison.measures import overlap_coefficient
from plnd.detection.totals import descending_rank, log_over_median
from plnd.io.metadata import NeuronsMetadata
from plnd.neurons.contrast import TIMES, contrast_of, excess_of
from plnd.neurons.lape import lape
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.random_draw import draw
from plnd.neurons.scores import Scores

PER_TOKEN = ("activation", "probability", "value", "size", "square")
PER_BYTE = ("attribution", "relevance")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured of one sample of documents, and which language is looked for among which others.

    Attributes:
        own: the language.
        others: those that it is compared with, at least one.
        count: neurons wanted.
        widths: address to number of neurons, in the order of the vectors.
        measured: language to measure to [documents, neurons].
        tokens: language to the documents' numbers of tokens, [documents].
        sizes: language to the documents' bytes, [documents].
        norms: of the neurons' columns of `down_proj`, [neurons].
        binned: language to counts of values in bins, [neurons, bins]; only for `overlap`.
        seed: of what is drawn.
        model: the model's description.
    """

    own: str
    others: tuple[str, ...]
    count: int
    widths: Mapping[str, int]
    measured: Mapping[str, Mapping[str, np.ndarray]]
    tokens: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    norms: np.ndarray
    binned: Mapping[str, np.ndarray] | None
    seed: int
    model: Mapping[str, Any]

    @property
    def languages(self) -> tuple[str, ...]:
        """The own one, then the others."""
        return (self.own, *self.others)

    @cached_property
    def neurons(self) -> int:
        """How many there are."""
        return sum(self.widths.values())

    def first(self, documents: int) -> Evidence:
        """The same of the first so many documents of each language; `binned` stays."""
        cut = {x: {name: v[:documents] for name, v in of.items()} for x, of in self.measured.items()}
        lengths = ({x: v[:documents] for x, v in part.items()} for part in (self.tokens, self.sizes))
        tokens, sizes = lengths
        return replace(self, measured=cut, tokens=tokens, sizes=sizes)

    def mean(self, measure: str, language: str) -> np.ndarray:
        """Over a language's tokens, bytes or (importance) documents, whichever the measure is a mean of, [neurons]."""
        values = self.measured[language][measure].astype(np.float64)
        weights = {**dict.fromkeys(PER_TOKEN, self.tokens), **dict.fromkeys(PER_BYTE, self.sizes)}.get(measure)
        return np.average(values, axis=0, weights=None if weights is None else weights[language])

    def of_all(self, measure: str) -> np.ndarray:
        """The mean of a measure for the own language and each of the others, [languages, neurons]."""
        return np.stack([self.mean(measure, language) for language in self.languages])

    def by_block(self, values: np.ndarray) -> list[torch.Tensor]:
        """Values [documents, neurons] block by block, each [documents, width]."""
        return [torch.from_numpy(part) for part in np.split(values, np.cumsum(list(self.widths.values()))[:-1], axis=1)]


Rule = Callable[[Evidence], np.ndarray]
"""From evidence to a number for every neuron, [neurons] float64."""


# rules


def difference(entry: np.ndarray, count: int, importance: np.ndarray) -> np.ndarray:
    """The paper's way to a language's own neurons: those within a limit, minus the union of the other languages'.

    The limit, one for all languages, is the strictest one that leaves `count` neurons, or the one that leaves most
    where none leaves so many; of them the most important are kept.

    Args:
        entry: of the own language and each of the others, the limit from which on a neuron is one of its neurons,
            [languages, neurons].
        count: neurons wanted.
        importance: what orders the neurons that are left, [neurons].
    """
    own, taken = entry[0], entry[1:].min(0)
    limits = np.unique(own)
    entered = np.searchsorted(np.sort(own), limits, side="right")
    lost = np.searchsorted(np.sort(np.maximum(own, taken)), limits, side="right")
    left = entered - lost
    enough = np.flatnonzero(left >= count)
    limit = limits[enough[0] if len(enough) else int(np.argmax(left))]
    return np.where((own <= limit) & (taken > limit), importance, -np.inf)


def contrasted(mean_logs: np.ndarray) -> np.ndarray:
    """The contrast of neurons above the own median, and higher than in each of the other languages.

    Args:
        mean_logs: means over documents of ln(score / median of the block in the document), of the own language and
            each of the others, [languages, neurons].
    """
    contrast = contrast_of(mean_logs[:1], mean_logs[1:])
    return np.where((mean_logs[0] > 0) & (contrast > 0), contrast, -np.inf)


def _threshold(evidence: Evidence) -> np.ndarray:
    smallest = np.stack([evidence.measured[x]["importance"].min(0) for x in evidence.languages]).astype(np.float64)
    return difference(-smallest, evidence.count, smallest[0])


def _rank(measure: str) -> Rule:
    def rule(evidence: Evidence) -> np.ndarray:
        entry = []
        for language in evidence.languages:
            ranks = [
                descending_rank(*block.sort(-1)) for block in evidence.by_block(evidence.measured[language][measure])
            ]
            shares = [(rank.amax(0).double() + 1) / rank.shape[1] for rank in ranks]
            entry.append(torch.cat(shares).numpy())
        own = evidence.measured[evidence.own][measure].min(0).astype(np.float64)
        return difference(np.stack(entry), evidence.count, own)

    return rule


def _size(measure: str) -> Rule:
    """The largest mean size over documents, minus what is as large in another language."""

    def rule(evidence: Evidence) -> np.ndarray:
        means = np.stack([np.abs(evidence.measured[x][measure]).mean(0, dtype=np.float64) for x in evidence.languages])
        return difference(-means, evidence.count, means[0])

    return rule


def exceeding(mean_logs: np.ndarray, units: np.ndarray) -> np.ndarray:
    """By how much neurons are above `TIMES` the other languages', of those that are: what `plnd.contrast` keeps.

    Args:
        mean_logs: as for `contrasted`.
        units: of the excess, [neurons].
    """
    contrast = contrast_of(mean_logs[:1], mean_logs[1:])
    excess = excess_of(mean_logs[:1], mean_logs[1:], TIMES, units[None])
    return np.where((mean_logs[0] > 0) & (contrast >= math.log(TIMES)), excess, -np.inf)


def _mean_logs(evidence: Evidence, measure: str) -> np.ndarray:
    """Of the own language and each of the others, [languages, neurons]."""
    logs = []
    for language in evidence.languages:
        blocks = evidence.by_block(np.abs(evidence.measured[language][measure]))
        logs.append(torch.cat([log_over_median(x, x.sort(-1).values).mean(0) for x in blocks]).numpy())
    return np.stack(logs)


def _contrast(measure: str) -> Rule:
    return lambda evidence: contrasted(_mean_logs(evidence, measure))


def _importance_excess(evidence: Evidence) -> np.ndarray:
    return exceeding(_mean_logs(evidence, "importance"), np.ones(evidence.neurons))


def _relevance_excess(evidence: Evidence) -> np.ndarray:
    mean = torch.from_numpy(evidence.mean("relevance", evidence.own))
    medians = [np.full(len(part), np.median(part)) for part in mean.split(list(evidence.widths.values()))]
    return exceeding(_mean_logs(evidence, "relevance"), np.concatenate(medians))


def _lape(evidence: Evidence) -> np.ndarray:
    scores = [_scores(evidence, language) for language in evidence.languages]
    found = lape(scores, fraction=evidence.count / evidence.neurons, projections=("down_proj",))[0]
    result, start = np.full(evidence.neurons, -np.inf), 0
    for address, width in evidence.widths.items():
        if address in found.indices:
            result[start + found.indices[address]] = found.importance[address]
        start += width
    return result


def _scores(evidence: Evidence, language: str) -> Scores:
    """Activation probabilities as `plnd detect --method lape` would leave them, of which `lape` reads the means."""
    ends = np.cumsum(list(evidence.widths.values()))[:-1]
    parts = np.split(evidence.mean("probability", language), ends)
    mean = {address: part.astype(np.float32) for address, part in zip(evidence.widths, parts, strict=True)}
    ranks = {address: np.zeros(width, dtype=np.int32) for address, width in evidence.widths.items()}
    said = NeuronsMetadata.completed({"model": evidence.model})
    method = {"name": "lape", "projections": ["down_proj"]}
    return Scores(mean, mean, ranks, {**said, "version": 1, "language": language, "method": method})  # type: ignore[arg-type]


def _overlap(evidence: Evidence) -> np.ndarray:
    assert evidence.binned is not None
    others = np.stack([evidence.binned[language] for language in evidence.others]).sum(0, dtype=np.int64)
    means = np.stack([evidence.mean("size", language) for language in evidence.others])
    tokens = [evidence.tokens[language].sum() for language in evidence.others]
    larger = evidence.mean("size", evidence.own) > np.average(means, axis=0, weights=tokens)
    return np.where(larger, 1 - overlap_coefficient(evidence.binned[evidence.own], others), -np.inf)


def _signed(evidence: Evidence) -> np.ndarray:
    own, *others = evidence.of_all("attribution")
    return own - np.max(others, axis=0)


def _diffmean(evidence: Evidence) -> np.ndarray:
    means, squares = evidence.of_all("value"), evidence.of_all("square")
    deviation = np.sqrt((squares - means**2).clip(min=0).mean(0))
    distance = np.abs(means[0] - means[1:].mean(0))
    return np.divide(distance, deviation, out=np.zeros_like(distance), where=deviation > 0)


def _weight(evidence: Evidence) -> np.ndarray:
    return evidence.norms


def _random(evidence: Evidence) -> np.ndarray:
    chosen = draw(evidence.neurons, evidence.count, evidence.seed, "arena", evidence.own)
    return np.where(np.isin(np.arange(evidence.neurons), chosen), 0.0, -np.inf)


RULES: dict[str, Rule] = {
    "plnd-threshold": _threshold,
    "plnd-rank": _rank("importance"),
    "plnd-contrast": _contrast("importance"),
    "plnd-excess": _importance_excess,
    "lape": _lape,
    "lape-contrast": _contrast("probability"),
    "activation-rank": _rank("activation"),
    "activation-contrast": _contrast("activation"),
    "overlap": _overlap,
    "attribution-size": _size("attribution"),
    "attribution-signed": _signed,
    "attribution-contrast": _contrast("attribution"),
    "relevance-size": _size("relevance"),
    "relevance-contrast": _contrast("relevance"),
    "relevance-excess": _relevance_excess,
    "diffmean": _diffmean,
    "diffmean-contrast": _contrast("value"),
    "weight": _weight,
    "random": _random,
}
"""Name, as `plnd.comparison.config.DETECTORS` has it, to rule."""
assert tuple(RULES) == DETECTORS


def choose(name: str, evidence: Evidence) -> NeuronSet:
    """The set of one detector: `evidence.count` columns of `down_proj`, or fewer where it takes no more.

    A neuron's importance is the detector's number, or where those may be below 0, how far it is above the lowest kept.
    """
    values = RULES[name](evidence)
    order = np.argsort(-values, kind="stable")[: evidence.count]
    kept = np.sort(order[values[order] > -np.inf])
    importance = values - min(values[kept].min(initial=0), 0)
    indices, numbers, start = {}, {}, 0
    for address, width in evidence.widths.items():
        here = kept[(kept >= start) & (kept < start + width)]
        indices[address] = (here - start).astype(np.int32)
        numbers[address] = importance[here].astype(np.float32)
        start += width
    documents = len(evidence.tokens[evidence.own])
    rule = {"name": name, "count": evidence.count, "documents": documents, "others": list(evidence.others)}
    said = {"model": evidence.model, "language": evidence.own, "rule": rule}
    return NeuronSet(indices, numbers, NeuronsMetadata.completed(said))
