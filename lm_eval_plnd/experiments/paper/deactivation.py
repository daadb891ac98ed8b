"""What switching neurons off changes: Tables 1 to 5, 10 to 15, and two of the later appendix."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lm_eval_plnd.experiments.changes import Folder, estimate
from lm_eval_plnd.experiments.conditions import BEST, REGIONS, Setting
from lm_eval_plnd.experiments.conditions import by_region as row_of
from lm_eval_plnd.experiments.paper.comparison import Line, compared, draw
from lm_eval_plnd.experiments.paper.shown import NOTE, ablated, digits, picture, unit, unit_of
from lm_eval_plnd.experiments.results import TEXT
from lm_eval_plnd.experiments.settings import OVERLAPPING, TABLES
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.plot_style import in_words
from plnd.plots import plot_bars
from plnd.statistics import ratio_error

Run = Callable[[argparse.Namespace], None]
PARTS = {"under": ("under",), "s-attn": ("solve", "solve_attn"), "s-ffn": ("solve", "solve_ffn"), "gen": ("gen",)}
"""Columns of Tables 2 to 5, and the regions that switch them off."""


def marks(region: str) -> tuple[str, ...]:
    """✗ for each part that a region switches off, ✓ for the others, as the paper prints them."""
    regions = region.split("+") if region else ["under", "solve", "gen"]
    return tuple("✗" if any(name in regions for name in names) else "✓" for names in PARTS.values())


def by_region(table: str) -> Run:
    """Table 2, 3, 4 or 5."""

    def run(args: argparse.Namespace) -> None:
        folder = Folder(args.inputs[0])
        items, rows = folder.items(table), REGIONS[table]
        lines = [
            Line(
                (*marks(region), f"{kind} random" if random else kind),
                row_of(folder.settings, table, kind, region),
                random,
            )
            for kind in folder.settings.neurons
            for name, random in (("random", True), ("own", False))
            for region in rows[name]
        ]
        head = ("Under", "S-ATTN", "S-FFN", "Gen", "switched off")
        found = compared(args, folder, items, head, lines, folder.settings.others)
        several = len(folder.settings.neurons) > 1
        names = [
            (f"{in_words(line.template.neurons)}: " * several)
            + (in_words(line.template.region) if line.template.region else "all blocks")
            + ", random" * line.random
            for line in lines
        ]
        draw(args, folder, names, found)

    run.__doc__ = f"""ΔEng, Δn-Eng and Δ of the {TABLES[table]} task, by region: Table {table[5:]}.

    ΔEng and Δn-Eng are changes from the original model, so that a loss is negative; Δ = ΔEng − Δn-Eng is high where
    English is spared and the language whose neurons are off is not. Bits per byte, of which less is better, stand
    beside it, with Δ's sign turned. `--details` prints every language (Tables 12 to 15).
    """
    return run


def overlapping(table: str, words: str) -> Run:
    """Table 8 or 9 of the later appendix, on language-agnostic neurons."""

    def run(args: argparse.Namespace) -> None:
        folder = Folder(args.inputs[0])
        kinds = {"all": "all neurons of the language", OVERLAPPING[table]: f"without those {words}"}
        lines = [Line((label,), Setting((), kind, region=BEST)) for kind, label in kinds.items()]
        found = compared(args, folder, folder.items(table), ("switched off",), lines, folder.settings.others)
        draw(args, folder, list(kinds.values()), found)

    run.__doc__ = (
        f"""A language's neurons against those {words}, all but S-ATTN off: Table {table[-1]} of the later appendix."""
    )
    return run


def table10(args: argparse.Namespace) -> None:
    """The search of N1 and N2 on a validation task: Tables 10 and 11 (one for each model).

    The paper takes the numbers with which English suffers least and the language most: those of the highest Δ.
    """
    folder = Folder(args.inputs[0])
    items, search = folder.items("table10"), folder.settings.search
    assert search is not None, "the settings were checked"
    kinds = folder.settings.neurons
    lines = [
        Line((kind, f"{name} {n}"), Setting((), kind, region=f"{part}={n}"))
        for kind in kinds
        for part, name, values in (("under", "N1", search.under), ("gen", "N2", search.gen))
        for n in values
    ]
    found = compared(args, folder, items, ("switched off", "blocks"), lines, [search.language])
    for item, changes in found.items():
        for kind in kinds:
            best = []
            for name in ("N1", "N2"):
                here = {
                    line.label[1]: moved.delta.value
                    for line, moved in zip(lines, changes, strict=True)
                    if line.label[0] == kind and line.label[1].startswith(name)
                }
                equal = len(here) > 1 and len(set(here.values())) == 1
                best.append(f"{name}: all equal" if equal else max(here, key=here.__getitem__).replace(" ", " = "))
            print(f"{item}, {kind}: highest Δ with {', '.join(best)}")
    draw(args, folder, [" ".join(line.label) for line in lines], found)


def table1(args: argparse.Namespace) -> None:
    """Each language without its own neurons, and without as many random ones: Table 1.

    The average is over the languages that are not English.
    """
    folder = Folder(args.inputs[0])
    kinds = {"specific": "language-specific", "all": "all of the language"}
    kinds = {kind: label for kind, label in kinds.items() if kind in folder.settings.kinds}
    lines = [Line(("original",), Setting(()))]
    for kind, label in kinds.items():
        lines.append(Line((f"random, as many as {label}",), Setting((), kind), True))
        lines.append(Line((label,), Setting((), kind)))
    header = ("item,metric,switched off,language,neurons,draws,value,stderr,change,low,high,p").split(",")
    rows = []
    items = folder.items("table1")
    pictures: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    shown = []
    for item in [*items, *([TEXT] if TEXT in folder.settings.tasks and TEXT not in items else [])]:
        languages, metric = folder.settings.languages_of(item), folder.metrics[item]
        places = digits(metric)
        averaged = [x for x in languages if x != folder.settings.english]
        title = f"{item}: {metric} ({unit(metric)}) of {folder.settings.tasks[item].task}{ablated(folder.settings)}"
        print(title)
        print(f"{'':<40}" + "".join(f"{x:>16}" for x in (*languages, "average")))
        texts: list[list[str]] = []
        means, intervals = pictures[item] = {}, {}
        for line in lines:
            written, middle, errors = [], [], []
            for x in languages:
                draws = [line.template]
                if line.template.neurons != "none":
                    draws = folder.draws(replace(line.template, language=x), line.random)
                values = np.mean([folder.documents(draw, item, x) for draw in draws], axis=0)
                lengths = folder.lengths(item, x)
                moved = estimate([(1.0, values - folder.documents(Setting(()), item, x), lengths)])
                stderr = ratio_error(values, lengths)
                star = "*" if line.template.neurons != "none" and moved.p < 0.05 else " "
                written.append(f"{values.mean():.{places}f} ±{stderr:.{places}f}{star}")
                middle.append(float(values.mean()))
                errors.append(stderr)
                neurons = folder.deactivated(draws)
                tail = (
                    ["", "", "", ""]
                    if line.template.neurons == "none"
                    else [moved.value, moved.low, moved.high, moved.p]
                )
                rows.append([item, metric, *line.label, x, neurons, len(draws), middle[-1], stderr, *tail])
            average = float(np.mean([value for x, value in zip(languages, middle, strict=True) if x in averaged]))
            print(f"{line.label[0]:<40}" + "".join(f"{cell:>16}" for cell in (*written, f"{average:.{places}f}  ")))
            texts.append([*line.label, *map(str.strip, written), f"{average:.{places}f}"])
            means[line.label[0]] = np.array(middle)
            intervals[line.label[0]] = np.array([np.subtract(middle, errors), np.add(middle, errors)])
        print()
        shown.append(Shown(f"{title}, {NOTE}", ("switched off", *languages, "average"), texts))
    print(NOTE)
    write_tables(args.output, header, rows, shown)
    for item, (means, intervals) in pictures.items():
        languages, label = folder.settings.languages_of(item), f"{unit_of(folder, item)}, ± standard error"
        plot_bars(means, languages, picture(args, item), label, intervals=intervals, columns=args.columns)
