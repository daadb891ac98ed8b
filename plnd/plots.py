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
            colour = f"C{names.index(name)}"
            if stacked:
                shown[name] = axis.bar(range(len(values)), values, bottom=below, width=1, color=colour)
                below = below + values
            else:
                (shown[name],) = axis.plot(values, marker="o", markersize=3, color=colour)
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
