"""What blocks decode to, from the counts of `plnd lens`: Figures 1 and 7."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.paper.shown import picture, stages_of
from plnd.errors import PLNDError
from plnd.io.files import write_csv
from plnd.logit_lens.lens import LensCounts, english_name, is_foreign, load_lens, mean_of_words
from plnd.plot_style import in_words
from plnd.plots import plot_lines


def lens_of(args: argparse.Namespace) -> dict[str, list[LensCounts]]:
    """What `plnd lens --csv` wrote, by model and identifier; titles name the model where there are several."""
    found: dict[tuple[str, str], list[LensCounts]] = {}
    for path in args.inputs:
        for counts in load_lens(path):
            found.setdefault((counts.model, counts.identifier), []).append(counts)
    several = len({model for model, _ in found}) > 1
    return {f"{Path(m).name}, by {i}" if several else f"by {i}": counts for (m, i), counts in found.items()}


def print_lens(args: argparse.Namespace, places: Sequence[str], panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Prints and writes curves over blocks, in per cent."""
    for title, curves in panels.items():
        print(f"{title}, %\n{'block':<12}" + "".join(f"{name:>18}" for name in curves))
        for block, values in zip(places, zip(*curves.values(), strict=True), strict=True):
            print(f"{block:<12}" + "".join(f"{value:>18.1f}" for value in values))
    rows = [
        (title, name, block, float(value))
        for title, curves in panels.items()
        for name, values in curves.items()
        for block, value in zip(places, values, strict=True)
    ]
    write_csv(f"{args.output}.csv", ("panel", "curve", "block", "percent"), rows)


def draw_lens(
    args: argparse.Namespace, panels: Mapping[str, Mapping[str, np.ndarray]], per_row: int | None = None
) -> None:
    """Draws curves over blocks, in per cent; N1 and N2 are marked where they are given."""
    options: dict[str, Any] = {"along": "blocks passed", "passed": True, "columns": args.columns}
    options["stages"] = stages_of(args)
    plot_lines(panels, picture(args), "share (%)", per_row=per_row if args.columns == 2 else None, **options)


def figure1(args: argparse.Namespace) -> None:
    """English and other languages decoded at each block from non-English documents: Figure 1.

    Inputs are what `plnd lens --csv` wrote. Drawn is a panel for each language of each model, a row a model, of which
    the paper has two rows of four: of the words that are decoded, the share of English and that of all others. The
    table begins, for each model, with their mean over the documents' languages, and goes on with each language, its
    other words and non-words too.
    """
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    shown: dict[str, Mapping[str, np.ndarray]] = {}
    per_row = 1
    for title, counts in lens_of(args).items():
        foreign = [one for one in counts if is_foreign(one)]
        name = english_name(counts[0].identifier)
        if foreign:
            english = 100 * mean_of_words(counts)
            panels[f"words, mean, {title}"] = {name: english, f"not {name}": 100 - english}
        for one in counts:
            panels[f"{one.language}, {title}"] = {name: 100 * share for name, share in one.shares().items()}
        among = {"en", *(one.language for one in foreign)}
        for one in foreign:
            english = 100 * one.share_of_words("en", among)
            shown[f"{in_words(one.language)}, {title}"] = {name: english, f"not {name}": 100 - english}
        per_row = max(per_row, min(4, len(foreign)))
        places = counts[0].blocks
    print_lens(args, places, panels)
    draw_lens(args, shown or panels, per_row)


def figure7(args: argparse.Namespace) -> None:
    """English, the language that the model may think in, and the others, decoded at each block: Figure 7.

    Inputs are what `plnd lens --csv` wrote. Shares of the words of English and of the documents' languages, mean over
    the documents' languages.
    """
    panels = {}
    for title, counts in lens_of(args).items():
        if not is_foreign(replace(counts[0], language=args.language)):
            raise PLNDError(f"--language {args.language}: not told from English {title}")
        english, thought = (100 * mean_of_words(counts, language) for language in ("en", args.language))
        name = english_name(counts[0].identifier)
        panels[f"words, mean, {title}"] = {name: english, args.language: thought, "others": 100 - english - thought}
        places = counts[0].blocks
    print_lens(args, places, panels)
    draw_lens(args, panels)
