"""Trains the neurons of one language on a few hundred documents, and evaluates through lm-eval before and after.

    python scripts/finetune.py --model google/gemma-3-270m --mask zh.safetensors --corpus zh.jsonl --output zh-tuned \\
        --tasks plnd_text_zh,plnd_text_en --data-dir DATA --limit 50
    python scripts/finetune.py … --control random          # as many random neurons: the scientific control
    python scripts/finetune.py … --method lora|full        # for comparison, at the same number of steps

The folder gets the adapter (for `--method full` the model) and `results.json`. A run that was killed goes on with
`--resume`. What is trained, and why the defaults are what they are: `peft_plnd.fine_tuning`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import set_torch_seed
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_plnd.experiments.evaluation import SEED, ask
from lm_eval_plnd.task_folder import tasks_folder
from peft_plnd.fine_tuning import METHODS, Settings, checkpoints, examples, prepare, train
from plnd import NeuronSet, PLNDError, load_model
from plnd.io.files import write_bytes
from plnd.io.inputs import CHECKSUM, digest_of
from plnd.models.loading import load_tokenizer


def evaluate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Iterable[str], data_dir: str | None, limit: int | None
) -> dict[str, dict[str, float]]:
    """lm-eval's metrics by task, of a model in memory; log-likelihoods are summed in float32 also in bfloat16.

    As its `simple_evaluate` finds them, which also asks git for a commit, and for hardware and packages, each time.
    """
    tasks = list(tasks)
    if not tasks:
        return {}
    base: PreTrainedModel = model  # type: ignore[assignment]
    metadata = {"data_dir": data_dir} if data_dir else {}
    loaded = TaskManager(include_path=str(tasks_folder()), metadata=metadata).load(tasks)
    set_torch_seed(SEED)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(SEED)
        ask(task, None, {}, "")
    lm = HFLM(pretrained=base, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")
    results = lm_eval.evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=False)
    return {
        task: {name.removesuffix(",none"): value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in results["results"].items()
    }


def run(
    settings: Settings,
    tasks: Iterable[str] = (),
    *,
    data_dir: str | None = None,
    limit: int | None = None,
    resume: bool = False,
    before: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates; returns what `results.json` in the output folder holds.

    Args:
        settings: what to train and how.
        tasks: lm-eval tasks, plnd's own or others.
        data_dir: folder that plnd's tasks read instead of the hub.
        limit: documents of each task.
        resume: go on from the last checkpoint, if there is one.
        before: metrics of the base model, where they are known already.

    Raises:
        PLNDError: if an argument makes no sense, or a file cannot be read or written.
    """
    if settings.method not in METHODS:
        raise PLNDError(f"--method {settings.method}: expected one of {', '.join(METHODS)}")
    if (settings.mask is None) == (settings.method == "neurons"):
        raise PLNDError("--method neurons needs --mask FILE, a neurons artifact, and no other method takes one")
    tasks, tokenizer = list(tasks), load_tokenizer(settings.model)
    examples(settings, tokenizer)  # a corpus that is too short, or no mask, is said before anything is measured
    if settings.mask is not None:
        NeuronSet.load(settings.mask)
    if resume and not checkpoints(settings):
        print(f"{settings.output}: no checkpoint to go on from, starts from the beginning", file=sys.stderr)
    Path(settings.output).mkdir(parents=True, exist_ok=True)
    if before is None:
        before = evaluate(load_model(settings.model, dtype=settings.dtype), tokenizer, tasks, data_dir, limit)
    model = prepare(settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    training = train(settings, model, tokenizer, resume=resume)
    after = evaluate(model.to(getattr(torch, settings.dtype)), tokenizer, tasks, data_dir, limit)
    results = {
        "settings": {**asdict(settings), "learning_rate": settings.rate},
        "mask": getattr(getattr(model, "peft_config", {}).get("default"), "source", None),
        "trained_parameters": trained,
        "share": trained / sum(p.numel() for p in model.parameters()),
        "training": training,
        "limit": limit,
        "before": before,
        "after": after,
    }
    text = json.dumps({**results, CHECKSUM: digest_of(results)}, indent=2, ensure_ascii=False)
    write_bytes(text.encode(), Path(settings.output) / "results.json")
    return results


def main() -> None:
    """Runs the script; bad input is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--corpus", required=True, help="as for `plnd detect`")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--mask", help="neurons artifact")
    parser.add_argument("--method", choices=METHODS, default="neurons")
    parser.add_argument("--control", choices=["random"], help="as many random neurons instead of the mask's")
    for name, kind in (("documents", int), ("max_length", int), ("batch_size", int), ("epochs", int), ("seed", int),
                       ("lora_rank", int), ("save_steps", int), ("importance_power", float),
                       ("dtype", str), ("text_field", str)):  # fmt: skip
        default = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {default}")
    parser.add_argument("--whole", action="store_true", help="gate, up and down of a feed-forward neuron together")
    parser.add_argument("--learning-rate", type=float, help="default: by method, see above")
    parser.add_argument("--tasks", default="", help="lm-eval tasks, joined by commas")
    parser.add_argument("--data-dir", help="folder that plnd's tasks read instead of the hub")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    options = vars(parser.parse_args())
    tasks = [task for task in options.pop("tasks").split(",") if task]
    more = {name: options.pop(name) for name in ("data_dir", "limit", "resume")}
    try:
        results = run(Settings(**options), tasks, **more)
    except PLNDError as error:
        print(f"finetune: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({name: results[name] for name in ("trained_parameters", "training", "before", "after")}, indent=2))


if __name__ == "__main__":
    main()
