"""The small multilingual model and the parallel corpus inside the package (README, «The demo»)."""

from __future__ import annotations

from pathlib import Path


def demo_model() -> Path:
    """Folder of the small multilingual model inside the package (README, «The demo»)."""
    return Path(__file__).parent / "data" / "polyglot-9m"


def demo_corpus(half: str) -> Path:
    """Folder of the small parallel corpus inside the package, as task data: `detect` or `evaluate`."""
    return Path(__file__).parent / "data" / "corpus" / half
