"""Parallel examples from lm-eval tasks: the prompts that an evaluation asks, document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from lm_eval_plnd.task_folder import tasks_folder
from plnd.errors import CorpusError
from plnd.roles.parallel import Parallel

FEWSHOT_SEED = 1234  # lm-eval's own


def named_tasks(names: Sequence[str]) -> dict[str, str]:
    """Language to task; a name is `plnd_xnli_zh`, whose last part is the language, or `zh=plnd_xnli_zh`.

    Raises:
        CorpusError: if two tasks have one language.
    """
    by_language: dict[str, str] = {}
    for name in names:
        language, _, task = name.rpartition("=")
        language = language or task.rpartition("_")[2]
        if language in by_language:
            raise CorpusError(
                f"tasks {by_language[language]} and {task}: both are called {language}; name them, en={task}"
            )
        by_language[language] = task
    return by_language


def parallel_tasks(
    tasks: Mapping[str, str],
    *,
    limit: int | None = None,
    fewshot: int = 0,
    align: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    include_path: str | None = None,
) -> Parallel:
    """The prompts of parallel tasks, as lm-eval asks them, with their right answers.

    Args:
        tasks: language to task.
        limit: at most so many examples.
        fewshot: worked examples in front of each prompt, the same that lm-eval draws for the same documents.
        align: the column that says which documents belong together (`id`); by default their position. With it, an
            example is a document of the first task whose like all other tasks have.
        metadata: as lm-eval's `--metadata`, such as `{"data_dir": "…"}`.
        include_path: folder of further tasks, as lm-eval's `--include_path`.

    Raises:
        CorpusError: if a task does not exist or asks nothing, or the documents are not parallel.
    """
    paths = [str(tasks_folder()), *([include_path] if include_path else [])]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=dict(metadata or {}))
    missing = [name for name in tasks.values() if name not in manager.all_tasks]
    if missing:
        manager = TaskManager(include_path=paths, metadata=dict(metadata or {}))  # lm-eval's own, which take a while
        missing = [name for name in tasks.values() if name not in manager.all_tasks]
    if missing:
        raise CorpusError(f"no lm-eval task {', '.join(missing)}; `lm_eval ls tasks` lists them")
    groups = [name for name in tasks.values() if name in {*manager.all_groups, *manager.all_tags}]
    if groups:
        raise CorpusError(f"{groups[0]} is a group: name its tasks, one for each language")
    loaded = manager.load(list(tasks.values()))["tasks"]
    ordered = [loaded[name] for name in tasks.values()]
    documents = _aligned(ordered, align)[:limit]
    columns = [_asked(task, [row[place] for row in documents], fewshot) for place, task in enumerate(ordered)]
    rows = list(zip(*columns, strict=True))
    return Parallel(
        list(tasks),
        [[prompt for prompt, _ in row] for row in rows],
        [[answer for _, answer in row] for row in rows],
        source="+".join(tasks.values()),
        tasks=list(tasks.values()),
        documents=documents,
        fewshot=fewshot,
    )


def _aligned(tasks: Sequence[Task], align: str | None) -> list[list[int]]:
    """For each example the number of its document in each task."""
    if align is None:
        sizes = {len(task.eval_docs) for task in tasks}
        if len(sizes) > 1:
            raise CorpusError(
                f"the tasks have {' or '.join(map(str, sorted(sizes)))} documents, so they are not parallel by"
                " position: name the column that tells which belong together, --align id"
            )
        return [[n] * len(tasks) for n in range(sizes.pop())]
    numbers = []
    for task in tasks:
        docs = task.eval_docs
        if not len(docs) or align not in docs[0]:
            raise CorpusError(f"{task.config.task}: its documents have no column {align!r}")
        keys: dict[Any, int] = {}
        for number, doc in enumerate(docs):
            keys.setdefault(doc[align], number)
        numbers.append(keys)
    shared = [key for key in numbers[0] if all(key in keys for keys in numbers)]
    return [[keys[key] for keys in numbers] for key in shared]


def _asked(task: Task, documents: Sequence[int], fewshot: int) -> list[tuple[str, str]]:
    """Prompt and answer of some documents, contexts made in lm-eval's order, which few-shot examples depend on."""
    if fewshot and task.get_config("num_fewshot") != 0:
        task.set_config("num_fewshot", fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    pairs: dict[int, tuple[str, str]] = {}
    for number in sorted(set(documents)):
        doc = task.eval_docs[number]
        context = task.fewshot_context(
            doc, num_fewshot=task.get_config("num_fewshot") or 0, gen_prefix=task.doc_to_prefix(doc)
        )
        pairs[number] = _prompt_and_answer(task, doc, context)
    return [pairs[number] for number in documents]


def _prompt_and_answer(task: Task, doc: Any, context: str) -> tuple[str, str]:
    requests = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1))
    requests = requests if isinstance(requests, list) else [requests]
    kind = requests[0].request_type
    if kind == "loglikelihood_rolling" or len({request.args[0] for request in requests}) > 1:
        raise CorpusError(f"{task.config.task}: roles are those of a prompt that is answered, and it has none")
    prompt = requests[0].args[0]
    if kind == "loglikelihood":
        label = task.doc_to_target(doc)
        return prompt, requests[label if len(requests) > 1 else 0].args[1]
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) else target
    return prompt, f"{task.config.target_delimiter}{target}"
