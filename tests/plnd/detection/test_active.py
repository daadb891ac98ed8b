"""Neurons active in a query, counted against importances of each query alone."""

from __future__ import annotations

import numpy as np
import pytest

from plnd.detection.active import mean_active
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import PLNDError
from plnd.neurons.overlap import layers
from tiny import tiny_model

CORPUS = [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13], [20, 21, 22, 23]]
QUERIES = [[30, 31, 32, 33], [3, 4, 5], [40, 41, 42, 43, 44]]
CONFIG = DetectConfig(qk="exact", min_length=1, max_length=32)


@pytest.fixture(scope="module")
def scored():
    """A tiny model and its scores of a corpus."""
    model = tiny_model("llama")
    return model, detect(model, CORPUS, CONFIG)


@pytest.mark.parametrize("rule", [{"epsilon": 0.2}, {"top_k": 4}, {"fraction": 0.2}])
def test_counts_are_those_of_every_query_alone(scored, rule):
    """Of the set, what passes its rule in a query, averaged; of the corpus itself, all of the set in every document."""
    model, scores = scored
    neurons = scores.select(**rule)
    assert len(neurons) > 0
    found = mean_active(model, QUERIES, neurons, scores, CONFIG)
    expected = {name: np.zeros(len(values)) for name, values in layers(neurons).items()}
    shares = {a: (scores.worst_rank[a][k].max() + 1) / neurons.widths[a] for a, k in neurons.items()}
    for query in QUERIES:
        alone = detect(model, [query], CONFIG)
        for address, indices in neurons.items():
            block, projection = address.split(".")
            passes = {
                "epsilon": alone.minimum[address][indices] >= rule.get("epsilon", 0),
                "top_k": alone.worst_rank[address][indices] < rule.get("top_k", 0),
                "fraction": (alone.worst_rank[address][indices] + 1) / neurons.widths[address] <= max(shares.values()),
            }[next(iter(rule))]
            expected[projection][int(block)] += passes.sum() / len(QUERIES)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)
    of_the_corpus = mean_active(model, CORPUS, neurons, scores, CONFIG)
    for name, values in layers(neurons).items():
        np.testing.assert_array_equal(of_the_corpus[name], values)
    assert sum(values.sum() for values in found.values()) < len(neurons)


def test_refusals(scored):
    """No query; other scores than those of the set."""
    model, scores = scored
    with pytest.raises(PLNDError, match="no query"):
        mean_active(model, [], scores.select(top_k=2), scores)
    with pytest.raises(PLNDError, match="selected from other scores"):
        mean_active(model, QUERIES, scores.select(fraction=0.1), detect(model, CORPUS[:2], CONFIG))
