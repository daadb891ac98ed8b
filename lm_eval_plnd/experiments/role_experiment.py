"""The experiments of Sharing Matters (arXiv:2406.09265) from one settings file, and what each of its items shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lm_eval_plnd.experiments.settings import Fields, check_languages, check_no_secret
from lm_eval_plnd.experiments.yaml_text import read_fields
from plnd.demo_data import expand
from plnd.errors import PLNDError

ROLES_FILE, SCORES_FILE, SETTINGS_FILE = "roles.safetensors", "attribution.csv", "settings.yaml"
XNLI, FACTS, FROM_ENGLISH, TO_ENGLISH = "xnli", "facts", "edits_from_english", "edits_to_english"
TASKS = (XNLI, FACTS, FROM_ENGLISH, TO_ENGLISH)


class RoleTask(Fields):
    """Parallel inputs: an lm-eval task for each language, `{language}` in the language's place.

    Attributes:
        task: its name.
        align: column that says which documents belong together.
        languages: those that have the task; by default all.
    """

    task: str
    align: str | None = None
    languages: list[str] | None = None


class RoleSettings(Fields):
    """All of an experiment on roles.

    Attributes:
        model: `pretrained`, and what `plnd roles` takes: `revision`, `dtype`, `device`, `batch_size`.
        languages: English among them.
        tasks: some of `xnli`, `facts`, `edits_from_english` and `edits_to_english`.
        limit: at most so many examples.
        metadata: as lm-eval's.
        thresholds: of Figure 20; the first one is that of all else.
        counts: numbers of languages of Figure 8.
        fewshot: worked examples of Figure 19.
        language: whose shared neurons Figures 7 and 17 count.
        shares: of the random neurons of Tables 2 and 4.
    """

    model: dict[str, Any]
    languages: list[str]
    tasks: dict[str, RoleTask]
    limit: int | None = None
    metadata: dict[str, Any] = {}
    thresholds: list[float] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    counts: list[int] = [3, 5, 7, 9]
    fewshot: int = 2
    language: str = "de"
    shares: list[float] = [0.05, 0.15, 0.25, 0.75]

    def text(self) -> str:
        """As YAML, defaults filled in."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def tasks_of(self, name: str) -> list[str]:
        """The tasks of one kind of input, as `plnd roles --tasks` takes them: `zh=plnd_mzsre_zh_en`."""
        kind = self.tasks[name]
        return [f"{x}={kind.task.replace('{language}', x)}" for x in kind.languages or self.languages]


def load_role_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> RoleSettings:
    """Reads a settings file.

    Args:
        path: the YAML file.
        changes: values to put in first, by their dotted names.

    Raises:
        PLNDError: one line with the file, the field, and what is wrong with it.
    """
    try:
        found = read_fields(path, changes)
    except PLNDError as error:
        raise PLNDError(f"{path}: {error}") from None
    if isinstance(found.get("tasks"), dict):
        found["tasks"] = {
            name: {"task": item} if isinstance(item, str) else item for name, item in found["tasks"].items()
        }
    try:
        settings = RoleSettings.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise PLNDError(f"{path}: {field}: {first['msg'].lower()}, found {first['input']!r:.60}") from None
    try:
        check_no_secret(settings)
        check_languages(settings.languages)
    except PLNDError as error:
        raise PLNDError(f"{path}: {error}") from None
    _check(settings, path)
    return settings


def _check(settings: RoleSettings, path: str | Path) -> None:
    if not settings.model.get("pretrained"):
        raise PLNDError(f"{path}: model.pretrained: missing, expected a folder or hub name")
    known = ("pretrained", "revision", "dtype", "device", "batch_size", "trust_remote_code")
    if unknown := [name for name in settings.model if name not in known]:
        raise PLNDError(f"{path}: model.{unknown[0]}: unknown, expected some of {', '.join(known)}")
    if not settings.tasks or (unknown := [name for name in settings.tasks if name not in TASKS]):
        raise PLNDError(
            f"{path}: tasks: found {', '.join(settings.tasks) or 'none'}, expected some of {', '.join(TASKS)}"
        )
    for name, kind in settings.tasks.items():
        if "{language}" not in kind.task:
            raise PLNDError(
                f"{path}: tasks.{name}: {kind.task!r} is one for all languages, expected {{language}} in it"
            )
        if unknown := [x for x in kind.languages or () if x not in settings.languages]:
            raise PLNDError(f"{path}: tasks.{name}.languages: {unknown[0]} is not among languages")
        if not 2 <= len(kind.languages or settings.languages) <= 16:
            raise PLNDError(f"{path}: tasks.{name}: expected 2 to 16 languages")
    if settings.language not in settings.languages:
        raise PLNDError(f"{path}: language: {settings.language} is not among languages")
    if not settings.thresholds or not settings.shares or min(settings.counts, default=0) < 2:
        raise PLNDError(f"{path}: expected thresholds, shares, and counts of 2 or more")


@dataclass(frozen=True)
class Step:
    """One run of `plnd roles`.

    Attributes:
        name: of what it finds, and of the files that hold it.
        arguments: those of `plnd roles`, without the files to write.
        scores: whether it writes contribution and effective scores, too.
    """

    name: str
    arguments: tuple[str, ...]
    scores: bool

    def command(self, folder: str | Path) -> list[str]:
        """The whole command, whose files are in a folder."""
        outputs = ["--output", str(Path(folder) / f"{self.name}.{ROLES_FILE}")]
        if self.scores:
            outputs += ["--attribution", str(Path(folder) / f"{self.name}.{SCORES_FILE}")]
        return ["plnd", "roles", *self.arguments, *outputs]

    def files(self, folder: str | Path) -> list[Path]:
        """What it writes."""
        names = [ROLES_FILE, *([SCORES_FILE] if self.scores else [])]
        return [Path(folder) / f"{self.name}.{name}" for name in names]


def steps(settings: RoleSettings) -> list[Step]:
    """Every run that the tables and figures need."""
    return list(_steps(settings))


def _steps(settings: RoleSettings) -> Iterator[Step]:
    thresholds = ",".join(f"{threshold:g}" for threshold in settings.thresholds)
    for name, kind in settings.tasks.items():
        common = ["--model", str(expand(settings.model["pretrained"])), "--tasks", ",".join(settings.tasks_of(name))]
        for option in ("revision", "dtype", "device", "batch_size"):
            if settings.model.get(option) is not None:
                common += [f"--{option.replace('_', '-')}", str(settings.model[option])]
        common += ["--trust-remote-code"] if settings.model.get("trust_remote_code") else []
        common += ["--align", kind.align] if kind.align else []
        common += ["--limit", str(settings.limit)] if settings.limit else []
        common += ["--metadata", json.dumps(expand(settings.metadata))] if settings.metadata else []
        yield Step(name, (*common, "--thresholds", thresholds), scores=True)
        if name == FACTS:  # Figure 6
            yield Step(f"{name}_all_tokens", (*common, "--tokens", "all"), scores=False)
        if name == FROM_ENGLISH and settings.fewshot:  # Figure 19
            yield Step(f"{name}_fewshot", (*common, "--num_fewshot", str(settings.fewshot)), scores=False)


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper: what makes it, and of which inputs.

    Attributes:
        maker: the name of the function in `scripts/sharing_matters.py`.
        inputs: names of steps, those that an experiment does not have left out.
        scores: whether it reads scores instead of roles.
    """

    maker: str
    inputs: tuple[str, ...]
    scores: bool = False


ITEMS: dict[str, Item] = {
    **dict.fromkeys(("figure3", "figure4", "figure12", "figure13", "figure14"), Item("ratios", TASKS)),
    "figure5": Item("kept", (FACTS,)),
    "figure6": Item("inactive", (f"{FACTS}_all_tokens",)),
    "figure7": Item("shared", (FACTS,)),
    "figure8": Item("counts", (XNLI,)),
    "figure9": Item("top", (FROM_ENGLISH,), scores=True),
    "figure10": Item("contributions", (XNLI, FACTS), scores=True),
    "figure11": Item("effective", (FROM_ENGLISH,), scores=True),
    "figure15": Item("kept", (XNLI,)),
    "figure16": Item("kept", (FROM_ENGLISH,)),
    "figure17": Item("shared", (XNLI,)),
    "figure18": Item("ratios", (XNLI,)),
    "figure19": Item("ratios", (f"{FROM_ENGLISH}_fewshot",)),
    "figure20": Item("thresholds", (XNLI,)),
    "figure21": Item("top", (FROM_ENGLISH,), scores=True),
    "figure22": Item("top", (TO_ENGLISH,), scores=True),
    "figure23": Item("top", (XNLI,), scores=True),
    "figure24": Item("top", (FACTS,), scores=True),
    "figure25": Item("effective", (FACTS,), scores=True),
    "figure26": Item("effective", (XNLI,), scores=True),
    "figure27": Item("effective", (TO_ENGLISH,), scores=True),
    "table1": Item("effects", (TO_ENGLISH,), scores=True),
    "table2": Item("deactivated", (XNLI, FROM_ENGLISH, TO_ENGLISH)),
    "table3": Item("effects", (FROM_ENGLISH,), scores=True),
    "table4": Item("deactivated", (XNLI,)),
}
"""Figures 4 and 12 to 14 are Figure 3 of other models, Figure 18 of several sizes, Table 4 Table 2 of another model."""


def inputs_of(item: Item, inputs: list[str]) -> list[str]:
    """An item's files: those that are named, and of each folder of an experiment those that it has.

    Raises:
        PLNDError: if a folder has none of them.
    """
    found = []
    for path in inputs:
        if not Path(path).is_dir():
            found.append(path)
            continue
        ending = SCORES_FILE if item.scores else ROLES_FILE
        here = [Path(path) / f"{name}.{ending}" for name in item.inputs]
        there = [str(file) for file in here if file.is_file()]
        if not there:
            names = ", ".join(file.name for file in here)
            raise PLNDError(f"{path}: found none of {names}; `scripts/sharing_matters.py run` writes them")
        found += there
    return found


def shown(command: list[str]) -> str:
    """A command as it is typed."""
    return shlex.join(command)
