"""The settings of `plnd experiment`: one YAML file, checked before anything is computed (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from lm_eval_plnd.experiments.yaml_text import read_fields
from plnd.addresses import PROJECTIONS
from plnd.demo_data import expand as expand
from plnd.errors import PLNDError
from plnd.io.files import check_name
from plnd.neurons.contrast import TIMES
from plnd.neurons.regions import Regions
from plnd.neurons.selection import GROUPS, listed
from plnd.secrets import secret_in

FOLDER = Path(__file__).parent / "settings_files"
"""Those that come with plnd; `plnd experiment demo` is `plnd experiment FOLDER/demo.yaml`."""
TABLES = {
    "table1": "generation",
    "table2": "understanding",
    "table3": "reasoning",
    "table4": "knowledge",
    "table5": "generation",
    "later_table8": "reasoning",
    "later_table9": "reasoning",
    "table10": "understanding",
}
"""What can be run, and the item of `tasks` on which the paper does; Table 11 is Table 10 of another model."""
ORIGINAL = "original"
"""The original model alone, on all items (Table 9 of the appendix)."""
SETS = ("sets", "figure3", "figure5", "figure6")
"""What needs the sets of neurons and evaluates nothing; `sets` has no figure."""
TWICE = {
    "table8": "the prompts (scripts/plnd_paper.py prompts) or, in the later appendix, later_table8",
    "table9": "original or, in the later appendix, later_table9",
}
"""Numbers that two versions of the paper give to different tables, and what each is called here."""
ENHANCING = ("figure4", "table6")
"""What trains neurons instead of switching them off (`lm_eval_plnd.experiments.enhancement`)."""
ABLATIONS = ("zero", "mean")
"""What becomes of the values of neurons that a setting switches off (`plnd.interventions`)."""
BENCHMARKS = ("reasoning", "understanding", "knowledge", "generation")
"""The items that the paper enhances, in the order of Figure 4: MGSM, XQuAD, X-CSQA and XL-Sum."""
HIGH, LOW = ("de", "fr", "zh", "es", "ru"), ("vi", "th", "ar", "sw")
"""The paper's languages of Figure 4 and of Table 6."""
STATES = ("neurons", "random", "lora", "full")
"""What can be trained: a language's neurons, as many random ones, LoRA, every parameter."""
NEURONS = ("all", "specific", "without_english", "without_shared")
"""Kinds of sets; without a rule of one language there is only `specific`, which contrast finds."""
OVERLAPPING = {"later_table8": "without_english", "later_table9": "without_shared"}
"""The sets of the later appendix, compared with `all`."""

_NO_LANGUAGE_NEURONS = (
    "is made from what is important for a language, and rule.contrast finds what is specific to it: give rule.epsilon,"
    " rule.epsilon_for, rule.top_k or rule.fraction beside it"
)

# What was expected, by pydantic's name of the mistake.
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "fields with values",
    "model_type": "fields with values",
}
_OPTIONS = ("bool", "str", "int", "float", "list[str]", "dict[str,str]", "dict[str,int]")
"""What pydantic writes behind a field's name where several types are possible."""


class Fields(BaseModel):
    """A part of the settings: no further fields, and no type that is taken for another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Item(Fields):
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
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    model: dict[str, Any] = {}

    def task_of(self, language: str) -> str:
        """Name of the task in one language."""
        return self.task.replace("{language}", language)


class Contrast(Fields):
    """How many neurons `plnd.contrast` keeps; its default where nothing is said."""

    count: int | None = None
    share: float | None = None
    error_rate: float | None = None
    times: float = TIMES


_RULES = ("epsilon", "epsilon_for", "top_k", "fraction")


class Rule(Fields):
    """Which neurons are a language's: one rule of `plnd.Scores.select`, or contrast, or both.

    Attributes:
        epsilon, epsilon_for, top_k, fraction: one of them, for `all` neurons that are important for a language;
            `specific` are those minus every other language's.
        projections: only these, or the name of a group (`plnd.neurons.selection.GROUPS`); those that the rule itself
            takes by default.
        contrast: how `specific` neurons are found instead, against every other language.
    """

    epsilon: float | None = None
    epsilon_for: float | None = None
    top_k: int | None = None
    fraction: float | None = None
    projections: str | list[str] | None = None
    contrast: Contrast | None = None

    @property
    def of_one_language(self) -> dict[str, float | int]:
        """The rule of `plnd.Scores.select` that is given, by its name."""
        named = {name: getattr(self, name) for name in _RULES}
        return {name: value for name, value in named.items() if value is not None}


class Blocks(Fields):
    """How many blocks understand (N1, the first ones) and how many generate (N2, the last ones)."""

    under: int
    gen: int


class Search(Fields):
    """Tables 10 and 11: numbers of blocks to try, on one language."""

    under: list[int]
    gen: list[int]
    language: str = "zh"


class Enhancement(Fields):
    """Figure 4 and Table 6: what is trained, on which documents, and how (`peft_plnd.fine_tuning` says why).

    Attributes:
        documents: numbers of documents that a language's neurons are trained on for Figure 4.
        compared: the number that the other states are trained on, and all of them for Table 6.
        states: some of `STATES`; the original model is always there.
        neurons: the set that is trained, some of `NEURONS`.
        high, low: the languages of Figure 4 and of Table 6; by default the paper's, as far as the experiment has them.
        corpus: what training reads, as the experiment's `corpus`, which is the default.
        pool: documents are drawn from the first so many of it.
        max_length, batch_size, epochs, lora_rank: as in `peft_plnd.fine_tuning.Settings`.
        rates: peak learning rates by state, where not the default.
    """

    documents: list[int] = [100, 200, 400, 800]
    compared: int = 400
    states: list[str] = list(STATES)
    neurons: str = "all"
    high: list[str] | None = None
    low: list[str] | None = None
    corpus: str | dict[str, str] | None = None
    pool: int = 10_000
    max_length: int = 512
    batch_size: int = 4
    epochs: int = 1
    lora_rank: int = 8
    rates: dict[str, float] = {}


def _no_switch(found: Any) -> Any:
    """Refuses what YAML makes of a bare `off`."""
    if found is False:
        raise PydanticCustomError("off", 'found false, which YAML reads in off; write "off" in quotation marks')
    return found


class Detection(TypedDict, total=False):
    """How to detect: some of the fields of `plnd.DetectConfig`; `max_documents` may be a number for each language."""

    __pydantic_config__ = Fields.model_config  # type: ignore[misc]

    qk: Annotated[str, BeforeValidator(_no_switch)]
    max_documents: int | dict[str, int]
    max_length: int
    min_length: int
    batch_size: int
    method: str
    scoring: str
    epsilon: float | int


class Settings(Fields):
    """All of an experiment.

    Attributes:
        model: arguments of lm-eval's `hf`, `pretrained` among them.
        languages: all languages, English among them.
        corpus: what detection reads, as `plnd detect --corpus`, with `{language}` in the language's place; or a source
            for each language.
        rule: which neurons are a language's.
        tasks: evaluations by name: a task, or what `Item` has. The item `text` stands beside every other.
        experiments: tables to run, each with the items that it is run on (the paper's, if they are left out); those of
            `SETS` have none.
        english: the language that the others are compared with.
        detection: how to detect.
        regions: N1 and N2.
        search: what Tables 10 and 11 try.
        neurons: the sets that the tables by region (2 to 5, 10) switch off, some of `NEURONS`.
        equal: whether all rows of a table by region (2 to 5) switch off equally many neurons: of each region the most
            important ones, as many as the region that has fewest, or the number given; and so many random ones. For a
            number, `all` neurons of a region are its most important ones, whatever the rule keeps of them.
        ablation: `zero`, as in the paper, or `mean`: neurons are at their means over the documents of detection, of all
            languages together, in place of switched off.
        task_languages: `own` evaluates each set in its own language and English, `all` in every language.
        samples: how many samples of documents to detect on, each beginning where the last one ended.
        shards: parts into which each detection is cut, so that several processes share it; changes no result.
        seeds: of the random controls, which are drawn like the first sample's sets.
        limit: at most so many documents of each task.
        enhancement: what Figure 4 and Table 6 train; their documents are drawn anew for each of `seeds`.
        metadata: as lm-eval's, for all items.
        include_path: folder of further tasks, as lm-eval's.
    """

    model: dict[str, Any]
    languages: list[str]
    corpus: str | dict[str, str]
    rule: Rule
    experiments: dict[str, list[str]]
    tasks: dict[str, Item] = {}
    english: str = "en"
    detection: Detection = {}
    regions: Blocks | None = None
    search: Search | None = None
    neurons: list[str] = ["specific"]
    equal: bool | int = False
    ablation: str = "zero"
    task_languages: str = "own"
    samples: int = 1
    shards: int = 1
    seeds: list[int] = [0]
    limit: int | None = None
    enhancement: Enhancement = Enhancement()
    metadata: dict[str, Any] = {}
    include_path: str | None = None

    @property
    def others(self) -> list[str]:
        """All languages but English."""
        return [language for language in self.languages if language != self.english]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sets that the rule makes, some of `NEURONS`."""
        return NEURONS if self.rule.of_one_language else ("specific",)

    def corpus_of(self, language: str) -> str:
        """Where a language's documents are."""
        if isinstance(self.corpus, dict):
            return self.corpus[language]
        return self.corpus.replace("{language}", language)

    def training_corpus_of(self, language: str) -> str:
        """Where the documents are that a language's training draws from."""
        corpus = self.enhancement.corpus
        if corpus is None:
            return self.corpus_of(language)
        return corpus[language] if isinstance(corpus, dict) else corpus.replace("{language}", language)

    def enhanced(self, name: str) -> list[str]:
        """The languages of Figure 4 or of Table 6."""
        chosen, paper = {"figure4": (self.enhancement.high, HIGH), "table6": (self.enhancement.low, LOW)}[name]
        return [x for x in paper if x in self.others] if chosen is None else chosen

    def detection_of(self, language: str) -> dict[str, Any]:
        """How to detect in one language: arguments of `plnd.DetectConfig`."""
        documents = self.detection.get("max_documents")
        if isinstance(documents, dict):
            return {**self.detection, "max_documents": documents[language]}
        return dict(self.detection)

    def languages_of(self, item: str) -> list[str]:
        """The languages that have an item."""
        return self.tasks[item].languages or self.languages

    def limited(self, limit: int) -> Settings:
        """The same with at most `limit` documents of each task."""
        tasks = {
            name: item if item.limit is None else item.model_copy(update={"limit": min(limit, item.limit)})
            for name, item in self.tasks.items()
        }
        least = limit if self.limit is None else min(limit, self.limit)
        return self.model_copy(update={"tasks": tasks, "limit": least})

    def text(self) -> str:
        """As YAML, defaults filled in."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def settings_file(name: str | Path) -> Path:
    """The file of this name, else the one that comes with plnd: `demo`.

    Raises:
        PLNDError: if a plain word is neither, with the words that are.
    """
    path, own = Path(name), sorted(file.stem for file in FOLDER.glob("*.yaml"))
    if path.exists() or path.suffix == ".yaml" or path.name != str(name):
        return path
    if str(name) not in own:
        raise PLNDError(f"no such file, nor among the settings that come with plnd: {', '.join(own)}")
    return FOLDER / f"{name}.yaml"


def load_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> Settings:
    """Reads a settings file.

    Args:
        path: the YAML file, or the name of one that comes with plnd (`settings_file`).
        changes: values to put in first, by their dotted names: `{"model.pretrained": "folder"}`.

    Raises:
        PLNDError: one line with the file, the field, what was found and what is expected.
    """
    try:
        return parse_settings(read_fields(settings_file(path), changes))
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
        values["experiments"] = _experiments(values["experiments"], values.get("tasks"))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise PLNDError(_mistake(error)) from None
    _check(settings)
    return settings


def _experiments(found: Any, tasks: Any) -> Any:
    """Tables to items, from a list of tables or a mapping in which the paper's items may be left out.

    For Figure 4 and Table 6 these are the paper's benchmarks that are among the tasks, or else the text.
    """
    named = tasks if isinstance(tasks, Mapping) else {}
    benchmarks = [item for item in BENCHMARKS if item in named] or ["text"]
    paper = {**{table: [item] for table, item in TABLES.items()}, **dict.fromkeys(ENHANCING, benchmarks)}
    paper |= {ORIGINAL: list(named), **{name: [] for name in SETS}}
    if isinstance(found, list) and all(isinstance(table, str) for table in found):
        found = dict.fromkeys(found)
    if not isinstance(found, Mapping):
        return found
    for table in found:
        if table in TWICE:
            raise PLNDError(f"experiments.{table}: two tables of the paper have this number, say {TWICE[table]}")
        if table not in paper:
            raise PLNDError(f"experiments.{table}: unknown, expected some of {', '.join(paper)}")
    return {
        table: paper[table] if items is None else [items] if isinstance(items, str) else items
        for table, items in found.items()
    }


def _mistake(error: ValidationError) -> str:
    """One mistake in one line: a name that is unknown, since its field may be called missing too; then what is missing;
    then the deepest, since that is of the type that a value looks like."""
    unknown = ("extra_forbidden", "invalid_key")
    first = min(
        error.errors(include_url=False),
        key=lambda mistake: (mistake["type"] not in unknown, mistake["type"] != "missing", -len(mistake["loc"])),
    )
    path, kind, found = [part for part in first["loc"] if part not in _OPTIONS], first["type"], first["input"]
    if path[-1] == "[key]":
        return f"{_dotted(path[:-2])}: {found!r:.60} is no name; put it in quotation marks"
    if kind == "missing":
        return f"{_dotted(path)}: missing"
    if kind in unknown:
        parts = {"tasks": Item, "rule": Rule, "regions": Blocks, "search": Search, "detection": Detection}
        parts["enhancement"] = Enhancement
        if path[:2] == ["rule", "contrast"]:
            parts["rule"] = Contrast
        names = parts[str(path[0])].__annotations__ if path[1:] else Settings.__annotations__
        return f"{_dotted(path)}: unknown, expected some of {', '.join(names)}"
    if kind not in _EXPECTED:
        return f"{_dotted(path)}: {first['msg']}"
    advice = "; put it in quotation marks" if kind == "string_type" and isinstance(found, (int, float)) else ""
    return f"{_dotted(path)}: found {found!r:.60}, expected {_EXPECTED[kind]}{advice}"


def _dotted(path: Sequence[str | int]) -> str:
    """`tasks.text.languages[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def check_no_secret(settings: Fields) -> None:
    """Refuses settings with a token or password in them, as they are copied beside the results.

    Raises:
        PLNDError: naming the field.
    """
    if (secret := secret_in(settings.model_dump())) is not None:
        raise PLNDError(
            f"{secret}: holds a token or password, which the results would hold as well: log in (hf auth login), or set"
            " HF_TOKEN"
        )


def check_languages(languages: Sequence[str]) -> None:
    """Refuses names of languages that are not those of files, of which an experiment writes some for each.

    Raises:
        PLNDError: naming the language.
    """
    for language in languages:
        check_name(language, "languages")
    if len({language.casefold() for language in languages}) < len(languages):
        raise PLNDError(f"languages: {', '.join(languages)}: two that are one file on some systems")


def _check(settings: Settings) -> None:
    """Refuses what the types allow and makes no sense."""
    check_no_secret(settings)
    if not settings.model.get("pretrained"):
        raise PLNDError("model.pretrained: missing, expected a folder or hub name")
    for name, values in (("languages", settings.languages), ("seeds", settings.seeds), ("neurons", settings.neurons)):
        if not values or len(set(values)) < len(values):
            raise PLNDError(f"{name}: found {values!r:.60}, expected one or more, each once")
    check_languages(settings.languages)
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
        if name not in settings.kinds:
            raise PLNDError(f"neurons: {name!r} {_NO_LANGUAGE_NEURONS}")
    if settings.ablation not in ABLATIONS:
        raise PLNDError(f"ablation: unknown {settings.ablation!r}, expected {' or '.join(ABLATIONS)}")
    if settings.task_languages not in ("own", "all"):
        raise PLNDError(f"task_languages: unknown {settings.task_languages!r}, expected own or all")
    if settings.equal is not True and settings.equal is not False and settings.equal < 1:
        raise PLNDError(f"equal: found {settings.equal}, expected true, false, or a number of neurons")
    for name, number in (("samples", settings.samples), ("shards", settings.shards), ("limit", settings.limit)):
        if number is not None and number < 1:
            raise PLNDError(f"{name}: found {number}, expected 1 or more")
    _check_detection(settings)
    _check_rule(settings.rule)
    for name, item in settings.tasks.items():
        _check_item(settings, name, item)
    if not settings.experiments:
        raise PLNDError(f"experiments: none, expected some of {', '.join((*TABLES, ORIGINAL, *SETS))}")
    if not settings.tasks and not set(SETS).issuperset(settings.experiments):
        raise PLNDError("tasks: none, expected at least one")
    for table, items in settings.experiments.items():
        _check_experiment(settings, table, items)


def _check_detection(settings: Settings) -> None:
    from plnd.detection.config import DetectConfig

    documents = settings.detection.get("max_documents")
    if isinstance(documents, dict) and (missing := [x for x in settings.languages if x not in documents]):
        raise PLNDError(f"detection.max_documents.{missing[0]}: missing")
    for language in settings.languages:
        try:
            DetectConfig(**settings.detection_of(language))
        except PLNDError as error:
            raise PLNDError(f"detection: {error}") from None
    if settings.samples > 1 and settings.detection.get("max_documents") is None:
        raise PLNDError("samples: more than one need detection.max_documents, the size of each")


def _check_rule(rule: Rule) -> None:
    from plnd.neurons.contrast import check_numbers

    given = rule.of_one_language
    if len(given) > 1 or not (given or rule.contrast):
        raise PLNDError(
            f"rule: expected exactly one of {', '.join(_RULES)}, or contrast, found {', '.join(given) or 'none'}"
        )
    for name, value in given.items():
        of_all = name in ("epsilon_for", "fraction")
        if value <= 0 or (of_all and value > 1):
            raise PLNDError(f"rule.{name}: found {value}, expected more than 0{' and at most 1' * of_all}")
    try:
        check_numbers(**(rule.contrast.model_dump() if rule.contrast else {}))
    except PLNDError as error:
        raise PLNDError(f"rule.contrast: {error}") from None
    try:
        names = listed(rule.projections)
    except PLNDError as error:
        raise PLNDError(f"rule.{error}") from None
    for name in names or ():
        if name not in PROJECTIONS:
            known = ", ".join((*PROJECTIONS, *GROUPS))
            raise PLNDError(f"rule.projections: unknown {name!r}, expected some of {known}")


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
    if table in SETS:
        if items:
            raise PLNDError(f"experiments.{table}: found {', '.join(items)}, expected no item: it evaluates nothing")
        return
    if not items:
        raise PLNDError(f"experiments.{table}: no item, expected some of {', '.join(settings.tasks)}")
    for item in items:
        if item not in settings.tasks:
            raise PLNDError(f"experiments.{table}: {item} is not among tasks, which has {', '.join(settings.tasks)}")
    if table in OVERLAPPING and OVERLAPPING[table] not in settings.kinds:
        raise PLNDError(f"experiments.{table}: {OVERLAPPING[table]!r} {_NO_LANGUAGE_NEURONS}")
    if table in ENHANCING:
        _check_enhancement(settings, table)
    elif table == "table10":
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
    elif table not in ("table1", ORIGINAL):
        if settings.regions is None:
            raise PLNDError(f"regions: missing; {table} needs regions.under (N1) and regions.gen (N2)")
        Regions(("under",), settings.regions.under, settings.regions.gen)


# What may stand among the model's arguments when it is trained: what does not make another model of it.
_TRAINABLE = (
    "pretrained revision dtype device batch_size max_batch_size max_length trust_remote_code tokenizer"
    " use_fast_tokenizer add_bos_token prefix_token_id softmax_dtype truncation logits_cache"
).split()


def _check_enhancement(settings: Settings, table: str) -> None:
    chosen = settings.enhancement
    name = "high" if table == "figure4" else "low"
    languages = settings.enhanced(table)
    if not languages:
        raise PLNDError(f"enhancement.{name}: none of the paper's is among languages; name those that {table} trains")
    for language in languages:
        if language not in settings.others:
            raise PLNDError(f"enhancement.{name}: {language} is not among {', '.join(settings.others)}")
    for field in ("states", "documents"):
        values: list[Any] = getattr(chosen, field)
        if not values or len(set(values)) < len(values):
            raise PLNDError(f"enhancement.{field}: found {values!r:.60}, expected one or more, each once")
    for field, names in (("states", chosen.states), ("rates", list(chosen.rates))):
        if unknown := [state for state in names if state not in STATES]:
            raise PLNDError(f"enhancement.{field}: unknown {unknown[0]!r}, expected some of {', '.join(STATES)}")
    if chosen.neurons not in NEURONS:
        raise PLNDError(f"enhancement.neurons: unknown {chosen.neurons!r}, expected one of {', '.join(NEURONS)}")
    if chosen.neurons not in settings.kinds:
        raise PLNDError(f"enhancement.neurons: {chosen.neurons!r} {_NO_LANGUAGE_NEURONS}")
    if isinstance(chosen.corpus, dict) and (missing := [x for x in languages if x not in chosen.corpus]):
        raise PLNDError(f"enhancement.corpus.{missing[0]}: missing")
    if isinstance(chosen.corpus, str) and "{language}" not in chosen.corpus:
        raise PLNDError(f"enhancement.corpus: {chosen.corpus!r} is one for all languages, expected {{language}} in it")
    numbers: dict[str, float] = {"pool": chosen.pool, "compared": chosen.compared, "documents": min(chosen.documents)}
    numbers |= {name: getattr(chosen, name) for name in ("max_length", "batch_size", "epochs", "lora_rank")}
    numbers |= {f"rates.{state}": rate for state, rate in chosen.rates.items()}
    for name, number in numbers.items():
        if number <= 0:
            raise PLNDError(f"enhancement.{name}: found {number}, expected more than 0")
    if chosen.pool < max(*chosen.documents, chosen.compared):
        most = max(*chosen.documents, chosen.compared)
        raise PLNDError(f"enhancement.pool: found {chosen.pool}, expected at least {most}, the documents to draw")
    if settings.model.get("dtype") not in ("bfloat16", "float32"):
        found = settings.model.get("dtype", "none")
        raise PLNDError(f"model.dtype: found {found}, expected bfloat16 or float32, in which {table} trains")
    if unknown := [argument for argument in settings.model if argument not in _TRAINABLE]:
        raise PLNDError(f"model.{unknown[0]}: a model with it is not trained here; run {table} without it")
    if settings.model.get("device") not in (None, "cpu", "cuda", "cuda:0", "mps"):
        device = settings.model["device"]
        raise PLNDError(f"model.device: found {device}, expected cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs")
