"""Tables of papers as files: every number as CSV, and what one prints of them as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plnd.io.files import write_bytes, write_csv

SYMBOLS = {
    "✗": r"$\times$",
    "✓": r"$\checkmark$",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "…": r"\dots{}",
    "∩": r"$\cap$",
}
"""What LaTeX without further fonts has no letter for; ✓ needs the package amssymb."""


@dataclass(frozen=True)
class Shown:
    """A table as people read it.

    Attributes:
        title: one line.
        header: the columns' names.
        rows: of each row one text for each column.
        words: how many columns on the left are words; those behind are numbers, which stand on the right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def write_tables(output: str, header: Sequence[str], rows: Sequence[Sequence[Any]], shown: Sequence[Shown]) -> None:
    """Writes OUTPUT.csv (all rows, as they are), OUTPUT.md and OUTPUT.tex (the tables of `shown`, one below the other).

    The LaTeX is one `tabular` for each, for the packages booktabs and amssymb, its title in a comment.
    """
    write_csv(f"{output}.csv", header, rows)
    write_bytes("\n".join(f"**{table.title}**\n\n{markdown(table)}\n" for table in shown).encode(), f"{output}.md")
    write_bytes("\n".join(f"% {table.title}\n{latex(table)}\n" for table in shown).encode(), f"{output}.tex")


def markdown(table: Shown) -> str:
    """As a table of GitHub's Markdown."""
    escaped = [[cell.replace("|", r"\|").replace("\n", "<br>") for cell in row] for row in (table.header, *table.rows)]
    return _drawn(escaped, table.words, "pipe")


def read_markdown(text: str) -> list[Shown]:
    """The tables of a file that `write_tables` wrote; none, where it is another text."""
    found = []
    for block in re.split(r"\n(?=\*\*)", text):
        title = re.match(r"\*\*(.+)\*\*\n\n", block)
        lines = [line for line in block.splitlines() if line.startswith("|") and line.endswith("|")]
        if title is None or len(lines) < 2 or not re.fullmatch(r"[|:-]+", lines[1]):
            continue
        header, *rows = (
            [_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (lines[0], *lines[2:])
        )
        sides = lines[1].strip("|").split("|")
        if any(len(row) != len(header) for row in (sides, *rows)):
            continue
        found.append(
            Shown(title[1], header, rows, next((n for n, x in enumerate(sides) if x.endswith(":")), len(sides)))
        )
    return found


def _plain(cell: str) -> str:
    return cell.strip().replace(r"\|", "|").replace("<br>", "\n")


def latex(table: Shown) -> str:
    """As a `tabular` of booktabs; what LaTeX reads as a command is escaped."""
    flat = [[cell.replace("\n", " ") for cell in row] for row in (table.header, *table.rows)]
    text = _drawn(flat, table.words, "latex_booktabs")
    for letter, command in SYMBOLS.items():
        text = text.replace(letter, command)
    return text


def _drawn(rows: Sequence[Sequence[str]], words: int, form: str) -> str:
    from tabulate import tabulate

    sides = ["left" if place < words else "right" for place in range(len(rows[0]))]
    return tabulate(rows[1:], rows[0], tablefmt=form, disable_numparse=True, colalign=sides if rows[1:] else None)
