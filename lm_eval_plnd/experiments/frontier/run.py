"""Runs a frontier experiment, or the rest of one that was stopped; several processes on one folder share it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval_plnd.experiments.frontier.report import write_report
from lm_eval_plnd.experiments.frontier.schedule import Run, cells, due, rounds, sizes
from lm_eval_plnd.experiments.frontier.settings import ROWS, FrontierSettings, Method, load_frontier_settings
from lm_eval_plnd.experiments.frontier.training import DOCUMENTS, NEURONS, Bench
from lm_eval_plnd.experiments.sharing import LOCKS, check_weights, claimed, unwritten
from plnd.errors import PLNDError
from plnd.io import strict_json

RUNS, BASE, SETTINGS = "runs.jsonl", "base.json", "settings.yaml"
"""A line for every run that is done; what the base model scores; all settings."""


def frontier(settings: FrontierSettings, output: str | Path) -> Path:
    """Does all runs that are not done yet, and writes the tables and the picture; returns the path of the CSV.

    Other processes may do the same at the same time: each takes what nobody else is at.

    Raises:
        PLNDError: if the folder holds another experiment, a corpus has too few texts, or a budget is too small or too
            large for a method.
    """
    from tqdm import tqdm

    folder = Path(output)
    _open_folder(settings, folder)
    places = cells(settings)

    @cache
    def bench() -> Bench:
        found = Bench(settings, folder)
        check_weights(found.model, folder)
        return found

    base = _base(settings, folder, bench)
    total, checked = sum(1 for _ in sizes(settings)), False
    with tqdm(total=total, desc="frontier", unit=" runs", file=sys.stderr) as bar:
        while True:
            done = read_runs(folder)
            bar.update(len(done) - bar.n)
            gains = {name: gain_of(found, base) for name, found in done.items() if not found["final"]}
            gains |= {name: math.nan for name, found in done.items() if found["final"]}
            waiting = [run for cell in places for run in due(settings, cell, gains)]
            if not waiting:
                break
            if not checked:
                bench().check([run for run in waiting if settings.methods[run.cell.method].kind in ROWS])
                checked = True
            if not any(_try(run, folder, bench, bar, wait=False) for run in waiting):
                _try(waiting[0], folder, bench, bar, wait=True)  # the others are at all of them
    return write_report(settings, folder, base, done)


def _try(run: Run, folder: Path, bench: Any, bar: Any, *, wait: bool) -> bool:
    """Does a run that no other process is at, and whether it did."""
    with claimed(folder / run.name, folder, wait) as mine:
        if not mine or run.name in read_runs(folder):
            return False
        bar.set_postfix_str(run.name)
        cell = run.cell
        what = {
            "run": run.name,
            "final": run.final,
            "language": cell.language,
            "method": cell.method,
            "how": how_of(bench().settings, cell.method),
            "budget": cell.budget,
            "rate": run.rate,
            "documents": run.documents,
            "seed": run.seed,
        }
        _append({**what, **bench().run(run)}, folder)
        return True


def gain_of(found: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """By how many bits per byte a run of the search lowers its language's loss on the documents for choosing."""
    before = base["choice"][found["language"]]
    nats = math.fsum(before["nats"]) - math.fsum(found["nats"][found["language"]])
    return nats / math.log(2) / sum(before["sizes"])


def _base(settings: FrontierSettings, folder: Path, bench: Any) -> dict[str, Any]:
    """What the base model scores, computed once: nats and bytes of every document, and the tasks."""
    from plnd.io.files import write_bytes

    for path in unwritten([folder / BASE], folder):
        one = bench()
        parts = {
            name: (one.evaluate(one.model, final, settings.trained), final)
            for name, final in (("choice", False), ("held_out", True))
        }
        found: dict[str, Any] = {"tasks": parts["held_out"][0].get("tasks", {})}
        for name, (values, final) in parts.items():
            found[name] = {
                language: {
                    "nats": nats,
                    "sizes": [d.size for d in getattr(one.texts(language), "held_out" if final else "choice")],
                }
                for language, nats in values["nats"].items()
            }
        write_bytes((json.dumps(found) + "\n").encode(), path)
    return strict_json.read(folder / BASE, finite=False)


# the folder


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs that are done, by name. A last line without an end is of a process that was killed: it is not counted.

    Raises:
        PLNDError: if another line is damaged.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            run = strict_json.parse(line, finite=False)
            found[run["run"]] = run
        except (ValueError, TypeError, KeyError):
            raise PLNDError(f"{path}: line {number} is damaged; delete it, and the run is repeated") from None
    return found


def _append(found: Mapping[str, Any], folder: Path) -> None:
    """Adds a line, in place of one that a killed process left without an end."""
    path = folder / RUNS
    with claimed(path, folder), open(path, "a+b") as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.write((json.dumps(found) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def _open_folder(settings: FrontierSettings, folder: Path) -> None:
    """Makes the folder, or takes up one that holds the same experiment.

    Raises:
        PLNDError: if it holds another one, or cannot be written.
    """
    from plnd.io.files import write_bytes

    try:
        for part in (folder, folder / NEURONS, folder / DOCUMENTS, folder / LOCKS):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --output") from None
    path = folder / SETTINGS
    with claimed(path, folder):
        if path.exists():
            here = load_frontier_settings(path).model_dump()
            for name, value in settings.model_dump().items():
                if here[name] != value and name not in GROWING:
                    raise PLNDError(
                        f"{folder}: holds another experiment, whose {name} is {here[name]!r:.60} and not {value!r:.60};"
                        " choose another folder with --output"
                    )
        for run in read_runs(folder).values():
            wanted = settings.methods.get(run["method"])
            if wanted is not None and Method(**run["how"]) != wanted.model_copy(
                update={"rates": None, "budgets": None}
            ):
                raise PLNDError(
                    f"{folder}: holds runs of {run['method']} as another method ({run['how']}); give this one another"
                    " name"
                )
        write_bytes(settings.text().encode(), path)


def how_of(settings: FrontierSettings, method: str) -> dict[str, Any]:
    """What a method is, but for the rates and budgets that are tried."""
    return settings.methods[method].model_dump(exclude={"rates", "budgets"})


GROWING = ("methods", "budgets", "reference")
"""Settings that may change from one call in a folder to the next: they add runs, and change none that is done."""


# what it will take


def estimate(settings: FrontierSettings, folder: Path | None = None) -> str:
    """What there is to do, and the time on this machine, of which two batches are trained and one evaluated."""
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        _open_folder(settings, place)
        seconds = Bench(settings, place).pace()
    done = read_runs(folder) if folder and folder.exists() else {}
    runs = list(sizes(settings))
    trained = [documents * settings.training.epochs for _, documents in runs]
    text, languages = settings.evaluation, len(settings.languages)
    finals = sum(final for final, _ in runs)
    read = (len(runs) - finals) * text.choice + (finals + 1) * text.held_out * languages
    detected = settings.detection.documents * len(_detected(settings))
    hours = (sum(trained) * seconds["training"] + (read + detected) * seconds["evaluation"]) / 3600
    lines = [
        f"{len(cells(settings))} places, {len(runs)} runs ({finals} of them reported), {len(done)} done",
        *(
            f"  {name}: {rates_of(rounds(settings, len(method.grid)))}"
            f"{len(settings.seeds)} of {settings.training.documents} documents"
            for name, method in settings.methods.items()
        ),
        f"documents: {sum(trained):,} trained on, {read:,} evaluated, {detected:,} for detection",
        f"this machine: {seconds['training']:.2f} s a document trained on, {seconds['evaluation']:.2f} s evaluated",
        f"about {hours:.2g} hours in one process, tasks of lm-eval not counted",
    ]
    return "\n".join(lines)


def rates_of(found: Sequence[tuple[int, int]]) -> str:
    """`4 of 100 documents, 2 of 200 documents, then `."""
    return "".join(f"{count} of {documents} documents, " for count, documents in found) + ("then " if found else "")


def _detected(settings: FrontierSettings) -> set[tuple[str, str]]:
    """Languages and measures that the rules want scores of."""
    measures = {m.measure for m in settings.methods.values() if m.kind in ("rank", "difference", "contrast")}
    return {(language, measure) for language in settings.languages for measure in measures}
