"""What detection leaves behind: three numbers per neuron, from which every rule is a read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plnd.errors import PLNDError
from plnd.neurons import NeuronSet, chosen_addresses
from plnd.regions import Regions

_EXPECTED = {
    "epsilon": "a number above 0",
    "top_k": "a whole number above 0",
    "fraction": "a number above 0 and at most 1",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every neuron over the documents of a corpus.

    Attributes:
        minimum: address to the smallest importance in any document, [width] float32.
        mean: address to the mean importance, [width] float32: over documents, or, with `method="activation"` and
            `"lape"`, over all tokens of the corpus.
        worst_rank: address to the largest rank in any document, [width] int32; 0 is the most important neuron of its
            projection, equal importances share the larger rank.
        metadata: what the artifact says of model, language, corpus and method.

    Where detection knew its rule (`method.epsilon` in the metadata), rows of `q_proj` and `k_proj` whose importance was
    below it in some document have minimum and mean 0, and all of them the last rank: `select` then takes no other rule
    for them than an epsilon of at least that.
    """

    minimum: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    worst_rank: Mapping[str, np.ndarray]
    metadata: dict[str, Any]

    def select(
        self,
        *,
        epsilon: float | None = None,
        top_k: int | None = None,
        fraction: float | None = None,
        projections: Iterable[str] | None = None,
        regions: Regions | None = None,
    ) -> NeuronSet:
        """The neurons that one rule keeps, out of those of `projections` and `regions` (all by default).

        Args:
            epsilon: importance at least this in every document (eq. 2 of arXiv:2402.18815).
            top_k: among the k most important of their projection in every document.
            fraction: `top_k` with k one share of each projection's width, the share whose set is nearest to this
                fraction of the neurons chosen from.

        Raises:
            PLNDError: if not exactly one rule is given, its number makes no sense, or these scores do not tell (they
                were detected for an epsilon, and another rule is asked for rows of `q_proj` and `k_proj`).
        """
        rules = {"epsilon": epsilon, "top_k": top_k, "fraction": fraction}
        given = {name: value for name, value in rules.items() if value is not None}
        if len(given) != 1:
            raise PLNDError(f"expected exactly one of epsilon, top_k, fraction, found {', '.join(given) or 'none'}")
        ((name, value),) = given.items()
        fits = 0 < value < math.inf and (name != "fraction" or value <= 1) and (name != "top_k" or value == int(value))
        if not fits:
            raise PLNDError(f"{name}={value}: expected {_EXPECTED[name]}")
        value = int(value) if name == "top_k" else float(value)
        projections = None if projections is None else list(projections)
        model = self.metadata["model"]
        widths = {address: len(values) for address, values in self.minimum.items()}
        chosen = chosen_addresses(widths, model["blocks"], projections, regions)
        if not chosen:
            scored = ", ".join(self.metadata["method"]["projections"])
            raise PLNDError(f"no neuron to select from: these scores cover {scored}")
        self._check_known(name, value, chosen)
        rule: dict[str, Any] = {"name": name, "value": value, "projections": projections}
        rule["regions"] = regions.description() if regions else None
        if name == "epsilon":
            kept = {a: self.minimum[a].astype(np.float64) >= value for a in chosen}
        elif name == "top_k":
            kept = {a: self.worst_rank[a] < value for a in chosen}
        else:
            entry = {a: (self.worst_rank[a].astype(np.float64) + 1) / widths[a] for a in chosen}
            rule["share"] = _share(np.concatenate(list(entry.values())), value)
            kept = {a: entry[a] <= rule["share"] for a in chosen}
        indices = {a: np.flatnonzero(mask).astype(np.int32) for a, mask in kept.items()}
        importance = {a: self.minimum[a][rows] for a, rows in indices.items()}
        metadata = {**self.metadata, "format": "plnd.neurons", "rule": rule, "scores_sha256": self.digest}
        return NeuronSet(indices, importance, metadata)

    def _check_known(self, name: str, value: float, chosen: Iterable[str]) -> None:
        """Refuses a rule that scores detected for an epsilon do not decide."""
        known = self.metadata["method"].get("epsilon")
        if known is None or not any(address.endswith((".q_proj", ".k_proj")) for address in chosen):
            return
        if name != "epsilon" or value < known:
            raise PLNDError(
                f"{name}={value}: these scores were detected with epsilon={known}, which leaves no ranks in q_proj and"
                f" k_proj and nothing below it; select with an epsilon of {known} or more, or other projections"
            )

    def save(self, path: str | Path) -> str:
        """Writes the scores artifact; returns its SHA-256. See `plnd.artifacts.save_scores`."""
        from plnd.artifacts import save_scores

        return save_scores(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads a scores artifact, trusting nothing. See `plnd.artifacts.load_scores`."""
        from plnd.artifacts import load_scores

        return load_scores(path)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        from plnd.artifacts import scores_bytes

        return hashlib.sha256(scores_bytes(self)).hexdigest()


def _share(entry: np.ndarray, fraction: float) -> float:
    """The share of each width at which the number of neurons is nearest to `fraction` of all (below on a tie).

    Args:
        entry: for every neuron the smallest share that contains it, [neurons] float64.
    """
    shares, counts = np.unique(entry, return_counts=True)
    reached = np.concatenate(([0], np.cumsum(counts)))
    nearest = int(np.argmin(np.abs(reached - fraction * len(entry))))
    return float(shares[nearest - 1]) if nearest else 0.0
