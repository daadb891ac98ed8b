"""A suppression as a curve, a report, a picture and a card."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.ablation.run import Effect
from lm_eval_plnd.experiments.changes import Estimate
from lm_eval_plnd.experiments.results import BITS
from lm_eval_plnd.experiments.suppression.config import RULE
from lm_eval_plnd.experiments.suppression.run import ABOUT, ANSWERS, FAITHFUL, SLIPS, Point, Suppression
from lm_eval_plnd.experiments.tables import Shown, markdown, write_tables
from plnd.inspection.text import visible
from plnd.numbers import signed

CURVE = (
    "neurons", "factor", "chosen",
    *(f"{name}{end}" for name in (SLIPS, ANSWERS, FAITHFUL) for end in ("", "_low", "_high")),
    ABOUT, *(f"cost{end}" for end in ("", "_low", "_high")),
)  # fmt: skip
REPORT = (
    "of", "measure", "setting", "count", "documents", "value", "low", "high", "change", "change_low", "change_high",
    "p_beyond_random",
)  # fmt: skip
SETTINGS = {"original": "nothing done", "neurons": "these neurons", "random": "random"}


def words(found: Suppression) -> dict[str, str]:
    """What the rates are of, for people."""
    return {
        SLIPS: f"answers to {', '.join(found.kept)} that slip into {found.language}",
        ANSWERS: f"answers to {found.language} in {found.language}",
        FAITHFUL: f"answers to {', '.join(found.kept)} all in their language",
        ABOUT: f"answers to {', '.join(found.kept)} about the question",
    }


def curve(found: Suppression) -> Shown:
    """The trade-off: rates of the language against what the kept ones lose, on the validation half."""
    language = found.language
    header = (
        "neurons", "factor", f"slips into {language}", f"answers in {language}", "in own language",
        "about the question", "bits per byte, kept", "",
    )  # fmt: skip
    rows = []
    for one in (found.original, *found.points):
        mark = "chosen" if one is found.chosen else ""
        cost = _change(one.cost) if one.neurons else ""
        rates = (str(one.slips), str(one.answers), str(one.faithful), f"{one.about:.2f}")
        rows.append((f"{one.neurons:,}", f"{one.factor:g}", *rates, cost, mark))
    config = found.config
    title = (
        f"{language}: {config.questions} validation questions of each kind, and {config.validation_documents} texts of"
        " each kept language; 95 % intervals"
    )
    return Shown(title, header, rows, words=0)


def report(found: Suppression) -> list[Shown]:
    """Answers, slips by language, and texts, on the report half, beside as many random neurons."""
    assert found.chosen is not None
    settings = list(found.rates)
    header = ("", "questions", *(SETTINGS[x] for x in settings), "change", "p (more than random)")
    named, by_name = words(found), {one.task: one for one in found.effects}
    rows = []
    for name in (SLIPS, ANSWERS, FAITHFUL):
        effect = by_name[name]
        rates = [str(found.rates[x][name]) for x in settings]
        rows.append((named[name], f"{effect.documents:,}", *rates, _change(effect.own), _p(effect)))
    about = by_name[ABOUT]
    means = [about.original, about.original + about.own.value]
    means += [about.original + about.random.value] if about.random else []
    rows.append((named[ABOUT], f"{about.documents:,}", *(f"{x:.3f}" for x in means), _change(about.own), _p(about)))
    config = found.config
    random = f"; random: as many of each block and projection, {config.draws} draws" if config.draws else ""
    done = "off" if not found.chosen.factor else f"times {found.chosen.factor:g}"
    tables = [
        Shown(
            f"answers, {found.chosen.neurons:,} neurons {done}; questions that the choice has not seen{random}",
            header,
            rows,
        )
    ]
    spoken = [
        (x, f"{next(iter(r.values())).of:,}", *(str(rate) for rate in r.values())) for x, r in found.by_language.items()
    ]
    tables.append(Shown(f"slips into {found.language} by language", ("", *header[1 : 2 + len(settings)]), spoken))
    texts = [
        (one.task, f"{one.documents:,}", f"{one.original:.3f}", _change(one.own), _change(one.random), _p(one))
        for one in found.effects
        if one.metric == BITS
    ]
    columns = ("", "texts", "nothing done", "these neurons", "random", "p (more than random)")
    tables.append(Shown("bits per byte, changes with 95 % intervals over texts", columns, texts))
    return tables


def sentence(found: Suppression) -> str:
    """What was chosen, and by which rule."""
    assert found.chosen is not None
    one = found.chosen
    done = "switched off" if not one.factor else f"multiplied by {one.factor:g}"
    return f"{one.neurons:,} neurons, {done}: {RULE} (target {found.config.target:g})."


def text(found: Suppression) -> str:
    """Curve, choice and report for a terminal."""
    from tabulate import tabulate

    def drawn(table: Shown) -> str:
        sides = ["left" if place < table.words else "right" for place in range(len(table.header))]
        rows = tabulate(table.rows, table.header, tablefmt="simple", disable_numparse=True, colalign=sides)
        return f"{table.title}\n{rows}\n"

    if found.chosen is None:
        return drawn(curve(found))
    return "\n".join([drawn(curve(found)), f"{sentence(found)}\n", *map(drawn, report(found))])


def write(found: Suppression, folder: Path) -> None:
    """`curve.csv`, `.md`, `.tex`; `suppression.json`; of what was chosen `report.csv`, …, `answers.jsonl`."""
    from plnd.io.files import write_bytes

    points = [_row(one, one is found.chosen) for one in (found.original, *found.points)]
    write_tables(str(folder / "curve"), CURVE, points, [curve(found)])
    said = asdict(replace(found, candidate=None, said=())) | {"rule": RULE}
    write_bytes((json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode(), folder / "suppression.json")
    if found.chosen is not None:
        write_tables(str(folder / "report"), REPORT, list(_report_rows(found)), report(found))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.said)
        write_bytes(lines.encode(), folder / "answers.jsonl")


def draw(found: Suppression, path: str | Path, *, columns: int = 2) -> None:
    """Rates and cost against the number of neurons, a line for each factor, on the validation half."""
    from plnd.plots import Points, plot_points

    def points(of: Sequence[tuple[int, float, float, float]]) -> Points:
        return Points(*np.array(of, float).T)

    language = found.language
    panels: dict[str, dict[str, Points]] = {
        f"slips into {language}": {},
        f"answers in {language}": {},
        "kept languages": {},
    }
    for factor in sorted({one.factor for one in found.points}):
        name = "off" if not factor else f"times {factor:g}"
        here = [one for one in found.points if one.factor == factor]
        costs = [(one.neurons, one.cost.value, *_ends(one.cost)) for one in here]
        for title, rows in zip(
            panels,
            (
                [(one.neurons, one.slips.value, *one.slips.interval) for one in here],
                [(one.neurons, one.answers.value, *one.answers.interval) for one in here],
                costs,
            ),
            strict=True,
        ):
            panels[title][name] = points(rows)
    slipping, answering, cost = panels
    label = {slipping: "rate", answering: "rate", cost: "change in bits per byte"}
    levels = {slipping: found.original.slips.value, answering: found.original.answers.value, cost: 0.0}
    plot_points(panels, path, label, "neurons", levels=levels, level="nothing done", columns=columns)


def card(found: Suppression, mask: str, sha256: str, corpora: str, export: str | None) -> str:
    """What a stranger needs to know: model, languages, sizes, what was measured, how to load it; in Markdown.

    Args:
        found: a search that chose something.
        mask: name of the neurons artifact.
        sha256: of it.
        corpora: what detection and text were read from, in words.
        export: folder of the exported checkpoint.
    """
    assert found.chosen is not None and found.candidate is not None
    one, config, neurons = found.chosen, found.config, found.candidate.neurons
    model = visible(str(found.model))
    options = f"mask={mask}" + (f",intervene=scale,factor={one.factor:g}" if one.factor else "")
    python = f'kind="scale", factor={one.factor:g}' if one.factor else 'kind="zero"'
    flags = f" --intervene scale --factor {one.factor:g}" if one.factor else ""
    counts = ", ".join(f"{name} {count:,}" for name, count in neurons.counts().items() if count)
    facts = {
        "model": model,
        "language suppressed": found.language,
        "languages kept": ", ".join(found.kept),
        "neurons": f"{len(neurons):,} of {neurons.total:,} ({len(neurons) / neurons.total:.3%}): {counts}",
        "what is done to them": "switched off" if not one.factor else f"their values are multiplied by {one.factor:g}",
        "how they were chosen": f"{RULE} (target {config.target:g}, of {config.stop})",
        "mask": f"`{mask}`, SHA-256 `{sha256}`",
        "corpora": visible(corpora),
        "questions": f"plnd's open questions: {config.questions} to choose by, drawn with seed {config.seed}, the"
        f" others reported; greedy answers of at most {config.tokens} tokens",
    }
    lines = [
        f"# {Path(model).name} that answers less in {found.language}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts.items()),
        "",
        "## Measured",
        "",
        "On questions and texts that played no part in the choice; 95 % intervals.",
        "",
        *(f"**{table.title}**\n\n{markdown(table)}\n" for table in report(found)),
        "## The trade-off",
        "",
        markdown(curve(found)),
        "",
        "## How to load it",
        "",
        "```sh",
        f"lm_eval --model plnd --model_args {options} --tasks …",
        f"plnd export --model {shlex.quote(model)} --mask {mask}{flags} --output CHECKPOINT",
        "```",
        "",
        "```python",
        f'with plnd.intervened(model, plnd.NeuronSet.load("{mask}"), {python}):',
        "    ...",
        "```",
        *(["", f"The checkpoint in `{visible(export)}` loads as any other."] if export else []),
        "",
    ]
    return "\n".join(lines)


def _row(one: Point, chosen: bool) -> tuple[Any, ...]:
    rates = [value for rate in (one.slips, one.answers, one.faithful) for value in (rate.value, *rate.interval)]
    return (one.neurons, one.factor, int(chosen), *rates, one.about, one.cost.value, *_ends(one.cost))


def _report_rows(found: Suppression):
    for setting, rates in found.rates.items():
        for name, rate in rates.items():
            yield ("", name, setting, rate.count, rate.of, rate.value, *rate.interval, *_beyond(found, name, setting))
    for language, settings in found.by_language.items():
        for setting, rate in settings.items():
            yield (language, SLIPS, setting, rate.count, rate.of, rate.value, *rate.interval, "", "", "", "")
    for one in found.effects:
        if one.metric == BITS or one.task == ABOUT:
            of, name = ("", ABOUT) if one.task == ABOUT else (one.task, BITS)
            yield (of, name, "original", "", one.documents, one.original, "", "", "", "", "", "")
            for setting, change in (("neurons", one.own), ("random", one.random)):
                if change is not None:
                    p = one.beyond.p if one.beyond and setting == "neurons" else ""
                    after = one.original + change.value
                    yield (of, name, setting, "", one.documents, after, "", "", change.value, *_ends(change), p)


def _beyond(found: Suppression, name: str, setting: str) -> tuple[Any, ...]:
    """Change, its ends and the p-value of a rate."""
    effect = next(one for one in found.effects if one.task == name)
    change = {"neurons": effect.own, "random": effect.random}.get(setting)
    if change is None:
        return ("", "", "", "")
    return (change.value, *_ends(change), effect.beyond.p if effect.beyond and setting == "neurons" else "")


def _ends(change: Estimate) -> tuple[float, float]:
    """Those of its interval; of one document, which has none, the value itself."""
    return (change.value, change.value) if math.isnan(change.low) else (change.low, change.high)


def _change(change: Estimate | None) -> str:
    if change is None:
        return ""
    ends = "[–]" if math.isnan(change.low) else f"[{signed(change.low)}, {signed(change.high)}]"
    return f"{signed(change.value)} {ends}"


def _p(effect: Effect) -> str:
    return "" if effect.beyond is None or math.isnan(effect.beyond.p) else f"{effect.beyond.p:.2g}"
