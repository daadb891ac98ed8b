"""One view of what was evaluated, from lm-eval's results files and from the folder of `plnd experiment`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_plnd.experiments import results
from lm_eval_plnd.experiments.results import Row
from lm_eval_plnd.experiments.settings import load_settings
from plnd.errors import PLNDError
from plnd.secrets import without_secrets

RECORD, ADAPTER = "plnd.json", "adapter_config.json"
"""Files by which an export of `plnd export` and a PEFT adapter are known."""
_OURS = ("version", "config_source")
"""Metadata of a task that is not the user's."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        task, metric: as lm-eval names them.
        value: finite.
        filter: lm-eval's; empty for `none`.
        stderr: None where there is none.
        documents, fewshot: how many were evaluated, with how many worked examples; None where nobody says.
        dataset, config, split: of the hub's data set that the task names; None where it names none.
        language: of the task's documents; None where nobody says.
    """

    task: str
    metric: str
    value: float
    filter: str = ""
    stderr: float | None = None
    documents: int | None = None
    fewshot: int | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    language: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What the same number of another model has in common with it."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class Evaluation:
    """A model's scores, and which model it was.

    Attributes:
        source: the file or folder they come from.
        kind: original, masked, exported, adapter, or checkpoint (any other folder).
        name: readable: of a setting, or of the folder.
        scores: in the file's order.
        base: folder or hub name of the original model; None where nobody says.
        mask: file of the neurons artifact; None where there is none.
        mask_sha256: its digest, or (of an experiment's setting) that of the neurons that were switched off.
        regions: of the mask, as in `under+gen,under=8,gen=2`; empty for all.
        control: whether as many random neurons were switched off instead.
        counts: neurons by projection.
        folder: of an export or adapter.
        commands: that evaluate it again, one line each.
        software: versions.
    """

    source: Path
    kind: str
    name: str
    scores: list[Score]
    base: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    regions: str = ""
    control: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    folder: str | None = None
    commands: Sequence[str] = ()
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> tuple[str | None, str]:
        """What two evaluations of the same model have in common; tuned neurons are another model than zeroed ones."""
        if self.kind == "adapter":
            return self.folder, "tuned"
        return self.mask_sha256 or self.folder, self.regions


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """All evaluations of a results file of lm-eval, of a folder of such files, or of a `plnd experiment`.

    Raises:
        PLNDError: if there are none, or a file is damaged.
    """
    path = Path(path)
    if (path / results.RESULTS).is_file():
        return _of_experiment(path)
    if path.is_dir():
        files = sorted(path.rglob("results_*.json"))
        if not files:
            raise PLNDError(
                f"{path}: neither {results.RESULTS} of `plnd experiment` nor results_….json of lm-eval in it"
            )
        return [_of_lm_eval(file) for file in files]
    return [_of_lm_eval(path)]


# the folder of `plnd experiment`


def _of_experiment(folder: Path) -> list[Evaluation]:
    rows = results.read_results(folder)
    settings = load_settings(folder / results.SETTINGS)
    software = results.read_json(folder / results.ENVIRONMENT) if (folder / results.ENVIRONMENT).is_file() else {}
    found = []
    for first in results.first_of_each(rows):
        own = [row for row in rows if row.setting == first.setting]
        commands = results.commands(settings, dict.fromkeys(row.item for row in own), results.portable)
        model = results.arguments(first, settings, folder.name, results.portable)
        chosen = results.regions_of(first, settings)
        mask = None if first.original else str(results.mask_file(folder, first))
        found.append(
            Evaluation(
                source=folder,
                kind="original" if first.original else "masked",
                name=first.setting,
                scores=[_score_of(row) for row in own if math.isfinite(row.value)],
                base=str(settings.model["pretrained"]),
                mask=mask,
                mask_sha256=first.mask_sha256 or None,
                regions=",".join([chosen.pop("regions", ""), *(f"{k}={v}" for k, v in chosen.items())]),
                control=bool(first.control),
                commands=[_one_line(command.replace("$MODEL", model)) for command in commands.values()],
                software={name: str(value) for name, value in software.items()},
            )
        )
    return found


def _score_of(row: Row) -> Score:
    metric, _, name = row.metric.partition(",")
    stderr = row.stderr if math.isfinite(row.stderr) else None
    return Score(row.task, metric, row.value, name, stderr, row.documents, language=row.task_language or None)


# lm-eval's results files


def _of_lm_eval(path: Path) -> Evaluation:
    found = results.read_json(path)
    try:
        config, arguments = found["config"], _arguments(found["config"].get("model_args"))
        scores = [score for task, values in found["results"].items() for score in _scores(found, task, values)]
        kind, what = _model(config, arguments)
        names = {"lm_eval": found.get("lm_eval_version"), "transformers": found.get("transformers_version")}
        command = _one_line(_command(found, config, arguments))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PLNDError(f"{path}: not a results file of lm-eval; `lm_eval --output_path FOLDER` writes one") from None
    if not scores:
        raise PLNDError(f"{path}: no score in it")
    software = {name: version for name, version in names.items() if isinstance(version, str)}
    return Evaluation(path, kind, scores=scores, commands=[command], software=software, **what)


def _arguments(given: Any) -> dict[str, Any]:
    """`model_args`, which older releases of lm-eval write as one string."""
    if isinstance(given, str):
        return dict(part.split("=", 1) for part in given.split(",") if part)
    return dict(given or {})


def _scores(found: Mapping[str, Any], task: str, values: Mapping[str, Any]) -> list[Score]:
    config = found["configs"].get(task, {})
    metadata, options = config.get("metadata") or {}, config.get("dataset_kwargs") or {}
    scores = []
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        stderr = values.get(f"{metric}_stderr,{name}")
        scores.append(
            Score(
                task=task,
                metric=metric,
                value=float(value),
                filter="" if name == "none" else name,
                stderr=float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
                documents=found.get("n-samples", {}).get(task, {}).get("effective"),
                fewshot=found.get("n-shot", {}).get(task),
                dataset=config.get("dataset_path"),
                config=config.get("dataset_name"),
                split=config.get("test_split") or config.get("validation_split"),
                language=options.get("language") or metadata.get("language"),
            )
        )
    return scores


def _model(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which model was evaluated: its kind, and fields of `Evaluation`."""
    pretrained, off = arguments.get("pretrained"), config.get("plnd") or {}
    if off.get("mask_sha256"):
        regions = "" if off["regions"] is None else str(off["regions"])
        regions += "".join(f",{name}={off[name]}" for name in ("under", "gen") if off.get(name) is not None)
        random = f".random{off['seed']}" if off["control"] else ""
        name = f"{off['language']}{f'.{regions}' if regions else ''}{random}"
        what = {"name": name, "base": pretrained, "mask": off["mask"], "mask_sha256": off["mask_sha256"]}
        return "masked", {**what, "regions": regions, "control": bool(off["control"]), "counts": off["counts"]}
    folder = str(arguments.get("peft") or pretrained or "")
    what = {"name": Path(folder).name, "folder": folder}
    if (Path(folder) / RECORD).is_file():
        record = results.read_json(Path(folder) / RECORD)
        mask = record["mask"]
        return "exported", {
            **what,
            "base": record["model"]["name"],
            "mask_sha256": mask["sha256"],
            "counts": mask["counts"],
        }
    if arguments.get("peft") or (Path(folder) / ADAPTER).is_file():
        adapter = results.read_json(Path(folder) / ADAPTER) if (Path(folder) / ADAPTER).is_file() else {}
        base = arguments.get("pretrained") if arguments.get("peft") else adapter.get("base_model_name_or_path")
        source = adapter.get("source") or {}
        return "adapter", {**what, "base": base, "mask_sha256": source.get("sha256")}
    return "checkpoint", {**what, "base": folder}


def _command(found: Mapping[str, Any], config: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """The command that evaluates it again, with files and folders by their last names."""
    given = ",".join(f"{key}={results.portable(value)}" for key, value in arguments.items())
    words = ["lm_eval", "--model", str(config["model"]), "--model_args", shlex.quote(given)]
    tasks = {task: conf for task, conf in found["configs"].items()}
    sources = [str((conf.get("metadata") or {}).get("config_source", "")) for conf in tasks.values()]
    if any(task.startswith("plnd_") for task in tasks):
        words += ["--include_path", '"$(plnd tasks)"']
    elif outside := [source for source in sources if source and "lm_eval/tasks/" not in source]:
        words += ["--include_path", shlex.quote(Path(outside[0]).parent.name)]
    words += ["--tasks", shlex.quote(",".join(tasks))]
    shots = {count for count in found.get("n-shot", {}).values() if count}
    words += ["--num_fewshot", str(shots.pop())] if len(shots) == 1 else []
    limit = config.get("limit")
    words += ["--limit", f"{limit:g}"] if limit else []
    words += ["--batch_size", str(config["batch_size"])] if config.get("batch_size") else []
    words += ["--apply_chat_template"] if found.get("chat_template") else []
    if options := config.get("gen_kwargs"):
        text = options if isinstance(options, str) else ",".join(f"{key}={value}" for key, value in options.items())
        words += ["--gen_kwargs", shlex.quote(text)]
    metadata: dict[str, Any] = {}
    for conf in tasks.values():
        metadata |= {
            k: results.portable(v) for k, v in (conf.get("metadata") or {}).items() if k not in (*_OURS, *arguments)
        }
    if metadata and any("custom_dataset" in conf for conf in tasks.values()):
        words += ["--metadata", shlex.quote(json.dumps(metadata, ensure_ascii=False, sort_keys=True))]
    return " ".join(words)


def _one_line(command: str) -> str:
    """Without line breaks, tokens and passwords."""
    return without_secrets(" ".join(command.splitlines()))
