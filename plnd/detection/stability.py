"""How many documents are enough: the set that one rule selects, as documents are added, against the final one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import CorpusError, PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores


@dataclass(frozen=True, eq=False)
class Stability:
    """The neurons that a rule selects after more and more documents.

    Attributes:
        documents: scored so far, [steps] int64, ascending.
        sets: what was selected after them, [steps].
    """

    documents: np.ndarray
    sets: tuple[NeuronSet, ...]

    @property
    def neurons(self) -> np.ndarray:
        """How many were selected, [steps] int64."""
        return np.array([len(neurons) for neurons in self.sets], dtype=np.int64)

    @property
    def jaccard(self) -> np.ndarray:
        """|N ∩ final| / |N ∪ final|, [steps] float64; 1 where both are empty."""
        final = self.sets[-1]
        pairs = [(len(neurons & final), len(neurons | final)) for neurons in self.sets]
        return np.array([common / both if both else 1.0 for common, both in pairs])

    def enough(self, jaccard: float = 0.9) -> int | None:
        """The smallest number of documents from which on the set stays this near to the final one.

        None where only the final set, which is always like itself, is that near: the corpus does not tell yet.
        """
        far = np.flatnonzero(self.jaccard < jaccard)
        step = int(far[-1]) + 1 if len(far) else 0
        return int(self.documents[step]) if step < len(self.sets) - 1 else None


def measure_stability(
    model: nn.Module,
    documents: Iterable[str | Sequence[int]],
    config: DetectConfig | None = None,
    *,
    every: int = 10,
    tokenizer: Any = None,
    progress: bool = False,
    **rule: Any,
) -> Stability:
    """Selects after every few documents, at the cost of one detection over all of them.

    Smallest importance and worst rank of a corpus are the smallest and the worst of its parts. Each set is therefore
    the one that detection on the documents so far would give, up to float rounding (a document may have been in another
    batch).

    Args:
        model: a transformers model of a known family.
        documents: texts, or token ids; read once, in order, streamed.
        config: how to detect; `max_documents` is for the whole corpus.
        every: documents from one selection to the next; the last step may have fewer.
        tokenizer: for texts; by default the one saved with the model.
        progress: show a progress bar.
        rule: as of `Scores.select`.

    Raises:
        FamilyError, CorpusError, PLNDError: as of `detect` and `Scores.select`; PLNDError also if `every` is below 1.
    """
    if isinstance(documents, str):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    if every < 1:
        raise PLNDError(f"every={every}: expected 1 or more")
    config = config or DetectConfig()
    stream = _Stream(documents)
    limit = config.max_documents
    scores: Scores | None = None
    counts: list[int] = []
    sets: list[NeuronSet] = []
    with tqdm(total=limit, unit=" documents", desc=config.language or "stability", disable=not progress) as bar:
        while limit is None or sum(counts) < limit:
            wanted = every if limit is None else min(every, limit - sum(counts))
            try:
                found = detect(model, stream, replace(config, max_documents=wanted), tokenizer=tokenizer)
            except CorpusError:
                if scores is not None and stream.ended:
                    break  # nothing long enough was left
                raise
            scores = found if scores is None else _together(scores, found)
            counts.append(found.metadata.corpus.documents)
            sets.append(scores.select(**rule))
            bar.update(counts[-1])
    return Stability(np.cumsum(counts), tuple(sets))


class _Stream(Iterator[str | Sequence[int]]):
    """Documents that are taken some at a time, and whether they came to their end."""

    def __init__(self, documents: Iterable[str | Sequence[int]]) -> None:
        self.documents = iter(documents)
        self.ended = False

    def __next__(self) -> str | Sequence[int]:
        try:
            return next(self.documents)
        except StopIteration:
            self.ended = True
            raise


def _together(first: Scores, second: Scores) -> Scores:
    """Scores of two parts of a corpus, as far as selection reads them: not to be saved.

    The mean, the logs and all metadata but the number of documents stay those of the first part.
    """
    documents = first.metadata.corpus.documents + second.metadata.corpus.documents
    return Scores(
        {a: np.minimum(values, second.minimum[a]) for a, values in first.minimum.items()},
        first.mean,
        {a: np.maximum(values, second.worst_rank[a]) for a, values in first.worst_rank.items()},
        first.metadata.replaced(corpus=first.metadata.corpus.replaced(documents=documents)),
        first.mean_log,
        first.std_log,
    )
