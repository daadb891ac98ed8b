"""Detection: one forward pass over a corpus, five numbers per neuron (minimum, mean, worst rank, two of logs)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from plnd.addresses import PROJECTIONS
from plnd.deactivation import active
from plnd.detection.checkpoint import Checkpoint, run_settings
from plnd.detection.config import DetectConfig
from plnd.detection.documents import Document, SavedTokenizer, Skipped, TokenizedCorpus, batched
from plnd.detection.measures.choice import measure_of
from plnd.detection.measures.official import check_official, mask_of_all, sees_all
from plnd.detection.observer import SITES, Observer
from plnd.detection.processes import Processes
from plnd.detection.totals import LOG_FLOOR, Totals, at_least, mean_and_deviation, summarized
from plnd.errors import CorpusError, PLNDError
from plnd.io.metadata import SCORES, ScoresMetadata
from plnd.models.batches import padded
from plnd.models.blockwise import in_step, weights_of
from plnd.models.layout import Layout
from plnd.models.quantised import quantisation
from plnd.neurons.scores import Scores
from plnd.version import __version__

WINDOW = 16
"""Batches whose documents are sorted by length together; a checkpoint is taken between windows."""
CHECKPOINT_SECONDS = 60.0
"""Age at which a checkpoint is replaced."""


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

    Beyond the model's own forward pass this keeps five vectors per projection, the current batch's importances (one
    number per neuron and document) and the blocks stated in `plnd.importance.attention.attention_importance`.

    Args:
        model: a transformers model of a known family, whole or of `plnd.blockwise_model`, which is read from its files
            once for every `WINDOW` batches.
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
    layout = Layout.of_all(model)
    limit = getattr(layout.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and config.max_length > limit:
        raise PLNDError(f"max_length={config.max_length}: the model has {limit} positions; use at most that")
    if config.scoring == "official":
        check_official(layout, config.max_length)
    if config.method == "relevance" and weights_of(layout.model) is not None:
        raise PLNDError("method=relevance needs a backward pass, which blockwise does not have: load the model whole")
    run = _Run(layout, config, processes or Processes(), None if checkpoint is None else Path(checkpoint))
    corpus = TokenizedCorpus(documents, tokenizer or SavedTokenizer(layout), config, layout)
    with run.processes.together(), _evaluating(layout.model):
        if resume:
            run.resume()
        title, hidden = config.language or "detect", not (progress and run.processes.first)
        with tqdm(total=config.max_documents, unit=" documents", desc=title, disable=hidden) as bar:
            run.read(corpus, bar.update)
        return run.scores(corpus, source)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Run:
    """One detection, the same in each of its processes: from batches of documents to totals, and to a checkpoint."""

    def __init__(self, layout: Layout, config: DetectConfig, processes: Processes, path: Path | None) -> None:
        self.layout, self.config, self.processes, self.path = layout, config, processes, path
        self.input_device = layout.input_device
        self.device = processes.device or self.input_device
        self.windows = self.documents = self.tokens = 0
        self.non_finite = Skipped()
        self.totals: Totals | None = None  # from the first batch on
        self.measured: dict[str, Tensor] = {}  # site to [documents, width], of the batch at hand
        self.observer = Observer(layout, measure_of(config), self._receive)
        self.all_seen = config.scoring == "official" and sees_all(layout)
        self.deactivated = [
            {"sha256": each.neurons.digest, "language": each.neurons.metadata.language, "neurons": len(each.neurons)}
            for each in active(layout.model)
        ]
        self.settings = None if path is None else run_settings(layout, config, WINDOW, self.deactivated)
        self.saved = time.monotonic()
        self.resumed: Checkpoint | None = None  # until the corpus has been read up to there

    def read(self, corpus: TokenizedCorpus, advance: Callable[[int], Any]) -> None:
        """Takes in the whole corpus, window by window."""
        with self.observer.attached():
            for number, window in enumerate(batched(corpus, WINDOW * self.config.batch_size)):
                if number < self.windows:
                    if number == self.windows - 1:
                        self._check_resumed(corpus)
                    advance(len(window))
                    continue
                self._read_window(window, corpus, advance)
                self._save(corpus)
        if self.resumed is not None:
            self._check_resumed(corpus)
        self._agree(corpus)

    def _read_window(self, window: Sequence[Document], corpus: TokenizedCorpus, advance: Callable[[int], Any]) -> None:
        """What holds from one window to the next does not depend on how many processes there are."""
        non_finite: list[int] = []
        batches = list(batched(sorted(window, key=lambda d: -len(d.ids)), self.config.batch_size))
        measured = self._measure(batches[self.processes.rank :: self.processes.count])
        for batch_of_each in batched(batches, self.processes.count):
            non_finite += self._add(batch_of_each, measured, corpus)
            advance(sum(map(len, batch_of_each)))
        self.windows += 1
        self.non_finite.add(sorted(non_finite))
        self._tell_alive()

    def _receive(self, block: Any, site: str, importance: Tensor) -> None:
        self.measured[f"{block}.{site}"] = importance

    def _add(
        self, batches: list[list[Document]], measured: Iterator[dict[str, Tensor]], corpus: TokenizedCorpus
    ) -> list[int]:
        """Takes in one batch of each process, in the order of ranks (the last ones may have none).

        Returns:
            The numbers of the documents with non-finite importance, which are left out.
        """
        rank = self.processes.rank
        mine, finite, widths = None, None, {}
        if rank < len(batches):
            importance = next(measured)
            finite = torch.stack([torch.isfinite(x).all(-1).cpu() for x in importance.values()]).all(0)
            weights = torch.tensor([len(d.ids) if self.config.per_token else 1 for d in batches[rank]])[finite]
            parts = (summarized(x[finite.to(x.device)], weights) for x in importance.values())
            mine = torch.cat([x.to(self.device) for x in parts], dim=1)
            widths = {name: x.shape[-1] for name, x in importance.items()}
        answers = self._agree(corpus, None if finite is None else (finite.tolist(), widths))
        if self.totals is None:
            self.totals = Totals.empty(answers[0][1], self.device)
        non_finite = []
        for source, batch in enumerate(batches):
            goods, found = answers[source]
            assert found == self.totals.widths, "every pass measures the same sites"
            for document, good in zip(batch, goods, strict=True):
                if good:
                    self.documents += 1
                    self.tokens += len(document.ids)
                else:
                    non_finite.append(document.number)
            theirs = mine if source == rank else torch.empty_like(self.totals.values)
            self.totals.add(self.processes.broadcast(theirs, source))  # type: ignore[arg-type]
        return non_finite

    def _measure(self, batches: Sequence[list[Document]]) -> Iterator[dict[str, Tensor]]:
        """One pass over each batch: site to importance, [documents, width], in the order of the batches."""
        measured: list[dict[str, Tensor]] = [{} for _ in batches]

        def turn(number: int) -> None:
            self.measured = measured[number]
            self.observer.spans = [(0, len(d.ids)) for d in batches[number]]

        for number, _ in in_step(self.layout.model, [partial(self._pass, batch) for batch in batches], turn):
            yield measured[number]
            measured[number] = {}

    def _pass(self, batch: list[Document]) -> None:
        ids, mask = padded([document.ids for document in batch])
        mask = mask_of_all(mask) if self.all_seen else mask
        self.observer.run(ids.to(self.input_device), mask.to(self.input_device))

    def _agree(self, corpus: TokenizedCorpus, value: Any = None) -> list[Any]:
        """What every process gave.

        Raises:
            PLNDError: if they read different documents.
        """
        digest = corpus.digest.hexdigest()
        answers = self.processes.exchange((digest, value))
        if any(other != digest for other, _ in answers):
            raise PLNDError("the processes read different documents: give each the same corpus")
        return [given for _, given in answers]

    def _tell_alive(self) -> None:
        """Tells the observer which rows of queries and keys the rule may still keep."""
        if self.config.epsilon is not None and self.config.measured_qk != "off" and self.totals is not None:
            self.observer.alive = self.totals.alive(self.config.epsilon)

    # checkpoint

    def resume(self) -> None:
        """Takes up the checkpoint that the first process finds, if there is one."""
        exists = self.path is not None and self.path.exists()
        mine = Checkpoint.load(self.path) if self.processes.first and exists and self.path is not None else None
        found: Checkpoint | None = self.processes.exchange(mine)[0]
        if found is None:
            return
        if found.settings != self.settings:
            raise PLNDError(
                f"{self.path}: made with another model or settings; repeat them, or start again without --resume"
            )
        self.windows, self.documents, self.tokens = found.windows, found.documents, found.tokens
        self.non_finite = found.skipped
        self.totals = Totals(found.totals.widths, found.totals.values.to(self.device))
        self.resumed = found
        self._tell_alive()

    def _check_resumed(self, corpus: TokenizedCorpus) -> None:
        """Refuses to continue on another corpus than the one the checkpoint saw."""
        if self.resumed is None or corpus.digest.hexdigest() != self.resumed.digest:
            raise PLNDError(f"{self.path}: the corpus has changed since; start again without --resume")
        self.resumed = None

    def _save(self, corpus: TokenizedCorpus) -> None:
        """Saves a checkpoint if the last one is old enough."""
        if self.path is None or not self.processes.first or time.monotonic() - self.saved < CHECKPOINT_SECONDS:
            return
        assert self.settings is not None and self.totals is not None
        counts = (self.windows, self.documents, self.tokens, self.non_finite)
        Checkpoint(self.settings, *counts, self.totals, corpus.digest.hexdigest()).save(self.path)
        self.saved = time.monotonic()

    # result

    def scores(self, corpus: TokenizedCorpus, source: str | None) -> Scores:
        """The artifact's five numbers of every neuron.

        Raises:
            CorpusError: if no document could be scored.
        """
        if not self.documents or self.totals is None:
            raise CorpusError(
                f"{source or 'corpus'}: no document to score among {corpus.read} ({corpus.short.count} shorter than"
                f" {self.config.min_length} tokens, {self.non_finite.count} with non-finite importance)"
            )
        parts: tuple[dict[str, np.ndarray], ...] = ({}, {}, {}, {}, {})
        for site, values in self.totals.sites():
            block, _, kind = site.rpartition(".")
            numbers = self._numbers(kind, values.cpu())
            for projection in SITES[kind]:
                address = f"{block}.{projection}"
                if address in self.layout.targets:
                    for part, vector in zip(parts, numbers, strict=True):
                        part[address] = vector.numpy()
        scored = {address.rpartition(".")[2] for address in parts[0]}
        metadata = self._metadata(corpus, source, [name for name in PROJECTIONS if name in scored])
        minimum, mean, worst_rank, mean_log, std_log = parts
        return Scores(minimum, mean, worst_rank, metadata, mean_log, std_log)

    def _numbers(self, kind: str, values: Tensor) -> tuple[Tensor, ...]:
        """Minimum, mean, worst rank, mean and standard deviation of logs of a site, [width], from its totals.

        All are float32, the rank is int32.
        """
        minimum, total, worst_rank, logs, squares = values
        mean_log, std_log = mean_and_deviation(logs, squares, self.documents)
        if self.config.epsilon is not None and kind in ("query", "key"):
            kept = at_least(self.config.epsilon, minimum)
            minimum, total = minimum.where(kept, 0), total.where(kept, 0)
            worst_rank = torch.full_like(worst_rank, len(worst_rank) - 1)
            mean_log, std_log = torch.zeros_like(mean_log), torch.zeros_like(std_log)
        mean = total / (self.tokens if self.config.per_token else self.documents)
        return minimum.float(), mean.float(), worst_rank.int(), mean_log.float(), std_log.float()

    def _metadata(self, corpus: TokenizedCorpus, source: str | None, projections: list[str]) -> ScoresMetadata:
        """What the artifact says of model, corpus and method (README, «Artifact format»)."""
        config = self.config
        reasons = {f"shorter than {config.min_length} tokens": corpus.short, "non-finite importance": self.non_finite}
        skipped = {reason: documents for reason, documents in reasons.items() if documents.count}
        said = {
            "format": SCORES,
            "version": ScoresMetadata.newest,
            "plnd": __version__,
            "model": self.layout.description(),
            "language": config.language,
            "corpus": {
                "source": source,
                "sha256": corpus.digest.hexdigest(),
                "documents": self.documents,
                "tokens": self.tokens,
                "max_length": config.max_length,
                "skipped": {reason: documents.numbers for reason, documents in skipped.items()},
                "skipped_counts": {reason: documents.count for reason, documents in skipped.items()},
            },
            "method": {
                "name": config.method,
                "scoring": config.scoring,
                "projections": projections,
                "qk": config.measured_qk,
                "epsilon": None if config.epsilon is None else float(config.epsilon),
                "min_length": config.min_length,
                "batch_size": config.batch_size,
                "log_floor": LOG_FLOOR,
            },
            "dtype": str(self.layout.model.dtype).removeprefix("torch."),
            "quantisation": quantisation(self.layout.model),
        }
        if self.deactivated:  # these are the numbers of the model without them
            said["deactivated"] = self.deactivated
        return ScoresMetadata.of(said)
