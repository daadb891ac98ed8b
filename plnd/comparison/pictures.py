"""Which pictures a comparison makes, and of which numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plnd.comparison.summary import Comparison, summarise
from plnd.plots import plot_lines, plot_scatter


def plot_comparison(comparison: Comparison, folder: str | Path) -> None:
    """`arena.png`, own change against the others' of every detector, and `curve-NAME.png` for each curve."""
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
        curves: dict[str, dict[str, np.ndarray]] = {f"{kind} ablation": {} for kind in kinds}
        places: list[str] = []
        for (detector, kind), points in of.items():
            values = [summarise(outcome, comparison.languages)[0].values["own/others"][0] for _, outcome in points]
            curves[f"{kind} ablation"][detector] = np.where(np.isfinite(values), values, np.nan)
            field = {"documents": "documents", "neurons": "count", "languages": "others"}[name]
            places = [str(getattr(point, field)) for point, _ in points]
        along = {"documents": "documents", "neurons": "neurons", "languages": "other languages"}[name]
        plot_lines(curves, Path(folder) / f"curve-{name}.png", "own / others", places=places, along=along)
