"""Trains the neurons of one language on a few hundred documents, and evaluates through lm-eval before and after.

    python scripts/finetune.py --model google/gemma-3-270m --mask zh.safetensors --corpus zh.jsonl --output zh-tuned \\
        --tasks plnd_text_zh,plnd_text_en --data-dir DATA --limit 50
    python scripts/finetune.py … --control random          # as many random neurons: the scientific control
    python scripts/finetune.py … --method lora|full        # for comparison, at the same number of steps

The folder gets the adapter (for `--method full` the model) and `results.json`. A run that was killed goes on with
`--resume`. Causal language modelling; one document an example, truncated to `--max-length` tokens, padded in its batch.

Defaults, and why:
  400 documents     where the PLND paper's curve has its best point (arXiv:2402.18815, section 4; 800 were worse)
  1 epoch           so that a document is seen once and the number of documents is the number that the paper varies
  batch of 4        100 steps over 400 documents: enough steps for a schedule, small enough for a laptop
  AdamW, decay 0    decay would pull deltas to zero, that is, the model to its base
  peak rate         3e-4 for neurons, the best of 3e-4, 1e-3 and 3e-3 on Gemma 3 270M (docs/peft_plnd.md); 2e-4 for
                    LoRA, 2e-5 for full training, which are the usual ones; 5 % warm-up, then cosine to zero
  bfloat16          base weights; deltas and LoRA factors stay float32. Full training keeps float32 weights under
                    autocast, since steps of 2e-5 vanish in bfloat16 weights
  clipping at 1     of the gradient that is trained. The papers' code clips the gradient of all parameters and zeroes it
                    outside the neurons afterwards, so its steps shrink with gradients that it then throws away
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from lm_eval_plnd.task_folder import tasks_folder
from peft_plnd import NeuronSelectConfig
from plnd import PLNDError, load_model, read_documents
from plnd.io.files import write_bytes
from plnd.models.layout import Layout
from plnd.models.loading import load_tokenizer

METHODS = ("neurons", "lora", "full")
RATES = {"neurons": 3e-4, "lora": 2e-4, "full": 2e-5}
IGNORED = -100  # a label that counts nothing


@dataclass(frozen=True)
class Settings:
    """What to train and how; the options of the command line have the same names."""

    model: str
    corpus: str
    output: str
    mask: str | None = None
    method: str = "neurons"
    control: str | None = None
    documents: int = 400
    max_length: int = 512
    batch_size: int = 4
    epochs: int = 1
    learning_rate: float | None = None
    lora_rank: int = 8
    seed: int = 0
    dtype: str = "bfloat16"
    text_field: str = "text"
    save_steps: int = 50

    @property
    def rate(self) -> float:
        """The peak learning rate: the one given, or the method's."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


def examples(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """The first documents of the corpus as token ids.

    Raises:
        PLNDError: if the corpus has fewer documents than are asked for.
    """
    texts = list(islice(read_documents(settings.corpus, settings.text_field), settings.documents))
    if len(texts) < settings.documents:
        raise PLNDError(f"{settings.corpus}: {len(texts)} documents, but --documents asks for {settings.documents}")
    return [
        {"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=settings.max_length)["input_ids"]
    ]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pads on the right with token 0, which neither is attended to nor counts in the loss."""
    longest = max(len(example["input_ids"]) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example["input_ids"])] = torch.tensor(example["input_ids"])
        mask[row, : len(example["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def prepare(settings: Settings) -> nn.Module:
    """The model with the parameters that the method trains, and no others, requiring gradients.

    Raises:
        PLNDError: if the model or the mask cannot be loaded, or they do not fit.
    """
    full = settings.method == "full"
    model = load_model(settings.model, dtype="float32" if full else settings.dtype)
    model.config.use_cache = False
    if full:
        return model.requires_grad_(True)
    if settings.method == "lora":
        names = {id(module): name for name, module in model.named_modules()}
        targets = {names[id(target.module)] for target in Layout(model).targets.values()}
        rank = settings.lora_rank
        return get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        )
    config = NeuronSelectConfig(mask=settings.mask, control=settings.control, seed=settings.seed, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(settings: Settings, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, resume: bool) -> dict[str, Any]:
    """Trains `model` in place and saves it; returns what Trainer measured."""
    torch.manual_seed(settings.seed)
    data = examples(settings, tokenizer)
    steps = settings.epochs * -(-len(data) // settings.batch_size)
    arguments = TrainingArguments(
        output_dir=str(Path(settings.output) / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=settings.method == "full" and settings.dtype == "bfloat16",
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=10,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)  # type: ignore[arg-type]
    result = trainer.train(resume_from_checkpoint=resume and any(Path(arguments.output_dir).glob("checkpoint-*")))
    model.eval()
    trainer.save_model(settings.output)
    tokens = sum(len(example["input_ids"]) for example in data)
    return {"steps": result.global_step, "tokens": tokens * settings.epochs, "loss": result.training_loss}


def evaluate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Iterable[str], data_dir: str | None, limit: int | None
) -> dict[str, dict[str, float]]:
    """lm-eval's metrics by task, of a model in memory; log-likelihoods are summed in float32 also in bfloat16."""
    tasks = list(tasks)
    if not tasks:
        return {}
    base: PreTrainedModel = model  # type: ignore[assignment]
    metadata = {"data_dir": data_dir} if data_dir else {}
    results = simple_evaluate(
        model=HFLM(pretrained=base, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32"),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(tasks_folder()), metadata=metadata),
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
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
    write_bytes(json.dumps(results, indent=2, ensure_ascii=False).encode(), Path(settings.output) / "results.json")
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
                       ("lora_rank", int), ("save_steps", int), ("dtype", str), ("text_field", str)):  # fmt: skip
        default = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {default}")
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
