"""Addresses of projections, "{block}.{projection}": their names, how to split, sort and number them.

Projections are named as Hugging Face's Llama names them, also where a model fuses them or calls them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from plnd.errors import PLNDError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION_PROJECTIONS = PROJECTIONS[:4]
COLUMN_PROJECTIONS = ("o_proj", "down_proj")


PARTS = (".cross", ".shared")
"""Ends of names of what a block has beside its attention and feed-forward: cross-attention, and experts that all tokens
go through."""


def block_of(name: str) -> str:
    """The block that a block, or a part of one, lies in."""
    return next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)


def block_order(block: str) -> tuple[int, int, int]:
    """Sorts block names: "0", "0.shared", "1", …; "encoder.0", …, "decoder.0", "decoder.0.cross", …"""
    whole = block_of(block)
    part, _, rest = whole.rpartition(".")
    return int(part == "decoder"), int(rest), int(block != whole)


def block_names(addresses: Iterable[str]) -> list[str]:
    """The blocks that occur in addresses, in order."""
    return sorted({split_address(address)[0] for address in addresses}, key=block_order)


def split_address(address: str) -> tuple[str, str]:
    """Block and projection of an address."""
    block, _, projection = address.rpartition(".")
    return block, projection


def address_order(address: str) -> tuple[tuple[int, int, int], int]:
    """Sorts addresses by block, then in the usual order of projections."""
    block, projection = split_address(address)
    return block_order(block), PROJECTIONS.index(projection)


def numbered(address: str) -> tuple[int, str]:
    """Number of the block and projection of an address.

    Raises:
        PLNDError: if the model has an encoder and a decoder, whose blocks have no numbers of one kind.
    """
    block, projection = split_address(address)
    block = block.removesuffix(".shared")
    if not block.isdigit():
        raise PLNDError(
            f"{address}: regions are defined for models whose blocks follow each other, not for block {block}"
        )
    return int(block), projection
