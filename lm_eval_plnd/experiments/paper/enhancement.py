"""What training neurons changes: Figure 4 and Table 6."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.changes import Folder
from lm_eval_plnd.experiments.enhancement import TUNED, sizes
from lm_eval_plnd.experiments.gains import Gain, gain
from lm_eval_plnd.experiments.paper.shown import STAR, digits, picture, unit
from lm_eval_plnd.experiments.results import BITS, TEXT, read_json
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.io.files import write_csv
from plnd.numbers import signed
from plnd.plot_style import in_words
from plnd.plots import Points, plot_bars, plot_points

GAINS = (
    "item,metric,state,documents,in,languages,items,parameters,seeds,original,value,change,low,high,p,sd_of_seeds"
).split(",")


def parameters_of(folder: Folder, state: str, documents: int, languages: Sequence[str]) -> float:
    """Parameters that were trained, the mean over languages."""
    seed = folder.settings.seeds[0]
    names = [f"tuned.{x}.{documents}.r{seed}.{state}" for x in languages]
    return float(np.mean([read_json(folder.path / TUNED / name / "training.json")["parameters"] for name in names]))


def gain_row(folder: Folder, item: str, metric: str, state: str, documents: int, where: str, found: Gain) -> list[Any]:
    """A gain as the CSV has it, in the order of `GAINS`."""
    spread = float(np.std(found.draws, ddof=1)) if len(found.draws) > 1 else ""
    trained = parameters_of(folder, state, documents, found.languages)
    moved = found.change
    numbers = [found.original, found.value, moved.value, moved.low, moved.high, moved.p, spread]
    about = [item, metric, state, documents, where, "+".join(found.languages), "+".join(found.items)]
    return [*about, trained, len(found.draws), *numbers]


def averaged_items(folder: Folder, name: str) -> dict[str, list[str]]:
    """The items of Figure 4 or Table 6 by their names: each alone, the average of those in per cent, the text last."""
    items = folder.items(name)
    known = set(folder.metrics)
    percent = [item for item in items if item in known and folder.metrics[item] != BITS]
    bits = [item for item in dict.fromkeys([*items, TEXT]) if item in known and folder.metrics[item] == BITS]
    groups = {item: [item] for item in percent}
    if len(percent) > 1:
        groups["average"] = percent
    return groups | {item: [item] for item in bits}


def figure4(args: argparse.Namespace) -> None:
    """What training a language's neurons on a few hundred documents changes, by benchmark: Figure 4.

    Scores of the trained models, each in its own language and in English, averaged over the languages; as many random
    neurons, LoRA and full training are on the paper's 400 documents (`enhancement.compared`). Drawn are changes from
    the original, with their 95 % intervals, so that all benchmarks are on one scale.
    """
    folder = Folder(args.inputs[0])
    settings, rows = folder.settings, []
    languages = settings.enhanced("figure4")
    groups = averaged_items(folder, "figure4")
    for english, where in ((False, "its own language"), (True, "English")):
        panels: dict[str, dict[str, Points]] = {}
        labels, levels = {}, {}
        for title, items in groups.items():
            metric = folder.metrics[items[0]] if len(items) == 1 else "%"
            panels[title] = {}
            print(f"{title}, {where} ({unit(metric)})")
            print(f"  {'trained':<10}{'documents':>10}{'score':>9}{'change':>9}{'95 % interval':>19}{'p':>8}")
            for state in settings.enhancement.states:
                numbers = sizes(settings, "figure4", state)
                found = [gain(folder, items, state, number, languages, english=english) for number in numbers]
                for number, one in zip(numbers, found, strict=True):
                    print(gain_line(f"{state:<10}{number:>10}", one, metric))
                    rows.append(gain_row(folder, title, metric, state, number, where, one))
                parts = [[getattr(one.change, end) for one in found] for end in ("value", "low", "high")]
                panels[title][state] = Points(np.array(numbers, dtype=float), *map(np.array, parts))
            levels[title] = 0.0
            labels[title] = (
                "change of bits per byte (less is better)" if metric == BITS else "change of score (points of %)"
            )
            print(f"  {'original':<20}{found[0].original:>9.{digits(metric)}f}\n")
        path = picture(args, "english" if english else "")
        options: dict[str, Any] = {"levels": levels, "level": "original model", "columns": args.columns}
        plot_points(panels, path, labels, "documents trained on", **options)
    write_csv(f"{args.output}.csv", GAINS, rows)


def gain_line(label: str, found: Gain, metric: str) -> str:
    """A gain as one line of text."""
    places, moved = digits(metric), found.change
    interval = f"[{signed(moved.low, places)}, {signed(moved.high, places)}]"
    return f"  {label}{found.value:>9.{places}f}{signed(moved.value, places):>9}{interval:>19}{moved.p:>8.2g}"


def table6(args: argparse.Namespace) -> None:
    """Low-resource languages after training on a few hundred documents, averaged over benchmarks: Table 6.

    A row for each state, a column for each language's own model, and English as the mean over these models. The average
    is over the benchmarks in per cent that a language has; text, in bits per byte, and each benchmark alone follow.
    """
    folder = Folder(args.inputs[0])
    settings, rows, tables = folder.settings, [], []
    documents, english = settings.enhancement.compared, settings.english
    groups = averaged_items(folder, "table6")
    for title in sorted(groups, key=lambda title: title != "average"):
        items = groups[title]
        metric = folder.metrics[items[0]] if len(items) == 1 else "%"
        languages = [x for x in settings.enhanced("table6") if any(x in settings.languages_of(i) for i in items)]
        if not languages:
            continue
        chosen = {english: (languages, True), **{x: ([x], False) for x in languages}}
        found = {
            state: {x: gain(folder, items, state, documents, of, english=e) for x, (of, e) in chosen.items()}
            for state in settings.enhancement.states
        }
        print(f"{title} ({unit(metric)}), {documents} documents")
        print(f"{'':<18}" + "".join(f"{x:>9}" for x in chosen))
        originals = next(iter(found.values()))
        texts = [["original", *(f"{one.original:.{digits(metric)}f}" for one in originals.values())]]
        print(f"{'original':<18}" + "".join(f"{one.original:>8.{digits(metric)}f} " for one in originals.values()))
        for state, by_language in found.items():
            values = [
                f"{g.value:>8.{digits(metric)}f}{'*' if g.change.p < 0.05 else ' '}" for g in by_language.values()
            ]
            print(f"{in_words(state):<18}" + "".join(values))
            texts.append([in_words(state), *map(str.strip, values)])
            for x, one in by_language.items():
                rows.append(gain_row(folder, title, metric, state, documents, x, one))
        print()
        bars = {"original model": np.array([one.original for one in originals.values()])}
        ends = {"original model": np.stack([bars["original model"]] * 2)}
        for state, by_language in found.items():
            bars[state] = np.array([one.value for one in by_language.values()])
            parts = (
                [one.original + getattr(one.change, end) for one in by_language.values()] for end in ("low", "high")
            )
            ends[state] = np.array(list(parts))
        label = "bits per byte (less is better)" if metric == BITS else f"{in_words(title)}, score (%)"
        plot_bars(bars, list(chosen), picture(args, title), label, intervals=ends, columns=args.columns)
        tables.append(Shown(f"{title} ({unit(metric)}), {documents} documents, {STAR}", ("trained", *chosen), texts))
    print(STAR)
    write_tables(args.output, GAINS, rows, tables)
