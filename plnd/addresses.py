"""Addresses of projections, "{block}.{projection}": their names, how to split, sort and number them.

Projections are named as Hugging Face's Llama names them, also where a model fuses them or calls them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from plnd.errors import PLNDError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION_PROJECTIONS = PROJECTIONS[:4]
COLUMN_PROJECTIONS = ("o_proj", "down_proj")


def block_order(block: str) -> tuple[int, int, int]:
    """Sorts block names: "0", "1", …; "encoder.0", …, "decoder.0", "decoder.0.cross", …"""
    part, _, rest = block.rpartition(".") if block[-1].isdigit() else block.removesuffix(".cross").rpartition(".")
    return int(part == "decoder"), int(rest), int(block.endswith(".cross"))


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
    if not block.isdigit():
        raise PLNDError(
            f"{address}: regions are defined for models whose blocks follow each other, not for block {block}"
        )
    return int(block), projection
