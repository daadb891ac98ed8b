"""Experts and attention heads as units: which neurons are whose, and which whole units a set of neurons is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from plnd.addresses import PROJECTIONS, block_order, split_address
from plnd.errors import PLNDError
from plnd.io.metadata import UnitsDescription
from plnd.model_description import ModelDescription

UNITS = {
    "expert": ("gate_proj", "up_proj", "down_proj"),
    "head": ("q_proj", "o_proj"),
    "kv-head": ("k_proj", "v_proj"),
}
"""Kinds of units, and the projections of which equally many neurons, one after the other, belong to each one.

`expert`: one that a router chooses. `head`: a query head, which with grouped queries has no keys and values of its own;
`kv-head`: the keys and values of a group of them."""
OWN = {"expert": UNITS["expert"], "head": ("o_proj",), "kv-head": ("v_proj",)}
"""Those without which the unit adds nothing while all else is as it was, whatever the model. Rows of `q_proj` and
`k_proj` are not among them: where queries or keys are normed over all heads at once, one head's change the others'."""


def unit_projections(unit: str, projections: Iterable[str] | None) -> list[str]:
    """The projections of which a unit's neurons are taken, in the usual order; by default those of `OWN`.

    Raises:
        PLNDError: if there is no such unit, or a projection has no part of it.
    """
    if unit not in UNITS:
        raise PLNDError(f"unknown unit {unit!r}: expected one of {', '.join(UNITS)}")
    chosen = list(OWN[unit] if projections is None else projections)
    for name in chosen:
        if name not in UNITS[unit]:
            raise PLNDError(f"projection {name!r} has no part of one {unit}: expected some of {', '.join(UNITS[unit])}")
    if not chosen:
        raise PLNDError(f"no projection named: expected some of {', '.join(UNITS[unit])}")
    return [name for name in PROJECTIONS if name in chosen]


def unit_sites(model: ModelDescription, projections: Collection[str]) -> dict[str, list[str]]:
    """Block to the addresses of some projections whose neurons lie in units there, in the usual order.

    Args:
        model: with how many units every address has.
        projections: of one kind of unit.
    """
    found: dict[str, list[str]] = {}
    for address in model.units:
        block, projection = split_address(address)
        if projection in projections:
            found.setdefault(block, []).append(address)
    return {
        block: sorted(found[block], key=lambda address: PROJECTIONS.index(split_address(address)[1]))
        for block in sorted(found, key=block_order)
    }


def neurons_of(model: ModelDescription, address: str, members: Sequence[int] | np.ndarray) -> np.ndarray:
    """The neurons at one address of some of the units there, [neurons] int32, as the units come."""
    each = model.widths[address] // model.units[address]
    return (np.asarray(members, np.int64)[:, None] * each + np.arange(each)).reshape(-1).astype(np.int32)


def whole_units(
    indices: Mapping[str, np.ndarray], model: ModelDescription, unit: str, projections: Sequence[str]
) -> UnitsDescription | None:
    """The units that a set of neurons is made of; None if it has others, not all of one, or none at all.

    Args:
        indices: address to ascending neurons.
        model: of the set.
        unit: kind.
        projections: of which all neurons of a unit have to be there.
    """
    members: dict[str, list[int]] = {}
    named = {address for address, neurons in indices.items() if len(neurons)}
    for block, addresses in unit_sites(model, projections).items():
        found = {tuple(_members(indices.get(a, np.empty(0, np.int32)), model, a)) for a in addresses}
        if len(found) > 1 or any(-1 in some for some in found):
            return None
        named -= set(addresses)
        if some := [*found.pop()]:
            members[block] = some
    if named or not members:
        return None
    return UnitsDescription.of({"unit": unit, "projections": list(projections), "members": members})


def is_made_of(said: UnitsDescription, indices: Mapping[str, np.ndarray], model: ModelDescription) -> bool:
    """Whether what is said of a set's units is so."""
    try:
        known = unit_projections(said.unit, said.projections) == said.projections
    except PLNDError:
        return False
    return known and whole_units(indices, model, said.unit, said.projections) == said


def _members(neurons: np.ndarray, model: ModelDescription, address: str) -> Iterator[int]:
    """The units of which all neurons at one address are given; -1 for one of which only some are."""
    each = model.widths[address] // model.units[address]
    for unit, count in enumerate(np.bincount(neurons // each, minlength=model.units[address])):
        if count:
            yield unit if count == each else -1
