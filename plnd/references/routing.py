"""To which experts the tokens of some languages go, how many and how strongly, as an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from plnd.addresses import block_order
from plnd.errors import PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import NeuronsMetadata, RoutingMetadata
from plnd.model_description import ModelDescription, check_model
from plnd.neurons.contrast import TIMES, check_numbers
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.units import UNITS, neurons_of, unit_sites, whole_units

PARTS = {"tokens": ("I64", np.int64), "weight": ("F64", np.float64)}
"""Parts of the artifact, and their dtypes."""


@dataclass(frozen=True)
class Preference:
    """An expert that takes more of one language than of any other.

    Attributes:
        block, expert: which.
        share: of the language's tokens that go to it.
        elsewhere: the largest such share among the other languages.
        weight: mean weight that the router gives it at these tokens.
    """

    block: str
    expert: int
    share: float
    elsewhere: float
    weight: float


@dataclass(frozen=True, eq=False)
class Routing:
    """To which experts the tokens of some languages go.

    Attributes:
        tokens: language to block to how many of its tokens go to each expert, [experts] int64.
        weights: language to block to the sum, over these tokens, of the weight by which the expert's output is
            multiplied, [experts] float64.
        metadata: what the artifact says.
    """

    tokens: Mapping[str, Mapping[str, np.ndarray]]
    weights: Mapping[str, Mapping[str, np.ndarray]]
    metadata: RoutingMetadata

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", RoutingMetadata.of(self.metadata))

    def __repr__(self) -> str:
        return f"Routing({', '.join(self.languages)}, {len(self.blocks)} blocks with experts, {self.model})"

    @property
    def model(self) -> ModelDescription:
        """The base model's description."""
        return self.metadata.model

    @property
    def languages(self) -> list[str]:
        """Those that were read, by name."""
        return sorted(self.metadata.corpora)

    @property
    def blocks(self) -> list[str]:
        """Those that have experts, in order."""
        return sorted(self.metadata.chosen, key=block_order)

    def shares(self, language: str) -> dict[str, np.ndarray]:
        """How often: block to the share of the language's tokens that go to each expert, [experts] float64.

        They add up to the number of experts to which every token goes.

        Raises:
            PLNDError: if the language was not read.
        """
        total = self.metadata.corpora[self._known(language)].tokens
        return {block: self.tokens[language][block] / total for block in self.blocks}

    def mean_weights(self, language: str) -> dict[str, np.ndarray]:
        """How strongly: block to the mean weight of each expert over the tokens that go to it, [experts] float64.

        0 where none do.

        Raises:
            PLNDError: if the language was not read.
        """
        counts = self.tokens[self._known(language)]
        return {block: self.weights[language][block] / np.maximum(counts[block], 1) for block in self.blocks}

    def preferring(self, language: str, *, times: float = 1.0) -> list[Preference]:
        """The experts that take a larger share of one language's tokens than of any other's.

        Args:
            language: which.
            times: how many times as large a share, at least.
        Returns:
            Those whose share is furthest above the largest of the others first.

        Raises:
            PLNDError: if the language was not read, or no other was.
        """
        others = [name for name in self.languages if name != self._known(language)]
        if not others:
            raise PLNDError(f"routing of {language} alone: expected another language to compare it with")
        own, weights = self.shares(language), self.mean_weights(language)
        elsewhere = [self.shares(name) for name in others]
        found = []
        for block in self.blocks:
            most = np.max([shares[block] for shares in elsewhere], axis=0)
            for expert in np.flatnonzero((own[block] > most) & (own[block] >= times * most)).tolist():
                numbers = (own[block][expert], most[expert], weights[block][expert])
                found.append(Preference(block, expert, *map(float, numbers)))
        return sorted(found, key=lambda one: one.elsewhere - one.share)

    def select(self, language: str, *, times: float = TIMES, count: int | None = None) -> NeuronSet:
        """The experts that take much more of one language's tokens than of any other's, as a set of all their neurons.

        Args:
            language: which.
            times: how many times as large a share, at least.
            count: of those, the so many that `preferring` names first; by default all.
        Returns:
            Neurons whose importance is by how much their expert's share is above the largest of the others (float32);
            `metadata.units` says which experts they are.

        Raises:
            PLNDError: if a number makes no sense, the language was not read, or no other was, or no expert is left.
        """
        check_numbers(count, None, None, times)
        chosen = self.preferring(language, times=times)[:count]
        if not chosen:
            raise PLNDError(f"no expert takes {times:g} times as large a share of {language} as of any other language")
        projections = list(UNITS["expert"])
        indices: dict[str, np.ndarray] = {}
        importance: dict[str, np.ndarray] = {}
        for block, addresses in unit_sites(self.model, projections).items():
            above = {one.expert: one.share - one.elsewhere for one in chosen if one.block == block}
            for address in addresses:
                indices[address] = neurons_of(self.model, address, sorted(above))
                each = self.model.widths[address] // self.model.units[address]
                importance[address] = np.repeat([above[expert] for expert in sorted(above)], each).astype(np.float32)
        rule = {
            "name": "routing",
            "unit": "expert",
            "times": float(times),
            "count": count,
            "kept": len(chosen),
            "against": [{"language": name} for name in self.languages if name != language],
        }
        said = {
            "model": self.model,
            "language": language,
            "corpus": self.metadata.corpora[language],
            "method": {"name": "routing", "projections": projections},
            "dtype": self.metadata.dtype,
            "rule": rule,
            "scores_sha256": self.digest,
            "units": whole_units(indices, self.model, "expert", projections),
        }
        return NeuronSet(indices, importance, NeuronsMetadata.completed(said))

    def distances(self) -> dict[tuple[str, str], float]:
        """How differently two languages are routed: 0 alike, 1 to no expert in common; the mean over blocks.

        In a block that is the total variation distance: half the sum over experts of how far their parts of what is
        routed there are apart.
        """
        parts = {x: {b: of / of.sum() for b, of in self.shares(x).items()} for x in self.languages}
        return {
            (one, other): float(np.mean([abs(parts[one][b] - parts[other][b]).sum() / 2 for b in self.blocks]))
            for one, other in combinations(self.languages, 2)
        }

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model of another family, number of blocks or width.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        check_model(self.model, description, "routing")

    def save(self, path: str | Path) -> str:
        """Writes the artifact in one step; returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    @classmethod
    def load(cls, path: str | Path) -> Routing:
        """Reads the artifact, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        with artifact.opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: artifact.Opened) -> Routing:
        """The same of a file that is open."""
        path, metadata = stream.path, artifact.check_metadata(stream.path, stream.metadata, RoutingMetadata)
        experts = {block: metadata.model.units.get(f"{block}.down_proj") for block in metadata.chosen}
        if not metadata.corpora or not experts:
            raise artifact.bad(path, "metadata names no language, or no block with experts")
        if unknown := [block for block, count in experts.items() if count is None]:
            raise artifact.bad(path, f"metadata names block {unknown[0]!r:.60}, which has no experts")
        names = {f"{x}/{b}.{part}": (x, b, part) for x in metadata.corpora for b in experts for part in PARTS}
        artifact.check_names(path, dict.fromkeys(stream.keys()), set(names))
        found: dict[str, dict[str, dict[str, np.ndarray]]] = {part: {x: {} for x in metadata.corpora} for part in PARTS}
        for name, (language, block, part) in names.items():
            place, length = stream.get_slice(name), experts[block]
            if place.dtype != PARTS[part][0] or tuple(place.shape) != (length,):
                shape = f"{place.dtype} of shape {list(place.shape)!s:.60}"
                raise artifact.bad(path, f"{name} is {shape}, expected {PARTS[part][0]} of shape [{length}]")
            found[part][language][block] = stream.get_tensor(name)
        for language, corpus in metadata.corpora.items():
            for block, chosen in metadata.chosen.items():
                counts, weights = found["tokens"][language][block], found["weight"][language][block]
                if counts.min() < 0 or counts.max() > corpus.tokens or counts.sum() != chosen * corpus.tokens:
                    raise artifact.bad(path, f"{language}/{block}.tokens are not {chosen} of each of {corpus.tokens}")
                if not np.isfinite(weights).all() or weights[counts == 0].any():
                    raise artifact.bad(path, f"{language}/{block}.weight is not finite, or of experts without tokens")
        return cls(found["tokens"], found["weight"], metadata)

    def to_bytes(self) -> bytes:
        """The artifact as bytes, the same for equal numbers on every machine."""
        tensors = {}
        for language in self.languages:
            for block in self.blocks:
                tensors[f"{language}/{block}.tokens"] = self.tokens[language][block].astype(np.int64)
                tensors[f"{language}/{block}.weight"] = self.weights[language][block].astype(np.float64)
        return artifact.encode(tensors, self.metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def _known(self, language: str) -> str:
        if language not in self.metadata.corpora:
            raise PLNDError(f"no routing of {language!r}: languages are {', '.join(self.languages)}")
        return language
