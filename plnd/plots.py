"""Pictures of the analyses; the only module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plnd.artifacts import write_bytes
from plnd.errors import PLNDError
from plnd.families import ATTENTION_PROJECTIONS


def plot_overlap(matrices: Mapping[str, np.ndarray], names: Sequence[str], path: str | Path) -> None:
    """One heat map per structure of `plnd.analysis.overlap`, side by side; the suffix of `path` sets the format."""
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
    _save(figure, path)


def plot_layers(counts: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """Neurons per block, attention and feed-forward apart, one line per set of `plnd.analysis.layers`."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), sharex=True, layout="constrained")
    for axis, title in zip(axes, ("attention", "feed-forward"), strict=True):
        for name, by_projection in counts.items():
            total = sum(v for p, v in by_projection.items() if (p in ATTENTION_PROJECTIONS) == (title == "attention"))
            axis.plot(total, marker="o", markersize=3, label=name)
        axis.set_title(title)
        axis.set_xlabel("block")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("neurons")
    axes[1].legend(frameon=False)
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise PLNDError("plots need matplotlib: pip install 'plnd[plots]'") from None
    return plt


def _save(figure: Any, path: str | Path) -> None:
    buffer = io.BytesIO()
    kind = Path(path).suffix.lstrip(".") or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise PLNDError(f"{path}: plots cannot be written as {kind!r}; use .png, .svg or .pdf")
    figure.savefig(buffer, format=kind, dpi=150)
    _pyplot().close(figure)
    write_bytes(buffer.getvalue(), path)
