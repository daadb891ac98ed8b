"""What an experiment will take, estimated before it is run: settings, evaluations, requests, tokens, FLOP."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_plnd.experiments.conditions import Setting, detected, plan
from lm_eval_plnd.experiments.enhancement import Tuning, tunings
from lm_eval_plnd.experiments.run import prepared
from lm_eval_plnd.experiments.settings import Settings
from plnd.demo_data import expand

if TYPE_CHECKING:
    from lm_eval.api.task import Task

GENERATED = 256
"""Tokens that lm-eval generates where a task does not say how many."""


@dataclass(frozen=True)
class Cost:
    """Of evaluating one task once.

    Attributes:
        documents, requests: how many.
        read: tokens of prompts and of continuations to be scored, with the model's own tokenizer.
        written: the most tokens that can be generated; many answers end earlier.
    """

    documents: int
    requests: int
    read: int
    written: int


def estimate(settings: Settings) -> str:
    """The plan of an experiment and its cost, as text. Loads tokenizer and tasks, not the model.

    A forward pass takes two FLOP for each parameter that a token meets (all but the input embeddings, unless they are
    the output's, too) and each token read or written. Attention over the context is not counted, nor is padding; the
    tokens to be written are their upper bound.

    Raises:
        PLNDError: as `plnd.experiment` before it computes anything.
    """
    from plnd.models.loading import load_skeleton, load_tokenizer

    tasks = prepared(settings)
    name = expand(settings.model["pretrained"])
    source = {
        "revision": settings.model.get("revision"),
        "trust_remote_code": settings.model.get("trust_remote_code", False),
    }
    tokenizer, skeleton = load_tokenizer(name, **source), load_skeleton(name, **source)
    weights = _met_by_a_token(skeleton)
    todo, trained = plan(settings), tunings(settings)
    costs = {
        task: cost(tasks[task], settings.tasks[item].limit or settings.limit, tokenizer)
        for item in settings.tasks
        for language in settings.languages_of(item)
        for task in [settings.tasks[item].task_of(language)]
        if task in tasks
    }
    lines = [
        f"model: {name}, {skeleton.num_parameters() / 1e6:,.0f} M parameters; a token meets {weights / 1e6:,.0f} M",
        f"{'task':<36}{'documents':>11}{'requests':>10}{'read':>12}{'written at most':>17}{'times':>7}",
    ]
    times = dict.fromkeys(costs, 0)
    evaluated: list[Setting | Tuning] = [*todo, *trained]
    for setting in evaluated:
        for by_language in setting.tasks(settings).values():
            for task in by_language.values():
                times[task] += 1
    for task, found in costs.items():
        counts = f"{found.documents:>11,}{found.requests:>10,}{found.read:>12,}{found.written:>17,}{times[task]:>7,}"
        lines.append(f"{task:<36}{counts}")
    read = sum(times[task] * found.read for task, found in costs.items())
    written = sum(times[task] * found.written for task, found in costs.items())
    lines += ["", f"{len(todo)} settings, {sum(times.values()):,} evaluations of a task:"]
    lines += [f"  {setting.name:<44}{' '.join(setting.tasks(settings))}" for setting in todo]
    if trained:
        lines += ["", f"{len(trained)} trained models, each evaluated:"]
        lines += [f"  {tuning.name:<44}{' '.join(tuning.tasks(settings))}" for tuning in trained]
    lines += ["", "estimate (2 FLOP for each parameter and token; no attention, no padding):"]
    languages = detected(settings)
    passes = settings.samples * len(languages)
    sizes = [settings.detection_of(language).get("max_documents") for language in languages]
    length = settings.detection.get("max_length", 512)
    most = settings.samples * sum(size or 0 for size in sizes) * length
    learned = averaged = 0
    bound = f"{most:,} tokens at most, {_flop(most, weights)} for the forward pass" if all(sizes) else "whole corpora"
    lines.append(f"  detection: {passes} passes, {bound}")
    if settings.ablation == "mean":  # of every language as many documents as of the one with the fewest
        limits = [settings.detection_of(language).get("max_documents") for language in settings.languages]
        averaged = min(filter(None, limits), default=0) * len(limits) * length
        bound = f"{averaged:,} tokens at most, {_flop(averaged, weights)}" if averaged else "whole corpora"
        lines.append(f"  means:     {bound}")
    if trained:
        chosen = settings.enhancement
        learned = sum(tuning.documents for tuning in trained) * chosen.max_length * chosen.epochs
        lines.append(f"  training:  {learned:,} tokens at most, {_flop(3 * learned, weights)}, backward passes too")
    lines.append(f"  evaluation: {read:,} tokens read, {_flop(read, weights)}")
    lines.append(f"              {written:,} tokens written at most, {_flop(written, weights)}")
    dtype, device = _place(settings, skeleton)
    rate = speed(dtype, device)
    minutes = 2 * weights * (most + averaged + 3 * learned + read + written) / rate / 60
    what = f"{str(dtype).removeprefix('torch.')} on {device}, {rate / 1e12:.2g} TFLOP/s"
    lines.append(f"  at the speed of a large matrix product here ({what}): {minutes:,.0f} minutes, in practice more")
    return "\n".join(lines)


def cost(task: Task, limit: int | None, tokenizer: Any) -> Cost:
    """What one task asks, by its own requests."""
    from lm_eval.evaluator_utils import get_sample_size

    with redirect_stderr(io.StringIO()):  # a bar for every task
        task.build_all_requests(limit=get_sample_size(task, limit))
    read = written = 0
    for request in task.instances:
        texts = request.args if request.request_type == "loglikelihood" else request.args[:1]
        read += len(tokenizer("".join(texts)).input_ids)
        if request.request_type == "generate_until":
            options: Mapping[str, Any] = request.args[1]
            written += int(options.get("max_gen_toks", GENERATED))
    return Cost(len({request.doc_id for request in task.instances}), len(task.instances), read, written)


def _met_by_a_token(model: Any) -> int:
    """Parameters of matrices that every token is multiplied with."""
    total = model.num_parameters()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or model.config.get_text_config().tie_word_embeddings
    return total if tied else total - embedding.weight.numel()


def _place(settings: Settings, skeleton: Any) -> tuple[torch.dtype, torch.device]:
    """What the experiment computes in, and where."""
    from lm_eval_plnd.documents import loading_device

    dtype = str(settings.model.get("dtype", "auto")).removeprefix("torch.")
    device = torch.device(loading_device("", settings.model.get("device")) or "cpu")
    return skeleton.dtype if dtype == "auto" else getattr(torch, dtype), device


def _flop(tokens: int, weights: int) -> str:
    count = 2.0 * tokens * weights
    size, unit = next((x for x in ((1e15, "PFLOP"), (1e12, "TFLOP")) if count >= x[0] / 10), (1e9, "GFLOP"))
    return f"{count / size:,.1f} {unit}"


def speed(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of a matrix product of 2,048 rows on a device: what a model's own may come close to."""
    left, right = (torch.ones(2048, 2048, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(3):  # the first one sets things up
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)
