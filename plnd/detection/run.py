"""Detection: one forward pass over a corpus, five numbers per neuron (minimum, mean, worst rank, two of logs)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from plnd.addresses import PROJECTIONS
from plnd.deactivation import what_is_off
from plnd.detection.checkpoint import Checkpoint, run_settings
from plnd.detection.config import DetectConfig
from plnd.detection.documents import Document, OwnTokenizer, Skipped, TokenizedCorpus, batched
from plnd.detection.measures.choice import measure_of
from plnd.detection.measures.official import check_official, mask_of_all, sees_all
from plnd.detection.meeting import readers
from plnd.detection.observer import SITES, Observer
from plnd.detection.part import Part
from plnd.detection.processes import Processes
from plnd.detection.shards import Shard
from plnd.detection.tally import Tally
from plnd.detection.token_budget import TokenBudget
from plnd.detection.totals import LOG_FLOOR, Totals, summarized
from plnd.errors import PLNDError
from plnd.importance.memory import release_memory
from plnd.io.corpus import Sections
from plnd.io.metadata import PART, PartMetadata
from plnd.models.batches import padded
from plnd.models.blockwise import in_step, weights_of
from plnd.models.free_memory import is_out_of_memory
from plnd.models.layout import Layout
from plnd.models.quantised import quantisation
from plnd.models.running import measured
from plnd.neurons.scores import Scores
from plnd.secrets import published
from plnd.version import __version__

WINDOW = 16
"""Batches whose documents are sorted by length together; a checkpoint is taken between windows."""
CHECKPOINT_SECONDS = 60.0
"""Age at which a checkpoint is replaced."""


def detect(
    model: nn.Module,
    documents: Iterable[str | Sequence[int]] | Sections,
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

    Beyond the model's own forward pass this keeps eight vectors per projection, the current batch's importances (one
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
        PLNDError: if `checkpoint` was made with another model, corpus or settings; if another thread works on the
            model, or neurons of it are switched off or given back meanwhile.
    """
    whole = Shard()
    return _detect(model, documents, whole, config, tokenizer, source, checkpoint, resume, progress, processes).scores()


def detect_shard(
    model: nn.Module,
    documents: Iterable[str | Sequence[int]] | Sections,
    shard: Shard | str,
    config: DetectConfig | None = None,
    *,
    tokenizer: Any = None,
    source: str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    processes: Processes | None = None,
) -> Part:
    """One part of what `detect` would find: over one of `shard.count` shares of the documents that it would score.

    `plnd.merge` makes scores of all parts, bit for bit those of `detect` where all compute with the same kernels.

    Args:
        documents: the whole corpus, as `detect` takes it: which documents are scored together, and which are the first
            `max_documents`, depends on all of them. All are read and tokenised, a share is scored; of `Sections`,
            without `max_documents`, only those are read that the share is from.
        shard: which one, `"3/64"` is the third of 64. It may have no document, if there are few.
        processes: those that share the work on this shard.

    All else is as in `detect`.

    Raises:
        FamilyError, CorpusError, PLNDError: as of `detect`; CorpusError if no document of the corpus is long enough.
    """
    shard = shard if isinstance(shard, Shard) else Shard.parse(shard)
    return _detect(model, documents, shard, config, tokenizer, source, checkpoint, resume, progress, processes)


@torch.no_grad()
def _detect(
    model: nn.Module,
    documents: Iterable[str | Sequence[int]] | Sections,
    shard: Shard,
    config: DetectConfig | None,
    tokenizer: Any,
    source: str | None,
    checkpoint: str | Path | None,
    resume: bool,
    progress: bool,
    processes: Processes | None,
) -> Part:
    if isinstance(documents, str):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    config = config or DetectConfig()
    layout = Layout.of_all(model, spread=True)
    layout.check_length(config.max_length)
    if config.method == "relevance":
        layout.check_predicts("method=relevance")
    if config.scoring == "official":
        check_official(layout, config.max_length)
    if config.method == "relevance" and weights_of(layout.model) is not None:
        raise PLNDError(
            "method=relevance needs a backward pass, which blockwise does not have: load the model whole, or over"
            " devices (docs/larger.md), or take method=plnd"
        )
    if config.batch_size == "auto" and (layout.group is not None or weights_of(layout.model) is not None):
        how = "blockwise" if layout.group is None else "spread over processes"
        raise PLNDError(f"batch_size=auto: this model is {how}, and batches pass through it together; give a number")
    processes = readers(processes or Processes(), layout.group)
    path = None if checkpoint is None else Path(checkpoint)
    with processes.together(), measured(layout.model, [block.module for block in layout.blocks]) as unchanged:
        run = _Run(layout, config, shard, processes, path, unchanged)
        corpus = TokenizedCorpus(documents, tokenizer or OwnTokenizer.saved(layout), config, layout, shard)
        if resume:
            run.resume()
        title, hidden = config.language or "detect", not (progress and run.processes.first)
        run.speaks = not hidden
        with tqdm(total=config.max_documents, unit=" documents", desc=title, disable=hidden) as bar:
            run.read(corpus, bar.update)
        return run.part(corpus, source)


class _Run:
    """One detection, the same in each of its processes: from batches of documents to a part, and to a checkpoint.

    Each process adds up what it measures. They say to each other only, after every window, that they still read the
    same documents; totals go to the first process when it writes a checkpoint, and at the end.
    """

    def __init__(
        self,
        layout: Layout,
        config: DetectConfig,
        shard: Shard,
        processes: Processes,
        path: Path | None,
        unchanged: Callable[[], None],
    ) -> None:
        self.layout, self.config, self.shard, self.processes, self.path = layout, config, shard, processes, path
        self.unchanged = unchanged
        self.speaks = False
        self.budget = TokenBudget.of(layout, config) if config.batch_size == "auto" else None
        self.input_device = layout.input_device
        self.device = processes.device or self.input_device
        self.windows = 0
        self.tally = Tally()  # of this process
        self.ahead: list[list[Document]] = []  # batches that are to be measured
        self.measured: dict[str, Tensor] = {}  # site to [documents, width], of the batch at hand
        self.observer = Observer(layout, measure_of(config), self._receive)
        self.all_seen = config.scoring == "official" and sees_all(layout)
        self.deactivated = what_is_off(layout.model)
        kept = path is not None or shard.count > 1
        self.settings = run_settings(layout, config, WINDOW, shard, self.deactivated) if kept else None
        self.saved = time.monotonic()
        self.resumed: str | None = None  # the checkpoint's digest, until the corpus has been read up to there

    def read(self, corpus: TokenizedCorpus, advance: Callable[[int], Any]) -> None:
        """Takes in the whole corpus, window by window."""
        if self.budget is not None:
            self._say(f"up to {self.budget.tokens:,} tokens in a forward pass ({self.budget.why})")
        windows = corpus.windows(WINDOW * self.config.documents_together)
        with self.observer.attached(), closing(windows):
            for place, (share, number, window) in enumerate(windows):
                if place < self.windows:
                    if place == self.windows - 1:
                        self._check_resumed(corpus)
                    advance(len(window))
                    continue
                self._read_window(share, number, window, advance)
                self._end_window(corpus, advance)
            self._measure_ahead(advance)
        if self.resumed is not None:
            self._check_resumed(corpus)
        self._agree(corpus)

    def _read_window(
        self, share: Shard, number: int, window: Sequence[Document], advance: Callable[[int], Any]
    ) -> None:
        """Measures this process's batches of a window; which batches there are does not depend on who measures them.

        Blockwise, when there are enough of them to read the weights for: a shard has one in many.
        """
        together = batched(sorted(window, key=lambda d: -len(d.ids)), self.config.documents_together)
        rank, count = self.processes.rank, self.processes.count
        mine = [batch for index, batch in enumerate(together) if share.has(number, index, rank, count)]
        advance(len(window) - sum(map(len, mine)))  # others'
        self.ahead += mine if self.budget is None else self.budget.batches(list(chain(*mine)))
        if weights_of(self.layout.model) is None or len(self.ahead) >= WINDOW:
            self._measure_ahead(advance)

    def _measure_ahead(self, advance: Callable[[int], Any]) -> None:
        """Measures the batches that have been put off; where their size is free, in smaller ones if they do not fit."""
        while self.ahead:
            batches, self.ahead = self.ahead, []
            measuring = self._measure(batches)
            for number, batch in enumerate(batches):
                try:
                    found = self._summarised(batch, next(measuring))
                except Exception as error:
                    if self.budget is None or not is_out_of_memory(error):
                        raise
                else:
                    self.tally.add(batch, *found)
                    advance(len(batch))
                    continue
                self._halve(batches[number:])  # not before the error, and all that it holds, is gone
                break

    def _halve(self, batches: Sequence[list[Document]]) -> None:
        """Puts batches off again, the first of which did not fit, in smaller ones."""
        assert self.budget is not None
        self.budget.halve(batches[0])
        self._say(f"out of memory: going on with up to {self.budget.tokens:,} tokens in a forward pass")
        self.measured = {}
        release_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.ahead = list(self.budget.batches(list(chain(*batches))))

    def _say(self, line: str) -> None:
        """A line beside the progress bar, if there is one."""
        if self.speaks:
            tqdm.write(line, file=sys.stderr)

    def _end_window(self, corpus: TokenizedCorpus, advance: Callable[[int], Any]) -> None:
        """Writes a checkpoint if the first process finds the last one old enough, and has put off nothing."""
        self.windows += 1
        self.unchanged()
        due = self.path is not None and time.monotonic() - self.saved >= CHECKPOINT_SECONDS and not self.ahead
        if self._agree(corpus, due)[0]:
            self._measure_ahead(advance)
            self._save(self._gathered(), corpus)
        self._tell_alive()

    def _receive(self, block: Any, site: str, importance: Tensor) -> None:
        self.measured[f"{block}.{site}"] = importance

    def _summarised(
        self, batch: Sequence[Document], importance: Mapping[str, Tensor]
    ) -> tuple[list[bool], Tensor, dict[str, int]]:
        """What the tally takes of a batch: documents with non-finite importance are left out."""
        finite = torch.stack([torch.isfinite(x).all(-1).to(self.device) for x in importance.values()]).all(0)
        good = finite.tolist()  # the one wait for the device
        kept = [index for index, each in enumerate(good) if each]
        weights = torch.tensor([len(batch[n].ids) if self.config.per_token else 1 for n in kept])
        found = importance.values()
        if len(kept) < len(batch):
            found = [x[torch.tensor(kept, dtype=torch.long, device=x.device)] for x in found]  # type: ignore[assignment]
        values = torch.cat([summarized(x, weights).to(self.device) for x in found], dim=1)
        return good, values, {name: x.shape[-1] for name, x in importance.items()}

    def _measure(self, batches: Sequence[list[Document]]) -> Iterator[dict[str, Tensor]]:
        """One pass over each batch: site to importance, [documents, width], in the order of the batches."""
        found: list[dict[str, Tensor]] = [{} for _ in batches]

        def turn(number: int) -> None:
            self.measured = found[number]
            self.observer.spans = [(0, len(d.ids)) for d in batches[number]]

        inputs = [cache(partial(self._inputs, batch)) for batch in batches]

        def run(number: int) -> None:
            ids, mask = inputs[number]()
            self.observer.run(ids.to(self.input_device), mask.to(self.input_device))
            if number + 1 < len(inputs):
                inputs[number + 1]()  # is padded while the device computes, before its results are waited for

        for number, _ in in_step(self.layout.model, [partial(run, number) for number in range(len(batches))], turn):
            yield found[number]
            found[number] = {}

    def _inputs(self, batch: list[Document]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, [documents, longest]."""
        ids, mask = padded([document.ids for document in batch])
        return ids, mask_of_all(mask) if self.all_seen else mask

    def _agree(self, corpus: TokenizedCorpus, value: Any = None) -> list[Any]:
        """What every process gave.

        Raises:
            PLNDError: if they read different documents.
        """
        digest = corpus.digest
        answers = self.processes.exchange((digest, value))
        if any(other != digest for other, _ in answers):
            raise PLNDError("the processes read different documents: give each the same corpus")
        return [given for _, given in answers]

    def _gathered(self, everywhere: bool = False) -> Tally:
        """What all processes have found, in the first one or `everywhere`; the others get the counts only."""
        if self.processes.count == 1:
            return self.tally
        mine, whole = self.tally, Tally()
        tallies = self.processes.exchange((mine.documents, mine.tokens, mine.non_finite, mine.totals.widths))
        widths: dict[str, int] = next((found for *_, found in tallies if found), {})
        whole.totals, theirs = Totals.empty(widths, self.device), Totals.empty(widths, self.device)
        for source, (documents, tokens, non_finite, found) in enumerate(tallies):
            whole.merge(Tally(documents, tokens, non_finite))
            if found:
                values = mine.totals.values if source == self.processes.rank else theirs.values
                whole.totals.add(self.processes.collect(values, source))
        if everywhere and widths:
            self.processes.broadcast(whole.totals.values, 0)
        return whole

    def _tell_alive(self) -> None:
        """Tells the observer which rows of queries and keys the rule may still keep."""
        if self.config.epsilon is not None and self.config.measured_qk != "off" and self.tally.totals.widths:
            self.observer.alive = self.tally.totals.alive(self.config.epsilon)

    # checkpoint

    def resume(self) -> None:
        """Takes up the checkpoint that the first process finds, if any; where several read, the others start empty."""
        exists = self.path is not None and self.path.exists()
        mine = Checkpoint.load(self.path) if self.processes.first and exists and self.path is not None else None
        if mine is not None and mine.settings != self.settings:
            raise PLNDError(
                f"{self.path}: made with another model or settings; repeat them, or start again without --resume"
            )
        alone = self.processes.count == 1  # also where a model is spread over several: all keep the same totals
        said = None if mine is None else (mine.windows, mine.digest, mine.tally if alone else None)
        found = self.processes.exchange(said)[0]
        if found is not None:
            self.windows, self.resumed, everyones = found
            if (tally := everyones if mine is None else mine.tally) is not None:
                self.tally = tally
                self.tally.totals.values = self.tally.totals.values.to(self.device)
            self._tell_alive()

    def _check_resumed(self, corpus: TokenizedCorpus) -> None:
        """Refuses to continue on another corpus than the one the checkpoint saw."""
        if corpus.digest != self.resumed:
            raise PLNDError(f"{self.path}: the corpus has changed since; start again without --resume")
        self.resumed = None

    def _save(self, tally: Tally, corpus: TokenizedCorpus) -> None:
        """Saves a checkpoint, in the first process."""
        if self.processes.first and self.path is not None and self.settings is not None:
            Checkpoint(self.settings, self.windows, tally, corpus.digest).save(self.path)
            self.saved = time.monotonic()

    # result

    def part(self, corpus: TokenizedCorpus, source: str | None) -> Part:
        """What was found, with what is to be said of it (docs/artifacts.md), in every process.

        Raises:
            CorpusError: if no document of the corpus could be scored, as far as this shard can tell.
        """
        tally = self._gathered(everywhere=True)
        if not tally.documents:  # all that was measured was left out
            tally.totals = Totals.empty({})
        part = Part(self._said(corpus, source, tally), tally.totals)
        if not corpus.long_enough and len(corpus.sections) == corpus.count:
            part.scores()  # which says why there are none
        return part

    def _sites(self, totals: Totals) -> Iterator[dict[str, Any]]:
        for name, width in totals.widths.items():
            block, _, kind = name.rpartition(".")
            projections = [one for one in SITES[kind] if f"{block}.{one}" in self.layout.targets]
            yield {"name": name, "width": width, "projections": projections}

    def _said(self, corpus: TokenizedCorpus, source: str | None, tally: Tally) -> PartMetadata:
        config = self.config
        sites = list(self._sites(tally.totals))
        scored = {projection for site in sites for projection in site["projections"]}
        said: dict[str, Any] = {
            "format": PART,
            "version": PartMetadata.newest,
            "plnd": __version__,
            "model": self.layout.description(),
            "language": config.language,
            "corpus": {
                "source": source and published(source),
                "sha256": corpus.digest,
                "documents": tally.documents,
                "tokens": tally.tokens,
                "max_length": config.max_length,
                "skipped": {},
            },
            "method": {
                "name": config.method,
                "scoring": config.scoring,
                "projections": [name for name in PROJECTIONS if name in scored],
                "qk": config.measured_qk,
                "epsilon": None if config.epsilon is None else float(config.epsilon),
                "min_length": config.min_length,
                "batch_size": config.batch_size,
                "log_floor": LOG_FLOOR,
            },
            "dtype": str(self.layout.model.dtype).removeprefix("torch."),
            "quantisation": quantisation(self.layout.model),
            "shard": {"number": self.shard.number, "count": self.shard.count},
            "section_count": corpus.count,
            "sections": [
                {
                    "number": number,
                    "read": section.read,
                    "sha256": section.digest.hexdigest(),
                    "short": asdict(section.short),
                    "non_finite": asdict(tally.non_finite.get(number, Skipped())),
                }
                for number, section in corpus.sections.items()
            ],
            "weights": "" if self.settings is None else self.settings["weights"],
            "window": WINDOW,
            "sites": sites,
        }
        if self.deactivated:  # these are the numbers of the model without them
            said["deactivated"] = self.deactivated
        return PartMetadata.of(said)
