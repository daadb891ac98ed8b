"""Pictures of the analyses at the size in which a paper prints them; with `plnd.plot_style` all that knows matplotlib.

`draw_…` makes a figure, `plot_…` of the same arguments and a path writes it to a file, whose suffix sets the format.
All take `columns`, 1 or 2 of a paper's page; names of languages, projections, regions and metrics are in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.numbers import signed
from plnd.plot_style import filling, in_words, look, pyplot, shortest_rows, style, width_of, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 26
"""Letters of a line along a vertical axis."""
LETTER = 0.06
"""Inches of a letter of a tick's label."""
SMALLEST = 1e-4
"""The smallest value on logarithmic axes."""
Stages = tuple[int, int]
"""N1 and N2 of the PLND paper: how many blocks understand, the first ones, and how many generate, the last ones."""


def plot_overlap(
    matrices: Mapping[str, np.ndarray], names: Sequence[str], path: str | Path, *, columns: int = 2
) -> None:
    """Writes `draw_overlap`."""
    write(draw_overlap(matrices, names, columns=columns), path)


def draw_overlap(matrices: Mapping[str, np.ndarray], names: Sequence[str], *, columns: int = 2) -> Figure:
    """One heat map per structure of `plnd.overlap`, side by side; over one column below each other."""
    lines = 1 if columns == 2 else len(matrices)
    across = -(-len(matrices) // lines)
    with style():
        size = width_of(columns) / max(across, 1.4)
        figure, axes = pyplot().subplots(
            lines, across, figsize=(width_of(columns), size * lines), squeeze=False, layout="constrained"
        )
        letters = min(7.0, 230 * size / 6.75 / max(len(names), 3) / 2.2)
        for axis, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
            image = axis.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
            axis.set_title("all neurons" if title == "all" else in_words(title))
            words = [in_words(name) for name in names]
            axis.set_xticks(range(len(names)), words, rotation=90 if max(map(len, words)) > 3 else 0)
            axis.set_yticks(range(len(names)), words)
            axis.set_xlabel("y")
            axis.set_ylabel("x")
            axis.tick_params(length=0)
            for (row, column), value in np.ndenumerate(matrix):
                text = "–" if np.isnan(value) else f"{value:.2f}"
                colour = "white" if value > 0.6 else "black"
                axis.text(column, row, text, ha="center", va="center", fontsize=letters, color=colour)
        figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.7, label="|x ∩ y| / |y|")
    return figure


def plot_changes(changes: Mapping[str, Mapping[str, float]], path: str | Path, *, columns: int = 1) -> None:
    """Writes `draw_changes`."""
    write(draw_changes(changes, columns=columns), path)


def draw_changes(changes: Mapping[str, Mapping[str, float]], *, columns: int = 1) -> Figure:
    """A heat map of what is off (rows) by the language that is read (columns), around no change, with every number.

    Args:
        changes: of each row, the change in bits per byte of each language, the same languages in every row.
    """
    languages = list(next(iter(changes.values())))
    values = np.array([[row[language] for language in languages] for row in changes.values()])
    largest = float(np.abs(values).max()) or 1.0
    rows, above = [fill(in_words(x), 10) for x in changes], [in_words(x) for x in languages]
    with style():
        width = width_of(columns)
        cell, longest = (width - 0.7) / len(languages), LETTER * max(map(len, above))
        upright = longest > cell
        height = 0.5 + longest * upright + max(0.9, max(0.3, 0.7 * min(cell, 0.6)) * len(changes))
        figure, axis = pyplot().subplots(figsize=(width, height), layout="constrained")
        axis.imshow(values, vmin=-largest, vmax=largest, cmap="PuOr_r", aspect="auto")
        axis.set_xticks(range(len(languages)), above, rotation=90 if upright else 0)
        axis.set_yticks(range(len(changes)), rows)
        axis.xaxis.tick_top()
        axis.xaxis.set_label_position("top")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(ylabel="switched off", xlabel="change in bits per byte (+ is worse)")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 * largest else "black"
            axis.text(column, row, signed(value), ha="center", va="center", fontsize=min(6, 18 * cell), color=colour)
    return figure


def plot_layers(
    counts: Mapping[str, Mapping[str, np.ndarray]],
    path: str | Path,
    label: str = "neurons",
    *,
    stages: Stages | None = None,
    columns: int = 2,
) -> None:
    """Writes `draw_layers`."""
    write(draw_layers(counts, label, stages=stages, columns=columns), path)


def draw_layers(
    counts: Mapping[str, Mapping[str, np.ndarray]],
    label: str = "neurons",
    *,
    stages: Stages | None = None,
    columns: int = 2,
) -> Figure:
    """Neurons per block, attention and feed-forward apart, one line per set of `plnd.neurons.overlap.layers`.

    Args:
        counts: set to projection to one number per block.
        label: of the vertical axes, which are of one unit and not of one scale.
        stages: N1 and N2, to be marked.
        columns: of the page.
    """
    panels: dict[str, dict[str, np.ndarray]] = {"attention": {}, "feed_forward": {}}
    for name, by_projection in counts.items():
        for title, panel in panels.items():
            parts = [v for p, v in by_projection.items() if (p in ATTENTION_PROJECTIONS) == (title == "attention")]
            panel[name] = np.sum(parts, axis=0) if parts else np.zeros(len(next(iter(by_projection.values()))))
    labels = dict.fromkeys(panels, label)
    figure = draw_lines(panels, labels, stages=stages, columns=columns, from_zero=True, apart=True)
    if all(np.array_equal(line, np.round(line)) for panel in panels.values() for line in panel.values()):
        from matplotlib.ticker import MaxNLocator

        for axis in figure.axes:
            axis.yaxis.set_major_locator(MaxNLocator("auto", integer=True))  # there is no half a neuron
    return figure


def plot_lines(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    path: str | Path,
    label: str | Mapping[str, str],
    *,
    stacked: bool = False,
    places: Sequence[str] | None = None,
    along: str | None = None,
    stages: Stages | None = None,
    passed: bool = False,
    per_row: int | None = None,
    columns: int = 2,
) -> None:
    """Writes `draw_lines`."""
    options: dict[str, Any] = {"stacked": stacked, "places": places, "along": along, "stages": stages, "passed": passed}
    write(draw_lines(panels, label, **options, per_row=per_row, columns=columns), path)


def draw_lines(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    label: str | Mapping[str, str],
    *,
    stacked: bool = False,
    places: Sequence[str] | None = None,
    along: str | None = None,
    stages: Stages | None = None,
    passed: bool = False,
    per_row: int | None = None,
    columns: int = 2,
    from_zero: bool = False,
    apart: bool = False,
) -> Figure:
    """Curves over blocks, side by side in panels; those of one unit have one scale.

    Args:
        panels: title to name to one value per block.
        label: of the vertical axis, or title to label where panels have units of their own.
        stacked: draw the values of a panel as columns on top of each other.
        places: what the values stand for, where not for blocks.
        along: label of the horizontal axis (default: block, or none with `places`).
        stages: N1 and N2, to be marked.
        passed: values stand behind so many blocks, the first one before all of them.
        per_row: panels beside each other (default: as many as fit).
        columns: of the page.
        from_zero: vertical axes begin at zero.
        apart: each panel has a scale of its own.
    """
    labels = dict.fromkeys(panels, label) if isinstance(label, str) else dict(label)
    figure, axes = _grid(len(panels), columns, per_row)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    shown: dict[str, Any] = {}
    with style():
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            below: np.ndarray | float = 0
            for name, values in curves.items():
                n = names.index(name)
                if stacked:
                    shown[name] = axis.bar(range(len(values)), values, bottom=below, width=1, **filling(n))
                    below = below + values
                else:
                    (shown[name],) = axis.plot(values, markevery=1 + len(values) // 20, **look(n))
            axis.set_title(in_words(title), pad=6 if stages is None else 11)
            if places is None:
                axis.xaxis.get_major_locator().set_params(integer=True)
            else:
                axis.set_xticks(range(len(places)), [in_words(place) for place in places])
            if from_zero:
                axis.set_ylim(bottom=0)
            if stages is not None:
                _mark(axis, stages, len(next(iter(curves.values()))) - passed, 0.0 if passed else -0.5)
        _label(axes, list(panels), labels, along or ("block" if places is None else ""), apart)
        _legend(figure, shown, columns)
    return figure


@dataclass(frozen=True)
class Points:
    """Values of one name along a number, with the ends of their intervals; each [points]."""

    along: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plot_points(
    panels: Mapping[str, Mapping[str, Points]],
    path: str | Path,
    label: Mapping[str, str],
    along: str,
    *,
    levels: Mapping[str, float] | None = None,
    level: str = "",
    columns: int = 2,
) -> None:
    """Writes `draw_points`."""
    write(draw_points(panels, label, along, levels=levels, level=level, columns=columns), path)


def draw_points(
    panels: Mapping[str, Mapping[str, Points]],
    label: Mapping[str, str],
    along: str,
    *,
    levels: Mapping[str, float] | None = None,
    level: str = "",
    columns: int = 2,
) -> Figure:
    """Values with intervals along a number on a logarithmic axis, in panels; those of one unit have one scale.

    Args:
        panels: title to name to points; those of one number stand beside each other.
        label: title to what its vertical axis shows.
        along: label of the horizontal axis.
        levels: title to a value that is drawn as a line across.
        level: the name of these.
        columns: of the page.
    """
    figure, axes = _grid(len(panels), columns)
    names = list(dict.fromkeys(name for found in panels.values() for name in found))
    shown: dict[str, Any] = {}
    with style():
        for axis, (title, found) in zip(axes.flat, panels.items(), strict=False):
            if levels is not None:
                shown[level] = axis.axhline(levels[title], color="#000000", linestyle="--", linewidth=0.9)
            ticks: set[float] = set()
            for name, points in found.items():
                n = names.index(name)
                ends = np.abs(np.stack([points.values - points.low, points.high - points.values]))
                beside = 1.0 if len(points.along) > 1 or len(found) == 1 else 1.08**n
                shown[name] = axis.errorbar(
                    points.along * beside, points.values, ends, capsize=1.5, elinewidth=0.7, **look(n)
                )
                ticks |= set(points.along.tolist())
            axis.set_xscale("log")
            axis.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
            axis.set_xticks([], minor=True)
            axis.set_title(in_words(title))
        _label(axes, list(panels), label, along)
        _legend(figure, shown, columns)
    return figure


def plot_bars(
    values: Mapping[str, np.ndarray],
    places: Sequence[str],
    path: str | Path,
    label: str,
    *,
    intervals: Mapping[str, np.ndarray] | None = None,
    columns: int = 2,
) -> None:
    """Writes `draw_bars`."""
    write(draw_bars(values, places, label, intervals=intervals, columns=columns), path)


def draw_bars(
    values: Mapping[str, np.ndarray],
    places: Sequence[str],
    label: str,
    *,
    intervals: Mapping[str, np.ndarray] | None = None,
    columns: int = 2,
) -> Figure:
    """Bars side by side at each place, for what has no order; a colour and a hatching for each name.

    Places with long names stand below each other, the first on top.

    Args:
        values: name to one value per place, [places]; nan leaves a gap.
        places: what the bars are of.
        label: of the values.
        intervals: name to the two ends of each value's interval, [2, places].
        columns: of the page.
    """
    words = [in_words(place) for place in places]
    lying = max(map(len, words)) > 12 or len(places) * len(values) > 24 * columns
    width = 0.8 / len(values)
    across = shortest_rows(map(in_words, values), columns)
    length = 0.13 * len(places) * (len(values) + 1) + 0.9 if lying else 2.1 + 0.16 * -(-len(values) // across)
    with style():
        figure, axis = pyplot().subplots(figsize=(width_of(columns), length), layout="constrained")
        for n, (name, heights) in enumerate(values.items()):
            middle = np.arange(len(places)) + (n - (len(values) - 1) / 2) * width
            draw, draw_ends = (axis.barh, axis.hlines) if lying else (axis.bar, axis.vlines)
            draw(middle, heights, width, label=in_words(name), **filling(n))
            if intervals is not None:
                draw_ends(middle, *intervals[name], color="0.15", linewidth=0.8)
        if lying:
            axis.axvline(0, color="0.25", linewidth=0.6)
            axis.set_yticks(range(len(places)), words)
            axis.invert_yaxis()
            axis.margins(y=0.02)
            axis.set_xlabel(label)
        else:
            axis.axhline(0, color="0.25", linewidth=0.6)
            axis.set_xticks(range(len(places)), words)
            axis.set_ylabel(fill(label, LINE))
        figure.legend(loc="outside lower center", frameon=False, ncols=across)
    return figure


def plot_scatter(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | Path,
    labels: tuple[str, str],
    *,
    columns: int = 2,
) -> None:
    """Writes `draw_scatter`."""
    write(draw_scatter(panels, labels, columns=columns), path)


def draw_scatter(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], labels: tuple[str, str], *, columns: int = 2
) -> Figure:
    """Points on logarithmic axes, side by side in panels of one scale, with lines on which y is 1, 10 and 100 times x.

    Each name has a colour and a marker of its own. What is below `SMALLEST` lies on the edge.

    Args:
        panels: title to name to (x, y).
        labels: of the two axes.
        columns: of the page.
    """
    with style():
        figure, axes = pyplot().subplots(
            1,
            len(panels),
            figsize=(width_of(columns), 0.55 * width_of(columns) + 0.6),
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
                axis.plot(ends, factor * ends, color="0.8", linewidth=0.6, zorder=0)
                axis.annotate(f"{factor}×", (largest / factor, largest), ha="right", va="top", fontsize=6, color="0.4")
            for name, (x, y) in points.items():
                kind = look(names.index(name), line=False)
                shown[name] = axis.scatter(max(x, SMALLEST), max(y, SMALLEST), s=16, **kind)
            axis.set(xscale="log", yscale="log", title=in_words(title), xlabel=labels[0])
            axis.set(xlim=(SMALLEST / 2, largest), ylim=(SMALLEST / 2, largest))
        axes[0][0].set_ylabel(labels[1])
        _legend(figure, shown, columns)
    return figure


@dataclass(frozen=True)
class FrontierPoint:
    """Loss and gain of one method at one budget, with the two ends of their intervals, and a label beside the point."""

    loss: float
    gain: float
    loss_ends: tuple[float, float]
    gain_ends: tuple[float, float]
    label: str = ""


def plot_frontier(
    panels: Mapping[str, Mapping[str, Sequence[FrontierPoint]]],
    path: str | Path,
    labels: tuple[str, str],
    *,
    columns: int = 2,
) -> None:
    """Writes `draw_frontier`."""
    write(draw_frontier(panels, labels, columns=columns), path)


def draw_frontier(
    panels: Mapping[str, Mapping[str, Sequence[FrontierPoint]]], labels: tuple[str, str], *, columns: int = 2
) -> Figure:
    """What methods gain over what they lose, side by side in panels, with intervals: better is up and to the left.

    Args:
        panels: title to name to points, in order; those of one name are joined, and larger ones come later.
        labels: of loss (across) and gain (upwards).
        columns: of the page.
    """
    figure, axes = _grid(len(panels), columns, per_row=2 if columns == 2 else 1)
    figure.set_size_inches(width_of(columns), axes.shape[0] * 3.0 + 0.6)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    shown: dict[str, Any] = {}
    with style():
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
            axis.axvline(0, color="0.8", linewidth=0.6, zorder=0)
            for name, points in curves.items():
                kind = look(names.index(name))
                places = [(point.loss, point.gain) for point in points]
                (shown[name],) = axis.plot(*zip(*places, strict=True), **kind)
                for size, point in enumerate(points):
                    for low, high, draw, at in (
                        (*point.gain_ends, axis.vlines, point.loss),
                        (*point.loss_ends, axis.hlines, point.gain),
                    ):
                        draw(at, low, high, color=kind["color"], linewidth=0.5, alpha=0.6)
                    axis.plot(point.loss, point.gain, color=kind["color"], marker=kind["marker"], markersize=3.5 + size)
                    if point.label:
                        place: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 5.5}
                        axis.annotate(point.label, (point.loss, point.gain), color=kind["color"], **place)
            axis.set_title(in_words(title))
            axis.set_xlabel(labels[0])
            axis.locator_params("x", nbins=5)  # more run into one another below two panels
        for row in axes:
            row[0].set_ylabel(labels[1])
        _legend(figure, shown, columns)
    return figure


def _grid(panels: int, columns: int, per_row: int | None = None) -> tuple[Figure, Any]:
    """A figure of so many panels, in rows; the places behind the last one show no axes."""
    across = min(panels, per_row or (4 if columns == 2 and panels > 6 else 3 if columns == 2 else 1))
    lines = -(-panels // across)
    height = min(2.2, 1.1 + 0.35 * width_of(columns) / across)
    with style():
        figure, axes = pyplot().subplots(
            lines,
            across,
            figsize=(width_of(columns), height * lines + 0.5),
            squeeze=False,
            layout="constrained",
        )
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, axes


def _label(axes: Any, titles: Sequence[str], labels: Mapping[str, str], along: str, apart: bool = False) -> None:
    """One scale for panels of one unit; its name where a row begins or the unit changes."""
    shown = dict(zip(titles, axes.flat, strict=False))
    for unit in dict.fromkeys(labels[title] for title in titles):
        same = [shown[title] for title in titles if labels[title] == unit]
        if not apart:
            low, high = (f(axis.get_ylim()[end] for axis in same) for f, end in ((min, 0), (max, 1)))
            for axis in same:
                axis.set_ylim(low, high)
    across, lines = axes.shape[1], axes.shape[0]
    for n, title in enumerate(titles):
        if n % across == 0 or labels[title] != labels[titles[n - 1]]:
            shown[title].set_ylabel(fill(labels[title], LINE))
        if n + across >= len(titles) or n // across == lines - 1:
            shown[title].set_xlabel(along)


def _mark(axis: Axes, stages: Stages, blocks: int, shift: float) -> None:
    """Lines behind the blocks that understand and before those that generate, their numbers above."""
    places = (("N1", stages[0], stages[0] + shift, "right"), ("N2", stages[1], blocks - stages[1] + shift, "left"))
    for name, count, place, side in places:
        if not 0 < count < blocks:
            continue
        axis.axvline(place, color="0.4", linestyle=(0, (2, 2)), linewidth=0.8, zorder=0, gid="stage")
        above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (0, 1), "textcoords": "offset points"}
        axis.annotate(f"{name} = {count}", (place, 1), **above, ha=side, va="bottom", fontsize=6, color="0.3")


def _legend(figure: Figure, shown: Mapping[str, Any], columns: int) -> None:
    """The names below the picture; none where there is one without a name."""
    words = [in_words(name) for name in shown]
    if words == [""]:
        return
    figure.legend(
        list(shown.values()), words, loc="outside lower center", frameon=False, ncols=shortest_rows(words, columns)
    )
