"""Every table and figure of the PLND paper (arXiv:2402.18815), each one command.

    plnd experiment demo --output demo-experiment
    python scripts/plnd_paper.py table2 demo-experiment --output table2

prints the table and writes `table2.csv`, `table2.md` and `table2.tex` and, where there is something to draw,
`table2.svg`, or --plot FILE.pdf or .png, as wide as one column of a paper's page or two (--columns). Tables read the
folder that `plnd experiment` left behind and cost a read; figures read its neurons, or neurons artifacts named one by
one. docs/papers.md has the command of each.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.changes import Change, Folder, change, estimate
from lm_eval_plnd.experiments.conditions import BEST, REGIONS, Setting
from lm_eval_plnd.experiments.conditions import by_region as row_of
from lm_eval_plnd.experiments.enhancement import TUNED, sizes
from lm_eval_plnd.experiments.gains import Gain, gain
from lm_eval_plnd.experiments.report.note import write_note
from lm_eval_plnd.experiments.results import BITS, NEURONS, SETTINGS, TEXT, less_is_better, read_json
from lm_eval_plnd.experiments.run import load_tasks
from lm_eval_plnd.experiments.settings import OVERLAPPING, TABLES, TWICE, load_settings
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.commands.shared import print_warning
from plnd.demo_data import expand
from plnd.detection.active import mean_active
from plnd.detection.config import DetectConfig
from plnd.detection.stability import measure_stability
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.io.files import write_csv
from plnd.logit_lens.lens import LensCounts, english_name, is_foreign, load_lens, mean_of_words
from plnd.logit_lens.vocabulary import coverage, tokens, words
from plnd.models.loading import load_model, load_tokenizer
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.overlap import STRUCTURES, layers, overlap
from plnd.neurons.scores import Scores
from plnd.plot_style import check_plot, in_words
from plnd.plots import Points, plot_bars, plot_layers, plot_lines, plot_overlap, plot_points
from plnd.statistics import ratio_error

Run = Callable[[argparse.Namespace], None]


def neurons_of(inputs: Sequence[str]) -> dict[str, NeuronSet]:
    """Neuron sets by name: those of files, or in a folder of `plnd experiment` each language's, all of them."""
    files: list[Path] = []
    for name in map(Path, inputs):
        if not name.is_dir():
            files.append(name)
            continue
        languages = load_settings(name / SETTINGS).languages
        found = [name / NEURONS / f"{language}.all.safetensors" for language in languages]
        files += [file for file in found if file.exists()]
    if not files:
        raise PLNDError(f"{' '.join(inputs)}: no neurons in it; `plnd experiment` or `plnd select` writes them")
    return {file.name.partition(".")[0]: NeuronSet.load(file) for file in files}


def figure3(args: argparse.Namespace) -> None:
    """Language neurons of each block, attention and feed-forward: Figure 3.

    With --queries those that are active in a query, averaged over queries, as the paper draws them: neurons that do in
    this query what the set's rule asks of every document. Beside them, and without --queries alone, how many neurons
    the set has. From a folder of `plnd experiment` N1 and N2 are marked.
    """
    sets = neurons_of(args.inputs)
    kinds = {"neurons": {name: layers(neurons) for name, neurons in sets.items()}}
    if args.queries:
        kinds = {"active": active_of(args, sets), **kinds}
    rows = [
        (name, projection, block, *(of[name][projection][block].item() for of in kinds.values()))
        for name, by_projection in kinds["neurons"].items()
        for projection, values in by_projection.items()
        for block in range(len(values))
    ]
    for kind, counts in kinds.items():
        print("active in a query, mean" if kind == "active" else "neurons of the set")
        for name, by_projection in counts.items():
            print(name)
            for projection, values in by_projection.items():
                if values.any():
                    print(
                        f"  {projection:<10}"
                        + "".join(f"{v:>7,.1f}" if kind == "active" else f"{v:>7,}" for v in values)
                    )
    write_csv(f"{args.output}.csv", ("language", "projection", "block", *kinds), rows)
    stages, shown = stages_of(args), {"active": "neurons active in a query", "neurons": "neurons of the set"}
    for kind, counts in kinds.items():
        path = picture(args, "" if kind == next(iter(kinds)) else "set")
        plot_layers(counts, path, shown[kind], stages=stages, columns=args.columns)


def stages_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """N1 and N2: those given, else those of an experiment's folder; None if nobody says."""
    if (args.under is None) != (args.gen is None):
        raise PLNDError("--under N1 and --gen N2 are given together")
    if args.under is not None:
        return args.under, args.gen
    folders = [Path(name) for name in args.inputs if (Path(name) / SETTINGS).is_file()]
    regions = load_settings(folders[0] / SETTINGS).regions if folders else None
    return None if regions is None else (regions.under, regions.gen)


def active_of(args: argparse.Namespace, sets: Mapping[str, NeuronSet]) -> dict[str, dict[str, np.ndarray]]:
    """Language to projection to neurons active in a query, [blocks], of an experiment's folder."""
    folder = Path(args.inputs[0])
    if len(args.inputs) > 1 or not (folder / SETTINGS).is_file():
        raise PLNDError("--queries needs one folder of `plnd experiment`, which has the scores beside the neurons")
    settings = load_settings(folder / SETTINGS)
    if "{language}" not in args.queries:
        raise PLNDError(f"--queries {args.queries}: expected {{language}} in it, for a corpus of each language")
    name, source = expand(settings.model["pretrained"]), {"revision": settings.model.get("revision")}
    source["trust_remote_code"] = settings.model.get("trust_remote_code", False)
    dtype, device = settings.model.get("dtype", "auto"), settings.model.get("device")
    model, tokenizer = load_model(name, dtype=dtype, device=device, **source), load_tokenizer(name, **source)
    found = {}
    for language, neurons in sets.items():
        scores = Scores.load(folder / NEURONS / f"{language}.scores.safetensors")
        options = {**settings.detection_of(language), "max_documents": args.max_documents}
        config = DetectConfig(language=language, **options)
        queries = read_documents(args.queries.replace("{language}", language))
        found[language] = mean_active(model, queries, neurons, scores, config, tokenizer=tokenizer, progress=True)
    return found


def picture(args: argparse.Namespace, name: str = "") -> Path:
    """Where a picture goes: --plot, or beside the table; of several, the name is in it."""
    path = Path(args.plot or f"{args.output}.svg")
    return path.with_name(f"{path.stem}_{name}{path.suffix}") if name else path


def figure5(args: argparse.Namespace) -> None:
    """overlap(x, y) = |x ∩ y| / |y| for attention and feed-forward (eq. 11): Figures 5 and 6."""
    sets = neurons_of(args.inputs)
    matrices: Mapping[str, np.ndarray] = {structure: overlap(sets, structure) for structure in STRUCTURES}
    rows = [
        (structure, x, y, float(value))
        for structure, matrix in matrices.items()
        for x, row in zip(sets, matrix, strict=True)
        for y, value in zip(sets, row, strict=True)
    ]
    for structure, matrix in matrices.items():
        print(f"{structure.replace('_', '-'):<14}" + "".join(f"{y:>8}" for y in sets))
        for x, row in zip(sets, matrix, strict=True):
            print(f"{x:<14}" + "".join(f"{'–' if np.isnan(value) else format(value, '.3f'):>8}" for value in row))
    write_csv(f"{args.output}.csv", ("structure", "x", "y", "overlap"), rows)
    shown = {name: matrices[name] for name in STRUCTURES[1:]}
    plot_overlap(shown, list(sets), picture(args), columns=args.columns)


@dataclass(frozen=True)
class Line:
    """One row of a table: what is written before its numbers, and what was switched off."""

    label: tuple[str, ...]
    template: Setting
    random: bool = False


FIELDS = (
    "neurons,draws,english,others,"
    "delta_english,delta_english_low,delta_english_high,delta_english_p,"
    "delta_others,delta_others_low,delta_others_high,delta_others_p,"
    "delta,delta_low,delta_high,delta_p,delta_sd_of_draws"
).split(",")


def numbers_of(found: Change) -> list[Any]:
    """A change as the CSV has it, in the order of `FIELDS`."""
    estimates = [v for e in (found.of_english, found.of_others, found.delta) for v in (e.value, e.low, e.high, e.p)]
    spread = float(np.std(found.draws, ddof=1)) if len(found.draws) > 1 else ""
    return [found.deactivated, len(found.draws), found.english, found.others, *estimates, spread]


def compared(
    args: argparse.Namespace,
    folder: Folder,
    items: Sequence[str],
    head: Sequence[str],
    lines: Sequence[Line],
    languages: Sequence[str],
) -> dict[str, list[Change]]:
    """Prints and writes a table of ΔEng, Δn-Eng and Δ, for each item and beside it the text; returns its numbers.

    With `--details` the languages of each row are printed as well (Tables 12 to 15).
    """
    written, shown, found = [], [], {}
    beside = [TEXT] if TEXT in folder.settings.tasks and TEXT not in items else []
    for item in [*items, *beside]:
        changes = [change(folder, item, line.template, line.random, languages) for line in lines]
        found[item] = changes
        title = title_of(folder, item, languages)
        print(title)
        width = [max(map(len, column)) for column in zip(head, *(line.label for line in lines), strict=True)]
        print("  ".join(f"{h:<{w}}" for h, w in zip(head, width, strict=True)) + in_line(tuple(WIDTHS)))
        for line, moved in zip(lines, changes, strict=True):
            label = "  ".join(f"{text:<{w}}" for text, w in zip(line.label, width, strict=True))
            print(label + in_line(cells(moved, folder.metrics[item])))
            written.append([item, folder.metrics[item], *line.label, *numbers_of(moved)])
        texts = [[*line.label, *cells(moved, folder.metrics[item])] for line, moved in zip(lines, changes, strict=True)]
        shown.append(Shown(title.replace("\n", "; "), (*head, *WIDTHS), texts, len(head)))
        if args.details:
            print_details(folder, item, lines, changes)
        print()
    write_tables(args.output, ("item", "metric", *(h.lower() for h in head), *FIELDS), written, shown)
    if args.details:
        write_details(args, folder, head, lines, found)
    return found


def title_of(folder: Folder, item: str, languages: Sequence[str]) -> str:
    """What is measured, and what the original model has."""
    metric, english = folder.metrics[item], folder.settings.english
    languages = [x for x in languages if x in folder.settings.languages_of(item)]
    scores = {x: folder.documents(Setting(()), item, x) for x in (english, *languages)}
    task = folder.settings.tasks[item].task
    sizes = "/".join(map(str, dict.fromkeys(len(values) for values in scores.values())))
    original = "  ".join(f"{x} {values.mean():.{digits(metric)}f}" for x, values in scores.items())
    unit = _unit(metric)
    return f"{item}: {metric} ({unit}) of {task}, {sizes} documents a language\noriginal: {original}"


def _unit(metric: str) -> str:
    """What a metric is shown in, and whether less of it is better."""
    return ", ".join([*(["%"] if metric != BITS else []), *(["less is better"] if less_is_better(metric) else [])])


def digits(metric: str) -> int:
    """Decimal places that a metric is shown with."""
    return 3 if metric == BITS else 1


WIDTHS = {
    "neurons": 9,
    "Eng": 8,
    "n-Eng": 8,
    "ΔEng": 9,
    "Δn-Eng": 9,
    "Δ": 9,
    "95 % interval of Δ": 23,
    "p": 8,
    "draws": 7,
}
"""Columns of a table behind what was switched off, and how wide they are on the screen."""


def cells(moved: Change, metric: str) -> list[str]:
    """A change as the columns of `WIDTHS` show it; behind the number of draws what they scatter."""
    places = digits(metric)
    scores = [f"{value:.{places}f}" for value in (moved.english, moved.others)]
    changes = [f"{e.value:+.{places}f}" for e in (moved.of_english, moved.of_others, moved.delta)]
    interval = f"[{moved.delta.low:+.{places}f}, {moved.delta.high:+.{places}f}]"
    scatter = f" ±{np.std(moved.draws, ddof=1):.{places}f}" if len(moved.draws) > 1 else ""
    return [
        f"{moved.deactivated:,.0f}",
        *scores,
        *changes,
        interval,
        f"{moved.delta.p:.2g}",
        f"{len(moved.draws)}{scatter}",
    ]


def in_line(texts: Sequence[str]) -> str:
    """The columns of `WIDTHS` in one line."""
    return "".join(f"{text:>{width}}" for text, width in zip(texts, WIDTHS.values(), strict=True))


def print_details(folder: Folder, item: str, lines: Sequence[Line], changes: Sequence[Change]) -> None:
    """Each language's part of each row, as Tables 12 to 15 have it."""
    places = digits(folder.metrics[item])
    english = folder.settings.english
    for line, moved in zip(lines, changes, strict=True):
        print(" ".join(line.label))
        for language, (score, own, of_english, of_own) in moved.by_language.items():
            parts = [
                f"{name}-D {value:.{places}f}  Δ{name} {e.shown(places)}"
                for name, value, e in ((english, score, of_english), (language, own, of_own))
            ]
            print(f"  {language}:  " + "   ".join(parts))


def write_details(
    args: argparse.Namespace,
    folder: Folder,
    head: Sequence[str],
    lines: Sequence[Line],
    found: Mapping[str, list[Change]],
) -> None:
    """Each language's part of each row: as CSV with intervals, and as Tables 12 to 15 have it."""
    english = folder.settings.english
    rows = [
        [item, folder.metrics[item], *line.label, language, name, value, e.value, e.low, e.high, e.p]
        for item, changes in found.items()
        for line, moved in zip(lines, changes, strict=True)
        for language, (score, own, of_english, of_own) in moved.by_language.items()
        for name, value, e in ((english, score, of_english), (language, own, of_own))
    ]
    shown = []
    for item, changes in found.items():
        places = digits(folder.metrics[item])
        texts = []
        for line, moved in zip(lines, changes, strict=True):
            numbers = [
                text
                for score, own, of_english, of_own in moved.by_language.values()
                for text in (
                    *(f"{value:.{places}f}" for value in (score, own)),
                    *(f"{e.value:+.{places}f}" for e in (of_english, of_own)),
                )
            ]
            texts.append([*line.label, *numbers])
        columns = [f"{sign}{x}-D" for y in changes[0].by_language for sign in ("", "Δ") for x in (english, y)]
        shown.append(Shown(f"{item}: {folder.metrics[item]}, by language", (*head, *columns), texts, len(head)))
    header = ["item", "metric", *(h.lower() for h in head), "neurons_of", "task_language", "value"]
    write_tables(f"{args.output}_details", [*header, "change", "low", "high", "p"], rows, shown)


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


STAR = "*: p < 0.05 against the original, by paired permutation of documents"
NOTE = f"±: standard error over documents; {STAR}"


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
        title = f"{item}: {metric} ({_unit(metric)}) of {folder.settings.tasks[item].task}"
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
            print(f"{title}, {where} ({_unit(metric)})")
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
    interval = f"[{moved.low:+.{places}f}, {moved.high:+.{places}f}]"
    return f"  {label}{found.value:>9.{places}f}{moved.value:>+9.{places}f}{interval:>19}{moved.p:>8.2g}"


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
        print(f"{title} ({_unit(metric)}), {documents} documents")
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
        unit = "bits per byte (less is better)" if metric == BITS else f"{in_words(title)}, score (%)"
        plot_bars(bars, list(chosen), picture(args, title), unit, intervals=ends, columns=args.columns)
        unit = _unit(metric)
        tables.append(Shown(f"{title} ({unit}), {documents} documents, {STAR}", ("trained", *chosen), texts))
    print(STAR)
    write_tables(args.output, GAINS, rows, tables)


def original(args: argparse.Namespace) -> None:
    """The original model on every item in every language, and the average without English: Table 9 of the appendix.

    Scores are in per cent, but for bits per byte, of which less is better; ± is the standard error over documents.
    """
    folder = Folder(args.inputs[0])
    values, rows, texts = folder.samples(Setting(()).name), [], []
    for item, metric in folder.metrics.items():
        spoken = [x for x in folder.settings.languages_of(item) if folder.settings.tasks[item].task_of(x) in values]
        found = {x: folder.documents(Setting(()), item, x) for x in spoken}
        errors = {x: ratio_error(scores, folder.lengths(item, x)) for x, scores in found.items()}
        places, means = digits(metric), {x: float(scores.mean()) for x, scores in found.items()}
        others = [mean for x, mean in means.items() if x != folder.settings.english]
        average = float(np.mean(others)) if others else np.nan
        rows += [(item, metric, x, mean, errors[x], len(found[x])) for x, mean in means.items()]
        rows.append((item, metric, "average", average, "", ""))
        shown = [
            f"{means[x]:.{places}f} ±{errors[x]:.{places}f}" if x in means else "–" for x in folder.settings.languages
        ]
        texts.append([item, metric, *shown, f"{average:.{places}f}" if others else "–"])
    head = ("item", "metric", *folder.settings.languages, "average")
    width = [max(map(len, column)) + 2 for column in zip(head, *texts, strict=True)]
    for line in (head, *texts):
        print("".join(f"{text:<{w}}" for text, w in zip(line, width, strict=True)).rstrip())
    title = (
        f"original scores of {folder.settings.model['pretrained']}, ± standard error; the average is without English"
    )
    write_tables(
        args.output,
        ("item", "metric", "language", "value", "stderr", "documents"),
        rows,
        [Shown(title, head, texts, 2)],
    )


def prompts(args: argparse.Namespace) -> None:
    """The prompt of each item in each language, as its task builds it: Table 8 of the appendix.

    The input is a settings file, or the folder of an experiment. Prompts are templates where the task has one, else
    those of its first document.
    """
    source = Path(args.inputs[0])
    settings = load_settings(source / SETTINGS if source.is_dir() else source)
    tasks, rows = load_tasks(settings), []
    for item, options in settings.tasks.items():
        for language in settings.languages_of(item):
            if (name := options.task_of(language)) not in tasks:
                continue
            template = tasks[name].get_config("doc_to_text")
            if not isinstance(template, str):
                template = str(tasks[name].doc_to_text(next(iter(tasks[name].eval_docs))))
            rows.append((item, language, name, template))
    for item, language, _, template in rows:
        print(f"{item}, {language}: {template}")
    header = ("item", "language", "task", "prompt")
    write_tables(args.output, header, rows, [Shown("prompts", header, rows, len(header))])


def draw(args: argparse.Namespace, folder: Folder, names: Sequence[str], found: Mapping[str, Sequence[Change]]) -> None:
    """ΔEng, Δn-Eng and Δ of every row as bars with their intervals, a picture for each item."""
    for item, changes in found.items():
        bars, errors = {}, {}
        for label, pick in (("ΔEng", "of_english"), ("Δn-Eng", "of_others"), ("Δ", "delta")):
            estimates = [getattr(moved, pick) for moved in changes]
            bars[label] = np.array([e.value for e in estimates])
            errors[label] = np.array([[e.low for e in estimates], [e.high for e in estimates]])
        better = "; ΔEng, Δn-Eng: less is better" if less_is_better(folder.metrics[item]) else ""
        label = f"{in_words(item)}: change of {in_words(folder.metrics[item])}{better}"
        plot_bars(bars, names, picture(args, item), label, intervals=errors, columns=args.columns)


def unit_of(folder: Folder, item: str) -> str:
    """An item's metric in words, with its unit, and where less is better."""
    metric = folder.metrics[item]
    return f"{in_words(item)}: {in_words(metric)} ({_unit(metric)})"


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


def table7(args: argparse.Namespace) -> None:
    """Size of detection corpora, and the share of each language's vocabulary that they have: Table 7.

    Inputs are the corpora. A vocabulary is what occurs twice or more in a reference corpus (plnd/vocabulary.py),
    counted in words and, with --model, in tokens of its tokenizer; “running” is the share of the reference's text.
    """
    if not len(args.inputs) == len(args.reference) == len(args.languages):
        sizes = f"{len(args.inputs)} corpora, {len(args.reference)} references, {len(args.languages)} languages"
        raise PLNDError(f"{sizes}: expected one of each")
    units: dict[str, Callable[[str], Any]] = {"words": words}
    if args.model:
        units["tokens"] = partial(tokens, load_tokenizer(args.model))
    rows: list[tuple[Any, ...]] = []
    texts: list[list[str]] = []
    header = ("language", "unit", "documents", "corpus", "vocabulary", "covered", "share", "running")
    print("{:<10}{:<8}{:>10}{:>10}{:>12}{:>10}{:>8}{:>9}".format(*header))
    for language, corpus, reference in zip(args.languages, args.inputs, args.reference, strict=True):
        for name, unit in units.items():
            documents = islice(read_documents(corpus), args.max_documents)
            found = coverage(documents, read_documents(reference), unit)
            counts = (found.documents, found.corpus, found.vocabulary, found.covered)
            rows.append((language, name, *counts, found.share, found.running))
            numbers = "".join(f"{value:>{width},}" for value, width in zip(counts, (10, 10, 12, 10), strict=True))
            print(f"{language:<10}{name:<8}{numbers}{found.share:>8.1%}{found.running:>9.1%}")
            texts.append([language, name, *(f"{x:,}" for x in counts), f"{found.share:.1%}", f"{found.running:.1%}"])
    write_tables(args.output, header, rows, [Shown("coverage of each language's vocabulary", header, texts, 2)])


def stability(args: argparse.Namespace) -> None:
    """The selected neurons as documents are added, against the final ones, and from how many documents they stay.

    Inputs are corpora. Beyond the papers, which have one number of documents: Jaccard index of the sets after each
    --every documents, from one detection over all of them (plnd/stability.py).
    """
    if len(args.inputs) != len(args.languages):
        raise PLNDError(f"{len(args.inputs)} corpora and {len(args.languages)} languages: expected one for each")
    rule = {name: getattr(args, name) for name in RULES if getattr(args, name) is not None}
    projections = args.projections.split(",") if args.projections else None
    model, tokenizer = load_model(args.model, dtype=args.dtype, device=args.device), load_tokenizer(args.model)
    curves, rows, texts = {}, [], []
    for language, corpus in zip(args.languages, args.inputs, strict=True):
        config = DetectConfig(language, args.qk, args.max_documents, args.max_length, args.min_length, args.batch_size)
        documents = read_documents(corpus)
        found = measure_stability(
            model, documents, config, every=args.every, tokenizer=tokenizer, **rule, projections=projections
        )
        curves[language] = found.jaccard
        rows += [(language, *step) for step in zip(found.documents, found.neurons, found.jaccard, strict=True)]
        enough = found.enough(args.jaccard)
        print(f"{language}: {found.documents[-1]:,} documents, {found.neurons[-1]:,} neurons at the end")
        print(f"{'documents':>12}{'neurons':>10}{'Jaccard':>10}")
        for count, size, jaccard in zip(found.documents, found.neurons, found.jaccard, strict=True):
            print(f"{count:>12,}{size:>10,}{jaccard:>10.3f}")
            texts.append([language, f"{count:,}", f"{size:,}", f"{jaccard:.3f}"])
        print(
            f"  no step before the last stays at {args.jaccard}: the corpus is too small to say how many are enough"
            if enough is None
            else f"  from {enough:,} of {found.documents[-1]:,} documents on the set stays at {args.jaccard} or above"
        )
    header = ("language", "documents", "neurons", "jaccard")
    write_tables(args.output, header, rows, [Shown("neurons as documents are added", header, texts)])
    steps = [args.every * n for n in range(1, max(map(len, curves.values())) + 1)]
    padded = {x: np.pad(values, (0, len(steps) - len(values)), constant_values=np.nan) for x, values in curves.items()}
    sparse = [str(count) if n % -(-len(steps) // 8) == 0 else "" for n, count in enumerate(steps)]
    label = "Jaccard index to the final set"
    plot_lines({"": padded}, picture(args), label, places=sparse, along="documents", columns=args.columns)


RULES = {"epsilon": float, "epsilon_for": float, "top_k": int, "fraction": float}
"""Of `plnd select`, for one language."""


def no_options(parser: argparse.ArgumentParser) -> None:
    """For items that need nothing but their inputs."""


def details(parser: argparse.ArgumentParser) -> None:
    """Of tables over several languages."""
    parser.add_argument("--details", action="store_true", help="print every language, too (Tables 12 to 15)")


def staged(parser: argparse.ArgumentParser) -> None:
    """Of figures over blocks."""
    parser.add_argument("--under", type=int, help="N1, to be marked (default: that of an experiment's folder)")
    parser.add_argument("--gen", type=int, help="N2, to be marked (default: likewise)")


def of_figure3(parser: argparse.ArgumentParser) -> None:
    """Of Figure 3."""
    staged(parser)
    parser.add_argument("--queries", help="corpora with {language} in their name: count the neurons active in a query")
    parser.add_argument("--max-documents", type=int, default=100, help="queries of each language (default: 100)")


def thinking(parser: argparse.ArgumentParser) -> None:
    """Of Figure 7."""
    staged(parser)
    parser.add_argument("--language", default="zh", help="that the model may think in (default: zh)")


def of_vocabulary(parser: argparse.ArgumentParser) -> None:
    """Of Table 7."""
    parser.add_argument("--reference", nargs="+", required=True, help="a larger corpus of each language, in order")
    parser.add_argument("--languages", nargs="+", required=True, help="of the corpora, in order")
    parser.add_argument("--max-documents", type=int, help="the first ones of each corpus (default: all)")
    parser.add_argument("--model", help="whose tokenizer's tokens are counted, too")


def of_stability(parser: argparse.ArgumentParser) -> None:
    """Of `stability`."""
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--languages", nargs="+", required=True, help="of the corpora, in order")
    rule = parser.add_mutually_exclusive_group(required=True)
    for name, kind in RULES.items():
        rule.add_argument(f"--{name.replace('_', '-')}", type=kind, help="as of `plnd select`")
    parser.add_argument("--projections", help="only these, comma-separated")
    parser.add_argument("--every", type=int, default=10, help="documents from one set to the next (default: 10)")
    parser.add_argument("--jaccard", type=float, default=0.9, help="near enough to the final set (default: 0.9)")
    parser.add_argument("--max-documents", type=int, help="of each corpus (default: all)")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--min-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--qk", choices=("exact", "first_order", "off"), default="first_order")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")


COMMANDS: dict[str, tuple[Run, Callable[[argparse.ArgumentParser], Any]]] = {
    "table1": (table1, no_options),
    **{table: (by_region(table), details) for table in REGIONS},
    "prompts": (prompts, no_options),
    "original": (original, no_options),
    "later_table8": (overlapping("later_table8", "shared with English"), details),
    "later_table9": (overlapping("later_table9", "shared by all languages"), details),
    "table10": (table10, details),
    "table11": (table10, details),
    "table7": (table7, of_vocabulary),
    "figure1": (figure1, staged),
    "figure3": (figure3, of_figure3),
    "figure4": (figure4, no_options),
    "table6": (table6, no_options),
    "figure5": (figure5, no_options),
    "figure6": (figure5, no_options),
    "figure7": (figure7, thinking),
    "stability": (stability, of_stability),
}
"""Item to what makes it and what adds its options; the help is the function's docstring."""


def main() -> None:
    """Draws one figure or makes one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, add_options) in COMMANDS.items():
        text = str(run.__doc__).replace("%", "%%")
        command = commands.add_parser(name, help=text.partition("\n")[0], description=text)
        command.add_argument("inputs", nargs="+", help="folder of `plnd experiment`, or artifacts")
        command.add_argument("--output", required=True, help="beginning of the names of the files to write")
        command.add_argument("--plot", help="picture to write, .svg, .pdf or .png (default: OUTPUT.svg)")
        command.add_argument("--columns", type=int, choices=(1, 2), default=2, help="of a paper's page (default: 2)")
        add_options(command)
        command.set_defaults(run=run)
    if (name := (sys.argv[1:] or [""])[0]) in TWICE:
        parser.exit(2, f"{parser.prog}: {name}: two tables of the paper have this number, say {TWICE[name]}\n")
    args = parser.parse_args()
    warnings.showwarning = print_warning  # one line each
    try:
        if args.plot:
            check_plot(args.plot)
        args.run(args)
        write_note(args.output, args.inputs)
    except PLNDError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
