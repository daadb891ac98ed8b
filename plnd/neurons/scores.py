"""What detection leaves behind: five numbers per neuron, from which every rule is a read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plnd import notebook
from plnd.addresses import split_address
from plnd.errors import PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import NeuronsMetadata, ScoresMetadata
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.selection import chosen_addresses, listed
from plnd.numbers import is_real, is_whole

LOGS_SINCE = 2
"""The format version from which on scores have `mean_log` and `std_log`."""

_ROUNDING = 1e-5
"""By how much of itself a minimum may be above a mean that was added up in another order or dtype."""

_EXPECTED = {
    "epsilon": "a number above 0",
    "epsilon_for": "a number above 0 and at most 1",
    "top_k": "a whole number above 0",
    "fraction": "a number above 0 and at most 1",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every neuron over the documents of a corpus.

    Attributes:
        minimum: address to the smallest importance in any document, [width] float32.
        mean: address to the mean importance, [width] float32: over documents, or, with `method="relevance"`,
            `"activation"` and `"lape"`, over all tokens of the corpus.
        worst_rank: address to the largest rank in any document, [width] int32; 0 is the most important neuron of its
            projection, equal importances share the larger rank.
        metadata: what the artifact says of model, language, corpus and method, or a mapping that does.
        mean_log: address to the mean over documents of ln(importance / median of the projection in that document),
            [width] float32 (`plnd.detection.totals.log_over_median`), which `plnd.contrast` compares between languages;
            None in artifacts of format version 1.
        std_log: its sample standard deviation over documents, [width] float32, 0 with one document; None likewise.

    Raises:
        PLNDError: if the metadata lacks a field, or has one of another type, or the logs are not those of its version.

    Where detection knew its rule (`method.epsilon` in the metadata), rows of `q_proj` and `k_proj` whose importance was
    below it in some document have minimum and mean 0, and all of them the last rank and logs of 0: `select` then takes
    no other rule for them than an epsilon of at least that.
    """

    minimum: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    worst_rank: Mapping[str, np.ndarray]
    metadata: ScoresMetadata
    mean_log: Mapping[str, np.ndarray] | None = None
    std_log: Mapping[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", ScoresMetadata.of(self.metadata))
        version, logs = self.metadata.version, (self.mean_log, self.std_log)
        if any((vectors is None) != (version < LOGS_SINCE) for vectors in logs):
            raise PLNDError(
                f"scores of format version {version}: mean_log and std_log are there from version {LOGS_SINCE} on, and"
                " only then"
            )

    def __repr__(self) -> str:
        said, corpus = self.metadata, self.metadata.corpus
        about = f"language={said.language!r}, model={said.model.name!r}, method={said.method.name!r}"
        return f"Scores({', '.join(said.method.projections)} over {corpus.documents:,} documents, {about})"

    def _repr_html_(self) -> str:
        said, corpus = self.metadata, self.metadata.corpus
        named = f", of {corpus.source}" if corpus.source else ""
        read = f"{corpus.documents:,} documents, {corpus.tokens:,} tokens{named}"
        facts = {"language": said.language, "model": said.model, "corpus": read, "dtype": said.dtype}
        rows = []
        for name in said.method.projections:
            found = [values for address, values in self.minimum.items() if split_address(address)[1] == name]
            values = np.concatenate(found)
            above = f"{float(np.mean(values > 0)):.1%}"
            rows.append((name, f"{len(values):,}", above, f"{np.median(values):.3g}", f"{values.max():.3g}"))
        header = ("smallest importance over documents", "neurons", "above 0", "median", "largest")
        return notebook.card(f"Scores ({said.method.name})", facts, notebook.table(header, rows))

    def select(
        self,
        *,
        epsilon: float | None = None,
        epsilon_for: float | None = None,
        top_k: int | None = None,
        fraction: float | None = None,
        projections: str | Iterable[str] | None = None,
        regions: Regions | None = None,
    ) -> NeuronSet:
        """The neurons that one rule keeps, out of those of `projections` and `regions` (all by default).

        Args:
            epsilon: importance at least this in every document (eq. 2 of arXiv:2402.18815).
            epsilon_for: the rule of `epsilon`, with the largest one that keeps at least this share of the neurons
                chosen from; `rule.value` in the metadata is the epsilon, `rule.wanted` and `rule.share` are what was
                asked for and what is kept, of `rule.chosen_from` neurons.
            top_k: among the k most important of their projection in every document.
            fraction: `top_k` with k one share of each projection's width, the share whose set is nearest to this
                fraction of the neurons chosen from.
            projections: their names; or one of the groups `paper`, which the paper has an importance of, and `once`, in
                which every neuron counts once (`plnd.neurons.selection.GROUPS`).

        Raises:
            PLNDError: if not exactly one rule is given, its number makes no sense, these scores do not tell (they were
                detected for an epsilon, and another rule is asked for rows of `q_proj` and `k_proj`), or fewer neurons
                than `epsilon_for` asks for have any importance in every document.
        """
        rules = {"epsilon": epsilon, "epsilon_for": epsilon_for, "top_k": top_k, "fraction": fraction}
        given = {name: value for name, value in rules.items() if value is not None}
        if len(given) != 1:
            raise PLNDError(f"expected exactly one of {', '.join(rules)}, found {', '.join(given) or 'none'}")
        ((name, value),) = given.items()
        fits = is_whole(value) if name == "top_k" else is_real(value)
        if not fits or not 0 < value < math.inf or (name in ("fraction", "epsilon_for") and value > 1):
            raise PLNDError(f"{name}={value!r}: expected {_EXPECTED[name]}")
        value = int(value) if name == "top_k" else float(value)
        projections = listed(projections)
        widths = {address: len(values) for address, values in self.minimum.items()}
        chosen = chosen_addresses(widths, self.metadata.model.blocks, projections, regions)
        if not chosen:
            scored = ", ".join(self.metadata.method.projections)
            raise PLNDError(f"no neuron to select from: these scores cover {scored}")
        rule: dict[str, Any] = {"name": name, "value": value, "projections": projections}
        rule["regions"] = regions.description() if regions else None
        if name == "epsilon_for":
            importance = np.concatenate([self.minimum[a] for a in chosen])
            name, wanted, value = "epsilon", value, _epsilon(importance, value)
            share = float(np.mean(importance >= value))
            rule |= {"name": name, "value": value, "wanted": wanted, "share": share, "chosen_from": len(importance)}
        self._check_known(name, value, chosen)
        if name == "epsilon":
            kept = {a: self.minimum[a].astype(np.float64) >= value for a in chosen}
        elif name == "top_k":
            kept = {a: self.worst_rank[a] < value for a in chosen}
        else:
            entry = {a: (self.worst_rank[a].astype(np.float64) + 1) / widths[a] for a in chosen}
            rule["share"] = _share(np.concatenate(list(entry.values())), value)
            kept = {a: entry[a] <= rule["share"] for a in chosen}
        indices = {a: np.flatnonzero(mask).astype(np.int32) for a, mask in kept.items()}
        kept_importance = {a: self.minimum[a][rows] for a, rows in indices.items()}
        return NeuronSet(indices, kept_importance, NeuronsMetadata.selected(self.metadata, rule, self.digest))

    def _check_known(self, name: str, value: float, chosen: Iterable[str]) -> None:
        """Refuses a rule that scores detected for an epsilon do not decide."""
        known = self.metadata.method.epsilon
        if known is None or not any(address.endswith((".q_proj", ".k_proj")) for address in chosen):
            return
        if name != "epsilon" or value < known:
            raise PLNDError(
                f"{name}={value}: these scores were detected with epsilon={known}, which leaves no ranks in q_proj and"
                f" k_proj and nothing below it; select with an epsilon of {known} or more, or other projections"
            )

    def save(self, path: str | Path) -> str:
        """Writes the scores artifact in one step (a temporary file beside it, then a rename); returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads a scores artifact, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        with artifact.opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: artifact.Opened) -> Scores:
        """The same of a file that is open."""
        path = stream.path
        metadata, tensors = artifact.read(stream, ScoresMetadata)
        widths, projections = metadata.model.widths, metadata.method.projections
        addresses = [name for name in widths if split_address(name)[1] in projections]
        if not addresses:
            raise artifact.bad(path, "metadata says that no projection was scored")
        logs = ("mean_log", "std_log") if metadata.version >= LOGS_SINCE else ()
        parts = ("min", "mean", "worst_rank", *logs)
        artifact.check_names(path, tensors, {f"{name}.{part}" for name in addresses for part in parts})
        for name in addresses:
            for part in ("min", "mean"):
                artifact.check_importance(path, f"{name}.{part}", tensors[f"{name}.{part}"], widths[name])
            if logs:
                artifact.check_logs(path, f"{name}.mean_log", tensors[f"{name}.mean_log"], widths[name])
                artifact.check_importance(path, f"{name}.std_log", tensors[f"{name}.std_log"], widths[name])
            if (tensors[f"{name}.min"] > tensors[f"{name}.mean"] * np.float32(1 + _ROUNDING)).any():
                raise artifact.bad(path, f"{name} has a minimum above its mean")
            ranks = tensors[f"{name}.worst_rank"]
            artifact.check_indices(path, f"{name}.worst_rank", ranks, widths[name])
            if len(ranks) != widths[name]:
                raise artifact.bad(path, f"{name}.worst_rank has {len(ranks)} entries, expected {widths[name]}")
        vectors = ({name: tensors[f"{name}.{part}"] for name in addresses} for part in parts)
        minimum, mean, worst_rank, *of_logs = vectors
        return cls(minimum, mean, worst_rank, metadata, *of_logs)

    def to_bytes(self) -> bytes:
        """The scores artifact as bytes, the same for equal scores on every machine."""
        parts = {"min": self.minimum, "mean": self.mean, "worst_rank": self.worst_rank}
        if self.mean_log is not None and self.std_log is not None:
            parts |= {"mean_log": self.mean_log, "std_log": self.std_log}
        tensors = {f"{name}.{part}": values for part, vectors in parts.items() for name, values in vectors.items()}
        return artifact.encode(tensors, self.metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _epsilon(importance: np.ndarray, share: float) -> float:
    """The largest epsilon that at least this share of the neurons reaches.

    Args:
        importance: of every neuron the smallest over documents, [neurons] float32.

    Raises:
        PLNDError: if it would have to be 0, which every neuron reaches.
    """
    count = next(
        k for k in range(max(1, int(share * len(importance))), len(importance) + 1) if k / len(importance) >= share
    )
    found = float(np.partition(importance, len(importance) - count)[len(importance) - count])
    if found == 0:
        above = float(np.mean(importance > 0))
        raise PLNDError(
            f"epsilon_for={share:g}: only {above:.3%} of the {len(importance):,} neurons chosen from have an importance"
            " above 0 in every document; ask for at most that share"
        )
    return found


def _share(entry: np.ndarray, fraction: float) -> float:
    """The share of each width at which the number of neurons is nearest to `fraction` of all (below on a tie).

    Args:
        entry: for every neuron the smallest share that contains it, [neurons] float64.
    """
    shares, counts = np.unique(entry, return_counts=True)
    reached = np.concatenate(([0], np.cumsum(counts)))
    nearest = int(np.argmin(np.abs(reached - fraction * len(entry))))
    return float(shares[nearest - 1]) if nearest else 0.0
