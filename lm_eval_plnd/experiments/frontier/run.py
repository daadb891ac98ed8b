"""Runs a frontier experiment, or the rest of one that was stopped; several processes on one folder share it."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from lm_eval_plnd.experiments.evaluation import task_digest
from lm_eval_plnd.experiments.frontier.report import write_report
from lm_eval_plnd.experiments.frontier.schedule import Cell, Run, cells, due, rounds, sizes
from lm_eval_plnd.experiments.frontier.settings import ROWS, FrontierSettings, Method, load_frontier_settings
from lm_eval_plnd.experiments.frontier.training import (
    DOCUMENTS,
    NEURONS,
    Bench,
    gradients_name,
    load_tasks,
    scores_name,
)
from lm_eval_plnd.experiments.sharing import LOCKS, claimed, unwritten
from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.corpus import corpus_digest
from plnd.io.inputs import INPUTS, check_inputs, sealed, unsealed
from plnd.models.source import source_digests

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

    folder, tasks = Path(output), load_tasks(settings)
    _open_folder(settings, folder)
    with claimed(folder / INPUTS, folder):
        begun = (folder / BASE).exists() or (folder / RUNS).exists()
        check_inputs(folder / INPUTS, inputs(settings, tasks), "experiment", begun=begun)
    places = cells(settings)

    @cache
    def bench() -> Bench:
        return Bench(settings, folder, tasks)

    base = _base(settings, folder, bench)
    total, checked = sum(1 for _ in sizes(settings)), False
    with tqdm(total=total, desc="frontier", unit=" runs", file=sys.stderr) as bar:
        while True:
            done = read_runs(folder)
            check_runs(done, base, folder)
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
        write_bytes(sealed(found).encode(), path)
    return read_base(settings, folder)


# the folder


class Done(TypedDict):
    """A line of `runs.jsonl`: what a run was, and what came of it. Of a run of the search there are no tasks."""

    run: str
    final: bool
    language: str
    method: str
    how: dict[str, Any]
    budget: float | None
    rate: float
    documents: int
    seed: int
    parameters: int
    share: float
    nats: dict[str, list[float]]
    tasks: NotRequired[dict[str, dict[str, list[float]]]]


class Before(TypedDict):
    """Nats and bytes of each document of a language."""

    nats: list[float]
    sizes: list[int]


class Base(TypedDict):
    """`base.json`: the base model on what rates are chosen by, on what is reported, and on the tasks."""

    choice: dict[str, Before]
    held_out: dict[str, Before]
    tasks: dict[str, dict[str, list[float]]]


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs that are done, by name. A last line without an end is of a process that was killed: it is not counted.

    Raises:
        PLNDError: if another line is damaged.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            run = _checked(Done, strict_json.parse(line, finite=False))
            Method(**run["how"])
            what = Run(Cell(run["language"], run["method"], run["budget"]), *(run[name] for name in _PARTS))
            if what.name != run["run"]:
                raise ValueError
        except (ValueError, TypeError):
            raise PLNDError(f"{path}: line {number} is damaged; delete it, and the run is repeated") from None
        found[run["run"]] = run
    return found


_PARTS = ("rate", "documents", "seed", "final")


def check_runs(done: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any], folder: Path) -> None:
    """Refuses runs of other documents than those of the base model.

    Raises:
        PLNDError: naming the run.
    """
    for name, run in done.items():
        own = run["language"]
        before = base["held_out"] if run["final"] else {own: base["choice"].get(own, {"nats": ()})}
        documents = {language: len(of["nats"]) for language, of in before.items()}
        tasks = _lengths(base["tasks"]) if run["final"] else {}
        if documents != {language: len(nats) for language, nats in run["nats"].items()} or tasks != _lengths(
            run.get("tasks", {})
        ):
            raise PLNDError(
                f"{folder / RUNS}: {name} has other documents than {BASE}; delete its line, and the run is repeated"
            )


def _lengths(tasks: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    return {(item, language): len(values) for item, of in tasks.items() for language, values in of.items()}


def read_base(settings: FrontierSettings, folder: Path) -> dict[str, Any]:
    """What the base model scores.

    Raises:
        PLNDError: if the file is damaged.
    """
    path = folder / BASE
    try:
        base = _checked(Base, strict_json.read(path, finite=False))
        parts = [*base["choice"].values(), *base["held_out"].values()]
        if (
            not {*settings.trained} <= base["choice"].keys()
            or {*settings.languages} != base["held_out"].keys()
            or not all(part["sizes"] and min(part["sizes"]) > 0 for part in parts)
            or not all(len(part["sizes"]) == len(part["nats"]) for part in parts)
        ):
            raise ValueError
    except (PLNDError, ValueError):
        raise PLNDError(f"{path}: damaged; delete it, and the base model is evaluated again") from None
    return base


def _checked(kind: Any, found: Any) -> dict[str, Any]:
    """What was sealed, if it is of a kind.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(found, dict):
        raise ValueError("no object")
    found = unsealed(found)
    _adapter(kind).validate_python(found, strict=True)
    return found


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _append(found: Mapping[str, Any], folder: Path) -> None:
    """Adds a line, in place of one that a killed process left without an end."""
    path = folder / RUNS
    with claimed(path, folder), open(path, "a+b") as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.write(sealed(found).encode())
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


def inputs(settings: FrontierSettings, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the numbers depend on beside the settings, by content."""
    return {
        **{f"model's content ({name})": digest for name, digest in source_digests(settings.model).items()},
        **{f"corpus of {language}": corpus_digest(settings.corpus_of(language)) for language in settings.languages},
        **{
            f"rows of {name} in {language}": task_digest(task, settings.tasks[name].limit)
            for name, by_language in tasks.items()
            for language, task in by_language.items()
        },
    }


def how_of(settings: FrontierSettings, method: str) -> dict[str, Any]:
    """What a method is, but for the rates and budgets that are tried."""
    return settings.methods[method].model_dump(exclude={"rates", "budgets"})


GROWING = ("methods", "budgets", "reference")
"""Settings that may change from one call in a folder to the next: they add runs, and change none that is done."""


# what it will take


def estimate(settings: FrontierSettings, folder: Path | None = None) -> str:
    """What there is left to do, and the time on this machine, of which six batches are trained and some evaluated."""
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        _open_folder(settings, Path(temporary))
        seconds = Bench(settings, Path(temporary)).pace()
    done = read_runs(folder) if folder and folder.exists() else {}
    places, every = set(cells(settings)), Counter(sizes(settings))
    here = (run for run in done.values() if Cell(run["language"], run["method"], run["budget"]) in places)
    left = every - Counter((run["final"], run["documents"]) for run in here)
    runs, finals = left.total(), sum(count for (final, _), count in left.items() if final)
    trained = sum(documents * count for (_, documents), count in left.items()) * settings.training.epochs
    text, languages = settings.evaluation, len(settings.languages)
    base = text.choice * len(settings.trained) + text.held_out * languages
    base *= not (folder and (folder / BASE).exists())
    read = (runs - finals) * text.choice + finals * text.held_out * languages + base
    kept = {path.name for path in (folder / NEURONS).glob("*")} if folder else set()
    scores = {scores_name(*of) for of in _detected(settings)} - kept
    slopes = {gradients_name(language) for language in _with_gradients(settings)} - kept
    detected, gradients = (settings.detection.documents * len(missing) for missing in (scores, slopes))
    hours = (
        runs * seconds["start"]
        + (trained + gradients) * seconds["training"]
        + (read + detected) * seconds["evaluation"]
    ) / 3600
    lines = [
        f"{len(places)} places, {every.total()} runs, {runs} of them to do ({finals} of these reported)",
        *(
            f"  {name}: {rates_of(rounds(settings, len(method.grid)))}"
            f"{len(settings.seeds)} of {settings.training.documents} documents"
            for name, method in settings.methods.items()
        ),
        f"to do: {trained:,} documents trained on, {read:,} evaluated, {detected:,} for detection",
        f"this machine: {seconds['start']:.1f} s a run, {seconds['training']:.2f} s a document trained on,"
        f" {seconds['evaluation']:.2f} s evaluated",
        f"about {hours:.2g} hours in one process, tasks of lm-eval not counted",
    ]
    return "\n".join(lines)


def rates_of(found: Sequence[tuple[int, int]]) -> str:
    """`4 of 100 documents, 2 of 200 documents, then `."""
    return "".join(f"{count} of {documents} documents, " for count, documents in found) + ("then " if found else "")


def _with_gradients(settings: FrontierSettings) -> set[str]:
    """Languages of whose documents gradients are measured."""
    used = [method for method in settings.methods.values() if method.kind == "gradient"]
    before = {method.warm.language for method in used if method.warm and method.warm.language}
    return before | set(settings.trained if used else ())


def _detected(settings: FrontierSettings) -> set[tuple[str, str]]:
    """Languages and measures that the rules want scores of."""
    measures = {m.measure for m in settings.methods.values() if m.kind in ("rank", "difference", "contrast")}
    return {(language, measure) for language in settings.languages for measure in measures}
