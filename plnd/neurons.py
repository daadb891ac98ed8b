"""A set of neurons: "block.projection" to ascending indices, with the algebra of sets. Knows no models and no files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plnd.errors import ModelMismatchError, PLNDError
from plnd.families import PROJECTIONS, block_order, split_address
from plnd.regions import Regions

_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons of one model, each with its importance.

    Attributes:
        indices: `"{block}.{projection}"` to an ascending int32 vector; addresses without neurons are left out.
        importance: the same addresses to float32 vectors: the smallest importance over the corpus.
        metadata: what the artifact says of model, language, corpus, method and rule (README, «Artifact format»).
    """

    indices: _Arrays
    importance: _Arrays
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", {name: v for name, v in self.indices.items() if len(v)})
        object.__setattr__(self, "importance", {name: self.importance[name] for name in self.indices})

    # what is in it

    def __len__(self) -> int:
        return sum(map(len, self.indices.values()))

    def __eq__(self, other: object) -> bool:
        """Same model widths and same neurons; importance and provenance do not count."""
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return (
            self.widths == other.widths
            and self.indices.keys() == other.indices.keys()
            and all(np.array_equal(v, other.indices[name]) for name, v in self.indices.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """(address, indices) in the order of blocks and projections."""
        yield from sorted(self.indices.items(), key=lambda item: address_order(item[0]))

    @property
    def model(self) -> dict[str, Any]:
        """The base model's description: name, revision, model_type, blocks, widths."""
        return self.metadata["model"]

    @property
    def widths(self) -> dict[str, int]:
        """Number of neurons, in the whole model, of every address."""
        return self.model["widths"]

    @property
    def total(self) -> int:
        """Number of neurons that the whole model has."""
        return sum(self.widths.values())

    def counts(self) -> dict[str, int]:
        """Number of neurons of this set by projection, in the usual order."""
        counts = dict.fromkeys(sorted({split_address(a)[1] for a in self.widths}, key=PROJECTIONS.index), 0)
        for name, indices in self.items():
            counts[name.rsplit(".", 1)[1]] += len(indices)
        return counts

    # algebra

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, "union", np.union1d)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, "intersect", np.intersect1d)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, "minus", np.setdiff1d)

    def minus_shared(self, others: Iterable[NeuronSet]) -> NeuronSet:
        """Without the neurons that this set and all of `others` have in common."""
        others = list(others)
        if not others:
            raise PLNDError("minus_shared needs at least one other set")
        shared = self
        for other in others:
            shared = shared & other
        result = self - shared
        return result._with(operands=self._operands(*(_operand("minus_shared", other) for other in others)))

    def restrict(
        self,
        *,
        projections: Iterable[str] | None = None,
        regions: Regions | None = None,
        where: Callable[[int, str], bool] | None = None,
    ) -> NeuronSet:
        """Only the neurons of these projections and regions, and for whose (block, projection) `where` is true."""
        projections = None if projections is None else list(projections)
        chosen = set(chosen_addresses(self.widths, self.model["blocks"], projections, regions))
        if where is not None:
            chosen = {a for a in chosen if where(*_numbered(a))}
        described = regions.description() if regions else None
        record = {"operation": "restrict", "projections": projections, "regions": described}
        if where is not None:
            record["where"] = "a condition in Python"
        return self._replaced({name: v for name, v in self.indices.items() if name in chosen}, record)

    def top(self, n: int) -> NeuronSet:
        """The n most important neurons of the whole set (ties: the first address, the lowest index)."""
        if n < 0:
            raise PLNDError(f"top {n}: expected a number of neurons, 0 or more")
        values = [(-float(i), address_order(name), int(k), name) for name, ks in self.items()
                  for k, i in zip(ks, self.importance[name], strict=True)]  # fmt: skip
        kept: dict[str, list[int]] = {}
        for _, _, k, name in sorted(values)[:n]:
            kept.setdefault(name, []).append(k)
        indices = {name: np.array(sorted(ks), dtype=np.int32) for name, ks in kept.items()}
        return self._replaced(indices, {"operation": "top", "n": n})

    def random_like(self, seed: int) -> NeuronSet:
        """As many neurons of each block and projection, drawn at random from all neurons there: the scientific control.

        The same seed draws the same neurons on every machine: numpy keeps the bits of a generator, though not the
        methods that stand on them, so the neurons are put in the order of one random number each.
        """
        drawn = {}
        for name, indices in self.items():
            key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
            order = np.random.PCG64(key).random_raw(self.widths[name]).argsort(kind="stable")
            drawn[name] = np.sort(order[: len(indices)]).astype(np.int32)
        return NeuronSet(drawn, _zeros(drawn), {**self.metadata, "control": {"name": "random", "seed": seed}})

    # relation to a model

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model (`plnd.layout.Layout.description`) of another family, number of blocks or width.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        check_model(self.model, description, "neurons")

    # files

    def save(self, path: str | Path) -> str:
        """Writes the neurons artifact; returns its SHA-256. See `plnd.artifacts.save_neurons`."""
        from plnd.artifacts import save_neurons

        return save_neurons(self, path)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """Reads a neurons artifact, trusting nothing. See `plnd.artifacts.load_neurons`."""
        from plnd.artifacts import load_neurons

        return load_neurons(path)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        from plnd.artifacts import neurons_bytes

        return hashlib.sha256(neurons_bytes(self)).hexdigest()

    # helpers

    def _combined(self, other: NeuronSet, operation: str, combine: Callable[..., np.ndarray]) -> NeuronSet:
        check_model(other.model, self.model, "the other set")
        empty = np.empty(0, dtype=np.int32)
        names = sorted(self.indices.keys() | other.indices.keys(), key=address_order)
        indices = {
            name: combine(self.indices.get(name, empty), other.indices.get(name, empty)).astype(np.int32)
            for name in names
        }
        importance = {name: self._importance_of(name, v, other) for name, v in indices.items()}
        return NeuronSet(indices, importance, self.metadata)._with(operands=self._operands(_operand(operation, other)))

    def _importance_of(self, name: str, indices: np.ndarray, other: NeuronSet) -> np.ndarray:
        """Importance of `indices`: this set's own where it has them, the other's elsewhere."""
        result = np.zeros(len(indices), dtype=np.float32)
        for source in (other, self):
            if name in source.indices:
                found, here, there = np.intersect1d(indices, source.indices[name], return_indices=True)
                result[here] = source.importance[name][there]
        return result

    def _replaced(self, indices: _Arrays, record: dict[str, Any]) -> NeuronSet:
        importance = {name: self._importance_of(name, v, self) for name, v in indices.items()}
        return NeuronSet(indices, importance, self.metadata)._with(operands=self._operands(record))

    def _operands(self, *further: dict[str, Any]) -> list[dict[str, Any]]:
        """What was done to this set since it was selected, and what is being done now."""
        return [*self.metadata.get("operands", ()), *further]

    def _with(self, **metadata: Any) -> NeuronSet:
        return NeuronSet(self.indices, self.importance, {**self.metadata, **metadata})


def address_order(address: str) -> tuple[tuple[int, int, int], int]:
    """Sorts addresses by block, then in the usual order of projections."""
    block, projection = split_address(address)
    return block_order(block), PROJECTIONS.index(projection)


def _numbered(address: str) -> tuple[int, str]:
    """Number of the block and projection of an address.

    Raises:
        PLNDError: if the model has an encoder and a decoder, whose blocks have no numbers of one kind.
    """
    block, projection = split_address(address)
    if not block.isdigit():
        raise PLNDError(
            f"{address}: regions are defined for models whose blocks follow each other, not for block {block}"
        )
    return int(block), projection


def chosen_addresses(
    widths: Mapping[str, int], blocks: int, projections: Iterable[str] | None, regions: Regions | None
) -> list[str]:
    """The addresses of some projections and regions, in order.

    Raises:
        PLNDError: if a projection is unknown, or the regions do not fit into the model.
    """
    projections = None if projections is None else list(projections)
    for name in projections or ():
        if name not in PROJECTIONS:
            raise PLNDError(f"unknown projection {name!r}: expected one of {', '.join(PROJECTIONS)}")
    if regions is not None:
        regions.check(blocks)
    chosen = []
    for address in sorted(widths, key=address_order):
        if projections is not None and split_address(address)[1] not in projections:
            continue
        if regions is None or regions.contains(*_numbered(address), blocks):
            chosen.append(address)
    return chosen


def check_model(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Compares two model descriptions by family, number of blocks and widths.

    Raises:
        ModelMismatchError: naming the first difference.
    """

    def short(model: Mapping[str, Any]) -> str:
        return f"{model['model_type']} with {model['blocks']} blocks ({model['name']})"

    advice = "detect again on this model, or use the model that they were made for"
    if (found["model_type"], found["blocks"]) != (expected["model_type"], expected["blocks"]):
        raise ModelMismatchError(f"{what}: made for {short(found)}, but the model is {short(expected)}: {advice}")
    for name in sorted(found["widths"].keys() | expected["widths"].keys()):
        a, b = found["widths"].get(name), expected["widths"].get(name)
        if a != b:
            found_here = f"whose {name} has {a or 'no'} neurons, but this one's has {b or 'no'}"
            raise ModelMismatchError(f"{what}: made for a model {found_here}: {advice}")


def _operand(operation: str, neurons: NeuronSet) -> dict[str, Any]:
    return {
        "operation": operation,
        "language": neurons.metadata.get("language"),
        "neurons": len(neurons),
        "sha256": neurons.digest,
    }


def _zeros(indices: _Arrays) -> dict[str, np.ndarray]:
    return {name: np.zeros(len(v), dtype=np.float32) for name, v in indices.items()}
