"""An ablation as a table, a picture and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lm_eval_plnd.experiments.ablation.run import Ablation, Effect
from lm_eval_plnd.experiments.changes import Estimate
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.numbers import signed

COLUMNS = (
    "task", "metric", "documents", "original",
    *(f"{name}{end}" for name in ("change", "random_change", "beyond_random") for end in ("", "_low", "_high", "_p")),
)  # fmt: skip
UNITS = {"bits_per_byte": "bits per byte"}


def shown(found: Ablation) -> Shown:
    """The table that people read."""
    rows = []
    for one in found.effects:
        p = "" if one.beyond is None or math.isnan(one.beyond.p) else f"{one.beyond.p:.2g}"
        about = (one.task, one.metric, f"{one.documents:,}", f"{one.original:.3f}")
        rows.append((*about, _change(one.own), _change(one.random), p))
    header = ("task", "metric", "documents", "nothing done", f"neurons {found.done}", "random", "p (more than random)")
    return Shown(title(found), header, rows, words=2)


def title(found: Ablation) -> str:
    """How many neurons were off, and what the random ones are."""
    share = f"{found.neurons:,} of {found.of:,} neurons {found.done} ({found.neurons / found.of:.3%})"
    language = f", {found.language}" if found.language else ""
    random = f"; random: as many of each block and projection, mean of {found.draws} draws" if found.draws else ""
    return f"{share}{language}{random}; changes with 95 % intervals over documents"


def text(found: Ablation) -> str:
    """The table for a terminal, and the sentence."""
    from tabulate import tabulate

    table = shown(found)
    sides = ["left" if place < table.words else "right" for place in range(len(table.header))]
    drawn = tabulate(table.rows, table.header, tablefmt="simple", disable_numparse=True, colalign=sides)
    few = any(math.isnan(one.own.low) for one in found.effects)
    note = "\n–: one document has no interval; give more (--limit)" if few else ""
    return f"{table.title}\n{drawn}{note}\n\n{sentence(found)}"


def sentence(found: Ablation) -> str:
    """What the numbers say, of the task that suffers most in relation to its score."""
    first = _first_of_each(found)
    worst = max(first, key=lambda one: one.harm(one.own) / (abs(one.original) or math.inf))
    of_all = f"{found.neurons:,} neurons ({found.neurons / found.of:.3%} of all)"
    without = f"Without {of_all}" if found.done == "off" else f"With {of_all} {found.done}"
    unit = UNITS.get(worst.metric, worst.metric)
    if not _is_sure(worst.own) or worst.harm(worst.own) <= 0:
        return f"{without}, no task gets worse beyond what {_documents(worst)} can tell."
    after = worst.original + worst.own.value
    moved = f"from {worst.original:.3f} to {after:.3f} {unit} ({_change(worst.own)})"
    parts = [f"{without}, {worst.task} suffers most: {moved}"]
    if worst.random is not None:
        harm, random = worst.harm(worst.own), worst.harm(worst.random)
        as_many = f"as many random ones ({signed(worst.random.value)})"
        parts.append(f"{harm / random:,.1f} times what {as_many} cost" if random > 0 else f"{as_many} cost nothing")
    others = [one for one in first if one is not worst and one.metric == worst.metric]
    if others:
        mean = float(np.mean([one.own.value for one in others]))
        who = others[0].task if len(others) == 1 else f"the other {len(others)} on average"
        parts.append(f"{who}: {signed(mean)}")
    return f"{'; '.join(parts)}."


def write(found: Ablation, folder: Path) -> None:
    """`ablation.json`, `.csv`, `.md`, `.tex`."""
    from plnd.io.files import write_bytes

    rows = []
    for one in found.effects:
        estimates = [value for x in (one.own, one.random, one.beyond) for value in _all_of(x)]
        rows.append((one.task, one.metric, one.documents, one.original, *estimates))
    write_tables(str(folder / "ablation"), COLUMNS, rows, [shown(found)])
    write_bytes(found.to_json().encode(), folder / "ablation.json")


def draw(found: Ablation, path: str | Path, *, columns: int = 2) -> None:
    """Bars with intervals: the change of each task's first metric, in per cent of its score with nothing off."""
    from plnd.plots import plot_bars

    first = _first_of_each(found)
    kinds: Mapping[str, list[Estimate | None]] = {
        f"neurons {found.done}": [one.own for one in first],
        "random": [one.random for one in first],
    }
    scale = np.array([100 / abs(one.original) if one.original else np.nan for one in first])
    values, intervals = {}, {}
    for name, estimates in kinds.items():
        given = [one for one in estimates if one is not None]
        if given:
            values[name] = scale * [one.value for one in given]
            intervals[name] = np.stack([scale * [one.low for one in given], scale * [one.high for one in given]])
    (metric, *others) = dict.fromkeys(one.metric for one in first)
    label = "change (%)" if others else f"change in {metric} (%)"
    plot_bars(values, [one.task for one in first], path, label, intervals=intervals, columns=columns)


def _first_of_each(found: Ablation) -> list[Effect]:
    """The first metric of each task, which is lm-eval's main one."""
    first: dict[str, Effect] = {}
    for one in found.effects:
        first.setdefault(one.task, one)
    return list(first.values())


def _is_sure(change: Estimate) -> bool:
    return change.low > 0 or change.high < 0


def _documents(effect: Effect) -> str:
    return f"{effect.documents:,} documents" if effect.documents > 1 else "one document"


def _change(change: Estimate | None) -> str:
    if change is None:
        return ""
    ends = "[–]" if math.isnan(change.low) else f"[{signed(change.low)}, {signed(change.high)}]"
    return f"{signed(change.value)} {ends}"


def _all_of(change: Estimate | None) -> list[float | str]:
    return ["", "", "", ""] if change is None else [change.value, change.low, change.high, change.p]
