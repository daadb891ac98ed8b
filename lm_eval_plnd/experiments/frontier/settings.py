"""The settings of `scripts/frontier.py`: one YAML file, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lm_eval_plnd.experiments.settings import Fields, Item, check_languages, check_no_secret
from lm_eval_plnd.experiments.yaml_text import read_fields
from plnd.addresses import PROJECTIONS
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.neurons.selection import GROUPS, listed

RULES = ("rank", "difference", "contrast")
"""Kinds that train a language's neurons, by the rule that finds them."""
ROWS = ("magnitude", "gradient", "random", *RULES)
"""Kinds that train rows and columns with `peft_plnd`."""
RATES: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("lora", "rslora", "dora"), (0.0001, 0.0003, 0.001, 0.003)),
    **dict.fromkeys(("magnitude", "random"), (0.0001, 0.0003, 0.001, 0.003)),
    **dict.fromkeys(("gradient", *RULES), (0.00001, 0.00003, 0.0001, 0.0003)),
    "shira": (0.0003, 0.001, 0.003, 0.01),
    "full": (0.00001, 0.00003, 0.0001, 0.0003),
}
"""Kind of method to the peak learning rates that are tried; neurons that matter take a tenth of what others do."""
MEASURES = ("plnd", "relevance")


class Warm(Fields):
    """A warm start: first fewer neurons on some of the documents, then all on the others, from there on.

    Attributes:
        language: whose neurons and documents come first; by default the trained language's own.
        budget: share of the parameters that are trained first. Another language's neurons stay among those that are
            trained afterwards, and the language's own get the rest.
        documents: share of the documents that come first, so that both are as many as without a warm start.
    """

    language: str | None = None
    budget: float = 0.5
    documents: float = 0.5


class Method(Fields):
    """One way to train.

    Attributes:
        kind: `lora`, `rslora`, `dora`, `shira` (of PEFT, on all projections); `rank`, `difference`, `contrast` (a
            language's neurons: the best ranked of `plnd.Scores.select`, those minus the other languages' as in the
            paper, or those of `plnd.contrast`); `magnitude` (rows and columns of largest norm), `gradient` (of largest
            gradient in the trained language), `random`; `full`.
        rates: peak learning rates to try, where not those of `RATES`.
        budgets: those of the experiment that it is run at, where not all: a rule may find too few neurons for one.
        measure: what a rule compares: `plnd`, importance, or `relevance`, how much the loss hangs on a neuron.
        control: `random` for as many random neurons of each block and projection as the rule finds.
        whole: gate, up and down of a feed-forward neuron are trained together, at three times the cost.
        importance_power: a neuron's learning rate is as its importance to this power, on average the rate.
        replay: this share of the documents is of the other languages instead, evenly.
        warm: begin with part of it, and go on with all.
    """

    kind: str
    rates: list[float] | None = None
    budgets: list[float] | None = None
    measure: str = "plnd"
    control: str | None = None
    whole: bool = False
    importance_power: float = 0.0
    replay: float = 0.0
    warm: Warm | None = None

    @property
    def grid(self) -> tuple[float, ...]:
        """The rates to try."""
        return RATES[self.kind] if self.rates is None else tuple(self.rates)


class Detection(Fields):
    """How scores are detected for the rules; fields as in `plnd.DetectConfig`, `documents` for `max_documents`."""

    documents: int = 100
    max_length: int = 256
    qk: str = "first_order"
    batch_size: int = 8


class Training(Fields):
    """How much is trained, as in `peft_plnd.fine_tuning.Settings`."""

    documents: int = 400
    max_length: int = 128
    batch_size: int = 4
    epochs: int = 1


class Evaluation(Fields):
    """The held-out text of each language.

    Attributes:
        choice: documents on which rates are chosen, which are not reported.
        held_out: documents that are reported, which nothing else sees.
        max_length: tokens kept of each.
        min_length: texts of fewer tokens are used for nothing.
        batch_size: documents in one pass.
    """

    choice: int = 16
    held_out: int = 50
    max_length: int = 256
    min_length: int = 32
    batch_size: int = 8


class FrontierSettings(Fields):
    """All of a frontier experiment.

    Attributes:
        model: `pretrained`, and `revision`, `dtype` (bfloat16 or float32), `device`, `trust_remote_code`.
        languages: all that are evaluated, and that language neurons are compared with.
        trained: those that are trained, each by itself.
        corpus: running text, `{language}` in the language's place, or a source for each language.
        methods: names to what they do; a name alone is a method of that kind.
        budgets: shares of the model's parameters that each method but `full` trains.
        pool: texts are taken from the first so many of each corpus.
        factor: each round of the search leaves one of so many rates, on so many times as many documents.
        seeds: of the runs that are reported: documents, random choices, the trainer.
        reference: the method that the others are tested against; by default the first one.
        projections: where neurons are chosen, names or a group (`plnd.neurons.selection.GROUPS`).
        times: how many times as important `contrast` wants a neuron to be; 1 fills every budget.
        tasks: evaluations by lm-eval of the runs that are reported, as in `plnd experiment`.
        metadata, include_path: as in `plnd experiment`.
    """

    model: dict[str, Any]
    languages: list[str]
    trained: list[str]
    corpus: str | dict[str, str]
    methods: dict[str, Method]
    budgets: list[float]
    pool: int = 3000
    factor: int = 2
    seeds: list[int] = [0, 1, 2]
    reference: str | None = None
    projections: str | list[str] = "once"
    times: float = 1.0
    detection: Detection = Detection()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    tasks: dict[str, Item] = {}
    metadata: dict[str, Any] = {}
    include_path: str | None = None

    def text(self) -> str:
        """As YAML, defaults filled in."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def corpus_of(self, language: str) -> str:
        """Where a language's texts are."""
        found = self.corpus[language] if isinstance(self.corpus, dict) else self.corpus
        return str(expand(found.replace("{language}", language)))

    def others(self, language: str) -> list[str]:
        """All languages but one."""
        return [x for x in self.languages if x != language]

    @property
    def compared_with(self) -> str:
        """The method that the others are tested against."""
        return self.reference or next(iter(self.methods))

    @property
    def search_seed(self) -> int:
        """Seed of the search, which is none of those that are reported."""
        return max(self.seeds) + 1

    @property
    def chosen_from(self) -> list[str]:
        """The projections in which neurons are chosen: of those named the ones that detection scores."""
        names = listed(self.projections) or []
        return [name for name in names if self.detection.qk != "off" or name not in ("q_proj", "k_proj")]


def load_frontier_settings(path: str | Path, changes: Mapping[str, Any] | None = None) -> FrontierSettings:
    """Reads a settings file.

    Args:
        path: the YAML file.
        changes: values to put in first, by their dotted names.

    Raises:
        PLNDError: one line with the file, the field, and what is wrong with it.
    """
    try:
        return parse_frontier_settings(read_fields(path, changes))
    except PLNDError as error:
        raise PLNDError(f"{path}: {error}") from None


def parse_frontier_settings(found: Mapping[str, Any]) -> FrontierSettings:
    """Settings from what a YAML file holds.

    Raises:
        PLNDError: one line with the field, what was found and what is expected.
    """
    values = dict(found)
    if "methods" in values:
        values["methods"] = _methods(values["methods"])
    if isinstance(tasks := values.get("tasks"), Mapping):
        values["tasks"] = {name: {"task": item} if isinstance(item, str) else item for name, item in tasks.items()}
    try:
        settings = FrontierSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PLNDError(f"{field}: {first['msg'].lower()}, found {first['input']!r:.60}") from None
    _check(settings)
    return settings


def _methods(found: Any) -> Any:
    """Names to fields, from a list of kinds, or a mapping in which a name may say the kind."""
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        found = dict.fromkeys(found)
    if not isinstance(found, Mapping):
        return found
    return {
        name: {"kind": name, **(fields or {})} if fields is None or isinstance(fields, Mapping) else fields
        for name, fields in found.items()
    }


_MODEL = ("pretrained", "revision", "dtype", "device", "trust_remote_code")


def _check(settings: FrontierSettings) -> None:
    """Refuses what the types allow and makes no sense."""
    check_no_secret(settings)
    if not settings.model.get("pretrained"):
        raise PLNDError("model.pretrained: missing, expected a folder or hub name")
    if unknown := [name for name in settings.model if name not in _MODEL]:
        raise PLNDError(f"model.{unknown[0]}: unknown, expected some of {', '.join(_MODEL)}")
    if settings.model.get("dtype") not in ("bfloat16", "float32"):
        raise PLNDError(f"model.dtype: found {settings.model.get('dtype')}, expected bfloat16 or float32")
    check_languages(settings.languages)
    for name in ("languages", "trained", "methods", "budgets", "seeds", "projections"):
        values = getattr(settings, name)
        if not values or (isinstance(values, list) and len(set(values)) < len(values)):
            raise PLNDError(f"{name}: found {values!r:.60}, expected one or more, each once")
    if len(settings.languages) < 2:
        raise PLNDError(f"languages: {settings.languages[0]}; expected two or more, one that is trained and others")
    for language in settings.trained:
        if language not in settings.languages:
            raise PLNDError(f"trained: {language} is not among languages, which has {', '.join(settings.languages)}")
    if isinstance(settings.corpus, str) and "{language}" not in settings.corpus:
        raise PLNDError(f"corpus: {settings.corpus!r} is one for all languages, expected {{language}} in it")
    if isinstance(settings.corpus, dict) and (left := [x for x in settings.languages if x not in settings.corpus]):
        raise PLNDError(f"corpus.{left[0]}: missing")
    for share in settings.budgets:
        if not 0 < share < 1:
            raise PLNDError(f"budgets: found {share}, expected shares of the parameters, above 0 and below 1")
    if min(settings.seeds) < 0:
        raise PLNDError(f"seeds: found {min(settings.seeds)}, expected 0 or more")
    if settings.compared_with not in settings.methods:
        raise PLNDError(f"reference: found {settings.reference}, expected one of {', '.join(settings.methods)}")
    _check_numbers(settings)
    _check_projections(settings)
    for name, method in settings.methods.items():
        _check_method(name, method, settings.languages)
        if further := [share for share in method.budgets or () if share not in settings.budgets]:
            raise PLNDError(f"methods.{name}.budgets: {further[0]:g} is not among budgets")
    for name, item in settings.tasks.items():
        if "{language}" not in item.task:
            raise PLNDError(f"tasks.{name}: {item.task!r} is one for all languages, expected {{language}} in it")
        if item.model or (item.limit is not None and item.limit < 1):
            raise PLNDError(f"tasks.{name}: expected a limit of 1 or more, and no model of its own")


def _check_numbers(settings: FrontierSettings) -> None:
    if any(method.warm for method in settings.methods.values()):
        if min(settings.training.batch_size, settings.training.documents) < 2:
            raise PLNDError(
                "training: found one document in a round, expected two or more, as a warm start has two parts"
            )
    numbers = {"pool": settings.pool}
    for part in ("detection", "training", "evaluation"):
        fields = getattr(settings, part).model_dump()
        numbers |= {f"{part}.{name}": value for name, value in fields.items() if name != "qk"}
    for name, number in numbers.items():
        if number < 1:
            raise PLNDError(f"{name}: found {number}, expected 1 or more")
    if settings.factor < 2:
        raise PLNDError(f"factor: found {settings.factor}, expected 2 or more")
    if settings.times < 1:
        raise PLNDError(f"times: found {settings.times:g}, expected 1 or more")
    if settings.detection.qk not in ("first_order", "exact", "off"):
        raise PLNDError(f"detection.qk: found {settings.detection.qk}, expected first_order, exact or off")
    text = settings.evaluation
    if not 2 <= text.min_length <= min(text.max_length, settings.detection.max_length):
        raise PLNDError(
            f"evaluation.min_length: found {text.min_length}, expected 2 to the max_length of evaluation and detection"
        )
    if text.held_out < 2:
        raise PLNDError("evaluation.held_out: found 1, expected 2 or more, of which intervals can be made")


def _check_projections(settings: FrontierSettings) -> None:
    for name in listed(settings.projections) or ():
        if name not in PROJECTIONS:
            known = ", ".join((*PROJECTIONS, *GROUPS))
            raise PLNDError(f"projections: unknown {name!r}, expected some of {known}")
    if {"gate_proj", "up_proj"} & set(settings.chosen_from):
        raise PLNDError(
            "projections: gate_proj and up_proj have the neurons that down_proj has; name down_proj for a feed-forward"
            " neuron, or the group once"
        )
    if not settings.chosen_from:
        raise PLNDError("projections: none that is scored with detection.qk off")


def _check_method(name: str, method: Method, languages: list[str]) -> None:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise PLNDError(f"methods.{name}: expected letters, digits, - and _")
    if method.kind not in RATES:
        raise PLNDError(f"methods.{name}.kind: unknown {method.kind!r}, expected one of {', '.join(RATES)}")
    if not method.grid or min(method.grid) <= 0 or len(set(method.grid)) < len(method.grid):
        raise PLNDError(f"methods.{name}.rates: found {method.rates}, expected numbers above 0, each once")
    if method.measure not in MEASURES:
        raise PLNDError(f"methods.{name}.measure: found {method.measure!r}, expected one of {', '.join(MEASURES)}")
    if method.control not in (None, "random"):
        raise PLNDError(f"methods.{name}.control: found {method.control!r}, expected random")
    if method.kind not in RULES and (method.control or method.measure != "plnd"):
        raise PLNDError(f"methods.{name}: measure and control are for the kinds {', '.join(RULES)}")
    if method.whole and method.kind not in ROWS:
        raise PLNDError(f"methods.{name}: whole is for the kinds {', '.join(ROWS)}")
    if method.importance_power and (method.kind not in RULES or method.control):
        raise PLNDError(f"methods.{name}: importance_power is for the kinds {', '.join(RULES)}, without a control")
    if method.warm:
        _check_warm(name, method, method.warm, languages)
    if not 0 <= method.replay < 1:
        raise PLNDError(f"methods.{name}.replay: found {method.replay:g}, expected a share, 0 or more and below 1")


def _check_warm(name: str, method: Method, warm: Warm, languages: list[str]) -> None:
    if method.kind not in ROWS or method.importance_power or method.control:
        raise PLNDError(
            f"methods.{name}: warm is for the kinds {', '.join(ROWS)}, without control and importance_power"
        )
    if method.kind == "difference" and warm.language is None:
        raise PLNDError(
            f"methods.{name}.warm: difference needs a language: its smaller sets are not in its larger ones"
        )
    if warm.language is not None and warm.language not in languages:
        raise PLNDError(f"methods.{name}.warm.language: {warm.language} is not among languages")
    for field in ("budget", "documents"):
        share = getattr(warm, field)
        if not 0 < share < 1:
            raise PLNDError(f"methods.{name}.warm.{field}: found {share:g}, expected a share, above 0 and below 1")
