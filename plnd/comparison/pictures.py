"""Which pictures a comparison makes, and of which numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plnd.comparison.summary import Comparison, summarise
from plnd.plots import Points, plot_points, plot_scatter


def plot_comparison(comparison: Comparison, folder: str | Path) -> None:
    """`arena.png`, own change against the others' of every detector, and `curve-NAME.png` for each curve.

    An interval's end that is infinite (the others lose nothing) is not drawn.
    """
    kinds = list(dict.fromkeys(kind for _, kind in comparison.outcomes))
    panels: dict[str, dict[str, tuple[float, float]]] = {f"{kind} ablation": {} for kind in kinds}
    for (detector, kind), (mean, *_) in comparison.lines.items():
        panels[f"{kind} ablation"][detector] = mean.values["others"][0], mean.values["own"][0]
    plot_scatter(
        panels,
        Path(folder) / "arena.png",
        ("mean change of the others (bits per byte)", "change of the own language (bits per byte)"),
    )
    for name, of in comparison.curves.items():
        curves: dict[str, dict[str, Points]] = {f"{kind} ablation": {} for kind in kinds}
        field, along = _ALONG[name]
        for (detector, kind), points in of.items():
            found = [summarise(outcome, comparison.languages)[0].values["own/others"] for _, outcome in points]
            values, low, high = np.where(np.isfinite(found), found, np.nan).T
            places = np.array([getattr(point, field) for point, _ in points], float)
            curves[f"{kind} ablation"][detector] = Points(places, values, low, high)
        plot_points(curves, Path(folder) / f"curve-{name}.png", dict.fromkeys(curves, "own / others"), along)


_ALONG = {
    "documents": ("documents", "documents"),
    "neurons": ("count", "neurons"),
    "languages": ("others", "other languages"),
}
"""Curve to the field of a point that it is drawn over, and the label of that axis."""
