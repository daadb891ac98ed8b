"""What items have in common: where a picture goes, units, decimal places, notes, the stages of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_plnd.experiments.changes import Folder
from lm_eval_plnd.experiments.results import BITS, SETTINGS, less_is_better
from lm_eval_plnd.experiments.settings import Settings, load_settings
from plnd.errors import PLNDError
from plnd.plot_style import in_words

STAR = "*: p < 0.05 against the original, by paired permutation of documents"
NOTE = f"±: standard error over documents; {STAR}"


def picture(args: argparse.Namespace, name: str = "") -> Path:
    """Where a picture goes: --plot, or beside the table; of several, the name is in it."""
    path = Path(args.plot or f"{args.output}.svg")
    return path.with_name(f"{path.stem}_{name}{path.suffix}") if name else path


def stages_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """N1 and N2: those given, else those of an experiment's folder; None if nobody says."""
    if (args.under is None) != (args.gen is None):
        raise PLNDError("--under N1 and --gen N2 are given together")
    if args.under is not None:
        return args.under, args.gen
    folders = [Path(name) for name in args.inputs if (Path(name) / SETTINGS).is_file()]
    regions = load_settings(folders[0] / SETTINGS).regions if folders else None
    return None if regions is None else (regions.under, regions.gen)


def ablated(settings: Settings) -> str:
    """What a title says of neurons that are not switched off but at their means."""
    return "; neurons at their means in place of zero" if settings.ablation == "mean" else ""


def digits(metric: str) -> int:
    """Decimal places that a metric is shown with."""
    return 3 if metric == BITS else 1


def unit(metric: str) -> str:
    """What a metric is shown in, and whether less of it is better."""
    return ", ".join([*(["%"] if metric != BITS else []), *(["less is better"] if less_is_better(metric) else [])])


def unit_of(folder: Folder, item: str) -> str:
    """An item's metric in words, with its unit, and where less is better."""
    metric = folder.metrics[item]
    return f"{in_words(item)}: {in_words(metric)} ({unit(metric)})"
