"""What is drawn in a figure, read from its artists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


@contextmanager
def drawn() -> Iterator[list[Figure]]:
    """The figures that are written to files while the block runs."""
    found: list[Figure] = []
    savefig = Figure.savefig

    def watched(self, *args, **kwargs):
        found.append(self)
        return savefig(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", watched)
        yield found


def legend(figure: Figure) -> dict[str, str]:
    """Colour to name, of the one legend, the figure's or an axis's."""
    (box,) = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    handles = [handle for handle in box.legend_handles if handle is not None]
    colours = [to_hex(h.get_color() if hasattr(h, "get_color") else h.get_facecolor()) for h in handles]
    names = [text.get_text() for text in box.get_texts()]
    assert len(set(colours)) == len(colours) == len(names), "each name has a colour of its own"
    return dict(zip(colours, names, strict=True))


def curves(figure: Figure) -> dict[tuple[str, str], list[float]]:
    """Title of the panel and name in the legend to the curve's values, one after the other from 0."""
    names, found = legend(figure), {}
    for axis in figure.axes:
        for line in axis.get_lines():
            if line.get_gid() == "stage":  # N1 or N2
                continue
            assert list(line.get_xdata()) == list(range(len(line.get_ydata())))
            found[axis.get_title(), names[to_hex(line.get_color())]] = [float(y) for y in line.get_ydata()]
    return found


def bars(axis: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """Colour to the bars of that colour, standing or lying: their middle, where they begin, and their length."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for group in axis.containers:
        lying = getattr(group, "orientation", "vertical") == "horizontal"
        for bar in group.patches:
            x, y, width, height = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
            place = (y + height / 2, x, width) if lying else (x + width / 2, y, height)
            found.setdefault(to_hex(bar.get_facecolor()), []).append(place)
    return found


def named_bars(axis: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """As `bars`, by the names of the legend."""
    names = legend(axis.get_figure())
    return {names[colour]: found for colour, found in bars(axis).items()}


def columns(figure: Figure) -> dict[tuple[str, str], list[float]]:
    """Title of the panel and name in the legend to the heights of its columns, of those that stand on each other."""
    return {
        (axis.get_title(), name): [height for _, _, height in found]
        for axis in figure.axes
        if axis.axison
        for name, found in named_bars(axis).items()
    }


def ticks(axis: Axes, which: str = "x") -> list[str]:
    """The labels along an axis."""
    return [label.get_text() for label in getattr(axis, f"get_{which}ticklabels")()]
