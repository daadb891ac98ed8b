"""Small neuron sets and scores made by hand, for a model of two blocks that never existed."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plnd.addresses import PROJECTIONS
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores

WIDTHS = {"q_proj": 6, "k_proj": 4, "v_proj": 4, "o_proj": 6, "gate_proj": 8, "up_proj": 8, "down_proj": 8}
MODEL: dict[str, Any] = {
    "name": "made/by-hand",
    "revision": None,
    "model_type": "llama",
    "blocks": 2,
    "widths": {f"{block}.{name}": width for block in range(2) for name, width in WIDTHS.items()},
}


def scores_metadata(**changes: Any) -> dict[str, Any]:
    """Valid metadata of a scores artifact."""
    return {
        "format": "plnd.scores",
        "version": 2,
        "plnd": "0.1.0",
        "model": copy.deepcopy(MODEL),
        "language": "zh",
        "corpus": {
            "source": "zh.jsonl",
            "sha256": "0" * 64,
            "documents": 3,
            "tokens": 120,
            "max_length": 64,
            "skipped": {"shorter than 32 tokens": [1]},
        },
        "method": {"name": "plnd", "projections": list(PROJECTIONS), "qk": "exact"},
        "dtype": "float32",
        **changes,
    }


def neurons_metadata(**changes: Any) -> dict[str, Any]:
    """Valid metadata of a neurons artifact."""
    rule = {"name": "top_k", "value": 2, "projections": None, "regions": None}
    said = {"format": "plnd.neurons", "version": 1, "rule": rule, "scores_sha256": "1" * 64}
    return {**scores_metadata(), **said, **changes}


def make_neurons(
    indices: Mapping[str, Iterable[int]], importance: Mapping[str, Iterable[float]] | None = None, **changes: Any
) -> NeuronSet:
    """A set of the hand-made model; by default a neuron's importance is its index plus one."""
    vectors = {name: np.array(sorted(values), dtype=np.int32) for name, values in indices.items()}
    numbers = {name: v + 1 for name, v in vectors.items()} if importance is None else importance
    as_float = {name: np.array(list(values), dtype=np.float32) for name, values in numbers.items()}
    return NeuronSet(vectors, as_float, neurons_metadata(**changes))


def make_scores(importance: Mapping[str, np.ndarray], **changes: Any) -> Scores:
    """Scores by definition, from what every neuron weighs in every document: address to [documents, width]."""
    minimum = {name: values.min(0).astype(np.float32) for name, values in importance.items()}
    mean = {name: values.mean(0).astype(np.float32) for name, values in importance.items()}
    worst = {name: np.max([ranks(row) for row in values], axis=0) for name, values in importance.items()}
    projections = sorted({name.split(".")[1] for name in importance}, key=PROJECTIONS.index)
    method = {"name": "plnd", "projections": projections, "qk": "exact", "log_floor": 1e-3}
    metadata = scores_metadata(**{"method": method, **changes})
    if metadata["version"] == 1:
        return Scores(minimum, mean, worst, metadata)
    logs = {name: np.array([logs_over_median(row) for row in values]) for name, values in importance.items()}
    mean_log = {name: values.mean(0).astype(np.float32) for name, values in logs.items()}
    std_log = {
        name: (values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]).astype(np.float32)
        for name, values in logs.items()
    }
    return Scores(minimum, mean, worst, metadata, mean_log, std_log)


def logs_over_median(values: Iterable[float]) -> np.ndarray:
    """ln(value / median of the positive ones), each value at least a thousandth of that median; 0 where none is."""
    values = np.array(list(values), dtype=np.float64)
    if not (values > 0).any():
        return np.zeros(len(values))
    median = np.median(values[values > 0])
    return np.log(np.maximum(values, median * 1e-3) / median)


def ranks(values: Iterable[float]) -> np.ndarray:
    """Rank of each value, 0 the largest, where equal values share the largest of their ranks: how many others are not
    smaller."""
    values = list(values)
    return np.array([sum(other >= value for other in values) - 1 for value in values], dtype=np.int32)


def rechecked(data: bytes) -> bytes:
    """An artifact that was changed, with the checksum that its content has now (docs/artifacts.md)."""
    (found,) = re.finditer(rb'(?<=\\"checksum\\":\\")[0-9a-f]{64}', data)
    before, after = data[: found.start()], data[found.end() :]
    return before + hashlib.sha256(before + b"0" * 64 + after).hexdigest().encode() + after


def importance_matrix(documents: int = 3, seed: int = 0, addresses: Iterable[str] = MODEL["widths"]) -> dict:
    """Random importances with ties among them: address to [documents, width]."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, 12, (documents, MODEL["widths"][name])).astype(np.float64) for name in addresses
    }
