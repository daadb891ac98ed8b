"""Which projections and regions a rule chooses from, and which of their rows and columns are one neuron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from plnd.addresses import PROJECTIONS, address_order, numbered, split_address
from plnd.errors import PLNDError
from plnd.neurons.regions import Regions

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
"""Projections of which rows and columns of one number are one neuron: they share their importance."""
GROUPS = {
    "paper": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
    "once": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
}
"""Names for several projections. `paper`: those of which the PLND paper has an importance (arXiv:2402.18815, section
2.2), which leaves out gate and O and counts a feed-forward neuron twice, as a row of up and as a column of down.
`once`: every neuron once, a feed-forward one as its column of down; any one of its three names switches it off."""


def listed(projections: str | Iterable[str] | None) -> list[str] | None:
    """The names of some projections, in order, those of `GROUPS` written out; None where none is named, which is all.

    Raises:
        PLNDError: if it is one string that names no group, and of which every letter would be a name.
    """
    if isinstance(projections, str):
        if projections not in GROUPS:
            raise PLNDError(
                f"projections={projections!r}: expected a list of names, such as ['o_proj', 'down_proj'], or one of"
                f" {', '.join(GROUPS)}"
            )
        projections = [projections]
    if projections is None:
        return None
    names = [name for given in projections for name in (GROUPS[given] if given in tuple(GROUPS) else (given,))]
    return [name for place, name in enumerate(names) if name not in names[:place]]


def chosen_addresses(
    widths: Mapping[str, int], blocks: int, projections: str | Iterable[str] | None, regions: Regions | None
) -> list[str]:
    """The addresses of some projections and regions, in order.

    Raises:
        PLNDError: if a projection is unknown, or the regions do not fit into the model.
    """
    projections = listed(projections)
    for name in projections or ():
        if name not in PROJECTIONS:
            raise PLNDError(f"unknown projection {name!r}: expected one of {', '.join((*PROJECTIONS, *GROUPS))}")
    if regions is not None:
        regions.check(blocks)
    chosen = []
    for address in sorted(widths, key=address_order):
        if projections is not None and split_address(address)[1] not in projections:
            continue
        if regions is None or regions.contains(*numbered(address), blocks):
            chosen.append(address)
    return chosen


def sites(addresses: Iterable[str]) -> list[list[str]]:
    """Addresses in groups whose neurons are one and the same, in order."""
    found: dict[tuple[str, str], list[str]] = {}
    for address in addresses:
        block, projection = split_address(address)
        found.setdefault((block, "ffn" if projection in FEED_FORWARD else projection), []).append(address)
    return list(found.values())


def by_address(
    neurons: np.ndarray, importance: np.ndarray, sites: Iterable[Sequence[str]], widths: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Indices (ascending int32) and importances by address, from neurons that are counted through all sites.

    Args:
        neurons: the numbers of some, in any order.
        importance: of all, [neurons].
        sites: groups of addresses whose neurons are the same.
        widths: how many an address has.
    """
    indices: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    neurons, start = np.sort(neurons), 0
    for addresses in sites:
        stop = start + widths[addresses[0]]
        here = neurons[(neurons >= start) & (neurons < stop)]
        for address in addresses:
            indices[address] = (here - start).astype(np.int32)
            values[address] = importance[here]
        start = stop
    return indices, values
