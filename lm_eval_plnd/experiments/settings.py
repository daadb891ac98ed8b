"""The settings of `plnd experiment`: one YAML file, checked before anything is computed (docs/experiments.md)."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from plnd.addresses import PROJECTIONS
from plnd.demo_data import demo_model
from plnd.errors import PLNDError
from plnd.neurons.regions import Regions

TABLES = {
    "table1": "generation",
    "table2": "understanding",
    "table3": "reasoning",
    "table4": "knowledge",
    "table5": "generation",
    "table8": "reasoning",
    "table9": "reasoning",
    "table10": "understanding",
}
"""What can be run, and the item of `tasks` on which the paper does; Table 11 is Table 10 of another model."""
NEURONS = ("all", "specific", "without_english", "without_shared")
PACKAGE = "plnd:"
"""Begins paths inside the package's folder of data."""
DETECTION = ("qk", "max_documents", "max_length", "min_length", "batch_size", "method", "scoring", "epsilon")


@dataclass(frozen=True)
class Item:
    """One kind of evaluation: an lm-eval task for each language.

    Attributes:
        task: its name, with `{language}` in the language's place.
        metric: what the tables show; by default the task's first.
        limit: at most so many documents; by default that of the whole experiment.
        languages: those that have the task; by default all.
        num_fewshot: worked examples in front of each document.
        apply_chat_template: as lm-eval's.
        gen_kwargs: as lm-eval's.
        metadata: as lm-eval's; over that of the whole experiment.
        model: arguments of `hf` for this item only, such as `max_length` or `add_bos_token`; the model stays loaded.
    """

    task: str
    metric: str | None = None
    limit: int | None = None
    languages: list[str] | None = None
    num_fewshot: int = 0
    apply_chat_template: bool = False
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def task_of(self, language: str) -> str:
        """Name of the task in one language."""
        return self.task.replace("{language}", language)


@dataclass(frozen=True)
class Rule:
    """Which neurons are a language's: one rule of `plnd.Scores.select`, and the projections to choose from."""

    epsilon: float | None = None
    top_k: int | None = None
    fraction: float | None = None
    projections: list[str] | None = None


@dataclass(frozen=True)
class Blocks:
    """How many blocks understand (N1, the first ones) and how many generate (N2, the last ones)."""

    under: int
    gen: int


@dataclass(frozen=True)
class Search:
    """Tables 10 and 11: numbers of blocks to try, on one language."""

    under: list[int]
    gen: list[int]
    language: str = "zh"


@dataclass(frozen=True)
class Settings:
    """All of an experiment.

    Attributes:
        model: arguments of lm-eval's `hf`, `pretrained` among them.
        languages: all languages, English among them.
        corpus: what detection reads, as `plnd detect --corpus`, with `{language}` in the language's place; or a source
            for each language.
        rule: which neurons are a language's.
        tasks: evaluations by name: a task, or what `Item` has. The item `text` stands beside every other.
        experiments: tables to run, each with the items that it is run on (the paper's, if they are left out).
        english: the language that the others are compared with.
        detection: how to detect, as `plnd.DetectConfig`; `max_documents` may be a number for each language.
        regions: N1 and N2.
        search: what Tables 10 and 11 try.
        neurons: the sets that the tables by region (2 to 5, 10) switch off, some of `NEURONS`.
        task_languages: `own` evaluates each set in its own language and English, `all` in every language.
        samples: how many samples of documents to detect on, each beginning where the last one ended.
        seeds: of the random controls, which are drawn like the first sample's sets.
        limit: at most so many documents of each task.
        metadata: as lm-eval's, for all items.
        include_path: folder of further tasks, as lm-eval's.
    """

    model: dict[str, Any]
    languages: list[str]
    corpus: str | dict[str, str]
    rule: Rule
    tasks: dict[str, Item]
    experiments: dict[str, list[str]]
    english: str = "en"
    detection: dict[str, Any] = field(default_factory=dict)
    regions: Blocks | None = None
    search: Search | None = None
    neurons: list[str] = field(default_factory=lambda: ["specific"])
    task_languages: str = "own"
    samples: int = 1
    seeds: list[int] = field(default_factory=lambda: [0])
    limit: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    include_path: str | None = None

    @property
    def others(self) -> list[str]:
        """All languages but English."""
        return [language for language in self.languages if language != self.english]

    def corpus_of(self, language: str) -> str:
        """Where a language's documents are."""
        if isinstance(self.corpus, dict):
            return self.corpus[language]
        return self.corpus.replace("{language}", language)

    def detection_of(self, language: str) -> dict[str, Any]:
        """How to detect in one language: arguments of `plnd.DetectConfig`."""
        documents = self.detection.get("max_documents")
        if isinstance(documents, dict):
            return {**self.detection, "max_documents": documents[language]}
        return self.detection

    def languages_of(self, item: str) -> list[str]:
        """The languages that have an item."""
        return self.tasks[item].languages or self.languages

    def limited(self, limit: int) -> Settings:
        """The same with at most `limit` documents of each task."""
        tasks = {
            name: item if item.limit is None else replace(item, limit=min(limit, item.limit))
            for name, item in self.tasks.items()
        }
        return replace(self, tasks=tasks, limit=limit if self.limit is None else min(limit, self.limit))

    def text(self) -> str:
        """As YAML, defaults filled in."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def load_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """Reads a settings file.

    Args:
        path: the YAML file.
        changes: values to put in first, by their dotted names: `{"model.pretrained": "folder"}`.

    Raises:
        PLNDError: one line with the file, the field, what was found and what is expected.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PLNDError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise PLNDError(f"{path}: not YAML ({reason})") from None
    try:
        if not isinstance(found, dict):
            raise PLNDError(f"{'empty' if found is None else f'found {found!r:.60}'}, expected fields with values")
        for name, value in (changes or {}).items():
            _put(found, name, value)
        return parse_settings(found)
    except PLNDError as error:
        raise PLNDError(f"{path}: {error}") from None


def parse_settings(found: Mapping[str, Any]) -> Settings:
    """Settings from what a YAML file holds.

    Raises:
        PLNDError: one line with the field, what was found and what is expected.
    """
    values = dict(found)
    if isinstance(tasks := values.get("tasks"), Mapping):
        values["tasks"] = {name: {"task": item} if isinstance(item, str) else item for name, item in tasks.items()}
    if "experiments" in values:
        values["experiments"] = _experiments(values["experiments"])
    settings = _build(Settings, values, "")
    _check(settings)
    return settings


def expand(value: Any) -> Any:
    """A value with paths inside the package in place of `plnd:…`, also within mappings and lists."""
    if isinstance(value, dict):
        return {key: expand(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner) for inner in value]
    if isinstance(value, str) and value.startswith(PACKAGE):
        return str(demo_model().parent / value.removeprefix(PACKAGE))
    return value


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value in at its dotted name; a task that is a mere name becomes a mapping where need be."""
    *path, last = name.split(".")
    for depth, key in enumerate(path):
        inner = found.setdefault(key, {})
        if path[0] == "tasks" and depth == 1 and isinstance(inner, str):
            inner = found[key] = {"task": inner}
        if not isinstance(inner, dict):
            raise PLNDError(f"{name}: {'.'.join(path[: depth + 1])} is {inner!r:.60}, which has no fields")
        found = inner
    found[last] = value


def _experiments(found: Any) -> Any:
    """Tables to items, from a list of tables or a mapping in which the paper's items may be left out."""
    if isinstance(found, list) and all(isinstance(table, str) for table in found):
        found = dict.fromkeys(found)
    if not isinstance(found, Mapping):
        return found
    for table in found:
        if table not in TABLES:
            raise PLNDError(f"experiments.{table}: unknown, expected some of {', '.join(TABLES)}")
    return {
        table: [TABLES[table]] if items is None else [items] if isinstance(items, str) else items
        for table, items in found.items()
    }


def _build(kind: Any, found: Any, where: str) -> Any:
    """A dataclass from a mapping, every field checked."""
    if not isinstance(found, Mapping):
        raise PLNDError(f"{where or 'settings'}: found {found!r:.60}, expected fields with values")
    names = [f.name for f in fields(kind)]
    for name in found:
        if name not in names:
            raise PLNDError(f"{_at(where, name)}: unknown, expected some of {', '.join(names)}")
    for f in fields(kind):
        if f.name not in found and f.default is MISSING and f.default_factory is MISSING:
            raise PLNDError(f"{_at(where, f.name)}: missing")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, _at(where, name)) for name, value in found.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of one type."""
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _build(hint, value, where)
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        fitting = [o for o in options if isinstance(value, get_origin(o) or (Mapping if is_dataclass(o) else o))]
        return _value(fitting[0] if fitting else options[0], value, where)
    if get_origin(hint) is list and isinstance(value, list):
        return [_value(get_args(hint)[0], inner, f"{where}[{n}]") for n, inner in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, Mapping):
        kind = get_args(hint)[1]
        for key in value:
            if not isinstance(key, str):
                raise PLNDError(f"{where}: {key!r} is no name; put it in quotation marks")
        return {key: _value(kind, inner, _at(where, key)) for key, inner in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    advice = "; put it in quotation marks" if hint is str and isinstance(value, (bool, int, float)) else ""
    raise PLNDError(f"{where}: found {value!r:.60}, expected {_words(hint)}{advice}")


def _words(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint) or {list: "a list", dict: "fields with values"}[get_origin(hint)]


def _at(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _check(settings: Settings) -> None:
    """Refuses what the types allow and makes no sense."""
    if not settings.model.get("pretrained"):
        raise PLNDError("model.pretrained: missing, expected a folder or hub name")
    for name, values in (("languages", settings.languages), ("seeds", settings.seeds), ("neurons", settings.neurons)):
        if not values or len(set(values)) < len(values):
            raise PLNDError(f"{name}: found {values!r:.60}, expected one or more, each once")
    if settings.english not in settings.languages or len(settings.languages) < 2:
        raise PLNDError(
            f"languages: {', '.join(settings.languages)}; expected {settings.english} and at least one other"
        )
    if missing := [x for x in settings.languages if isinstance(settings.corpus, dict) and x not in settings.corpus]:
        raise PLNDError(f"corpus.{missing[0]}: missing")
    if isinstance(settings.corpus, str) and "{language}" not in settings.corpus:
        raise PLNDError(f"corpus: {settings.corpus!r} is one for all languages, expected {{language}} in it")
    for name in settings.neurons:
        if name not in NEURONS:
            raise PLNDError(f"neurons: unknown {name!r}, expected some of {', '.join(NEURONS)}")
    if settings.task_languages not in ("own", "all"):
        raise PLNDError(f"task_languages: unknown {settings.task_languages!r}, expected own or all")
    for name, number in (("samples", settings.samples), ("limit", settings.limit)):
        if number is not None and number < 1:
            raise PLNDError(f"{name}: found {number}, expected 1 or more")
    _check_detection(settings)
    _check_rule(settings.rule)
    for name, item in settings.tasks.items():
        _check_item(settings, name, item)
    if not settings.tasks or not settings.experiments:
        raise PLNDError(f"{'experiments' if settings.tasks else 'tasks'}: none, expected at least one")
    for table, items in settings.experiments.items():
        _check_experiment(settings, table, items)


def _check_detection(settings: Settings) -> None:
    from plnd.detection.config import DetectConfig

    for name in settings.detection:
        if name not in DETECTION:
            raise PLNDError(f"detection.{name}: unknown, expected some of {', '.join(DETECTION)}")
    if settings.detection.get("qk") is False:
        raise PLNDError('detection.qk: found false, which YAML reads in off; write "off" in quotation marks')
    documents = settings.detection.get("max_documents")
    if isinstance(documents, dict) and (missing := [x for x in settings.languages if x not in documents]):
        raise PLNDError(f"detection.max_documents.{missing[0]}: missing")
    for language in settings.languages:
        given = settings.detection_of(language)
        for name, value in given.items():
            kind: Any = str if name in ("qk", "method", "scoring") else float if name == "epsilon" else int
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise PLNDError(f"detection.{name}: found {value!r:.60}, expected {_words(kind)}")
        try:
            DetectConfig(**given)
        except PLNDError as error:
            raise PLNDError(f"detection: {error}") from None
    if settings.samples > 1 and settings.detection.get("max_documents") is None:
        raise PLNDError("samples: more than one need detection.max_documents, the size of each")


def _check_rule(rule: Rule) -> None:
    given = [name for name in ("epsilon", "top_k", "fraction") if getattr(rule, name) is not None]
    if len(given) != 1:
        raise PLNDError(f"rule: expected exactly one of epsilon, top_k, fraction, found {', '.join(given) or 'none'}")
    value = getattr(rule, given[0])
    if value <= 0 or (given[0] == "fraction" and value > 1):
        raise PLNDError(
            f"rule.{given[0]}: found {value}, expected more than 0{' and at most 1' * (given[0] == 'fraction')}"
        )
    for name in rule.projections or ():
        if name not in PROJECTIONS:
            raise PLNDError(f"rule.projections: unknown {name!r}, expected some of {', '.join(PROJECTIONS)}")


def _check_item(settings: Settings, name: str, item: Item) -> None:
    if "{language}" not in item.task:
        raise PLNDError(f"tasks.{name}: {item.task!r} is one for all languages, expected {{language}} in it")
    if item.limit is not None and item.limit < 1:
        raise PLNDError(f"tasks.{name}.limit: found {item.limit}, expected 1 or more")
    if item.num_fewshot < 0:
        raise PLNDError(f"tasks.{name}.num_fewshot: found {item.num_fewshot}, expected 0 or more")
    if "pretrained" in item.model:
        raise PLNDError(f"tasks.{name}.model.pretrained: all items are evaluated on the one loaded model")
    for language in item.languages or ():
        if language not in settings.languages:
            raise PLNDError(f"tasks.{name}.languages: {language} is not among {', '.join(settings.languages)}")
    if item.languages is not None and settings.english not in item.languages:
        raise PLNDError(f"tasks.{name}.languages: expected {settings.english} among them, which all are compared with")


def _check_experiment(settings: Settings, table: str, items: list[str]) -> None:
    if not items:
        raise PLNDError(f"experiments.{table}: no item, expected some of {', '.join(settings.tasks)}")
    for item in items:
        if item not in settings.tasks:
            raise PLNDError(f"experiments.{table}: {item} is not among tasks, which has {', '.join(settings.tasks)}")
    if table == "table10":
        search = settings.search
        if search is None:
            raise PLNDError("search: missing; table10 needs search.under and search.gen, the numbers of blocks to try")
        if search.language not in settings.others:
            raise PLNDError(f"search.language: {search.language} is not among {', '.join(settings.others)}")
        for item in items:
            if search.language not in settings.languages_of(item):
                raise PLNDError(f"search.language: {search.language} does not have the item {item}")
        for name, values in (("under", search.under), ("gen", search.gen)):
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise PLNDError(f"search.{name}: found {values}, expected numbers of blocks, each once")
    elif table != "table1":
        if settings.regions is None:
            raise PLNDError(f"regions: missing; {table} needs regions.under (N1) and regions.gen (N2)")
        Regions(("under",), settings.regions.under, settings.regions.gen)
