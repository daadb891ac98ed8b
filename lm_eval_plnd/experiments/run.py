"""Runs an experiment: the tables of the PLND paper (arXiv:2402.18815) on one loaded model, resumable.

Detects each language's neurons, makes the sets that the tables switch off, and evaluates one setting after the other;
the model is loaded once, since deactivation leaves no trace. Several processes on one folder share the work. What it
leaves there is in docs/experiments.md.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_plnd.experiments.conditions import (
    Setting,
    chosen,
    detected,
    languages_read,
    neuron_sets,
    plan,
    region_of,
    switched_off,
)
from lm_eval_plnd.experiments.enhancement import COLUMNS as TUNED_COLUMNS
from lm_eval_plnd.experiments.enhancement import ENHANCED, TUNED, Tuning, train, tunings, write_documents
from lm_eval_plnd.experiments.enhancement import rows as tuned_rows
from lm_eval_plnd.experiments.evaluation import (
    Answers,
    Values,
    ask,
    evaluate,
    load_lm,
    read_tasks,
    read_values,
    task_digest,
    write_values,
)
from lm_eval_plnd.experiments.results import (
    ANSWERS,
    BYTES,
    COLUMNS,
    ENVIRONMENT,
    MEANS,
    NEURONS,
    RESULTS,
    SAMPLES,
    SETTINGS,
    document_weights,
    mask_name,
)
from lm_eval_plnd.experiments.settings import Settings, load_settings
from lm_eval_plnd.experiments.sharing import LOCKS, claimed, unwritten
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io.corpus import corpus_digest
from plnd.io.files import read_bounded
from plnd.io.inputs import INPUTS, check_inputs
from plnd.models.source import source_digests
from plnd.statistics import weighted_mean

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

    from plnd.interventions import Intervention
    from plnd.neurons.neuron_set import NeuronSet


# detection


def detect_all(
    settings: Settings, model: Callable[[], HFLM], folder: Path, log: Callable[..., None]
) -> list[dict[tuple[str, str], NeuronSet]]:
    """The sets of each sample, whose scores and neurons are in `folder`; what is missing there is detected."""
    neurons = folder / NEURONS
    from plnd.detection.part import merge
    from plnd.neurons.scores import Scores

    found = []
    languages = detected(settings)
    read = dict.fromkeys(languages, 0)  # documents that earlier samples took from the corpus
    for sample in range(settings.samples):
        paths = {neurons / mask_name(language, sample, "scores"): language for language in languages}
        parts = {part: path for path in paths for part in _parts(path, settings.shards)}
        for part in unwritten(parts, folder):
            language = paths[parts[part]]
            if not parts[part].exists():  # a part that is not there may have been merged
                _detect(settings, model(), language, sample, read[language], part, log)
        for path in unwritten(paths, folder):
            if settings.shards > 1:
                merge(_parts(path, settings.shards)).save(path)
            else:
                _detect(settings, model(), paths[path], sample, read[paths[path]], path, log)
        for part in parts:
            part.unlink(missing_ok=True)
        scores = {language: Scores.load(path) for path, language in paths.items()}
        for path, language in paths.items():
            corpus, written_in = scores[language].metadata.corpus, scores[language].metadata.language
            if written_in != language:
                raise PLNDError(f"{path}: scores of {written_in}, expected {language}; put the right file there")
            read[language] += corpus.documents + sum(corpus.skipped_counts.values())
        sets = neuron_sets(scores, settings)
        files = {neurons / mask_name(language, sample, kind): (language, kind) for language, kind in sets}
        for path in unwritten(files, folder):
            sets[files[path]].save(path)
        found.append(sets)
    return found


def _detect(
    settings: Settings, lm: HFLM, language: str, sample: int, begin: int, path: Path, log: Callable[..., None]
) -> None:
    """Detects on one language's documents from number `begin` on, all of them or the share that the path is for."""
    from plnd.detection.config import DetectConfig
    from plnd.detection.part import Part
    from plnd.detection.run import detect, detect_shard
    from plnd.io.corpus import read_documents
    from plnd.neurons.scores import Scores

    source, elapsed = expand(settings.corpus_of(language)), _clock()
    documents = islice(read_documents(source), begin, None)
    config = DetectConfig(language=language, **settings.detection_of(language))
    checkpoint = path.with_name(f"{path.name}.checkpoint")
    options: dict[str, Any] = {
        "tokenizer": lm.tokenizer,
        "source": f"{Path(source).name} from document {begin}" if begin else Path(source).name,
        "checkpoint": checkpoint,
        "resume": True,
        "progress": True,
    }
    shard = _shard_of(path)
    found: Scores | Part
    if shard is None:
        found = detect(lm.model, documents, config, **options)
    else:
        found = detect_shard(lm.model, documents, shard, config, **options)
    found.save(path)
    checkpoint.unlink(missing_ok=True)
    log(step="detect", language=language, sample=sample, **({"shard": shard} if shard else {}), **elapsed())


def _parts(path: Path, shards: int) -> list[Path]:
    """Where the parts of some scores are until they are merged; none if there is only one shard."""
    names = [f"{path.name}.{number}-of-{shards}.part" for number in range(1, shards + 1)]
    return [path.with_name(name) for name in names] if shards > 1 else []


def _shard_of(path: Path) -> str | None:
    """Which shard a path is for, `3/8`; None if it is for all of it."""
    found = re.search(r"\.(\d+)-of-(\d+)\.part$", path.name)
    return f"{found[1]}/{found[2]}" if found else None


def ablation(settings: Settings, model: Callable[[], HFLM], folder: Path, log: Callable[..., None]) -> Intervention:
    """What becomes of neurons that are off: zero, or their means over the first sample's documents, kept in `folder`.

    Of every language as many documents as of the one with the fewest, so that none weighs more by their number.

    Raises:
        PLNDError: if a corpus has fewer documents than that, and so another language would weigh more.
    """
    from plnd.interventions import Intervention
    from plnd.io.corpus import read_documents
    from plnd.references.config import ReferenceConfig
    from plnd.references.means import Means
    from plnd.references.run import reference

    if settings.ablation == "zero":
        return Intervention()
    path = folder / NEURONS / MEANS
    for missing in unwritten({path: None}, folder):
        elapsed, sources = _clock(), {x: expand(settings.corpus_of(x)) for x in settings.languages}
        chosen = [settings.detection_of(language) for language in settings.languages]
        options = {name: chosen[0][name] for name in ("max_length", "min_length", "batch_size") if name in chosen[0]}
        limits = [each["max_documents"] for each in chosen if each.get("max_documents")]
        config = ReferenceConfig(max_documents=min(limits, default=None), **options)
        documents = {language: read_documents(source) for language, source in sources.items()}
        names = {language: Path(source).name for language, source in sources.items()}
        lm = model()
        found = reference(lm.model, documents, config, tokenizer=lm.tokenizer, sources=names, progress=True)
        read = {language: said["documents"] for language, said in found.means.metadata.corpora.items()}
        if len(set(read.values())) > 1:
            counts = ", ".join(f"{number:,} of {language}" for language, number in read.items())
            raise PLNDError(
                f"ablation: mean: the corpora have {counts}, and one language would weigh more than another; set"
                f" detection.max_documents to {min(read.values())} or less"
            )
        found.means.save(missing)
        log(step="means", **elapsed())
    return Intervention("mean", means=Means.load(path))


def write_equal(
    planned: Sequence[Setting], settings: Settings, samples: Sequence[Mapping[tuple[str, str], NeuronSet]], folder: Path
) -> None:
    """The sets of equal numbers as artifacts, so that what was switched off is at hand outside, too."""
    found = {
        folder / NEURONS / mask_name(x.language, x.sample, x.neurons, x.region, x.table): x for x in planned if x.table
    }
    for path in unwritten(found, folder):
        chosen(found[path], settings, samples[found[path].sample]).save(path)


# evaluation


class Evaluator:
    """Evaluates settings on one loaded model: values per document, by task and metric."""

    def __init__(self, settings: Settings, lm: HFLM, tasks: Mapping[str, Task]) -> None:
        """Takes the model that all items share; an item with model arguments of its own gets its own `hf` around it."""
        self.settings, self.tasks = settings, tasks
        self.model = lm.model
        self.lms: dict[str, HFLM] = {}
        used = {item for setting in plan(settings) for item in setting.items}
        for name, item in settings.tasks.items():
            if name not in used:
                continue
            self.lms[name] = lm if not item.model else load_lm({**settings.model, **item.model, "pretrained": lm.model})

    def __call__(self, item: str, tasks: Sequence[str], answers: Answers | None = None) -> Values:
        """What the model as it is answers on the tasks of one item; the first texts that it writes, into `answers`."""
        options = self.settings.tasks[item]
        return evaluate(
            self.lms[item],
            {name: self.tasks[name] for name in tasks},
            limit=options.limit or self.settings.limit,
            apply_chat_template=options.apply_chat_template,
            answers=answers,
        )


def rows(setting: Setting, settings: Settings, neurons: NeuronSet | None, values: Values) -> list[list[Any]]:
    """The rows of `results.csv` for one setting, in the order of `COLUMNS`."""
    from plnd.neurons.neuron_set import NeuronSet

    off = [0, 0.0, ""]
    if isinstance(neurons, NeuronSet):
        off = [len(neurons), len(neurons) / neurons.total, neurons.digest]
    control, seed = ("", "") if setting.seed is None else ("random", setting.seed)
    state = [setting.name, setting.neurons, setting.language, setting.region, control, seed, setting.sample, *off]
    found = []
    for item, tasks in setting.tasks(settings).items():
        for language, task in tasks.items():
            for metric, numbers in values[task].items():
                if metric != BYTES:
                    value, stderr = weighted_mean(numbers, document_weights(values[task], metric))
                    shown = "" if stderr is None else repr(stderr)
                    found.append([item, *state, task, language, metric, repr(value), shown, len(numbers)])
    return found


def names_of(tasks: Mapping[str, Mapping[str, str]]) -> set[str]:
    """All tasks of some items, each of which has one in every language."""
    return {task for named in tasks.values() for task in named.values()}


def load_tasks(settings: Settings) -> dict[str, Task]:
    """Every task that an experiment evaluates by name, its rows read; of the others only that they exist.

    Raises:
        PLNDError: if a task does not exist, is a group, or its rows cannot be read.
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.task_folder import tasks_folder

    if not settings.tasks:
        return {}
    paths = [str(tasks_folder()), *([settings.include_path] if settings.include_path else [])]
    wanted = {name: [item.task_of(x) for x in settings.languages_of(name)] for name, item in settings.tasks.items()}
    known = TaskManager(include_path=paths, include_defaults=False)
    defaults = any(name not in known.all_tasks for names in wanted.values() for name in names)
    known = TaskManager(include_path=paths) if defaults else known  # lm-eval's own, which take a while
    seen: set[str] = set()
    for item, names in wanted.items():
        for name in names:
            if name in seen:
                raise PLNDError(f"tasks.{item}: another item has the task {name} already")
            seen.add(name)
            if name not in known.all_tasks:
                raise PLNDError(f"tasks.{item}: no lm-eval task {name}; `lm_eval ls tasks` lists them")
            if name not in known.all_subtasks:
                raise PLNDError(f"tasks.{item}: {name} is a group: name its task in one language")
    asked = {
        task for setting in plan(settings) for named in setting.tasks(settings).values() for task in named.values()
    }
    found: dict[str, Task] = {}
    for item, names in wanted.items():
        names = [name for name in names if name in asked]
        if not names:
            continue
        options = settings.tasks[item]
        given = expand({**settings.metadata, **options.metadata})
        manager = TaskManager(include_path=paths, include_defaults=defaults, metadata=given)
        for name in names:
            (task,) = read_tasks(manager, name, f"tasks.{item}").values()
            ask(task, options.num_fewshot, options.gen_kwargs, f"tasks.{item}.gen_kwargs: {name}")
            found[name] = task
    return found


# the run


def experiment(settings: Settings, output: str | Path) -> Path:
    """Runs an experiment, or the rest of one that was stopped; returns the path of its `results.csv`.

    Of an experiment that evaluates nothing (`lm_eval_plnd.experiments.settings.SETS`), that of its neurons.

    Other processes may do the same at the same time: each takes what nobody else is at, and all end with the same file.

    Raises:
        PLNDError: before anything is computed, if a task, a corpus, the model or a region does not fit, or the folder
            holds another experiment.
    """
    from tqdm import tqdm

    from plnd.io.files import write_bytes, write_csv

    output, tasks = Path(output), prepared(settings)
    _open_folder(settings, tasks, output)

    @cache
    def model() -> HFLM:
        return load_lm(settings.model)

    @cache
    def evaluator() -> Evaluator:
        return Evaluator(settings, model(), tasks)

    def log(**event: Any) -> None:
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **event}
        with open(output / "log.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    draw_all(settings, tasks, output)
    samples = detect_all(settings, model, output, log)
    planned = plan(settings)
    off = [switched_off(setting, settings, samples[setting.sample]) for setting in planned]
    if not planned:
        return output / NEURONS
    write_equal(planned, settings, samples, output)
    done = ablation(settings, model, output, log)
    paths = {output / SAMPLES / f"{setting.name}.json": number for number, setting in enumerate(planned)}

    @cache
    def table_of(path: Path) -> list[list[Any]]:
        setting = planned[paths[path]]
        return rows(setting, settings, off[paths[path]], read_values(path, names_of(setting.tasks(settings))))

    def write_results() -> None:
        with claimed(output / RESULTS, output):
            write_csv(output / RESULTS, COLUMNS, [row for path in paths if path.exists() for row in table_of(path)])

    evaluations = {path: len(planned[number].tasks(settings)) for path, number in paths.items()}
    with tqdm(total=sum(evaluations.values()), desc="experiment", unit=" evaluations", file=sys.stderr) as bar:
        for path in unwritten(paths, output):
            setting, neurons = planned[paths[path]], off[paths[path]]
            bar.set_postfix_str(setting.name)
            bar.update(sum(count for path, count in evaluations.items() if path.exists()) - bar.n)
            values: Values = {}
            answers: Answers = {}
            with done.applied(model().model, neurons) if neurons else nullcontext():
                for item, named in setting.tasks(settings).items():
                    elapsed = _clock()
                    values |= evaluator()(item, list(named.values()), answers)
                    log(step="evaluate", setting=setting.name, item=item, **elapsed())
                    bar.update()
            if answers:
                text = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
                write_bytes(text.encode(), output / ANSWERS / f"{setting.name}.json")
            write_values(values, path)
            write_results()
        bar.update(bar.total - bar.n)
    write_results()
    model.cache_clear()  # the trained models take its place
    evaluator.cache_clear()
    enhance(settings, tasks, output, log)
    return output / RESULTS


# fine-tuning: Figure 4 and Table 6


def draw_all(settings: Settings, tasks: Mapping[str, Task], folder: Path) -> None:
    """Draws the documents of all that is trained; what is there is kept.

    Raises:
        PLNDError: if a corpus has too few.
    """
    todo = tunings(settings)
    paths = {folder / TUNED / tuning.corpus: tuning for tuning in todo}
    if todo:
        (folder / TUNED).mkdir(exist_ok=True)
    for path in unwritten(paths, folder):
        write_documents(settings, paths[path], tasks, path)


def enhance(settings: Settings, tasks: Mapping[str, Task], folder: Path, log: Callable[..., None]) -> None:
    """Trains and evaluates one model after the other, those that are not there yet, and writes `enhancement.csv`."""
    from tqdm import tqdm

    from plnd.io.files import write_csv

    todo = tunings(settings)
    paths = {folder / SAMPLES / f"{tuning.name}.json": tuning for tuning in todo}

    def write_table() -> None:
        with claimed(folder / ENHANCED, folder):
            there = [(path, tuning) for path, tuning in paths.items() if path.exists()]
            done = [(tuning, read_values(path, names_of(tuning.tasks(settings)))) for path, tuning in there]
            table = [row for tuning, values in done for row in tuned_rows(tuning, settings, folder, values)]
            write_csv(folder / ENHANCED, TUNED_COLUMNS, table)

    with tqdm(total=len(paths), desc="enhancement", unit=" models", file=sys.stderr, disable=not paths) as bar:
        for path in unwritten(paths, folder):
            bar.set_postfix_str(paths[path].name)
            bar.update(sum(path.exists() for path in paths) - bar.n)
            values = _tuned_values(paths[path], settings, tasks, folder, log)
            write_values(values, path)
            write_table()
        bar.update(bar.total - bar.n)
    if paths:
        write_table()


def _tuned_values(
    tuning: Tuning, settings: Settings, tasks: Mapping[str, Task], folder: Path, log: Callable[..., None]
) -> Values:
    """Trains one model, and what it answers on the tasks of its items."""
    elapsed = _clock()
    trained = train(tuning, settings, folder)
    log(step="train", setting=tuning.name, **elapsed())
    evaluator = Evaluator(settings, load_lm({**settings.model, "pretrained": trained}), tasks)
    values: Values = {}
    for item, named in tuning.tasks(settings).items():
        elapsed = _clock()
        values |= evaluator(item, list(named.values()))
        log(step="evaluate", setting=tuning.name, item=item, **elapsed())
    return values


def prepared(settings: Settings) -> dict[str, Task]:
    """The tasks of an experiment, after all that can be checked without loading the model was checked.

    Raises:
        PLNDError: if a task, a corpus, the model or a region does not fit.
    """
    from plnd.io.corpus import pipes, read_documents
    from plnd.models.layout import Layout
    from plnd.models.loading import load_skeleton

    tasks = load_tasks(settings)
    for language in languages_read(settings):
        source = expand(settings.corpus_of(language))
        if pipes([source]):
            raise PLNDError(f"corpus: {source} is a pipe, expected files, which can be read again; write one")
        next(read_documents(source))
    name = expand(settings.model["pretrained"])
    trust = settings.model.get("trust_remote_code", False)
    skeleton = load_skeleton(name, revision=settings.model.get("revision"), trust_remote_code=trust)
    blocks = Layout(skeleton).description()["blocks"]
    for setting in plan(settings):
        if region := region_of(setting, settings):
            region.check(blocks)
    return tasks


def _open_folder(settings: Settings, tasks: Mapping[str, Task], output: Path) -> None:
    """Makes the folder, or takes up one that holds the same experiment of the same model, corpora and rows.

    Raises:
        PLNDError: if it holds another one, or cannot be written.
    """
    from plnd.io.files import write_bytes

    try:
        for folder in (output, output / NEURONS, output / SAMPLES, output / ANSWERS, output / LOCKS):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{output}: cannot be made ({error.strerror}); choose another folder with --output") from None
    path, written = output / SETTINGS, output / ENVIRONMENT
    with claimed(path, output), claimed(written, output):
        if path.exists():
            here = load_settings(path).model_dump()
            for name, value in settings.model_dump().items():
                if here[name] != value:
                    raise PLNDError(
                        f"{output}: holds another experiment, whose {name} is {here[name]!r:.60} and not {value!r:.60};"
                        " choose another folder with --output"
                    )
        begun = next((output / SAMPLES).iterdir(), None) is not None
        check_inputs(output / INPUTS, inputs(settings, tasks), "experiment", begun=begun)
        environment = json.dumps(_environment(), indent=2) + "\n"
        if written.exists() and read_bounded(written, 2**20) != environment.encode():
            warnings.warn(f"{written}: begun with other versions, whose numbers may differ", stacklevel=3)
        write_bytes(settings.text().encode(), path)
        write_bytes(environment.encode(), written)


def inputs(settings: Settings, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """What an experiment's numbers depend on beside its settings, by content."""
    sources = {f"corpus of {language}": settings.corpus_of(language) for language in languages_read(settings)}
    sources |= {f"training corpus of {x.language}": settings.training_corpus_of(x.language) for x in tunings(settings)}
    limits = {
        item.task_of(language): item.limit or settings.limit
        for name, item in settings.tasks.items()
        for language in settings.languages_of(name)
    }
    return {
        **{f"model's content ({name})": digest for name, digest in source_digests(settings.model).items()},
        **{name: corpus_digest(expand(source)) for name, source in sources.items()},
        **{f"rows of {name}": task_digest(task, limits[name]) for name, task in tasks.items()},
    }


def _environment() -> dict[str, str]:
    """Versions of what computes."""
    names = ("plnd", "lm_eval", "torch", "transformers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _clock() -> Callable[[], dict[str, float]]:
    """What tells the seconds since now, by the clock and of this process's CPU time."""
    began, used = time.monotonic(), time.process_time()
    return lambda: {
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
    }
