"""What a page to explore is made of: scores, sets and inspections of one model, read from files and held together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plnd.addresses import PROJECTIONS, block_names, split_address
from plnd.any_artifact import load
from plnd.errors import PLNDError
from plnd.explorer.inspections import load_inspection
from plnd.inspection.profiles import Inspection
from plnd.model_description import check_model
from plnd.neurons.contrast import check_corpora, check_settings
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from plnd.neurons.selection import chosen_addresses
from plnd.secrets import portable

INSPECTION_ENDING = ".json"
"""What names a file of `plnd neuron --json`; all others are artifacts."""


@dataclass(frozen=True)
class Contents:
    """Scores, sets and inspections of one model, by name.

    Attributes:
        scores: by language.
        sets, inspections: by the names of their files.
        widths: address to number of neurons, of the projections that are shown; where no artifact says how many,
            None: of the addresses that occur in the inspections.
    """

    scores: Mapping[str, Scores]
    sets: Mapping[str, NeuronSet]
    inspections: Mapping[str, Inspection]
    widths: Mapping[str, int | None]

    @property
    def model(self) -> str:
        """Name of the model, as the first file gives it."""
        names: list[str | None] = [one.metadata.model.name for one in self.scores.values()]
        names += [one.model.name for one in self.sets.values()] + [one.model for one in self.inspections.values()]
        return portable(names[0]) or "a model without a name"

    @property
    def blocks(self) -> list[str]:
        """The blocks that are shown, in order."""
        return block_names(self.widths)

    @property
    def projections(self) -> list[str]:
        """The projections that are shown, in the usual order."""
        return sorted({split_address(address)[1] for address in self.widths}, key=PROJECTIONS.index)

    @property
    def relative(self) -> bool:
        """Whether all scores have logs of importance over the median, which are a version younger than the others."""
        return bool(self.scores) and all(one.mean_log is not None for one in self.scores.values())

    @property
    def compared(self) -> bool:
        """Whether languages can be compared, as `plnd.contrast` does."""
        return len(self.scores) > 1 and self.relative

    def scored(self, address: str) -> bool:
        """Whether scores say something of a projection."""
        return bool(self.scores) and address in next(iter(self.scores.values())).mean

    def measured(self, address: str) -> bool:
        """Whether they were all measured: of rows of queries and keys, not where detection knew an epsilon."""
        known = any(one.metadata.method.epsilon is not None for one in self.scores.values())
        return self.scored(address) and not (known and address.endswith((".q_proj", ".k_proj")))


def read(files: Sequence[str], projections: Sequence[str] | None = None) -> Contents:
    """Reads the files of a page.

    Args:
        files: scores, neuron sets, and what `plnd neuron --json` wrote, in any order.
        projections: show only these; all by default.

    Raises:
        PLNDError: if a file is damaged or of another kind, two have one name, they are of different models, scores
            cannot be compared with each other, or nothing is left to show.
        ModelMismatchError: if they are of different models.
    """
    scores: dict[str, Scores] = {}
    sets: dict[str, NeuronSet] = {}
    inspections: dict[str, Inspection] = {}
    for file in files:
        stem = Path(file).stem
        if file.endswith(INSPECTION_ENDING):
            _add(inspections, stem, load_inspection(file), file)
            continue
        artifact = load(file)
        if isinstance(artifact, Scores):
            _add(scores, artifact.metadata.language or stem, artifact, file)
        elif isinstance(artifact, NeuronSet):
            _add(sets, stem, artifact, file)
        else:
            raise PLNDError(
                f"{file}: {artifact.metadata.form.removeprefix('plnd.')}, expected scores, neurons, or JSON of plnd"
                " neuron"
            )
    return together(scores, sets, inspections, projections)


def together(
    scores: Mapping[str, Scores],
    sets: Mapping[str, NeuronSet],
    inspections: Mapping[str, Inspection],
    projections: Sequence[str] | None = None,
) -> Contents:
    """What was read already, held together. Arguments and errors are those of `Contents` and `read`."""
    check_settings(list(scores.values()))
    check_corpora(scores.values())
    models = {f"the scores of {name}": one.metadata.model for name, one in scores.items()}
    models |= {f"the neurons of {name}": one.model for name, one in sets.items()}
    first = next(iter(models.values()), None)
    for name, model in models.items():
        check_model(model, first or model, name)
    every: Mapping[str, int | None]
    every = _occurring(inspections.values()) if first is None else {**first.widths}
    for name, inspection in inspections.items():
        _check_inspection(name, inspection, every)
    blocks = 0 if first is None else first.blocks
    sizes = {address: width or 1 for address, width in every.items()}
    widths = {address: every[address] for address in chosen_addresses(sizes, blocks, projections, None)}
    if not widths:
        raise PLNDError("nothing to show: the model has none of these projections")
    return Contents(scores, sets, inspections, widths)


def _add(found: dict, name: str, one: object, file: str) -> None:
    if name in found:
        raise PLNDError(f"{file}: there is another {name} of its kind; give each language once, or rename the file")
    found[name] = one


def _occurring(inspections: Iterable[Inspection]) -> dict[str, None]:
    return {neuron.address: None for one in inspections for neuron in one.neurons}


def _check_inspection(name: str, inspection: Inspection, widths: Mapping[str, int | None]) -> None:
    """Refuses neurons that the model has not."""
    for neuron in inspection.neurons:
        width = widths.get(neuron.address, 0)
        if width is not None and neuron.index >= width:
            has = f"has {width:,} neurons there" if neuron.address in widths else "has no such projection"
            raise PLNDError(f"{name}{INSPECTION_ENDING}: neuron {neuron.name}, but the model of the artifacts {has}")


def as_indices(contents: Contents, name: str, address: str) -> tuple[np.ndarray, np.ndarray]:
    """A set's indices and importances at an address, both empty where it has none."""
    found = contents.sets[name]
    empty = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    return (found.indices[address], found.importance[address]) if address in found.indices else empty
