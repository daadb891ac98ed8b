"""Equal budgets: which ranks, and which neurons, of each method take a given number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_plnd.experiments.frontier.settings import FrontierSettings, Method
from plnd.errors import PLNDError
from plnd.io.metadata import NeuronsMetadata
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.random_draw import shuffled
from plnd.neurons.selection import by_address, sites

if TYPE_CHECKING:
    from plnd.models.layout import Layout
    from plnd.neurons.scores import Scores

GOLDEN = 0.6180339887498949


def spread(names: Sequence[str]) -> list[str]:
    """Names in an order in which every beginning is spread over all of them (multiples of the golden ratio mod 1)."""
    return [names[n] for n in sorted(range(len(names)), key=lambda n: n * GOLDEN % 1)]


def fit_ranks(
    sizes: Mapping[str, int], budget: int, fixed: Mapping[str, int] | None = None, most: int | None = None
) -> dict[str, int]:
    """A rank for each module such that all together have as many parameters as the budget allows.

    All modules get the same rank, and some of them, spread over the model, one more; a budget below rank 1 leaves the
    others out.

    Args:
        sizes: parameters of one rank, by module.
        budget: parameters at most.
        fixed: parameters that a module has at any rank, by module.
        most: the largest rank.

    Returns:
        Module to rank, those of rank 0 left out, in the order of `sizes`.
    """
    ranks = dict.fromkeys(sizes, 0)
    order, left = spread(list(sizes)), budget
    while most is None or max(ranks.values()) < most:
        added = 0
        for name in order:
            cost = sizes[name] + (0 if ranks[name] else (fixed or {}).get(name, 0))
            if cost <= left:
                ranks[name], left, added = ranks[name] + 1, left - cost, added + 1
        if added < len(order):
            break
    return {name: rank for name, rank in ranks.items() if rank}


@dataclass(frozen=True, eq=False)
class Population:
    """The neurons that can be chosen, one after the other.

    Attributes:
        widths: address to number of neurons, in order.
        costs: address to the parameters of one neuron: its row or column, or all of it.
        model: the model's description.
    """

    widths: Mapping[str, int]
    costs: Mapping[str, int]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, layout: Layout, projections: Sequence[str], whole: bool = False) -> Population:
        """Those of some projections of a model, experts that are fused in one parameter left out.

        Args:
            layout: of the model.
            projections: their names.
            whole: a feed-forward neuron costs its rows of gate and up, too.

        Raises:
            PLNDError: if there are none.
        """
        from peft_plnd.tuner.layer import linear_shape

        each = {}
        for address, target in layout.targets.items():
            shape = linear_shape(target.plain) if target.experts is None else None
            if shape is not None:
                each[address] = shape[1] if target.projection.axis == "row" else shape[0]
        widths = {a: layout.targets[a].width for a in each if layout.targets[a].projection.name in projections}
        costs = {address: each[address] for address in widths}
        for together in sites(each) if whole else ():
            costs |= {address: sum(each[one] for one in together) for address in together if address in widths}
        if not widths:
            raise PLNDError(f"projections: the model has no linear layer of {', '.join(projections)}")
        return cls(widths, costs, layout.description())

    def joined(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors by address as one, [neurons]."""
        return np.concatenate([np.asarray(vectors[address]) for address in self.widths])

    @property
    def each(self) -> np.ndarray:
        """The cost of every neuron, [neurons]."""
        return np.repeat([self.costs[a] for a in self.widths], list(self.widths.values()))

    def within(
        self,
        values: np.ndarray,
        importance: np.ndarray,
        budget: int,
        rule: Mapping[str, Any],
        language: str | None = None,
    ) -> NeuronSet:
        """The neurons of the highest values that the budget pays for.

        Args:
            values: what orders them, -inf for a neuron that is not to be chosen, [neurons].
            importance: what the set says of each, [neurons].
            budget: parameters.
            rule: for the metadata.
            language: whose they are.

        Raises:
            PLNDError: if the budget is below one neuron, or there are fewer than it pays for.
        """
        order = np.argsort(-values, kind="stable")
        order = order[values[order] > -np.inf]
        paid = np.cumsum(self.each[order])
        count, cheapest = int(np.searchsorted(paid, budget, side="right")), min(self.costs.values())
        if budget < cheapest:
            raise PLNDError(f"a budget of {budget:,} parameters is below one neuron's, {cheapest:,}: give a larger one")
        if not count or (count == len(order) and budget - paid[-1] >= max(self.costs.values())):
            raise PLNDError(
                f"{rule['name']} finds {count:,} neurons for {language}, and the budget pays for about"
                f" {budget // cheapest:,}: lower budgets or times, or choose from more projections"
            )
        kept = order[:count]
        indices, numbers = by_address(
            kept, importance.astype(np.float32), [[address] for address in self.widths], self.widths
        )
        said = {"model": self.model, "language": language, "rule": dict(rule)}
        return NeuronSet(indices, numbers, NeuronsMetadata.completed(said))


def choose(
    settings: FrontierSettings,
    method: Method,
    population: Population,
    budget: int,
    language: str,
    seed: int,
    scores: Callable[[str, str], Scores],
    norms: Callable[[], Mapping[str, np.ndarray]],
    gradients: Callable[[str], Mapping[str, np.ndarray]],
) -> NeuronSet:
    """The neurons that one method trains.

    Args:
        settings: of the experiment.
        method: of a kind of `ROWS`.
        population: neurons to choose from; `method.whole` completes those that are chosen afterwards.
        budget: parameters.
        language: that is trained.
        seed: of what is drawn.
        scores: from a language and a measure to its scores.
        norms: address to the L2 norm of every neuron's row or column, [width].
        gradients: from a language to address to the squared L2 norm of the gradient of every neuron's row or column,
            of every projection of the model, a mean over documents, [width].

    Raises:
        PLNDError: as of `Population.within`.
    """
    rule: dict[str, Any] = {"name": method.kind, "parameters": budget}
    if method.kind == "random":
        order = shuffled(sum(population.widths.values()), seed, "frontier")
        return population.within(_in_order(order), np.zeros(len(order)), budget, {**rule, "seed": seed})
    if method.kind == "magnitude":
        relative = population.joined({address: found / np.median(found) for address, found in norms().items()})
        return population.within(relative, relative, budget, rule)
    if method.kind == "gradient":
        values = _information(population, gradients(language), method.whole)
        return population.within(values, values, budget, rule, language)
    own = scores(language, method.measure)
    others = [scores(other, method.measure) for other in settings.others(language)]
    importance = population.joined(own.minimum)
    if method.kind == "rank":
        values = _by_rank(population, own)
    elif method.kind == "difference":
        values = _difference(population, own, others, budget)
    else:
        values = _contrast(population, own, others, settings)
        importance = np.where(values > -np.inf, values, 0)
    found = population.within(values, importance, budget, {**rule, "measure": method.measure}, language)
    return found.random_like(seed) if method.control else found


def _in_order(order: np.ndarray) -> np.ndarray:
    """A number for every neuron, the highest for the first one of an order, [neurons] float64."""
    values = np.empty(len(order))
    values[order] = np.arange(len(order), 0, -1)
    return values


def _information(population: Population, squares: Mapping[str, np.ndarray], whole: bool) -> np.ndarray:
    """The Fisher information of one parameter of each neuron, its mean squared gradient, [neurons].

    As FISH Mask chooses single parameters (Sung et al. 2021, arXiv:2111.09839).
    """
    total = dict(squares)
    for together in sites(squares) if whole else ():
        total |= dict.fromkeys(together, np.sum([squares[address] for address in together], axis=0))
    return population.joined({address: total[address] / cost for address, cost in population.costs.items()})


def _entries(population: Population, scores: Scores) -> np.ndarray:
    """Of every neuron the smallest share of its projection that contains it in every document, [neurons]."""
    ranks = {a: (scores.worst_rank[a].astype(np.float64) + 1) / width for a, width in population.widths.items()}
    return population.joined(ranks)


def _by_rank(population: Population, own: Scores) -> np.ndarray:
    """The best ranked in every document first; of equal ranks the more important."""
    importance = population.joined(own.minimum).astype(np.float64)
    return _in_order(np.lexsort((-importance, _entries(population, own))))


def _difference(population: Population, own: Scores, others: Sequence[Scores], budget: int) -> np.ndarray:
    """Those within a limit that leaves enough, minus every other language's within the same limit."""
    from plnd.comparison.detectors import difference

    entries = np.stack([_entries(population, scores) for scores in (own, *others)])
    count = budget // min(population.costs.values())
    return difference(entries, count, _by_rank(population, own))


def _contrast(population: Population, own: Scores, others: Sequence[Scores], settings: FrontierSettings) -> np.ndarray:
    """The excess of those that `plnd.contrast` keeps."""
    from plnd.neurons.contrast import contrast

    kept = contrast(own, others, share=1.0, times=settings.times, projections=settings.chosen_from)
    parts = {address: np.full(width, -np.inf) for address, width in population.widths.items()}
    for address, indices in kept.items():
        parts[address][indices] = kept.importance[address]
    return population.joined(parts)
