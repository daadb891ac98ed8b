"""Evaluates one loaded model with nothing off, without a set of neurons, and without as many random ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_plnd.experiments.changes import Estimate, estimate
from lm_eval_plnd.experiments.evaluation import Values, evaluate, read_values, task_digest, write_values
from lm_eval_plnd.experiments.kept import loaded_digest
from lm_eval_plnd.experiments.results import BYTES, SAMPLES, document_weights
from lm_eval_plnd.experiments.sharing import LOCKS, unwritten
from plnd.errors import PLNDError
from plnd.io.inputs import UNKNOWN, check_inputs
from plnd.models.source import source_digest
from plnd.secrets import portable
from plnd.statistics import relative_lengths

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

    from plnd.interventions import Intervention
    from plnd.neurons.neuron_set import NeuronSet

ORIGINAL, OFF = "original", "neurons"
"""The settings that are always there; beside them there is one for each random draw."""
ASKED = "asked.json"


@dataclass(frozen=True)
class Effect:
    """What switching neurons off changed in one metric of one task, in the metric's own unit.

    Attributes:
        task, metric: as lm-eval names them.
        higher_is_better: of the metric.
        documents: how many were scored.
        original: the score with nothing off.
        own: the change without the set.
        random: the change without as many random neurons, the mean over draws; None without draws.
        beyond: the first less the second; its p-value says whether the set does more than random neurons.
    """

    task: str
    metric: str
    higher_is_better: bool
    documents: int
    original: float
    own: Estimate
    random: Estimate | None
    beyond: Estimate | None

    def harm(self, change: Estimate) -> float:
        """How much worse a change makes the score, above 0 where it does."""
        return -change.value if self.higher_is_better else change.value


@dataclass(frozen=True)
class Ablation:
    """What came of it.

    Attributes:
        model: name of the model.
        language: of the set.
        neurons, of: how many were off, of how many.
        sha256: of the set.
        draws: random sets of as many neurons of each block and projection.
        effects: a line for each task and metric.
        done: what was done to the neurons: off, or what else.
    """

    model: str | None
    language: str | None
    neurons: int
    of: int
    sha256: str
    draws: int
    effects: tuple[Effect, ...]
    done: str = "off"

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def ablation(
    lm: HFLM,
    neurons: NeuronSet,
    tasks: Mapping[str, Task],
    *,
    draws: int = 3,
    limit: float | None = None,
    apply_chat_template: bool = False,
    folder: str | Path | None = None,
    asked: Mapping[str, Any] | None = None,
    intervention: Intervention | None = None,
) -> Ablation:
    """Evaluates the tasks with nothing off, without the neurons, and without each of the random draws.

    Args:
        lm: lm-eval's model, loaded (`lm_eval_plnd.experiments.evaluation.load_lm`); it ends as it began.
        neurons: what is switched off.
        tasks: by name.
        draws: how many random sets, of seeds 0, 1, …
        limit: at most so many documents of each task, or this share of them, as lm-eval's.
        apply_chat_template: as lm-eval's.
        folder: where the values of every document are kept, setting by setting; what is there is taken.
        asked: what else the values depend on, beside model, tasks, set and what is done to it, all by content; a folder
            that holds another one's is refused.
        intervention: what is done to neurons, the random ones too, instead of switching them off.

    Raises:
        PLNDError: if the set is empty or of another model, or the folder holds another ablation; as
            `effects`.
    """
    from tqdm import tqdm

    from plnd.interventions import Intervention

    intervention = intervention or Intervention()
    if draws < 0:
        raise PLNDError(f"draws={draws}: expected 0 or more")
    neurons.check_some("switch off")
    off = {ORIGINAL: None, OFF: neurons, **{f"random{seed}": neurons.random_like(seed) for seed in range(draws)}}
    with intervention.applied(lm.model, neurons):  # refuses now what it cannot do
        pass
    said: dict[str, Any] = {
        "limit": limit,
        "apply_chat_template": apply_chat_template,
        "tasks": list(tasks),
        "mask": neurons.digest,
    }
    said |= {"intervention": intervention.record()} if intervention.kind != "zero" else {}
    kept = None
    if folder is not None:
        said |= {f"rows of {name}": task_digest(task, limit) for name, task in tasks.items()}
        named = isinstance(lm.pretrained, str)
        content = loaded_digest(lm) or (source_digest(lm.pretrained, lm.revision) if named else UNKNOWN)
        kept = _opened(Path(folder), {**said, "model's content": content, **(asked or {})})
    values: dict[str, Values] = {}
    with tqdm(total=len(off), desc="ablate", unit=" settings", file=sys.stderr) as bar:
        for name in _missing(off, kept):
            bar.set_postfix_str(name)
            with intervention.applied(lm.model, chosen) if (chosen := off[name]) is not None else nullcontext():
                values[name] = evaluate(lm, tasks, limit=limit, apply_chat_template=apply_chat_template, gaps=True)
            if kept is not None:
                write_values(values[name], kept / SAMPLES / f"{name}.json")
            bar.update()
        bar.update(bar.total - bar.n)
    if kept is not None:
        values |= {name: read_values(kept / SAMPLES / f"{name}.json", tasks) for name in off if name not in values}
        for name in off:
            if _documents(values[name]) != _documents(values[ORIGINAL]):
                path = kept / SAMPLES / f"{name}.json"
                raise PLNDError(f"{path}: of other documents than {ORIGINAL}.json; choose another folder with --output")
    better = {name: task.higher_is_better() or {} for name, task in tasks.items()}
    model = portable(lm.pretrained if isinstance(lm.pretrained, str) else neurons.model.name)
    about = (model, neurons.metadata.language, len(neurons), neurons.total, neurons.digest, draws)
    return Ablation(*about, effects(values, better), _done(intervention))


def _done(intervention: Intervention) -> str:
    """What is done to neurons, behind their number."""
    return {
        "zero": "off",
        "mean": "at their means",
        "scale": f"times {intervention.factor or 0:g}",
        "steer": f"steered, strength {intervention.strength or 0:g}",
    }[intervention.kind]


def effects(values: Mapping[str, Values], better: Mapping[str, Mapping[str, bool]]) -> tuple[Effect, ...]:
    """A line for each task and metric, from each setting's values per document.

    Args:
        values: setting to task to metric to one value per document, nan where there is none; bits per byte count by the
            documents' bytes.
        better: task to metric to whether more is better, which is so where nothing is said.

    Raises:
        PLNDError: if no metric has a value in every setting.
    """
    found = tuple(_effects(values, better))
    if not found:
        raise PLNDError("no metric has a value in every setting, so that nothing can be compared; choose other --tasks")
    return found


def _effects(values: Mapping[str, Values], better: Mapping[str, Mapping[str, bool]]) -> Iterator[Effect]:
    random = sorted(values.keys() - {ORIGINAL, OFF})
    for task, metrics in values[ORIGINAL].items():
        for metric in metrics:
            if metric == BYTES:
                continue
            weights = document_weights(metrics, metric)
            lengths = np.ones(len(metrics[metric])) if weights is None else relative_lengths(weights)
            numbers = {name: _numbers(found, task, metric, len(lengths)) * lengths for name, found in values.items()}
            if weights is None:  # documents of which some setting's answer says nothing are left out of all
                told = ~np.isnan(list(numbers.values())).any(axis=0)
                numbers, lengths = {name: found[told] for name, found in numbers.items()}, lengths[told]
            if not len(lengths):
                continue
            before, own = numbers[ORIGINAL], numbers[OFF]
            change, drawn, beyond = estimate([(1.0, own - before, lengths)]), None, None
            if random:
                other = np.mean([numbers[name] for name in random], axis=0)
                drawn, beyond = (estimate([(1.0, one, lengths)]) for one in (other - before, own - other))
            sign = better.get(task, {}).get(metric.partition(",")[0], True)
            yield Effect(task, metric, sign, len(before), float(before.mean()), change, drawn, beyond)


def _documents(values: Values) -> dict[str, Any]:
    """What two settings of the same documents have alike: of each task how many documents, and their bytes."""
    return {task: (len(next(iter(metrics.values()))), metrics.get(BYTES)) for task, metrics in values.items()}


def _numbers(values: Values, task: str, metric: str, documents: int) -> np.ndarray:
    """One number for each document; nan where none of them has the metric."""
    return np.array(values[task].get(metric, [np.nan] * documents), dtype=np.float64)


def _missing(names: Sequence[str] | Mapping[str, Any], folder: Path | None) -> Iterator[str]:
    """The settings that are to be evaluated; several processes on one folder share them."""
    if folder is None:
        yield from names
        return
    paths = {folder / SAMPLES / f"{name}.json": name for name in names}
    for path in unwritten(paths, folder):
        yield paths[path]


def _opened(folder: Path, asked: Mapping[str, Any]) -> Path:
    """Makes the folder, or takes up one that holds the same ablation."""
    try:
        for part in (folder, folder / SAMPLES, folder / LOCKS):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --output") from None
    check_inputs(folder / ASKED, asked, "ablation")
    return folder
