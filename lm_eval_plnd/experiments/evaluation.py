"""Evaluates lm-eval's tasks on a loaded model, as it is at the moment: one value per document of every metric."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from lm_eval_plnd.experiments.results import BITS, BYTES
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.files import write_bytes
from plnd.io.inputs import sealed, unsealed
from plnd.statistics import weighted_mean

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

SEED = 1234
"""Of few-shot examples and sampled generation, lm-eval's own."""
Values = dict[str, dict[str, list[float]]]
"""Task to metric to one value per document, in document order."""
Answers = dict[str, list[dict[str, str]]]
"""Task to what was asked in its first documents (`prompt`), what is right (`target`), what was written (`answer`)."""
ANSWERED, LETTERS = 3, 400
"""Documents of each task of which answers are kept, and letters of each text: of a prompt the last ones."""


def load_lm(arguments: Mapping[str, Any]) -> HFLM:
    """lm-eval's `hf` model; also one that sees, and with its tokens checked."""
    from lm_eval_plnd.documents import DocumentLM, loading_device
    from plnd.models.loading import cannot_load, note_commit

    given = expand(dict(arguments))
    given["device"] = loading_device(given["pretrained"], given.get("device"))
    if arguments.get("peft"):
        import peft_plnd  # noqa: F401  PEFT then knows neuron-select adapters
    try:
        lm = DocumentLM(**given)
    except Exception as error:  # whatever the hub, the builders and the file formats raise
        raise cannot_load("model", error) from None
    if isinstance(lm.pretrained, str):
        note_commit(lm.model.config, lm.pretrained, lm.revision)
    return lm


def read_tasks(manager: TaskManager, name: str, where: str) -> dict[str, Task]:
    """A task, or all tasks of a group, with their rows read.

    Raises:
        PLNDError: if that fails, beginning with `where`.
    """
    try:
        return dict(manager.load([name])["tasks"])
    except PLNDError:
        raise
    except Exception as error:  # a data set's builder, the hub and YAML files each raise their own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PLNDError(f"{where}: {name} cannot be loaded ({reason.strip()})") from None


def ask(task: Task, num_fewshot: int | None, gen_kwargs: Mapping[str, Any], where: str) -> None:
    """Sets how a task is asked: worked examples before each document, and how answers are generated.

    Raises:
        PLNDError: if it generates nothing, beginning with `where`.
    """
    if gen_kwargs and task.get_config("output_type") != "generate_until":
        raise PLNDError(f"{where} generates nothing")
    if gen_kwargs:
        task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)
    if task.get_config("num_fewshot") is None or num_fewshot:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)


def task_digest(task: Task, limit: float | None = None) -> str:
    """SHA-256 of what a task asks and what is right: rows, prompts, worked examples, and how answers are generated.

    Args:
        task: with its rows read.
        limit: as of `evaluate`; the rows behind it do not count.
    """
    from lm_eval.evaluator_utils import get_sample_size

    options = {name: task.get_config(name) for name in ("output_type", "description", "num_fewshot", "until")}
    options |= {"generation": task.get_config("generation_kwargs"), "metrics": sorted(task.aggregation())}
    asked = [
        (document, task.doc_to_text(document), task.doc_to_target(document))
        for document in islice(task.eval_docs, get_sample_size(task, limit))
    ]
    examples = list(task.fewshot_docs() or ()) if options["num_fewshot"] else []
    text = json.dumps([options, asked, examples], sort_keys=True, default=_content)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _content(value: Any) -> str:
    """Of what JSON cannot say, such as pictures and dates: something that is the same in every process."""
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    return type(value).__qualname__ if type(value).__str__ is object.__str__ else str(value)


def evaluate(
    lm: HFLM,
    tasks: Mapping[str, Task],
    *,
    limit: float | None = None,
    apply_chat_template: bool = False,
    answers: Answers | None = None,
    gaps: bool = False,
) -> Values:
    """What the model as it is answers on some tasks; the first answers that it writes are added to `answers`, if given.

    Args:
        lm: lm-eval's model.
        tasks: by name.
        limit: at most so many documents of each task, or this share of them.
        apply_chat_template: as lm-eval's.
        answers: task to the first answers that the model writes; they are added to it.
        gaps: with metrics that some documents do not have, such as the language of an answer of which nothing can be
            told; these documents have nan. Otherwise such metrics are left out.

    Raises:
        PLNDError: if none of a task's metrics is a mean over documents.
    """
    from lm_eval import evaluate as evaluate_all
    from lm_eval.utils import set_torch_seed

    set_torch_seed(SEED)
    for task in tasks.values():
        task.set_fewshot_seed(SEED)
    with redirect_stderr(io.StringIO()):  # a bar for every batch of every task
        found = evaluate_all(
            lm, {"tasks": dict(tasks)}, limit=limit, apply_chat_template=apply_chat_template, bootstrap_iters=0
        )
    if answers is not None:
        written = [name for name, task in tasks.items() if task.get_config("output_type") == "generate_until"]
        answers |= {name: first_answers(found["samples"][name]) for name in written}
    return {name: _values(name, found, gaps) for name in tasks}


def first_answers(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of lm-eval's samples of a generated task, in which a document is once for each filter, what is kept as text."""
    documents = {sample["doc_id"]: sample for sample in reversed(samples)}
    return [
        {
            "prompt": _text(documents[number]["arguments"][0][0])[-LETTERS:],
            "target": _text(documents[number]["target"])[:LETTERS],
            "answer": _text(documents[number]["resps"][0][0])[:LETTERS],
        }
        for number in sorted(documents)[:ANSWERED]
    ]


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _values(task: str, found: Mapping[str, Any], gaps: bool) -> dict[str, list[float]]:
    """Metric to one value per document of a task, of those metrics whose mean over documents is lm-eval's own result.

    Bits per byte come with the documents' `bytes`, by which that mean is weighted. The name of a metric has its filter
    in it where the task has several. With `gaps` a document without a metric has nan, which is not in that mean.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in found["samples"][task]))
    values: dict[str, list[float]] = {}
    for name in filters:
        samples = [sample for sample in found["samples"][task] if sample["filter"] == name]
        samples.sort(key=lambda sample: sample["doc_id"])
        for metric in dict.fromkeys(metric for sample in samples for metric in sample["metrics"]):
            raw, weights = [sample.get(metric, math.nan) for sample in samples], {}
            if not gaps and not all(metric in sample for sample in samples):
                continue
            if metric == BITS:
                weights = {BYTES: [float(count) for _, count in raw]}
                raw = [-likelihood / count / math.log(2) for likelihood, count in raw]
            if not all(isinstance(value, (bool, int, float)) or hasattr(value, "item") for value in raw):
                continue
            raw = [float(value) for value in raw]
            theirs = found["results"][task].get(f"{metric},{name}")
            there = [value for value, sample in zip(raw, samples, strict=True) if metric in sample]
            if isinstance(theirs, (int, float)) and math.isclose(
                weighted_mean(there, weights.get(BYTES))[0], theirs, rel_tol=1e-6
            ):
                values[metric if len(filters) == 1 else f"{metric},{name}"] = raw
                values |= weights
    if not values:
        raise PLNDError(f"{task}: none of its metrics is a mean over documents")
    return values


def write_values(values: Values, path: Path) -> None:
    """What `evaluate` found, into a file with a checksum."""
    write_bytes(sealed(values).encode(), path)


def read_values(path: Path, tasks: Iterable[str]) -> Values:
    """What `evaluate` found on these tasks, from a file.

    Raises:
        PLNDError: if it is damaged: it is of other tasks, or has not one number for each document.
    """
    try:
        found = TypeAdapter(Values).validate_python(unsealed(strict_json.read(path, finite=False)), strict=True)
        if found.keys() != set(tasks) or not all(map(_whole, found.values())):
            raise ValueError
    except (PLNDError, ValueError):
        raise PLNDError(f"{path}: damaged; delete it, and this setting is evaluated again") from None
    return found


def _whole(metrics: Mapping[str, list[float]]) -> bool:
    """Whether every metric has as many documents, at least one, and bits per byte have their bytes."""
    if any(name.partition(",")[0] == BITS for name in metrics) and BYTES not in metrics:
        return False
    lengths = {len(values) for values in metrics.values()}
    return len(lengths) == 1 and 0 not in lengths and min(metrics.get(BYTES, [1])) > 0
