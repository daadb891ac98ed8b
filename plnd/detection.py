"""Detection: one forward pass over a corpus, three numbers per neuron (smallest importance, mean, worst rank)."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from plnd import __version__
from plnd.artifacts import SCORES, VERSION, write_bytes
from plnd.errors import CorpusError, PLNDError
from plnd.families import PROJECTIONS, Layout
from plnd.observe import QK, SITES, Observer
from plnd.scores import Scores

WINDOW = 16
"""Batches whose documents are sorted by length together; a checkpoint is taken between windows."""
CHECKPOINT_SECONDS = 60.0
"""Age at which a checkpoint is replaced."""


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
    """

    language: str | None = None
    qk: QK = "first_order"
    max_documents: int | None = None
    max_length: int = 512
    min_length: int = 32
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.qk not in ("first_order", "exact", "off"):
            raise PLNDError(f"unknown qk {self.qk!r}: expected first_order, exact or off")
        for name in ("max_documents", "max_length", "min_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PLNDError(f"{name}={value}: expected 1 or more")
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
) -> Scores:
    """Importance of every neuron of `model` over `documents` (eq. 1, parallel form, of arXiv:2402.18815).

    Beyond the model's own forward pass this keeps three vectors per projection, the current batch's importances (one
    number per neuron and document) and the blocks stated in `plnd.importance.attention_importance`.

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
    state = _State(layout, config, None if checkpoint is None else Path(checkpoint))
    if resume:
        state.restore()
    corpus = _Corpus(documents, tokenizer or _Tokenizer(layout), config)
    bar = tqdm(total=config.max_documents, unit=" documents", desc=config.language or "detect", disable=not progress)
    was_training = layout.model.training
    layout.model.eval()
    try:
        with state.observer.attached():
            for number, window in enumerate(_batched(corpus, WINDOW * config.batch_size)):
                if number < state.windows:
                    if number == state.windows - 1:
                        state.check(corpus)
                    bar.update(len(window))
                else:
                    for batch in _batched(sorted(window, key=lambda d: -len(d.ids)), config.batch_size):
                        state.add(batch)
                        bar.update(len(batch))
                    state.windows += 1
                    state.checkpoint(corpus)
    finally:
        bar.close()
        layout.model.train(was_training)
    if state.awaited:
        state.check(corpus)
    return state.scores(corpus, source)


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
            from plnd.models import load_tokenizer

            description = self.layout.description()
            self.tokenizer = load_tokenizer(description["name"], description["revision"])
        return self.tokenizer(text, **kwargs)


@dataclass
class _Corpus:
    """Tokenised documents that are long enough, and what was met on the way."""

    documents: Iterable[str | Sequence[int]]
    tokenizer: Any
    config: DetectConfig
    read: int = 0
    long_enough: int = 0
    short: list[int] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[_Document]:
        config = self.config
        for number, document in enumerate(self.documents):
            self.read += 1
            ids = self._ids(document)
            if len(ids) < config.min_length:
                self.short.append(number)
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
    """Accumulators of a run, and their checkpoint file."""

    def __init__(self, layout: Layout, config: DetectConfig, path: Path | None) -> None:
        self.layout, self.config, self.path = layout, config, path
        self.windows = 0
        self.documents = 0
        self.tokens = 0
        self.bad: list[int] = []
        self.accumulators: dict[str, _WorstCase] = {}
        self.current: dict[str, Tensor] = {}
        self.observer = Observer(layout, config.qk, self._receive)
        self.saved = time.monotonic()
        self.awaited: str | None = None  # digest of the corpus up to the checkpoint

    def _receive(self, block: int, site: str, importance: Tensor) -> None:
        self.current[f"{block}.{site}"] = importance

    def add(self, batch: list[_Document]) -> None:
        """One forward pass of the model's body, without its head.

        Padded on the right, with a token of the document itself: no other token's embedding can spoil it.
        """
        length = max(len(d.ids) for d in batch)
        ids = torch.tensor([d.ids + d.ids[-1:] * (length - len(d.ids)) for d in batch])
        mask = torch.tensor([[1] * len(d.ids) + [0] * (length - len(d.ids)) for d in batch])
        device = self.layout.model.device
        self.observer.spans = [(0, len(d.ids)) for d in batch]
        self.layout.body(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        finite = torch.stack([torch.isfinite(x).all(-1).cpu() for x in self.current.values()]).all(0)
        for document, good in zip(batch, finite.tolist(), strict=True):
            if good:
                self.documents += 1
                self.tokens += len(document.ids)
            else:
                self.bad.append(document.number)
        for name, importance in self.current.items():
            if name not in self.accumulators:
                self.accumulators[name] = _WorstCase.empty(importance)
            self.accumulators[name].add(importance[finite.to(importance.device)])
        self.current = {}

    # checkpoint

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        return {
            "plnd": __version__,
            "window": WINDOW,
            "model": self.layout.description(),
            "config": asdict(self.config),
            "dtype": str(self.layout.model.dtype),
        }

    def checkpoint(self, corpus: _Corpus) -> None:
        """Saves the state if the last save is old enough."""
        if self.path is None or time.monotonic() - self.saved < CHECKPOINT_SECONDS:
            return
        header = {
            "settings": self._settings(),
            "windows": self.windows,
            "documents": self.documents,
            "tokens": self.tokens,
            "bad": self.bad,
            "digest": corpus.digest.hexdigest(),
        }
        tensors = {f"{name}.{k}": v for name, a in self.accumulators.items() for k, v in a.tensors().items()}
        write_bytes(serialize(tensors, metadata={"plnd": json.dumps(header)}), self.path)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Takes up the checkpoint, if there is one."""
        if self.path is None or not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as stream:
                header = json.loads(stream.metadata()["plnd"])
                sites = {name.rpartition(".")[0] for name in stream.keys()}  # noqa: SIM118
                for site in sites:
                    parts = (stream.get_tensor(f"{site}.{name}") for name in _WorstCase.NAMES)
                    self.accumulators[site] = _WorstCase(*parts)
            settings, self.awaited = header["settings"], str(header["digest"])
            self.windows, self.documents, self.tokens = (int(header[k]) for k in ("windows", "documents", "tokens"))
            self.bad = list(header["bad"])
        except Exception as error:  # whatever a damaged file may raise
            raise PLNDError(
                f"{self.path}: not a whole checkpoint ({type(error).__name__}: {error}); delete it to start again"
            ) from None
        if settings != json.loads(json.dumps(self._settings())):
            raise PLNDError(
                f"{self.path}: made with another model or settings; repeat them, or start again without --resume"
            )

    def check(self, corpus: _Corpus) -> None:
        """Refuses to continue on another corpus than the one the checkpoint saw."""
        if corpus.digest.hexdigest() != self.awaited:
            raise PLNDError(f"{self.path}: the corpus has changed since; start again without --resume")
        self.awaited = None

    # result

    def scores(self, corpus: _Corpus, source: str | None) -> Scores:
        if not self.documents:
            raise CorpusError(
                f"{source or 'corpus'}: no document to score among {corpus.read} ({len(corpus.short)} shorter than"
                f" {self.config.min_length} tokens, {len(self.bad)} with non-finite importance)"
            )
        parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in _WorstCase.NAMES}
        for site, accumulator in self.accumulators.items():
            block, _, kind = site.partition(".")
            values = accumulator.numpy(self.documents)
            for projection in SITES[kind]:
                if f"{block}.{projection}" in self.layout.targets:
                    for name in parts:
                        parts[name][f"{block}.{projection}"] = values[name]
        scored = {address.split(".")[1] for address in parts["minimum"]}
        skipped = {
            f"shorter than {self.config.min_length} tokens": corpus.short,
            "non-finite importance": sorted(self.bad),
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
                "skipped": {reason: numbers for reason, numbers in skipped.items() if numbers},
            },
            "method": {
                "name": "plnd",
                "projections": [name for name in PROJECTIONS if name in scored],
                "qk": self.config.qk,
                "min_length": self.config.min_length,
                "batch_size": self.config.batch_size,
            },
            "dtype": str(self.layout.model.dtype).removeprefix("torch."),
        }
        return Scores(parts["minimum"], parts["total"], parts["worst_rank"], metadata)


@dataclass
class _WorstCase:
    """Smallest importance, sum and worst rank of one site's neurons over the documents seen so far, each [width]."""

    minimum: Tensor
    total: Tensor
    worst_rank: Tensor

    NAMES = ("minimum", "total", "worst_rank")

    @classmethod
    def empty(cls, like: Tensor) -> _WorstCase:
        width = like.shape[-1]
        return cls(
            like.new_full((width,), torch.inf),
            like.new_zeros(width, dtype=torch.float64),
            like.new_zeros(width, dtype=torch.int32),
        )

    def add(self, importance: Tensor) -> None:
        """Takes in documents, [documents, width]."""
        if not len(importance):
            return
        for name in self.NAMES:  # what was restored from a checkpoint is on the CPU
            setattr(self, name, getattr(self, name).to(importance.device))
        self.minimum = torch.minimum(self.minimum, importance.amin(0))
        self.total += importance.sum(0, dtype=torch.float64)
        self.worst_rank = torch.maximum(self.worst_rank, descending_rank(importance).amax(0))

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).contiguous() for name in self.NAMES}

    def numpy(self, documents: int) -> dict[str, np.ndarray]:
        """Minimum and mean as float32, worst rank as int32."""
        mean = (self.total / documents).float()
        return {"minimum": self.minimum.float().cpu().numpy(), "total": mean.cpu().numpy(),
                "worst_rank": self.worst_rank.cpu().numpy()}  # fmt: skip


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
