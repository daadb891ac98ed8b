"""Fine-tuning on a few hundred documents: a language's neurons, random ones, LoRA or every parameter, by `Trainer`.

Causal language modelling; one document an example, truncated to `max_length` tokens, padded in its batch. The defaults
of `Settings`, and why:

- 400 documents: where the PLND paper's curve has its best point (arXiv:2402.18815, section 4; 800 were worse).
- 1 epoch: a document is seen once, and the number of documents is the number that the paper varies.
- Batches of 4: 100 steps over 400 documents, enough for a schedule, small enough for a laptop.
- AdamW, decay 0: decay would pull deltas to zero, that is, the model to its base.
- Peak rate: 3e-4 for neurons, the best of 3e-4, 1e-3 and 3e-3 on Gemma 3 270M (docs/peft_plnd.md); 2e-4 for LoRA, 2e-5
  for full training, which are the usual ones; 5 % warm-up, then cosine to zero.
- bfloat16 base weights; deltas and LoRA factors stay float32. Full training keeps float32 weights under autocast, since
  steps of 2e-5 vanish in bfloat16 weights.
- Clipping at 1, of the gradient that is trained. The papers' code clips the gradient of all parameters and zeroes it
  outside the neurons afterwards, so its steps shrink with gradients that it then throws away.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.rates import importance_rates, scale_rates
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.io.inputs import INPUTS, check_inputs, digest_of
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.models.source import source_digest
from plnd.neurons.neuron_set import NeuronSet

METHODS = ("neurons", "lora", "full")
RATES = {"neurons": 3e-4, "lora": 2e-4, "full": 2e-5}
IGNORED = -100  # a label that counts nothing


@dataclass(frozen=True)
class Settings:
    """What to train and how; the options of `scripts/finetune.py` have the same names.

    Attributes:
        model, revision, trust_remote_code, device, dtype: as `plnd.load_model`; `device="cpu"` trains there, otherwise
            Trainer chooses.
        corpus, text_field: as `plnd.read_documents`.
        output: folder of the adapter (for full training of the model) and of checkpoints.
        mask: neurons artifact, of the method `neurons` only.
        method: one of `METHODS`.
        control: `random` for as many random neurons of each block and projection.
        whole: of each feed-forward neuron train gate, up and down together.
        importance_power: each neuron's learning rate is as its importance to this power, on average `learning_rate`.
        documents: how many of the corpus, from its start.
        max_length: tokens of a document.
        batch_size, epochs, seed: as in Trainer.
        learning_rate: the peak; by default the method's in `RATES`.
        lora_rank: of LoRA; its alpha is twice as much.
        save_steps: from one checkpoint to the next; 0 for none.
        progress: show a bar, and the loss every ten steps.
    """

    model: str
    corpus: str
    output: str
    mask: str | None = None
    method: str = "neurons"
    control: str | None = None
    whole: bool = False
    importance_power: float = 0.0
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
    progress: bool = True
    revision: str | None = None
    trust_remote_code: bool = False
    device: str | None = None

    @property
    def rate(self) -> float:
        """The peak learning rate: the one given, or the method's."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


def checkpoints(settings: Settings) -> list[Path]:
    """Those that a run left, from which it can go on."""
    return sorted(Path(settings.output, "checkpoints").glob("checkpoint-*"))


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
    model = load_model(
        settings.model,
        revision=settings.revision,
        dtype="float32" if full else settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    model.config.use_cache = False
    if full:
        return model.requires_grad_(True)
    if settings.method == "lora":
        names = {id(module): name for name, module in model.named_modules()}
        targets = {names[id(target.module)] for target in Layout(model).targets.values()}
        rank = settings.lora_rank
        return get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(targets), task_type="CAUSAL_LM")
        )
    config = NeuronSelectConfig(
        mask=settings.mask,
        whole=settings.whole,
        control=settings.control,
        seed=settings.seed,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _rates(settings: Settings, model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Factors of the neurons' learning rates.

    Raises:
        PLNDError: if there is no mask whose importances could make them.
    """
    if settings.mask is None:
        raise PLNDError("importance_power: learning rates by importance need mask=, a neurons artifact")
    neurons = NeuronSet.load(settings.mask)
    return importance_rates(model, neurons.whole() if settings.whole else neurons, settings.importance_power)


def train(
    settings: Settings, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, resume: bool, save: bool = True
) -> dict[str, Any]:
    """Trains `model` in place.

    Args:
        settings: what and how.
        model: of `prepare`.
        tokenizer: the model's.
        resume: go on from the last checkpoint, if there is one; otherwise what an earlier run left of them is deleted.
        save: write the adapter, or for full training the model, to the output folder.

    Returns:
        What Trainer measured: steps, tokens and the mean loss.

    Raises:
        PLNDError: if the corpus has fewer documents than are asked for, or the checkpoints are of another training.
    """
    torch.manual_seed(settings.seed)
    data = examples(settings, tokenizer)
    if settings.save_steps or resume:
        _open_checkpoints(settings, data, resume)
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
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=1,
        logging_strategy="steps" if settings.progress else "no",
        logging_steps=10,
        disable_tqdm=not settings.progress,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=settings.device == "cpu" or not torch.accelerator.is_available(),
        seed=settings.seed,
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)  # type: ignore[arg-type]
    if settings.importance_power:
        scale_rates(trainer.create_optimizer(), _rates(settings, model))
    if not settings.progress:
        trainer.remove_callback(PrinterCallback)
    result = trainer.train(resume_from_checkpoint=resume and bool(checkpoints(settings)))
    model.eval()
    if save:
        trainer.save_model(settings.output)
    tokens = sum(len(example["input_ids"]) for example in data)
    return {"steps": result.global_step, "tokens": tokens * settings.epochs, "loss": result.training_loss}


_ELSEWHERE = ("model", "corpus", "mask", "output", "device", "save_steps", "progress", "text_field")
"""Settings that name places, whose content counts, or change no number."""


def _open_checkpoints(settings: Settings, data: Any, resume: bool) -> None:
    """Writes down what checkpoints will be of, or refuses to go on from those of another training."""
    folder, there = Path(settings.output, "checkpoints"), checkpoints(settings)
    if not resume:
        (folder / INPUTS).unlink(missing_ok=True)
        for checkpoint in there:
            shutil.rmtree(checkpoint)
    trust = settings.trust_remote_code
    inputs = {
        **{name: value for name, value in asdict(settings).items() if name not in _ELSEWHERE},
        "tokens": digest_of(data),
        "model's content": source_digest(settings.model, settings.revision, trust_remote_code=trust),
        "mask": None if settings.mask is None else NeuronSet.load(settings.mask).digest,
    }
    folder.mkdir(parents=True, exist_ok=True)
    check_inputs(folder / INPUTS, inputs, "training", begun=resume and bool(there))
