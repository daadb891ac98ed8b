"""The small multilingual model and the parallel corpus inside the package (README, «The demo»)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGE = "plnd:"
"""Begins paths inside the package's folder of data, in settings of experiments and nowhere else."""


def demo_model() -> Path:
    """Folder of the small multilingual model inside the package (README, «The demo»)."""
    return Path(__file__).parent / "data" / "polyglot-9m"


def demo_corpus(half: str) -> Path:
    """Folder of the small parallel corpus inside the package, as task data: `detect` or `evaluate`."""
    return Path(__file__).parent / "data" / "corpus" / half


def expand(value: Any) -> Any:
    """A value with paths inside the package in place of `plnd:…`, also within mappings and lists."""
    if isinstance(value, dict):
        return {key: expand(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner) for inner in value]
    if isinstance(value, str) and value.startswith(PACKAGE):
        return str(demo_model().parent / value.removeprefix(PACKAGE))
    return value


def settings_only(name: str) -> str | None:
    """Why a path inside the package, `plnd:…`, cannot be given outside the settings of experiments; else None."""
    place = expand(name)
    if place == name or not Path(place).exists():  # a data set may lie in a folder that is called plnd
        return None
    return f"{name}: paths with {PACKAGE} are for settings of experiments, expected the path itself: {place}"
