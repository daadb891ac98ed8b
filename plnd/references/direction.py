"""A direction between languages (DiffMean): the mean of one less that of others, as an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plnd.addresses import block_names, block_order
from plnd.errors import PLNDError
from plnd.io import artifact
from plnd.io.files import whole_file, write_bytes
from plnd.io.metadata import DirectionMetadata
from plnd.model_description import ModelDescription, check_model


@dataclass(frozen=True, eq=False)
class Direction:
    """From the mean of other languages, each of which weighs the same, to that of one; means are over tokens.

    Attributes:
        blocks: block to the direction of what leaves it, [hidden] float32.
        neurons: address to that of each neuron's value, [width] float32, as in `Means`.
        metadata: what the artifact says.
    """

    blocks: Mapping[str, np.ndarray]
    neurons: Mapping[str, np.ndarray]
    metadata: DirectionMetadata

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", DirectionMetadata.of(self.metadata))

    def __repr__(self) -> str:
        said = self.metadata
        return f"Direction({said.language} from {', '.join(said.against)}, {len(self.blocks)} blocks, {said.model})"

    @property
    def model(self) -> ModelDescription:
        """The base model's description."""
        return self.metadata.model

    @property
    def language(self) -> str:
        """Towards which it leads."""
        return self.metadata.language

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model of another family, number of blocks or width.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        check_model(self.model, description, "direction")

    def chosen(self, blocks: Iterable[str | int] | None = None) -> dict[str, np.ndarray]:
        """The directions of some blocks, by default of all, in order.

        Raises:
            PLNDError: if one has none.
        """
        names = list(self.blocks) if blocks is None else [str(block) for block in blocks]
        for name in names:
            if name not in self.blocks:
                raise PLNDError(f"no block {name!r}: the direction has {', '.join(self.blocks)}")
        return {name: self.blocks[name] for name in sorted(set(names), key=block_order)}

    def save(self, path: str | Path) -> str:
        """Writes the artifact in one step; returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    def save_steered(
        self, path: str | Path, *, strength: float = 1.0, blocks: Iterable[str | int] | None = None
    ) -> None:
        """Writes the file that lm-eval's own model `steered` reads (`steer_path=`), whose name ends in `.pt`.

        Args:
            path: file to write.
            strength: as of `plnd.steered`; the file holds it.
            blocks: as of `plnd.steered`.

        Raises:
            PLNDError: if the name ends otherwise, or the direction has none for a block.
        """
        import torch

        if Path(path).suffix not in (".pt", ".pth"):
            raise PLNDError(f"{path}: lm-eval's steered model reads files whose names end in .pt: call it so")
        hookpoints = {
            self.metadata.modules[name]: {
                "steering_vector": torch.from_numpy(vector.copy()),
                "steering_coefficient": float(strength),
                "action": "add",
                "bias": None,
                "head_index": None,
            }
            for name, vector in self.chosen(blocks).items()
        }
        with whole_file(Path(path)) as stream:
            torch.save(hookpoints, stream)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Reads the artifact, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        with artifact.opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: artifact.Opened) -> Direction:
        """The same of a file that is open."""
        path = stream.path
        metadata = artifact.check_metadata(path, stream.metadata, DirectionMetadata)
        names, widths = set(block_names(metadata.model.widths)), metadata.model.widths
        if not 0 < metadata.hidden <= artifact.MAX_WIDTH:
            raise artifact.bad(path, f"metadata gives hidden states {metadata.hidden} channels")
        if unknown := sorted(metadata.modules.keys() - names):
            raise artifact.bad(path, f"metadata names a module of {unknown[0]!r:.60}, which the model does not have")
        found = artifact.read_vectors(stream, widths | dict.fromkeys(metadata.modules, metadata.hidden))
        if missing := sorted(metadata.modules.keys() - found.keys(), key=block_order):
            raise artifact.bad(path, f"tensor {missing[0]!r} is missing")
        blocks = {name: found[name] for name in sorted(metadata.modules, key=block_order)}
        return cls(blocks, {name: values for name, values in found.items() if name in widths}, metadata)

    def to_bytes(self) -> bytes:
        """The artifact as bytes, the same for equal directions on every machine."""
        return artifact.encode({**self.neurons, **self.blocks}, self.metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def named_blocks(text: str) -> list[str]:
    """Names of blocks in words, joined by `+` or commas; `8-15` are eight of them.

    Raises:
        PLNDError: if there is none.
    """
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.replace("+", ",").split(","))):
        first, dash, last = name.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            if not int(first) <= int(last) < artifact.MAX_BLOCKS:
                raise PLNDError(f"blocks {name}: expected the first and the last, such as 8-15")
            names += map(str, range(int(first), int(last) + 1))
        else:
            names.append(name)
    if not names:
        raise PLNDError(f"blocks {text!r}: expected numbers of blocks, such as 8-15, or joined by +")
    return names
