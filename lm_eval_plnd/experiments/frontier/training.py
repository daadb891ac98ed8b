"""One loaded model on which every run of the experiment is trained and evaluated, and which none of them changes."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_plnd.experiments.frontier.budgets import Population, choose, fit_ranks
from lm_eval_plnd.experiments.frontier.schedule import Cell, Run
from lm_eval_plnd.experiments.frontier.settings import ROWS, FrontierSettings, Method
from lm_eval_plnd.experiments.frontier.texts import Texts, drawn, read_texts, write_jsonl
from lm_eval_plnd.experiments.sharing import unwritten
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.neurons.random_draw import draw

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from torch import nn

    from plnd.comparison.documents import Document
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.neurons.scores import Scores

NEURONS, DOCUMENTS = "neurons", "documents"
"""Folders of the experiment: scores and neurons, and what is trained on."""
RSLORA_ALPHA = 16
"""Of rank-stabilised LoRA, whose scale is alpha over the root of the rank; of LoRA alpha is twice the rank."""


class Bench:
    """The model, its texts, scores and tasks; one for each process."""

    def __init__(
        self, settings: FrontierSettings, folder: Path, tasks: Mapping[str, Mapping[str, Task]] | None = None
    ) -> None:
        from plnd.models.layout import Layout
        from plnd.models.loading import load_model, load_tokenizer

        self.settings, self.folder, self.tasks = settings, folder, tasks or {}
        given = settings.model
        self.source = {"revision": given.get("revision"), "trust_remote_code": given.get("trust_remote_code", False)}
        self.name = expand(given["pretrained"])
        self.tokenizer = load_tokenizer(self.name, **self.source)
        self.model = load_model(self.name, dtype=given["dtype"], device=given.get("device"), **self.source)
        self.model.config.use_cache = False
        self.model.requires_grad_(False)
        self.layout = Layout(self.model)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.population = cache(lambda whole: Population.of(self.layout, settings.chosen_from, whole))
        self.texts = cache(self._texts)
        self.scores = cache(self._scores)
        self.gradients = cache(self._gradients)

    def _texts(self, language: str) -> Texts:
        return read_texts(self.settings, language, self.tokenizer)

    # neurons

    def _scores(self, language: str, measure: str) -> Scores:
        """A language's scores, detected by the first process that wants them."""
        from plnd.detection.config import DetectConfig
        from plnd.detection.run import detect
        from plnd.neurons.scores import Scores

        how = self.settings.detection
        path = self.folder / NEURONS / scores_name(language, measure)
        for missing in unwritten([path], self.folder):
            config = DetectConfig(
                language=language,
                qk=how.qk,  # type: ignore[arg-type]
                method=measure,  # type: ignore[arg-type]
                max_length=how.max_length,
                min_length=min(self.settings.evaluation.min_length, how.max_length),
                batch_size=how.batch_size,
            )
            texts = drawn(self.texts(language), how.documents, 0, language, "detection")
            source = Path(self.settings.corpus_of(language)).name
            detect(self.model, texts, config, tokenizer=self.tokenizer, source=source).save(missing)
        return Scores.load(path)

    def _gradients(self, language: str) -> Mapping[str, np.ndarray]:
        """Squared gradients of every neuron on the documents of detection, by the first process that wants them."""
        from safetensors.numpy import load_file, save

        from lm_eval_plnd.experiments.frontier.gradients import squared_gradients
        from plnd.io.files import write_bytes

        path = self.folder / NEURONS / gradients_name(language)
        for missing in unwritten([path], self.folder):
            texts = drawn(self.texts(language), self.settings.detection.documents, 0, language, "detection")
            longest = self.settings.training.max_length
            ids = self.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
            write_bytes(save(squared_gradients(self.model, self.layout, ids)), missing)
        return load_file(path)

    @cached_property
    def norms(self) -> Mapping[str, np.ndarray]:
        """The L2 norm of every neuron's row or column, by address."""
        found = {}
        for address in self.population(False).widths:
            target = self.layout.targets[address]
            weight = target.weight().float()
            found[address] = weight.norm(dim=1 if target.projection.axis == "row" else 0).cpu().numpy()
        return found

    def budget(self, run: Run) -> int:
        """Parameters to train."""
        return self.parameters if run.cell.budget is None else int(run.cell.budget * self.parameters)

    def neurons(self, run: Run) -> NeuronSet:
        """Those that a run trains, in the end; a rule's are left in the folder."""
        method, language, budget = self.settings.methods[run.cell.method], run.cell.language, self.budget(run)
        warm_in = method.warm and method.warm.language
        if method.warm and warm_in not in (None, language) and method.kind not in ("magnitude", "random"):
            found = self.first_neurons(run) | self._chosen(run, language, budget - int(method.warm.budget * budget))
        else:
            found = self._chosen(run, language, budget)
        if method.control is None and method.kind != "random":
            for path in unwritten([self._mask(run)], self.folder):
                found.save(path)
        return found

    def first_neurons(self, run: Run) -> NeuronSet:
        """Those that a run with a warm start begins with."""
        warm = self.settings.methods[run.cell.method].warm
        assert warm is not None
        return self._chosen(run, warm.language or run.cell.language, int(warm.budget * self.budget(run)))

    def _chosen(self, run: Run, language: str, budget: int) -> NeuronSet:
        """A language's neurons by the run's method, for a number of parameters."""
        method = self.settings.methods[run.cell.method]
        found = choose(
            self.settings,
            method,
            self.population(method.whole),
            budget,
            language,
            run.seed,
            self.scores,
            lambda: self.norms,
            self.gradients,
        )
        return found.whole() if method.whole else found

    def check(self, runs: Iterable[Run]) -> None:
        """Refuses, before any training, texts that are learnt from and evaluated, and budgets that a rule cannot fill.

        Raises:
            PLNDError: as of `plnd.comparison.documents.check_apart`, or `Population.within`.
        """
        from plnd.comparison.documents import check_apart

        texts = {language: self.texts(language) for language in self.settings.languages}
        learnt = {x: [*found.rest, *(document.text for document in found.choice)] for x, found in texts.items()}
        check_apart({x: found.rest for x, found in texts.items()}, {x: found.choice for x, found in texts.items()})
        check_apart(learnt, {x: found.held_out for x, found in texts.items()})
        for run in {run.cell: run for run in runs}.values():
            self.neurons(run)

    def _mask(self, run: Run) -> Path:
        """Where the neurons of a rule are."""
        return self.folder / NEURONS / f"{run.cell.name}.safetensors"

    # training

    def prepare(self, run: Run) -> nn.Module:
        """The model with what a run trains, and nothing else, requiring gradients."""
        import torch
        from peft import LoraConfig, ShiraConfig, get_peft_model

        from peft_plnd import NeuronSelectConfig

        method = self.settings.methods[run.cell.method]
        kind = method.kind
        torch.manual_seed(run.seed)
        if kind == "full":
            return copy.deepcopy(self.model).float().requires_grad_(True)
        if kind in ROWS:
            mask = self.first_neurons(run) if method.warm else self.neurons(run)
            config: Any = NeuronSelectConfig(mask=mask, task_type="CAUSAL_LM")
            return get_peft_model(self.model, config)
        one, fixed = self._rank_sizes(kind == "dora")
        if kind == "shira":  # which has one rank for all: modules that the budget does not pay for are left out
            rank = -(-self.budget(run) // sum(one.values()))
            chosen = fit_ranks({name: rank * size for name, size in one.items()}, self.budget(run), most=1)
            _check_fit(chosen, run)
            config = ShiraConfig(r=rank, target_modules=list(chosen), random_seed=run.seed)
            return get_peft_model(self.model, config)
        ranks = fit_ranks(one, self.budget(run), fixed)
        _check_fit(ranks, run)
        stable = kind == "rslora"
        config = LoraConfig(
            r=max(ranks.values()),
            target_modules=list(ranks),
            rank_pattern=ranks,
            lora_alpha=RSLORA_ALPHA,
            alpha_pattern={} if stable else {name: 2 * rank for name, rank in ranks.items()},
            use_rslora=stable,
            use_dora=kind == "dora",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(self.model, config)

    def _rank_sizes(self, magnitudes: bool) -> tuple[dict[str, int], dict[str, int]]:
        """Parameters of rank 1 of LoRA by module, and those of DoRA's magnitudes."""
        from peft_plnd.tuner.layer import linear_shape

        names = {id(module): name for name, module in self.model.named_modules()}
        one, fixed = {}, {}
        for target in self.layout.targets.values():
            shape = linear_shape(target.plain) if target.experts is None else None
            if shape is not None:
                one[names[id(target.module)]] = sum(shape)
                fixed[names[id(target.module)]] = shape[0] if magnitudes else 0
        return one, fixed

    def _documents(self, run: Run) -> list[Path]:
        """The files of what a run is trained on, one after the other: one, or two with a warm start."""
        method, language = self.settings.methods[run.cell.method], run.cell.language
        warm, ending = method.warm, f".replay{method.replay:g}" if method.replay else ""
        name = f"{language}.{run.documents}.r{run.seed}{ending}"
        if warm is None:
            paths = [self.folder / DOCUMENTS / f"{name}.jsonl"]
        else:
            name = f"{name}.warm-{warm.language or language}-{warm.documents:g}"
            paths = [self.folder / DOCUMENTS / f"{name}.{part}.jsonl" for part in ("first", "then")]
        for missing in unwritten(paths, self.folder):
            write_jsonl(self._parts(run)[paths.index(missing)], missing)
        return paths

    def _parts(self, run: Run) -> list[list[str]]:
        """The texts of each of these files; a share of the last one's is of the other languages."""
        method, language = self.settings.methods[run.cell.method], run.cell.language
        warm, others = method.warm, self.settings.others(language)
        first = min(max(1, round(warm.documents * run.documents)), run.documents - 1) if warm else 0
        foreign = round(method.replay * (run.documents - first))
        elsewhere = warm.language if warm and warm.language != language else None
        count = run.documents - foreign - (first if elsewhere else 0)
        own = drawn(self.texts(language), count, run.seed, language, "training")
        if elsewhere:
            before = drawn(self.texts(elsewhere), first, run.seed, elsewhere, "training")
        else:
            begun = set(draw(len(own), first, run.seed, language, "warm").tolist())
            before = [text for n, text in enumerate(own) if n in begun]
            own = [text for n, text in enumerate(own) if n not in begun]
        for number, other in enumerate(others):
            count = foreign // len(others) + (number < foreign % len(others))
            own += drawn(self.texts(other), count, run.seed, other, "training")
        return [before, own] if warm else [own]

    def run(self, run: Run) -> dict[str, Any]:
        """Trains and evaluates; what is kept of a run, without its name."""
        began = time.monotonic()
        model = self.prepare(run)
        try:
            full = self.settings.methods[run.cell.method].kind == "full"
            measured = self._train(model, run)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            with suppress(OSError):  # Trainer makes the folder, though it is told to write none
                (self.folder / DOCUMENTS / "checkpoints").rmdir()
            seconds = time.monotonic() - began
            if full:
                model = model.to(self.model.dtype)
            found = {
                "parameters": trained,
                "share": trained / self.parameters,
                "steps": measured["steps"],
                "tokens": measured["tokens"],
                "loss": measured["loss"],
                **self.evaluate(model, run.final, [run.cell.language]),
                "training_seconds": round(seconds, 2),
                "seconds": round(time.monotonic() - began, 2),
            }
        finally:
            unload: Any = getattr(model, "unload", None)  # of an adapter; a model that is trained in full is a copy
            if unload is not None:
                unload()
                self.model.requires_grad_(False)
        return found

    def _train(self, model: nn.Module, run: Run) -> dict[str, Any]:
        """Trains `model` on each part of the run's documents; steps and tokens of all, the last one's mean loss."""
        from peft_plnd import NeuronSelectConfig, fine_tuning, warm_start

        settings, method = self.settings, self.settings.methods[run.cell.method]
        how = settings.training
        found: list[dict[str, Any]] = []
        for path, texts in zip(self._documents(run), self._parts(run), strict=True):
            if found:
                config = NeuronSelectConfig(mask=self.neurons(run), task_type="CAUSAL_LM")
                warm_start(model, config)  # type: ignore[arg-type]
            options = fine_tuning.Settings(
                model=self.name,
                corpus=str(path),
                output=str(self.folder / DOCUMENTS),
                method="full" if method.kind == "full" else "neurons",
                mask=str(self._mask(run)) if method.importance_power else None,
                importance_power=method.importance_power,
                documents=len(texts),
                max_length=how.max_length,
                batch_size=how.batch_size,
                epochs=how.epochs,
                learning_rate=run.rate,
                seed=run.seed,
                dtype=settings.model["dtype"],
                save_steps=0,
                progress=False,
                device=settings.model.get("device"),
            )
            found.append(fine_tuning.train(options, model, self.tokenizer, resume=False, save=False))
        total = {name: sum(part[name] for part in found) for name in ("steps", "tokens")}
        return {**total, "loss": found[-1]["loss"]}

    # evaluation

    def evaluate(self, model: nn.Module, final: bool, chosen: Sequence[str]) -> dict[str, Any]:
        """Nats of every document: of a final run those held out in all languages, and tasks; else those for choosing.

        Args:
            model: the model.
            final: whether it is reported.
            chosen: languages of the documents for choosing.
        """
        from plnd.comparison.evaluation import document_nats

        def nats(documents: Sequence[Document]) -> list[float]:
            return document_nats(model, documents, self.settings.evaluation.batch_size).tolist()

        if not final:
            return {"nats": {language: nats(self.texts(language).choice) for language in chosen}}
        found: dict[str, Any] = {"nats": {x: nats(self.texts(x).held_out) for x in self.settings.languages}}
        if self.tasks:
            found["tasks"] = self._tasks(model)
        return found

    def _tasks(self, model: nn.Module) -> dict[str, dict[str, list[float]]]:
        """Item to language to one value per document of the item's metric."""
        from lm_eval_plnd.experiments.evaluation import evaluate, load_lm

        given = {"batch_size": self.settings.evaluation.batch_size, "tokenizer": self.tokenizer}
        lm = load_lm({**given, "pretrained": model})
        found: dict[str, dict[str, list[float]]] = {}
        for name, by_language in self.tasks.items():
            item = self.settings.tasks[name]
            named = {item.task_of(language): task for language, task in by_language.items()}
            model.config.use_cache = True  # type: ignore[union-attr]
            values = evaluate(lm, named, limit=item.limit, apply_chat_template=item.apply_chat_template)
            model.config.use_cache = False  # type: ignore[union-attr]
            found[name] = {}
            for language in by_language:
                metrics = values[item.task_of(language)]
                metric = item.metric or next(iter(metrics))
                if metric not in metrics:
                    raise PLNDError(f"tasks.{name}.metric: no {metric}, expected one of {', '.join(metrics)}")
                found[name][language] = metrics[metric]
        return found

    def pace(self) -> dict[str, float]:
        """Seconds of one document, `training` (`random` neurons) and `evaluation`; and of the rest of a run, `start`.

        From a run of one batch and one of five.
        """
        settings = self.settings
        language, batch = settings.trained[0], settings.training.batch_size
        smallest = max(min(settings.budgets), 2 * max(self.population(False).costs.values()) / self.parameters)
        method = {"pace": Method(kind="random")}
        self.settings = settings.model_copy(update={"methods": method, "tasks": {}})
        cell = Cell(language, "pace", smallest)
        short, long = (self.run(Run(cell, 1e-4, batches * batch, 0, False)) for batches in (1, 5))
        self.settings = settings
        training = max(0.0, long["training_seconds"] - short["training_seconds"]) / (4 * batch)
        return {
            "training": training,
            "evaluation": (long["seconds"] - long["training_seconds"]) / settings.evaluation.choice,
            "start": max(0.0, long["training_seconds"] - 5 * batch * training),
        }


def scores_name(language: str, measure: str) -> str:
    """Name of the file of a language's scores."""
    return f"{language}.{measure}.scores.safetensors"


def gradients_name(language: str) -> str:
    """Name of the file of a language's squared gradients."""
    return f"{language}.gradients.safetensors"


def load_tasks(settings: FrontierSettings) -> dict[str, dict[str, Task]]:
    """Item to language to lm-eval's task, its rows read.

    Raises:
        PLNDError: if one cannot be loaded.
    """
    if not settings.tasks:
        return {}
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.experiments.evaluation import ask, read_tasks
    from lm_eval_plnd.task_folder import tasks_folder

    paths = [str(tasks_folder()), *([settings.include_path] if settings.include_path else [])]
    found: dict[str, dict[str, Task]] = {}
    for name, item in settings.tasks.items():
        manager = TaskManager(include_path=paths, metadata=expand({**settings.metadata, **item.metadata}))
        for language in item.languages or settings.languages:
            (task,) = read_tasks(manager, item.task_of(language), f"tasks.{name}").values()
            ask(task, item.num_fewshot, item.gen_kwargs, f"tasks.{name}.gen_kwargs: {item.task_of(language)}")
            found.setdefault(name, {})[language] = task
    return found


def _check_fit(ranks: Mapping[str, int], run: Run) -> None:
    """Refuses a budget below rank 1 in every module.

    Raises:
        PLNDError: naming it.
    """
    if not ranks:
        raise PLNDError(
            f"budgets: {run.cell.budget} is below rank 1 in any module for {run.cell.method}; leave one out"
        )
