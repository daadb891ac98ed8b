"""Reads what evaluations leave behind: the folder of `plnd experiment`, and lm-eval's results files.

Every reader refuses what it cannot make sense of in one line that names the file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from plnd import secrets
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.files import read_bounded
from plnd.io.inputs import unsealed

if TYPE_CHECKING:
    from lm_eval_plnd.experiments.settings import Settings

RESULTS, SETTINGS, ENVIRONMENT = "results.csv", "settings.yaml", "environment.json"
SAMPLES, NEURONS, ANSWERS = "samples", "neurons", "answers"
MEANS = "means.safetensors"
"""Of all neurons, among `NEURONS`, where the ablation is mean."""
TEXT, BITS, BYTES = "text", "bits_per_byte", "bytes"
LESS_IS_BETTER = frozenset(
    "bits_per_byte byte_perplexity word_perplexity perplexity brier_score ter unreadable undetermined".split()
)
"""Metrics, lm-eval's own and plnd's tasks', of which a smaller score is better."""
MODEL_OPTIONS = ("batch_size", "device")
"""Of the model's arguments, those that lm-eval's command line has options for."""
MAX_BYTES = 2**26
"""Of a file that is read here."""


class Answer(TypedDict):
    """What was asked in a document, what is right, and what the model wrote; first letters, of a prompt last ones."""

    prompt: str
    target: str
    answer: str


Samples = dict[str, dict[str, list[Any]]]
"""Task to metric to one value per document, in the documents' order."""


@dataclass(frozen=True)
class Row:
    """One line of results.csv: a setting's score in one metric of one task.

    Attributes:
        item: what the task stands for: text, understanding, reasoning, …
        setting: readable name, one for everything that was switched off together.
        neurons: none, all, specific, …: which of the language's neurons.
        language: whose neurons; empty for the model as it is.
        region: part of the model they are in; empty for the whole.
        control: empty, or random.
        seed, sample: of the control and of the documents of detection; empty where there is none.
        deactivated, share: neurons switched off, and their share of all.
        mask_sha256: of the neurons artifact that holds them.
        task, task_language, metric, value, stderr, documents: the score; stderr is nan where lm-eval gives none.
    """

    item: str
    setting: str
    neurons: str
    language: str
    region: str
    control: str
    seed: str
    sample: str
    deactivated: int
    share: float
    mask_sha256: str
    task: str
    task_language: str
    metric: str
    value: float
    stderr: float
    documents: int

    @property
    def original(self) -> bool:
        """Whether nothing was switched off."""
        return self.neurons == "none"

    @property
    def table(self) -> str:
        """The table whose rows all switch off equally many neurons; empty where numbers are not made equal."""
        return next((part for part in self.setting.split(".") if part.startswith("table")), "")


COLUMNS = tuple(column.name for column in fields(Row))


def read_results(folder: Path) -> list[Row]:
    """The rows of an experiment's results.csv, in its order.

    Raises:
        PLNDError: if the file is missing, has other columns, or a value that is not what its column holds.
    """
    path = folder / RESULTS
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(lines, [])
        if tuple(header) != COLUMNS:
            raise PLNDError(f"{path}: columns {','.join(header) or 'none'}; expected {','.join(COLUMNS)}")
        rows = [_row(path, lines.line_num, line) for line in lines]
    except csv.Error as error:
        raise PLNDError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise PLNDError(f"{path}: no results in it yet; run `plnd experiment` on")
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        key = (row.setting, row.task, row.metric)
        if key in seen:
            raise PLNDError(f"{path}: {row.setting}, {row.task}, {row.metric} stands there twice")
        seen.add(key)
    return rows


def _row(path: Path, number: int, line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise PLNDError(f"{path}: line {number} has {len(line)} values, expected {len(COLUMNS)}")
    found: dict[str, Any] = dict(zip(COLUMNS, line, strict=True))
    kinds = {"deactivated": int, "share": float, "value": float, "stderr": float, "documents": int}
    for name, kind in kinds.items():
        text = found[name]
        try:
            found[name] = kind(text) if text or kind is int else math.nan
        except ValueError:
            raise PLNDError(f"{path}: line {number}: {name} is {text!r:.40}, expected a number") from None
    return Row(**found)


def first_of_each(rows: Iterable[Row]) -> list[Row]:
    """One row of every setting, the first."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.setting, row)
    return list(found.values())


def read_samples(folder: Path, setting: str) -> Samples:
    """A setting's values document by document; empty where none were kept.

    Raises:
        PLNDError: if the file is not a mapping of tasks to metrics to lists.
    """
    path = folder / SAMPLES / f"{setting}.json"
    if Path(setting).name != setting or not path.is_file():
        return {}
    found = read_sealed(path)
    good = all(
        isinstance(metrics, dict) and all(isinstance(values, list) for values in metrics.values())
        for metrics in found.values()
    )
    if not good:
        raise PLNDError(f"{path}: expected {{task: {{metric: [value per document]}}}}")
    return found


def read_answers(folder: Path, setting: str) -> dict[str, list[Answer]]:
    """The first answers of a setting in each generated task; empty where none were kept.

    Raises:
        PLNDError: if the file is not a mapping of tasks to lists of texts by name.
    """
    from pydantic import TypeAdapter, ValidationError

    path = folder / ANSWERS / f"{setting}.json"
    if Path(setting).name != setting or not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, list[Answer]]).validate_python(read_json(path), strict=True)
    except ValidationError:
        raise PLNDError(f"{path}: expected {{task: [{{prompt, target, answer}}]}}") from None


def document_weights(metrics: Mapping[str, list[Any]], metric: str) -> list[Any] | None:
    """What a task's documents count for in the mean of a metric: their bytes, for bits per byte; None: all the same.

    Raises:
        KeyError: if bytes were not kept.
    """
    name, _, _filter = metric.partition(",")
    return metrics[BYTES] if name == BITS else None


def less_is_better(metric: str) -> bool:
    """Whether a smaller score is better; the name may have its filter behind it."""
    return metric.partition(",")[0] in LESS_IS_BETTER


def mask_file(folder: Path, row: Row) -> Path:
    """The neurons artifact that a setting takes its neurons from; of equal numbers, those of its region alone."""
    sample = int(row.sample or 0)
    return folder / NEURONS / mask_name(row.language, sample, row.neurons, row.region if row.table else "", row.table)


def mask_name(language: str, sample: int, kind: str, region: str = "", table: str = "") -> str:
    """File name of a set; of the most important ones of a region, as many as in every row of `table`."""
    parts = [language, f"s{sample}" if sample else "", kind, (region or "everywhere") if table else "", table]
    return ".".join(filter(None, [*parts, "safetensors"]))


def regions_of(row: Row, settings: Settings) -> dict[str, str]:
    """The model arguments that choose a setting's part of the model."""
    name, _, number = row.region.partition("=")
    if row.table:
        return {}  # its artifact has no others
    if number:
        return {"regions": name, name: number}
    if name and settings.regions:
        return {"regions": name, "under": str(settings.regions.under), "gen": str(settings.regions.gen)}
    return {}


def arguments(row: Row, settings: Settings, folder: str, path: Callable[[Any], Any] = expand) -> str:
    """`--model` and `--model_args` of lm-eval that evaluate a setting of an experiment in `folder`.

    Args:
        row: any of the setting's.
        settings: of the experiment.
        folder: its folder, as the command should name it.
        path: what to write for a value that may be a path.
    """
    given = {key: path(value) for key, value in settings.model.items() if key not in MODEL_OPTIONS}
    if row.original:
        return f"--model hf --model_args {_joined(given)}"
    chosen = {"mask": mask_file(Path(folder), row).as_posix(), **regions_of(row, settings)}
    if row.control:
        chosen |= {"control": row.control, "seed": row.seed}
    if settings.ablation == "mean":
        chosen |= {"intervene": "mean", "means": (Path(folder) / NEURONS / MEANS).as_posix()}
    return f"--model plnd --model_args {_joined({**chosen, **given})}"


def commands(settings: Settings, items: Iterable[str], path: Callable[[Any], Any] = expand) -> dict[str, str]:
    """Item of an experiment to the lm-eval command that evaluates it, with `$MODEL` for what `arguments` returns."""
    found = {}
    for name in items:
        if name not in settings.tasks:
            continue
        item = settings.tasks[name]
        tasks = ",".join(item.task_of(language) for language in settings.languages_of(name))
        words = ["lm_eval", "$MODEL" + (f",{_joined(item.model)}" if item.model else "")]
        words += [f"--{key} {shlex.quote(str(settings.model[key]))}" for key in MODEL_OPTIONS if key in settings.model]
        words += ['--include_path "$(plnd tasks)"', f"--tasks {shlex.quote(tasks)}"]
        limit = item.limit or settings.limit
        words += [f"--num_fewshot {item.num_fewshot}"] if item.num_fewshot else []
        words += [f"--limit {limit}"] if limit else []
        words += [f"--gen_kwargs {_joined(item.gen_kwargs)}"] if item.gen_kwargs else []
        words += ["--apply_chat_template"] if item.apply_chat_template else []
        if metadata := {key: path(value) for key, value in {**settings.metadata, **item.metadata}.items()}:
            words.append(f"--metadata {shlex.quote(json.dumps(metadata, ensure_ascii=False, sort_keys=True))}")
        found[name] = " ".join(words)
    return found


def portable(value: Any) -> Any:
    """As `plnd.secrets.portable`, of `plnd:…` too, and within mappings and lists."""
    if isinstance(value, Mapping):
        return {name: portable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    return secrets.portable(expand(value))


def _joined(values: Mapping[str, Any]) -> str:
    return shlex.quote(",".join(f"{key}={value}" for key, value in values.items()))


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        PLNDError: if it is missing, cannot be read, is not UTF-8, or has more bytes or values than results have.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise PLNDError(f"{path}: not UTF-8 text") from None
    if text.count(",") + text.count("\n") > strict_json.MAX_ITEMS:
        most = f"at most {MAX_BYTES:,} bytes and {strict_json.MAX_ITEMS:,} values"
        raise PLNDError(f"{path}: larger than results are, {most}")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        PLNDError: if it holds something else.
    """
    try:
        found = strict_json.parse(read_text(path), finite=False)
    except ValueError as error:
        raise PLNDError(f"{path}: not JSON ({error!s:.80}); the file is damaged") from None
    if not isinstance(found, dict):
        raise PLNDError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def read_sealed(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object with a checksum; of earlier releases without one.

    Raises:
        PLNDError: if it holds something else.
    """
    try:
        return unsealed(read_json(path))
    except ValueError as error:
        raise PLNDError(f"{path}: damaged ({error}); delete it, and it is made again") from None


def in_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts figure3 before figure10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
