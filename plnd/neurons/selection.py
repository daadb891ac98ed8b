"""Which projections and regions a rule chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plnd.addresses import PROJECTIONS, address_order, numbered, split_address
from plnd.errors import PLNDError
from plnd.neurons.regions import Regions


def chosen_addresses(
    widths: Mapping[str, int], blocks: int, projections: Iterable[str] | None, regions: Regions | None
) -> list[str]:
    """The addresses of some projections and regions, in order.

    Raises:
        PLNDError: if a projection is unknown, or the regions do not fit into the model.
    """
    projections = None if projections is None else list(projections)
    for name in projections or ():
        if name not in PROJECTIONS:
            raise PLNDError(f"unknown projection {name!r}: expected one of {', '.join(PROJECTIONS)}")
    if regions is not None:
        regions.check(blocks)
    chosen = []
    for address in sorted(widths, key=address_order):
        if projections is not None and split_address(address)[1] not in projections:
            continue
        if regions is None or regions.contains(*numbered(address), blocks):
            chosen.append(address)
    return chosen
