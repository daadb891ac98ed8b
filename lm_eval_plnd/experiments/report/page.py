"""What a page is made of: sections of tables and plots, and how numbers are shown in them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

LONG = 100
"""A table of more rows is data, to be looked up rather than read."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what it shows, and how.

    Attributes:
        text: as it is read.
        value: the number in full, where the text rounds it.
        kind: number, digest or empty for text.
        shade: -1 to 1, how strongly and in which of two colours it is tinted.
        strong: bold.
        hint: more of it, on hovering.
    """

    text: str
    value: str | None = None
    kind: str = ""
    shade: float = 0.0
    strong: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: what it shows.
        header: one text per column.
        rows: cells; the first of each is the row's heading.
        looks: of each row, a word for the style sheet: original, control or empty.
        folded: shown on demand, and on paper unless it is long.
        findings: what it shows, in sentences.
        warnings: what it cannot show, and why.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    looks: Sequence[str] = ()
    folded: bool = False
    findings: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def long(self) -> bool:
        """Whether it is data more than a table: not for paper."""
        return len(self.rows) > LONG

    @property
    def named(self) -> bool:
        """Whether its rows have long names, so that their column needs room."""
        return any(len(row[0].text) > 12 for row in self.rows)

    def look(self, row: int) -> str:
        """The style of a row."""
        return self.looks[row] if row < len(self.looks) else ""


@dataclass
class Section:
    """A heading and what is below it.

    Attributes:
        name: what it is called in files.
        words: the heading, where the name is none.
        legend: words that are used below it, and what they mean.
        findings, warnings: as of a table.
    """

    name: str
    words: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)
    legend: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Its name as a heading: `figure3` is Figure 3, and what it shows where that is known."""
        spaced = re.sub(r"^(.*/)?(figure|table)(?=\d)", r"\1\2 ", self.name)
        numbered = spaced != self.name
        name = spaced[:1].upper() + spaced[1:]
        return f"{name}: {self.words}" if numbered and self.words else self.words or name

    @property
    def short(self) -> str:
        """Its heading in the list of sections."""
        return self.title.partition(": ")[0]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return "s-" + hashlib.sha256(self.name.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Plot:
    """A picture inside the page."""

    name: str
    uri: str


def shown(value: float) -> str:
    """Three decimals, or of large and tiny numbers three digits; a true minus sign."""
    if not math.isfinite(value):
        return "–"
    plain = value == 0 or 0.001 <= abs(value) < 10000
    return (f"{value:.3f}" if plain else f"{value:.2e}").replace("-", "−")


def signed(value: float) -> str:
    """Three decimals of a change, with its sign."""
    if not math.isfinite(value):
        return "–"
    if round(value, 3) == 0:
        return "0.000"
    return f"{value:+.3f}".replace("-", "−")


def in_full(value: float) -> str | None:
    """All digits; None where there is no number."""
    return repr(value) if math.isfinite(value) else None


def number_cell(value: float, *, strong: bool = False) -> Cell:
    """A cell with a number."""
    return Cell(shown(value), in_full(value), "number", strong=strong)


def change_cell(value: float) -> Cell:
    """A cell with a change."""
    return Cell(signed(value), in_full(value), "number")


def share_cell(share: float) -> Cell:
    """A cell with a share in per cent."""
    return Cell(f"{100 * share:.3f} %", in_full(share), "number")


def digest_cell(digest: str) -> Cell:
    """A cell with a SHA-256."""
    return Cell(digest or "–", kind="digest")


def breakable(text: str) -> Markup:
    """Lets a long name break after its dots and joints."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._+/=,])", r"\1<wbr>", str(escape(text))))
