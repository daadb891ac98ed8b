"""Detection: one forward pass over a corpus, three numbers per neuron (smallest importance, mean, worst rank)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from plnd.addresses import PROJECTIONS
from plnd.detection.activations import ActivationProbability, MeanActivation
from plnd.detection.observer import QK, SITES, BlockWatch, Observer
from plnd.detection.official import OfficialWatch, check_official, mask_of_all, sees_all
from plnd.detection.processes import Processes
from plnd.errors import CorpusError, PLNDError
from plnd.io.artifact import SCORES, VERSION
from plnd.io.files import write_bytes
from plnd.models.layout import Layout
from plnd.models.quantised import quantisation
from plnd.neurons.scores import Scores
from plnd.version import __version__

WINDOW = 16
"""Batches whose documents are sorted by length together; a checkpoint is taken between windows."""
NAMED = 100
"""Skipped documents of one kind that are named, the first ones; all are counted."""
FINGERPRINT_STRIDE = 61
"""Which values of a matrix go into the fingerprint: a prime, so that every row and column of a large one has some."""
CHECKPOINT_SECONDS = 60.0
"""Age at which a checkpoint is replaced."""

Method = Literal["plnd", "activation", "lape"]
Scoring = Literal["paper", "official"]
_WATCHES: dict[tuple[Method, Scoring], type[BlockWatch]] = {
    ("plnd", "paper"): BlockWatch,
    ("plnd", "official"): OfficialWatch,
    ("activation", "paper"): MeanActivation,
    ("lape", "paper"): ActivationProbability,
}


@dataclass(frozen=True)
class DetectConfig:
    """How to detect.

    Attributes:
        language: what the corpus is written in; recorded, never guessed.
        qk: rows of `q_proj` and `k_proj`: `first_order`, `exact`, or `off` (not scored).
        max_documents: stop after this many documents that are long enough; None: all.
        max_length: tokens kept of each document.
        min_length: documents of fewer tokens are skipped (and counted): importances are not divided by length, and a
            rule over *every* document would follow the shortest.
        batch_size: documents in one forward pass; it does not change the result beyond float rounding.
        method: what is measured. `plnd`: the importance of every neuron. For comparison, of feed-forward neurons only,
            `activation`, the mean of |act| over tokens, and `lape`, the share of tokens with act > 0, from which
            `plnd.lape` selects (see `plnd.detection.activations`).
        scoring: of `plnd`: `paper`, the printed formulas, or `official`, what the published code computes instead (see
            `plnd.detection.official`), where Q and K have one form, so that `qk` says no more than whether they are
            scored.
        epsilon: the rule is known ahead: rows of `q_proj` and `k_proj` whose importance was below this in one document
            are not measured in later ones. Their scores become 0, and those that stay have no ranks (see `Scores`).
    """

    language: str | None = None
    qk: QK = "first_order"
    max_documents: int | None = None
    max_length: int = 512
    min_length: int = 32
    batch_size: int = 8
    method: Method = "plnd"
    scoring: Scoring = "paper"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("plnd", "activation", "lape"):
            raise PLNDError(f"unknown method {self.method!r}: expected plnd, activation or lape")
        if self.scoring not in ("paper", "official"):
            raise PLNDError(f"unknown scoring {self.scoring!r}: expected paper or official")
        if (self.method, self.scoring) not in _WATCHES:
            raise PLNDError(f"scoring={self.scoring} is a way to measure with method=plnd, not with {self.method}")
        if self.qk not in ("first_order", "exact", "off"):
            raise PLNDError(f"unknown qk {self.qk!r}: expected first_order, exact or off")
        for name in ("max_documents", "max_length", "min_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PLNDError(f"{name}={value}: expected 1 or more")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise PLNDError(f"epsilon={self.epsilon}: expected a number above 0")
        if self.min_length > self.max_length:
            raise PLNDError(
                f"min_length={self.min_length} is above max_length={self.max_length}: no document could be scored"
            )


@torch.no_grad()
def detect(
    model: nn.Module,
    documents: Iterable[str | Sequence[int]],
    config: DetectConfig | None = None,
    *,
    tokenizer: Any = None,
    source: str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    processes: Processes | None = None,
) -> Scores:
    """Importance of every neuron of `model` over `documents` (eq. 1, parallel form, of arXiv:2402.18815).

    `config.method` and `config.scoring` measure something else, for comparison.

    Beyond the model's own forward pass this keeps three vectors per projection, the current batch's importances (one
    number per neuron and document) and the blocks stated in `plnd.importance.attention.attention_importance`.

    Args:
        model: a transformers model of a known family.
        documents: texts, or token ids as the model takes them; read once, in order, streamed.
        config: how to detect.
        tokenizer: for texts; by default the one saved with the model.
        source: where the documents come from, for the metadata.
        checkpoint: file that holds the state of the run (at most `CHECKPOINT_SECONDS` old); delete it when the scores
            are saved.
        resume: continue from `checkpoint` if it exists. The result is bit for bit that of an uninterrupted run.
        progress: show a progress bar.
        processes: those that share the work, `Processes.launched()`; by default this one does it all. Each reads all
            documents and holds the whole model, and each gets the result, which is bit for bit that of one process
            where all compute with the same kernels (on CPUs: the same type of machine and number of threads).

    Raises:
        FamilyError: if the model's family is unknown.
        CorpusError: if no document can be scored.
        PLNDError: if `checkpoint` was made with another model, corpus or settings.
    """
    if isinstance(documents, str):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    config = config or DetectConfig()
    layout = Layout(model)
    limit = getattr(layout.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and config.max_length > limit:
        raise PLNDError(f"max_length={config.max_length}: the model has {limit} positions; use at most that")
    if config.scoring == "official":
        check_official(layout, config.max_length)
    processes = processes or Processes()
    with processes.together(), _evaluating(layout.model):
        state = _State(layout, config, processes, None if checkpoint is None else Path(checkpoint))
        if resume:
            state.restore()
        corpus = _Corpus(documents, tokenizer or _Tokenizer(layout), config)
        title, hidden = config.language or "detect", not (progress and processes.first)
        bar = tqdm(total=config.max_documents, unit=" documents", desc=title, disable=hidden)
        with bar, state.observer.attached():
            for number, window in enumerate(_batched(corpus, WINDOW * config.batch_size)):
                if number < state.windows:
                    if number == state.windows - 1:
                        state.check(corpus)
                    bar.update(len(window))
                    continue
                batches = _batched(sorted(window, key=lambda d: -len(d.ids)), config.batch_size)
                for batch_of_each in _batched(batches, processes.count):
                    state.add(batch_of_each, corpus)
                    bar.update(sum(map(len, batch_of_each)))
                state.close_window()
                state.checkpoint(corpus)
        if state.awaited:
            state.check(corpus)
        state.agree(corpus)
        return state.scores(corpus, source)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Document:
    number: int  # position in the corpus, from 0
    ids: list[int]


class _Tokenizer:
    """The tokenizer saved with the model, loaded when the first text arrives."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tokenizer: Any = None

    def __call__(self, text: str, **kwargs: Any) -> Any:
        if self.tokenizer is None:
            from plnd.models.loading import load_tokenizer

            description = self.layout.description()
            self.tokenizer = load_tokenizer(description["name"], description["revision"])
        return self.tokenizer(text, **kwargs)


@dataclass
class _Skipped:
    """Documents left out for one reason: how many, and the first of them by their position in the corpus."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)

    def add(self, numbers: Iterable[int]) -> None:
        """Takes in more, none of them before those that are there."""
        numbers = list(numbers)
        self.count += len(numbers)
        self.numbers += numbers[: NAMED - len(self.numbers)]


@dataclass
class _Corpus:
    """Tokenised documents that are long enough, and what was met on the way."""

    documents: Iterable[str | Sequence[int]]
    tokenizer: Any
    config: DetectConfig
    read: int = 0
    long_enough: int = 0
    short: _Skipped = field(default_factory=_Skipped)
    digest: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[_Document]:
        config = self.config
        for number, document in enumerate(self.documents):
            self.read += 1
            ids = self._ids(document)
            if len(ids) < config.min_length:
                self.short.add([number])
                continue
            self.long_enough += 1
            self.digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
            yield _Document(number, ids)
            if self.long_enough == config.max_documents:
                return

    def _ids(self, document: str | Sequence[int]) -> list[int]:
        if isinstance(document, str):
            return self.tokenizer(document, truncation=True, max_length=self.config.max_length)["input_ids"]
        return [int(token) for token in document][: self.config.max_length]


class _State:
    """Accumulators of a run, the same in each of its processes, and their checkpoint file.

    `values` holds, for the neurons of all sites one after the other, the smallest importance, the sum and the worst
    rank over the documents seen so far: [3, neurons] float64.
    """

    def __init__(self, layout: Layout, config: DetectConfig, processes: Processes, path: Path | None) -> None:
        self.layout, self.config, self.processes, self.path = layout, config, processes, path
        self.windows = 0
        self.documents = 0
        self.tokens = 0
        self.bad = _Skipped()
        self.window_bad: list[int] = []
        self.input_device = layout.input_device
        self.device = processes.device or self.input_device
        self.widths: dict[str, int] = {}  # of each site
        self.values = torch.empty(3, 0)
        self.current: dict[str, Tensor] = {}
        qk: QK = config.qk if config.method == "plnd" else "off"
        if config.scoring == "official" and qk != "off":
            qk = "exact"
        self.observer = Observer(layout, qk, self._receive, watch=_WATCHES[config.method, config.scoring])
        self.by_tokens = config.method != "plnd"
        self.all_seen = config.scoring == "official" and sees_all(layout)
        self.saved = time.monotonic()
        self.awaited: str | None = None  # digest of the corpus up to the checkpoint
        if path is not None:
            self.settings  # noqa: B018  before a forward pass may pack weights anew

    def _receive(self, block: Any, site: str, importance: Tensor) -> None:
        self.current[f"{block}.{site}"] = importance

    def add(self, batches: list[list[_Document]], corpus: _Corpus) -> None:
        """Takes in one batch of each process, in the order of ranks (the last ones may have none)."""
        rank = self.processes.rank
        mine, finite = None, None
        if rank < len(batches):
            finite = self._measure(batches[rank])
            weights = torch.tensor([len(d.ids) if self.by_tokens else 1 for d in batches[rank]])[finite]
            reduced = (_reduce(x[finite.to(x.device)], weights) for x in self.current.values())
            mine = torch.cat([x.to(self.device) for x in reduced], dim=1)
        widths = {name: importance.shape[-1] for name, importance in self.current.items()}
        self.current = {}
        answers = self.agree(corpus, None if finite is None else (finite.tolist(), widths))
        if not self.widths:
            self.widths = answers[0][1]
            self.values = _reduce(torch.empty(0, sum(self.widths.values()), device=self.device), torch.empty(0))
        for source, batch in enumerate(batches):
            goods, found = answers[source]
            assert found == self.widths, "every pass measures the same sites"
            for document, good in zip(batch, goods, strict=True):
                if good:
                    self.documents += 1
                    self.tokens += len(document.ids)
                else:
                    self.window_bad.append(document.number)
            theirs = mine if source == rank else torch.empty_like(self.values)
            self._combine(self.processes.broadcast(theirs, source))  # type: ignore[arg-type]

    def _measure(self, batch: list[_Document]) -> Tensor:
        """One forward pass of the model's body, without its head; which documents gave finite numbers only.

        Padded on the right, with a token of the document itself: no other token's embedding can spoil it.
        """
        length = max(len(d.ids) for d in batch)
        ids = torch.tensor([d.ids + d.ids[-1:] * (length - len(d.ids)) for d in batch])
        mask = torch.tensor([[1] * len(d.ids) + [0] * (length - len(d.ids)) for d in batch])
        self.observer.spans = [(0, len(d.ids)) for d in batch]
        mask = mask_of_all(mask) if self.all_seen else mask
        inputs = {"input_ids": ids.to(self.input_device), "attention_mask": mask.to(self.input_device)}
        self.layout.forward(**inputs)
        return torch.stack([torch.isfinite(x).all(-1).cpu() for x in self.current.values()]).all(0)

    def _combine(self, other: Tensor) -> None:
        """Takes in the values of one batch. Sums are added batch by batch, whichever process had the batch."""
        minimum, total, worst_rank = self.values
        torch.minimum(minimum, other[0], out=minimum)
        total += other[1]
        torch.maximum(worst_rank, other[2], out=worst_rank)

    def agree(self, corpus: _Corpus, value: Any = None) -> list[Any]:
        """What every process gave.

        Raises:
            PLNDError: if they read different documents.
        """
        digest = corpus.digest.hexdigest()
        answers = self.processes.exchange((digest, value))
        if any(other != digest for other, _ in answers):
            raise PLNDError("the processes read different documents: give each the same corpus")
        return [given for _, given in answers]

    def close_window(self) -> None:
        """What holds from one window to the next, so that it does not depend on how many processes there are."""
        self.windows += 1
        self.bad.add(sorted(self.window_bad))
        self.window_bad = []
        self._set_alive()

    def _set_alive(self) -> None:
        """Tells the observer which rows of queries and keys the rule may still keep."""
        if self.config.epsilon is None or self.observer.qk == "off":
            return
        alive = {name: _at_least(self.config.epsilon, values[0]) for name, values in self._sites()}
        self.observer.alive = {
            name.removesuffix(".query"): (rows, alive[name.removesuffix("query") + "key"])
            for name, rows in alive.items()
            if name.endswith(".query")
        }

    def _sites(self) -> Iterator[tuple[str, Tensor]]:
        """Each site's values, [3, width]."""
        return zip(self.widths, self.values.split(list(self.widths.values()), dim=1), strict=True)

    # checkpoint

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        settings = {
            "plnd": __version__,
            "window": WINDOW,
            "model": self.layout.description(),
            "config": asdict(self.config),
            "dtype": str(self.layout.model.dtype),
            "weights": fingerprint(self.layout.model),
        }
        return json.loads(json.dumps(settings))

    def checkpoint(self, corpus: _Corpus) -> None:
        """Saves the state if the last save is old enough."""
        if self.path is None or not self.processes.first or time.monotonic() - self.saved < CHECKPOINT_SECONDS:
            return
        header = {
            "settings": self.settings,
            "windows": self.windows,
            "documents": self.documents,
            "tokens": self.tokens,
            "bad": asdict(self.bad),
            "widths": self.widths,
            "digest": corpus.digest.hexdigest(),
        }
        write_bytes(serialize({"values": self.values.cpu()}, metadata={"plnd": json.dumps(header)}), self.path)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Takes up the checkpoint that the first process finds, if there is one."""
        found = self.processes.exchange(self._read() if self.processes.first else None)[0]
        if found is None:
            return
        if found.pop("settings") != self.settings:
            raise PLNDError(
                f"{self.path}: made with another model or settings; repeat them, or start again without --resume"
            )
        for name, value in found.items():
            setattr(self, name, value)
        self.values = self.values.to(self.device)
        self._set_alive()

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint's settings and the attributes it sets; None if there is no checkpoint."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as stream:
                header = json.loads(stream.metadata()["plnd"])
                values = stream.get_tensor("values")
            widths = {str(name): int(width) for name, width in header["widths"].items()}
            if values.shape != (3, sum(widths.values())) or values.dtype != torch.float64:
                raise ValueError(f"{values.dtype} of shape {list(values.shape)}")
            return {
                "settings": header["settings"],
                **{name: int(header[name]) for name in ("windows", "documents", "tokens")},
                "bad": _Skipped(int(header["bad"]["count"]), list(header["bad"]["numbers"])),
                "widths": widths,
                "awaited": str(header["digest"]),
                "values": values,
            }
        except Exception as error:  # whatever a damaged file may raise
            raise PLNDError(
                f"{self.path}: not a whole checkpoint ({type(error).__name__}: {error}); delete it to start again"
            ) from None

    def check(self, corpus: _Corpus) -> None:
        """Refuses to continue on another corpus than the one the checkpoint saw."""
        if corpus.digest.hexdigest() != self.awaited:
            raise PLNDError(f"{self.path}: the corpus has changed since; start again without --resume")
        self.awaited = None

    # result

    def scores(self, corpus: _Corpus, source: str | None) -> Scores:
        """The artifact's three numbers of every neuron."""
        if not self.documents:
            raise CorpusError(
                f"{source or 'corpus'}: no document to score among {corpus.read} ({corpus.short.count} shorter than"
                f" {self.config.min_length} tokens, {self.bad.count} with non-finite importance)"
            )
        parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {}, {})
        for site, values in self._sites():
            block, _, kind = site.rpartition(".")
            minimum, total, worst_rank = values.cpu()
            if self.config.epsilon is not None and kind in ("query", "key"):
                kept = _at_least(self.config.epsilon, minimum)
                minimum, total = minimum.where(kept, 0), total.where(kept, 0)
                worst_rank = torch.full_like(worst_rank, len(worst_rank) - 1)
            mean = total / (self.tokens if self.by_tokens else self.documents)
            numbers = (minimum.float(), mean.float(), worst_rank.int())
            for projection in SITES[kind]:
                address = f"{block}.{projection}"
                if address in self.layout.targets:
                    for part, vector in zip(parts, numbers, strict=True):
                        part[address] = vector.numpy()
        scored = {address.rpartition(".")[2] for address in parts[0]}
        skipped = {
            f"shorter than {self.config.min_length} tokens": corpus.short,
            "non-finite importance": self.bad,
        }
        metadata = {
            "format": SCORES,
            "version": VERSION,
            "plnd": __version__,
            "model": self.layout.description(),
            "language": self.config.language,
            "corpus": {
                "source": source,
                "sha256": corpus.digest.hexdigest(),
                "documents": self.documents,
                "tokens": self.tokens,
                "max_length": self.config.max_length,
                "skipped": {reason: left_out.numbers for reason, left_out in skipped.items() if left_out.count},
                "skipped_counts": {reason: left_out.count for reason, left_out in skipped.items() if left_out.count},
            },
            "method": {
                "name": self.config.method,
                "scoring": self.config.scoring,
                "projections": [name for name in PROJECTIONS if name in scored],
                "qk": self.observer.qk,
                "epsilon": None if self.config.epsilon is None else float(self.config.epsilon),
                "min_length": self.config.min_length,
                "batch_size": self.config.batch_size,
            },
            "dtype": str(self.layout.model.dtype).removeprefix("torch."),
            "quantisation": quantisation(self.layout.model),
        }
        return Scores(*parts, metadata)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters: name, shape, dtype, a vector's values, of a matrix every `FINGERPRINT_STRIDE`th."""
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    for prefix, module in model.named_modules():
        with align_module_device(module):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}\n".encode())
                stride = FINGERPRINT_STRIDE if parameter.dim() > 1 else 1
                sample = parameter.data.flatten()[::stride].clone(memory_format=torch.contiguous_format)
                digest.update(sample.cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _at_least(epsilon: float, minimum: Tensor) -> Tensor:
    """Eq. 2, on the float32 values that the artifact holds."""
    return minimum.float().double() >= epsilon


def _reduce(importance: Tensor, weights: Tensor) -> Tensor:
    """Smallest importance, weighted sum and worst rank over documents: [documents, width] to [3, width] float64."""
    result = importance.new_zeros(3, importance.shape[-1], dtype=torch.float64)
    result[0] = torch.inf
    if len(importance):
        result[0] = importance.amin(0)
        result[1] = (importance.double() * weights.to(importance.device, torch.float64)[:, None]).sum(0)
        result[2] = descending_rank(importance).amax(0)
    return result


def descending_rank(importance: Tensor) -> Tensor:
    """Rank of every neuron in every document, 0 the most important, [documents, width] int32.

    Equal values share the largest of their ranks, so at most k neurons have a rank below k, whatever their order.
    """
    ascending = importance.sort(-1).values
    below = torch.searchsorted(ascending, importance.contiguous(), right=False)
    return (importance.shape[-1] - 1 - below).to(torch.int32)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
