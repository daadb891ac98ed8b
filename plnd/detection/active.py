"""How many of a language's neurons are active in one query, the mean over queries (Figure 3 of arXiv:2402.18815)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from plnd.addresses import block_names, split_address
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.overlap import layers
from plnd.neurons.scores import Scores


def mean_active(
    model: nn.Module,
    queries: Iterable[str | Sequence[int]],
    neurons: NeuronSet,
    scores: Scores,
    config: DetectConfig | None = None,
    *,
    tokenizer: Any = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Neurons of a set that are active in a query, by projection and block, averaged over queries.

    A neuron is active where it does in this query what the set's rule asks of it in every document of the corpus:
    importance of at least epsilon, or a rank below k (with `fraction` the k that the rule came to).

    Args:
        model: the one that the set was found in.
        queries: texts, or token ids; each is scored alone.
        neurons: a language's.
        scores: that they were selected from.
        config: how to detect; `max_documents` are the queries that count.
        tokenizer: for texts; by default the one saved with the model.
        progress: show a progress bar.

    Returns:
        Projection to [blocks] float64, as `plnd.neurons.overlap.layers` counts the whole set.

    Raises:
        FamilyError, CorpusError, PLNDError: as of `detect`; PLNDError also if the set's rule says nothing about one
            document, or there is no query.
    """
    passes, attends = _rule_of_one_document(neurons, scores), neurons.counts()
    config = replace(config or DetectConfig(), min_length=1, batch_size=1, epsilon=None)
    if not attends.get("q_proj") and not attends.get("k_proj"):
        config = replace(config, qk="off")
    total = {address: 0 for address, _ in neurons.items()}
    read = 0
    with tqdm(total=config.max_documents, unit=" queries", desc=config.language, disable=not progress) as bar:
        for query in islice(queries, config.max_documents):
            found = detect(model, [query], replace(config, max_documents=1), tokenizer=tokenizer)
            for address, indices in neurons.items():
                total[address] += int(passes(found, address, indices).sum())
            read += 1
            bar.update()
    if not read:
        raise PLNDError("no query: expected at least one")
    counts = {name: values.astype(np.float64) * 0 for name, values in layers(neurons).items()}
    position = {name: n for n, name in enumerate(block_names(neurons.widths))}
    for address, count in total.items():
        block, projection = split_address(address)
        counts[projection][position[block]] = count / read
    return counts


def _rule_of_one_document(neurons: NeuronSet, scores: Scores) -> Callable[[Scores, str, np.ndarray], np.ndarray]:
    """What a set's rule asks of one document: from its scores, an address and some indices to [indices] bool.

    Raises:
        PLNDError: if the rule compares languages, or was applied to other scores.
    """
    rule = neurons.metadata.rule
    if rule.name not in ("epsilon", "top_k", "fraction"):
        raise PLNDError(f"rule {rule.name}: says nothing about one query; expected one of epsilon, top_k, fraction")
    if rule.name == "epsilon":
        return lambda found, address, indices: found.minimum[address][indices] >= rule["value"]
    if rule.name == "top_k":
        return lambda found, address, indices: found.worst_rank[address][indices] < rule["value"]
    if neurons.metadata.scores_sha256 != scores.digest:
        raise PLNDError("the neurons were selected from other scores; give those")
    widths = neurons.widths
    entries = [float((scores.worst_rank[a][indices].max() + 1) / widths[a]) for a, indices in neurons.items()]
    share = max(entries, default=0.0)
    return lambda found, address, indices: (found.worst_rank[address][indices] + 1) / widths[address] <= share
