"""What Figure 4 and Table 6 of the PLND paper train: a language's neurons on a few hundred documents, and what for
comparison (arXiv:2402.18815, section 4).

Each run is `peft_plnd.fine_tuning` on documents that are drawn at random out of the language's corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_plnd.experiments.results import BYTES, NEURONS, TEXT, document_weights, read_sealed
from lm_eval_plnd.experiments.settings import ENHANCING, Settings
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io.inputs import sealed
from plnd.statistics import weighted_mean

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from torch import nn

TUNED = "tuned"
"""Folder of what was trained: documents, adapters, and what Trainer measured."""
ENHANCED = "enhancement.csv"
COLUMNS = (
    "item,setting,state,language,documents,seed,parameters,share,mask_sha256,steps,tokens,loss,"
    "task,task_language,metric,value,stderr,evaluated"
).split(",")


@dataclass(frozen=True)
class Tuning:
    """One trained model, and the items that it is evaluated on.

    Attributes:
        items: names among the settings' `tasks`.
        state: `neurons`, `random`, `lora` or `full`.
        language: whose documents and neurons.
        documents: how many.
        seed: of the documents, the random neurons and Trainer.
    """

    items: tuple[str, ...]
    state: str
    language: str
    documents: int
    seed: int

    @property
    def name(self) -> str:
        """A readable name, unique in an experiment."""
        return f"{self.corpus.removesuffix('.jsonl')}.{self.state}"

    @property
    def corpus(self) -> str:
        """Name of the file of its documents."""
        return f"tuned.{self.language}.{self.documents}.r{self.seed}.jsonl"

    def tasks(self, settings: Settings) -> dict[str, dict[str, str]]:
        """Item to language to task: its own and English, or all."""
        by_item = {}
        for item in self.items:
            languages = settings.languages_of(item)
            if self.language not in languages:
                continue
            if settings.task_languages == "own":
                languages = [x for x in languages if x in (settings.english, self.language)]
            by_item[item] = {language: settings.tasks[item].task_of(language) for language in languages}
        return by_item


def tunings(settings: Settings) -> list[Tuning]:
    """All that an experiment trains, in the order in which it does; what both want, once."""
    wanted: dict[Tuning, list[str]] = {}
    for name in ENHANCING:
        if name in settings.experiments:
            for tuning in _of(settings, name):
                wanted.setdefault(tuning, []).extend([*settings.experiments[name], TEXT])
    found = [replace(tuning, items=tuple(x for x in settings.tasks if x in items)) for tuning, items in wanted.items()]
    return [tuning for tuning in found if tuning.tasks(settings)]


def _of(settings: Settings, name: str) -> Iterator[Tuning]:
    chosen = settings.enhancement
    for seed in settings.seeds:
        for language in settings.enhanced(name):
            for state in chosen.states:
                for documents in sizes(settings, name, state):
                    yield Tuning((), state, language, documents, seed)


def sizes(settings: Settings, name: str, state: str) -> list[int]:
    """Numbers of documents that a state is trained on for Figure 4 or Table 6."""
    chosen = settings.enhancement
    if name == "figure4" and state == "neurons":
        return sorted({*chosen.documents, chosen.compared})
    return [chosen.compared]


def write_documents(settings: Settings, tuning: Tuning, tasks: Mapping[str, Task], path: Path) -> None:
    """Draws the documents of a run at random.

    The draw depends on the corpus, the language and the seed alone, and a larger one holds every smaller one. Documents
    that the experiment evaluates as running text are not drawn.

    Raises:
        PLNDError: if the corpus has too few.
    """
    from plnd.io.corpus import read_documents
    from plnd.io.files import write_bytes
    from plnd.neurons.random_draw import draw

    language, wanted, pool = tuning.language, tuning.documents, settings.enhancement.pool
    source, kept = expand(settings.training_corpus_of(language)), _evaluated(settings, language, tasks)
    documents = [text for text in islice(read_documents(source), pool) if text.strip() not in kept]
    if len(documents) < wanted:
        raise PLNDError(
            f"{source}: {len(documents)} of its first {pool} documents are not evaluated, and {wanted} are to be"
            " trained on; lower enhancement.documents and enhancement.compared, or give a larger corpus"
        )
    drawn = [documents[n] for n in draw(len(documents), wanted, tuning.seed, language)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in drawn]
    write_bytes(("\n".join(lines) + "\n").encode(), path)


def _evaluated(settings: Settings, language: str, tasks: Mapping[str, Task]) -> set[str]:
    """The running text that is evaluated in a language."""
    found = set()
    for item in settings.tasks:
        task = tasks.get(settings.tasks[item].task_of(language))
        if task is not None and task.get_config("output_type") == "loglikelihood_rolling":
            found |= {str(task.doc_to_target(document)).strip() for document in task.eval_docs}
    return found


def train(tuning: Tuning, settings: Settings, output: Path) -> nn.Module:
    """The trained model, in evaluation mode; its adapter and `training.json` are in the folder of the experiment.

    A run that was killed begins again: the longest one is a few hundred steps. Fully trained models are not written.
    """
    import torch

    from peft_plnd import fine_tuning
    from plnd.io.files import write_bytes
    from plnd.models.loading import load_tokenizer

    chosen, model = settings.enhancement, settings.model
    own, folder = tuning.state in ("neurons", "random"), output / TUNED / tuning.name
    source = {"revision": model.get("revision"), "trust_remote_code": model.get("trust_remote_code", False)}
    options = fine_tuning.Settings(
        model=expand(model["pretrained"]),
        corpus=str(output / TUNED / tuning.corpus),
        output=str(folder),
        mask=str(output / NEURONS / f"{tuning.language}.{chosen.neurons}.safetensors") if own else None,
        method="neurons" if own else tuning.state,
        control="random" if tuning.state == "random" else None,
        documents=tuning.documents,
        max_length=chosen.max_length,
        batch_size=chosen.batch_size,
        epochs=chosen.epochs,
        learning_rate=chosen.rates.get(tuning.state),
        lora_rank=chosen.lora_rank,
        seed=tuning.seed,
        dtype=model["dtype"],
        save_steps=0,
        device=model.get("device"),
        **source,
    )
    trained = fine_tuning.prepare(options)
    parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trained.parameters())
    tokenizer = load_tokenizer(options.model, **source)
    measured = fine_tuning.train(options, trained, tokenizer, resume=False, save=tuning.state != "full")
    made_of = getattr(getattr(trained, "peft_config", {}).get("default"), "source", None) or {}
    facts = {
        "parameters": parameters,
        "share": parameters / total,
        "mask_sha256": made_of.get("sha256", ""),
        **measured,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # Trainer makes the folder, though it is told to write none
        (folder / "checkpoints").rmdir()
    write_bytes(sealed(facts).encode(), folder / "training.json")
    trained.config.use_cache = True  # type: ignore[union-attr]
    return trained.to(getattr(torch, model["dtype"])) if tuning.state == "full" else trained


def rows(tuning: Tuning, settings: Settings, output: Path, values: Mapping[str, Any]) -> list[list[Any]]:
    """The rows of `enhancement.csv` for one trained model, in the order of `COLUMNS`.

    Raises:
        PLNDError: if what Trainer measured is not there any more.
    """
    path = output / TUNED / tuning.name / "training.json"
    facts, names = read_sealed(path), ("parameters", "share", "mask_sha256", "steps", "tokens", "loss")
    if missing := [name for name in names if name not in facts]:
        raise PLNDError(
            f"{path}: damaged (without {missing[0]}); delete it and {tuning.name}.json, and it is trained again"
        )
    state = [
        tuning.name,
        tuning.state,
        tuning.language,
        tuning.documents,
        tuning.seed,
        *(facts[name] for name in names),
    ]
    found = []
    for item, tasks in tuning.tasks(settings).items():
        for language, task in tasks.items():
            for metric, numbers in values[task].items():
                if metric != BYTES:
                    value, error = weighted_mean(numbers, document_weights(values[task], metric))
                    shown = "" if error is None else repr(error)
                    found.append([item, *state, task, language, metric, repr(value), shown, len(numbers)])
    return found
