"""Numbers of a whole model at a glance: of each block and projection for the map, and the neurons to begin with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from plnd.addresses import address_order
from plnd.errors import PLNDError
from plnd.explorer.contents import Contents, as_indices
from plnd.neurons.contrast import TIMES, contrast, contrast_of
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.selection import FEED_FORWARD

TOP = 20
"""Neurons of each language and set to begin with."""

Grid = list[list[float | int | None]]
"""A number for each block and projection; None where there is none."""


def mean_importance(contents: Contents, name: str) -> Grid:
    """Mean over neurons of their mean importance."""
    return _grid(contents, lambda address: float(contents.scores[name].mean[address].mean(dtype=np.float64)))


def largest_importance(contents: Contents, name: str) -> Grid:
    """Mean importance of the most important neuron."""
    return _grid(contents, lambda address: float(contents.scores[name].mean[address].max(initial=0)))


def own_neurons(contents: Contents, name: str) -> Grid:
    """How many neurons are at least `TIMES` as important in a language as in any other, and more so than the median.

    What `plnd.contrast` asks of a neuron before it chooses those of largest excess.
    """
    logs = [one.mean_log for one in (contents.scores[name], *(s for n, s in contents.scores.items() if n != name))]

    def count(address: str) -> int | None:
        if not contents.measured(address):
            return None
        own, *others = (one[address].astype(np.float64) for one in logs if one is not None)
        found = (own > 0) & (contrast_of(np.stack([own]), np.stack(others)) >= math.log(TIMES))
        return int(found.sum())

    return _grid(contents, count)


def neurons_of_set(contents: Contents, name: str) -> Grid:
    """How many neurons a set has."""
    return [
        [None if address is None else len(as_indices(contents, name, address)[0]) for address in line]
        for line in _addresses(contents)
    ]


def inspected(contents: Contents) -> Grid:
    """How many neurons there are inspections of."""
    seen = {n.name: n.address for one in contents.inspections.values() for n in one.neurons}
    where = list(seen.values())
    return [[None if address is None else where.count(address) for address in line] for line in _addresses(contents)]


def most_specific(contents: Contents, name: str) -> list[list[str | int | float]]:
    """The neurons that `plnd.contrast` takes first for a language, each once: address, index and excess."""
    others = [one for other, one in contents.scores.items() if other != name]
    measured = [projection for projection in contents.projections if _measured(contents, projection)]
    again = [projection for projection in measured if projection in FEED_FORWARD][:-1]  # the same neurons once more
    shown = [projection for projection in measured if projection not in again]
    try:
        found = contrast(contents.scores[name], others, count=TOP, projections=shown)
    except PLNDError:  # no neuron is: all else was checked when the files were read
        return []
    return most_important(contents, found)


def most_important(contents: Contents, neurons: NeuronSet) -> list[list[str | int | float]]:
    """The neurons of largest importance in a set: address, index and importance."""
    top = neurons.restrict(projections=contents.projections).top(TOP)
    every = [
        [address, int(index), float(value)]
        for address, indices in top.items()
        for index, value in zip(indices, top.importance[address], strict=True)
    ]
    return sorted(every, key=lambda one: (-one[2], address_order(one[0]), one[1]))  # type: ignore[operator, arg-type]


def overlaps(sets: Mapping[str, NeuronSet]) -> list[list[int]]:
    """How many neurons each pair of sets has in common, and on the diagonal how many there are."""
    names = list(sets)
    return [[len(sets[one] & sets[other]) for other in names] for one in names]


def _measured(contents: Contents, projection: str) -> bool:
    addresses = [address for address in contents.widths if address.endswith(f".{projection}")]
    return bool(addresses) and all(map(contents.measured, addresses))


def _addresses(contents: Contents) -> list[list[str | None]]:
    names = [[f"{block}.{projection}" for projection in contents.projections] for block in contents.blocks]
    return [[name if name in contents.widths else None for name in line] for line in names]


def _grid(contents: Contents, number: Callable[[str], float | int | None]) -> Grid:
    return [
        [number(address) if address is not None and contents.scored(address) else None for address in line]
        for line in _addresses(contents)
    ]
