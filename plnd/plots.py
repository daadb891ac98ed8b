"""Pictures of the analyses; the only module that imports matplotlib.

`draw_…` makes a figure, `plot_…` of the same arguments and a path writes it to a file, whose suffix sets the format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.errors import PLNDError
from plnd.io.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#999999")
"""Those of Okabe and Ito (2008), with grey in place of yellow, which is pale on white."""
MARKERS = ("o", "^", "s", "x", "D", "v", "P")
SMALLEST = 1e-4
"""The smallest value on logarithmic axes."""


def plot_overlap(matrices: Mapping[str, np.ndarray], names: Sequence[str], path: str | Path) -> None:
    """Writes `draw_overlap`."""
    _write(draw_overlap(matrices, names), path)


def draw_overlap(matrices: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """One heat map per structure of `plnd.overlap`, side by side."""
    plt = _pyplot()
    size = 1.6 + 0.55 * len(names)
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(size * len(matrices), size), squeeze=False, layout="constrained"
    )
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        image = axis.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        axis.set_title(title.replace("_", "-"))
        axis.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("y")
        axis.set_ylabel("x")
        for (row, column), value in np.ndenumerate(matrix):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axis.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black"
            )
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, label="|x ∩ y| / |y|")
    return figure


def plot_layers(counts: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """Writes `draw_layers`."""
    _write(draw_layers(counts), path)


def draw_layers(counts: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Neurons per block, attention and feed-forward apart, one line per set of `plnd.neurons.overlap.layers`."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), sharex=True, layout="constrained")
    for axis, title in zip(axes, ("attention", "feed-forward"), strict=True):
        for name, by_projection in counts.items():
            total = sum(v for p, v in by_projection.items() if (p in ATTENTION_PROJECTIONS) == (title == "attention"))
            axis.plot(total, marker="o", markersize=3, label=name)
        axis.set_title(title)
        axis.set_xlabel("block")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("neurons")
    axes[1].legend(frameon=False)
    return figure


def plot_lines(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    path: str | Path,
    label: str,
    *,
    stacked: bool = False,
    places: Sequence[str] | None = None,
    along: str | None = None,
) -> None:
    """Writes `draw_lines`."""
    _write(draw_lines(panels, label, stacked=stacked, places=places, along=along), path)


def draw_lines(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    label: str,
    *,
    stacked: bool = False,
    places: Sequence[str] | None = None,
    along: str | None = None,
) -> Figure:
    """Curves over blocks, side by side in panels of one scale.

    Args:
        panels: title to name to one value per block.
        label: of the vertical axis.
        stacked: draw the values of a panel as columns on top of each other.
        places: what the values stand for, where not for blocks.
        along: label of the horizontal axis (default: block, or none with `places`).
    """
    plt = _pyplot()
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.5 + 3.6 * columns, 3.2 * lines), squeeze=False, sharey=True, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    shown: dict[str, Any] = {}
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        below: np.ndarray | float = 0
        for name, values in curves.items():
            colour, style = f"C{names.index(name)}", ("-", "--", ":")[names.index(name) // 10 % 3]
            if stacked:
                shown[name] = axis.bar(range(len(values)), values, bottom=below, width=1, color=colour)
                below = below + values
            else:
                (shown[name],) = axis.plot(values, style, marker="o", markersize=3, color=colour)
        axis.set_title(title)
        axis.set_xlabel(along or ("block" if places is None else ""))
        if places is None:
            axis.xaxis.get_major_locator().set_params(integer=True)
        else:
            axis.set_xticks(range(len(places)), places)
    for row in axes:
        row[0].set_ylabel(label)
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False)
    return figure


def plot_bars(
    values: Mapping[str, np.ndarray],
    places: Sequence[str],
    path: str | Path,
    label: str,
    *,
    intervals: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes `draw_bars`."""
    _write(draw_bars(values, places, label, intervals=intervals), path)


def draw_bars(
    values: Mapping[str, np.ndarray],
    places: Sequence[str],
    label: str,
    *,
    intervals: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Bars side by side at each place, one colour for each name.

    Args:
        values: name to one value per place, [places]; nan leaves a gap.
        places: what stands under the bars.
        label: of the vertical axis.
        intervals: name to the two ends of each value's interval, [2, places].
    """
    plt = _pyplot()
    width = 0.8 / len(values)
    legend = 0.8 + 0.085 * max(map(len, values))
    figure, axis = plt.subplots(
        figsize=(max(4.0, 1.5 + 0.3 * len(places) * len(values)) + legend, 4), layout="constrained"
    )
    for n, (name, heights) in enumerate(values.items()):
        x = np.arange(len(places)) + (n - (len(values) - 1) / 2) * width
        axis.bar(x, heights, width, label=name, color=f"C{n}")
        if intervals is not None:
            axis.vlines(x, *intervals[name], color="0.25", linewidth=1)
    axis.axhline(0, color="0.25", linewidth=0.8)
    axis.set_xticks(range(len(places)), places, rotation=30 if max(map(len, places)) > 8 else 0)
    for text in axis.get_xticklabels():
        text.set_horizontalalignment("right" if text.get_rotation() else "center")
    axis.set_ylabel(label)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def plot_scatter(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], path: str | Path, labels: tuple[str, str]
) -> None:
    """Writes `draw_scatter`."""
    _write(draw_scatter(panels, labels), path)


def draw_scatter(panels: Mapping[str, Mapping[str, tuple[float, float]]], labels: tuple[str, str]) -> Figure:
    """Points on logarithmic axes, side by side in panels of one scale, with lines on which y is 1, 10 and 100 times x.

    Each name has a colour and a marker of its own: colours that colour-blind people can tell apart (Okabe and Ito
    2008), and where there are more names than those, another row of markers. What is below `SMALLEST` lies on the edge.

    Args:
        panels: title to name to (x, y).
        labels: of the two axes.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.6 + 4.2 * len(panels), 4.2),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    places = np.array([point for points in panels.values() for point in points.values()]).clip(min=SMALLEST)
    largest = 2 * float(places.max())
    shown: dict[str, Any] = {}
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        for factor in (1, 10, 100):
            ends = np.array([SMALLEST / 2, largest])
            axis.plot(ends, factor * ends, color="0.8", linewidth=0.8, zorder=0)
            axis.annotate(f"{factor}×", (largest / factor, largest), ha="right", va="top", fontsize=8, color="0.5")
        for name, (x, y) in points.items():
            n = names.index(name)
            shown[name] = axis.scatter(
                max(x, SMALLEST), max(y, SMALLEST), color=COLOURS[n % len(COLOURS)], marker=MARKERS[n // len(COLOURS)]
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel=labels[0])
        axis.set(xlim=(SMALLEST / 2, largest), ylim=(SMALLEST / 2, largest))
    axes[0][0].set_ylabel(labels[1])
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False)
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise PLNDError("plots need matplotlib: pip install 'plnd[plots]'") from None
    return plt


def _write(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    kind = Path(path).suffix.lstrip(".") or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise PLNDError(f"{path}: plots cannot be written as {kind!r}; use .png, .svg or .pdf")
    figure.savefig(buffer, format=kind, dpi=150)
    _pyplot().close(figure)
    write_bytes(buffer.getvalue(), path)
