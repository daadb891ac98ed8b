"""The mean value of every neuron over a reference corpus, as an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import MeansMetadata
from plnd.model_description import ModelDescription, check_model


@dataclass(frozen=True, eq=False)
class Means:
    """Means of neurons' values, over all tokens of the corpora together.

    Attributes:
        neurons: address to the mean of what leaves each row, or enters each column, [width] float32. Fused experts,
            whose values no module has, are left out.
        metadata: what the artifact says.
    """

    neurons: Mapping[str, np.ndarray]
    metadata: MeansMetadata

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MeansMetadata.of(self.metadata))

    def __repr__(self) -> str:
        said = self.metadata
        return f"Means({sum(map(len, self.neurons.values())):,} neurons over {', '.join(said.corpora)}, {said.model})"

    @property
    def model(self) -> ModelDescription:
        """The base model's description."""
        return self.metadata.model

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model of another family, number of blocks or width.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        check_model(self.model, description, "means")

    def save(self, path: str | Path) -> str:
        """Writes the artifact in one step; returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    @classmethod
    def load(cls, path: str | Path) -> Means:
        """Reads the artifact, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        with artifact.opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: artifact.Opened) -> Means:
        """The same of a file that is open."""
        metadata = artifact.check_metadata(stream.path, stream.metadata, MeansMetadata)
        return cls(artifact.read_vectors(stream, metadata.model.widths), metadata)

    def to_bytes(self) -> bytes:
        """The artifact as bytes, the same for equal means on every machine."""
        return artifact.encode(self.neurons, self.metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
