"""What a notebook shows in place of an object's repr: facts, tables and a map of blocks, as HTML for any theme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from plnd.addresses import PROJECTIONS, block_names, split_address

_LEFT, _RIGHT = ' style="text-align:left"', ' style="text-align:right"'
_CELL = "width:.9em;min-width:.9em;height:1.1em;padding:0;border:0"


def card(title: str, facts: Mapping[str, Any], *parts: str) -> str:
    """A title, facts by name (those that are None or empty left out), and further parts below.

    Title and facts are text, and shown as text: what an artifact says of itself is never taken for HTML.
    """
    said = "".join(
        f"<tr><th{_LEFT}>{escape(name)}</th><td{_LEFT}>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<div><b>{escape(title)}</b><table>{said}</table>{''.join(parts)}</div>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table of texts; the first `words` columns are words, those behind are numbers, which stand on the right."""
    head = "".join(f"<th{_side(n, words)}>{escape(cell)}</th>" for n, cell in enumerate(header))
    body = "".join(
        f"<tr>{''.join(f'<td{_side(n, words)}>{escape(cell)}</td>' for n, cell in enumerate(row))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def block_map(counts: Mapping[str, int], widths: Mapping[str, int]) -> str:
    """Where neurons are: a row for each projection, a cell for each block, the darker the more; numbers on hovering.

    Args:
        counts: address to number of neurons.
        widths: address to number of neurons that the model has there.
    """
    blocks = block_names(widths)
    shown = sorted({split_address(address)[1] for address in widths}, key=PROJECTIONS.index)
    most = max(counts.values(), default=0)
    rows = []
    for projection in shown:
        cells = []
        for block in blocks:
            address = f"{block}.{projection}"
            found = counts.get(address, 0)
            colour = f"rgba(38,111,190,{0.15 + 0.85 * found / most:.2f})" if found else "rgba(128,128,128,.08)"
            about = f"{address}: {found:,} of {widths[address]:,}" if address in widths else f"no {address}"
            cells.append(f'<td title="{escape(about)}" style="{_CELL};background:{colour}"></td>')
        total = sum(counts.get(f"{block}.{projection}", 0) for block in blocks)
        rows.append(f"<tr><td{_LEFT}>{projection}</td>{''.join(cells)}<td{_RIGHT}>{total:,}</td></tr>")
    ends = f"blocks {escape(blocks[0])} to {escape(blocks[-1])}, from left to right" if blocks else "no blocks"
    return f"<table>{''.join(rows)}</table><small>{ends}</small>"


def _side(column: int, words: int) -> str:
    return _LEFT if column < words else _RIGHT
