"""A set of neurons: "block.projection" to ascending indices, with the algebra of sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plnd import notebook
from plnd.addresses import PROJECTIONS, address_order, numbered, split_address
from plnd.errors import PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import NeuronsMetadata, UnitsDescription
from plnd.model_description import ModelDescription, check_model
from plnd.neurons.random_draw import draw, shuffled
from plnd.neurons.regions import Regions
from plnd.neurons.selection import chosen_addresses, listed, sites
from plnd.neurons.units import is_made_of, neurons_of, whole_units
from plnd.numbers import is_whole

_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons of one model, each with its importance.

    A set in the sense of mathematics: `a | b` has the neurons of either, `a & b` those of both, `a - b` those of `a`
    that `b` has not, `a == b` compares; `len(a)` counts. Nothing changes a set, every operation makes another, which
    records in `metadata.operands` what was done. Sets of another model are refused.

    Example:
        >>> zh, en, ru = (plnd.load(f"{x}.safetensors") for x in ("zh", "en", "ru"))
        >>> own = zh - (en | ru)            # important for Chinese, and for neither of the others
        >>> shared = zh & en & ru           # important for all three
        >>> zh == (zh & en) | (zh - en)
        True

    Attributes:
        indices: `"{block}.{projection}"` to an ascending int32 vector; addresses without neurons are left out.
        importance: the same addresses to float32 vectors: the smallest importance over the corpus.
        metadata: what the artifact says of model, language, corpus, method and rule (docs/artifacts.md). Or a
            mapping that says some of it, the model at least.

    Raises:
        PLNDError: if the metadata lacks the model, or has a field of another type.
    """

    indices: _Arrays
    importance: _Arrays
    metadata: NeuronsMetadata

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", NeuronsMetadata.completed(self.metadata))
        object.__setattr__(self, "indices", {name: v for name, v in self.indices.items() if len(v)})
        object.__setattr__(self, "importance", {name: self.importance[name] for name in self.indices})

    def __repr__(self) -> str:
        counts = {projection: count for projection, count in self.counts().items() if count}
        said = f"language={self.metadata.language!r}, model={self.model.name!r}"
        return f"NeuronSet({len(self):,} of {self.total:,} neurons, {said}, by projection: {counts})"

    def _repr_html_(self) -> str:
        said = self.metadata
        history = [" ".join(filter(None, (one.operation, one.language))).replace("_", " ") for one in said.operands]
        control = said.control and f"{said.control.name}, seed {said.control.get('seed')}"
        facts: dict[str, Any] = {"language": said.language, "model": self.model}
        facts |= {"method": said.method.name, "rule": said.rule.name, "then": ", ".join(history), "control": control}
        if said.units is not None:
            facts["units"] = f"{said.units.number:,} whole ({said.units.unit})"
        where = {name: len(indices) for name, indices in self.indices.items()}
        title = f"NeuronSet: {len(self):,} of {self.total:,} neurons ({len(self) / self.total:.3%})"
        return notebook.card(title, facts, notebook.block_map(where, self.widths))

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
    def model(self) -> ModelDescription:
        """The base model's description, with name, revision, model_type, blocks, widths."""
        return self.metadata.model

    @property
    def widths(self) -> dict[str, int]:
        """Number of neurons, in the whole model, of every address."""
        return self.model.widths

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
        """The neurons of either set; where both have one, with this set's importance."""
        return self._combined(other, "union", np.union1d)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        """The neurons that both sets have, with this set's importance."""
        return self._combined(other, "intersect", np.intersect1d)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        """The neurons of this set that the other one has not."""
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
        projections: str | Iterable[str] | None = None,
        regions: Regions | None = None,
        where: Callable[[int, str], bool] | None = None,
    ) -> NeuronSet:
        """Only the neurons of these projections and regions, and for whose (block, projection) `where` is true."""
        projections = listed(projections)
        chosen = set(chosen_addresses(self.widths, self.model.blocks, projections, regions))
        if where is not None:
            chosen = {a for a in chosen if where(*numbered(a))}
        described = regions.description() if regions else None
        record = {"operation": "restrict", "projections": projections, "regions": described}
        if where is not None:
            record["where"] = "a condition in Python"
        return self._replaced({name: v for name, v in self.indices.items() if name in chosen}, record)

    def whole(self) -> NeuronSet:
        """With both rows, of gate and of up, and the column of down of every feed-forward neuron of which it has any.

        A neuron's importance is then the same in all of them: the largest that it had.
        """
        indices, importance = dict(self.indices), dict(self.importance)
        for addresses in sites(self.widths):
            parts = [(self.indices[name], self.importance[name]) for name in addresses if name in self.indices]
            if not parts or len({self.widths[name] for name in addresses}) > 1:
                continue
            largest = np.full(self.widths[addresses[0]], -1, dtype=np.float32)
            for found, numbers in parts:
                largest[found] = np.maximum(largest[found], numbers)
            every = np.flatnonzero(largest >= 0).astype(np.int32)
            indices |= dict.fromkeys(addresses, every)
            importance |= dict.fromkeys(addresses, largest[every])
        return NeuronSet(indices, importance, self.metadata)._with(operands=self._operands({"operation": "whole"}))

    def top(self, n: int) -> NeuronSet:
        """The n most important neurons of the whole set (ties: the first address, the lowest index)."""
        if not is_whole(n) or n < 0:
            raise PLNDError(f"top {n!r}: expected a number of neurons, 0 or more")
        values = [(-float(i), address_order(name), int(k), name) for name, ks in self.items()
                  for k, i in zip(ks, self.importance[name], strict=True)]  # fmt: skip
        kept: dict[str, list[int]] = {}
        for _, _, k, name in sorted(values)[: int(n)]:
            kept.setdefault(name, []).append(k)
        indices = {name: np.array(sorted(ks), dtype=np.int32) for name, ks in kept.items()}
        return self._replaced(indices, {"operation": "top", "n": int(n)})

    def random_like(self, seed: int) -> NeuronSet:
        """As many neurons of each block and projection, drawn at random from all neurons there: the scientific control.

        A feed-forward neuron that the set lists several times, as a row of gate or up and as a column of down, is drawn
        once and listed as often: any one of the three switches it off, so that three draws would switch off more
        neurons than the set does. Of a set of whole experts or heads as many of these are drawn in each block, so that
        the neurons lie together as the set's do. The same seed draws the same on every machine
        (`plnd.neurons.random_draw.draw`).
        """
        if not is_whole(seed):
            raise PLNDError(f"seed={seed!r}: expected a whole number")
        seed, units = int(seed), self.metadata.units
        if units is None:
            drawn: dict[str, np.ndarray] = {}
            for addresses in sites(name for name, _ in self.items()):
                same = len({self.widths[name] for name in addresses}) == 1  # else of no model: a file may say so
                for together in [addresses] if same else [[name] for name in addresses]:
                    drawn |= self._drawn_together(together, seed)
        else:
            drawn = {name: self._drawn_units(units, name, seed) for name in self.indices}
        control = {"name": "random", "seed": seed} | ({} if units is None else {"unit": units.unit})
        return NeuronSet(drawn, _zeros(drawn), self.metadata)._with(control=control)

    def _drawn_together(self, addresses: list[str], seed: int) -> dict[str, np.ndarray]:
        """Neurons drawn at random for addresses that have the same ones, each listed where one of the set's is."""
        every = np.unique(np.concatenate([self.indices[name] for name in addresses]))
        order = shuffled(self.widths[addresses[-1]], seed, addresses[-1])
        return {name: np.sort(order[np.searchsorted(every, self.indices[name])]).astype(np.int32) for name in addresses}

    def _drawn_units(self, units: UnitsDescription, name: str, seed: int) -> np.ndarray:
        """The neurons at one address of units drawn at random, the same ones at every address of a block."""
        block = split_address(name)[0]
        members = draw(self.model.units[name], len(units.members[block]), seed, units.unit, block)
        return neurons_of(self.model, name, members)

    # relation to a model

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model (`plnd.models.layout.Layout.description`) of another family, number of blocks or width.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        check_model(self.model, description, "neurons")

    def check_some(self, purpose: str) -> None:
        """Refuses a set without neurons.

        Raises:
            PLNDError: saying `purpose`, what there is nothing for.
        """
        if not len(self):
            raise PLNDError(f"no neuron is left in the set, so there is nothing to {purpose}: choose more of them")

    # files

    def save(self, path: str | Path) -> str:
        """Writes the neurons artifact in one step (a temporary file beside it, then a rename); returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """Reads a neurons artifact, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        with artifact.opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: artifact.Opened) -> NeuronSet:
        """The same of a file that is open."""
        path = stream.path
        metadata, tensors = artifact.read(stream, NeuronsMetadata)
        widths = metadata.model.widths
        indices, importance = {}, {}
        addresses = {key.removesuffix(".importance") for key in tensors} & widths.keys()
        artifact.check_names(path, tensors, addresses | {f"{name}.importance" for name in addresses})
        for name in sorted(addresses):
            indices[name], importance[name] = tensors[name], tensors[f"{name}.importance"]
            artifact.check_indices(path, name, indices[name], widths[name])
            if (np.diff(indices[name]) <= 0).any():
                raise artifact.bad(path, f"the indices of {name} are not ascending")
            artifact.check_importance(path, f"{name}.importance", importance[name], len(indices[name]))
        if (units := metadata.units) is not None and not is_made_of(units, indices, metadata.model):
            raise artifact.bad(path, f"metadata says that it is made of whole units ({units.unit}), which it is not")
        return cls(indices, importance, metadata)

    def to_bytes(self) -> bytes:
        """The neurons artifact as bytes, the same for equal sets on every machine."""
        tensors = dict(self.indices) | {f"{name}.importance": values for name, values in self.importance.items()}
        return artifact.encode(tensors, self.metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    # helpers

    def _combined(self, other: NeuronSet, operation: str, combine: Callable[..., np.ndarray]) -> NeuronSet:
        check_set(other)
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

    def _operands(self, *further: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What was done to this set since it was selected, and what is being done now."""
        return [*self.metadata.operands, *further]

    def _with(self, **metadata: Any) -> NeuronSet:
        """Another set, so of the newest version; of whole units only as long as it still is."""
        said: dict[str, Any] = {**self.metadata, **metadata, "version": NeuronsMetadata.newest}
        if (units := said.pop("units", None)) is not None:
            found = whole_units(self.indices, self.model, units.unit, units.projections)
            said |= {} if found is None else {"units": found}
        return NeuronSet(self.indices, self.importance, NeuronsMetadata.of(said))


def check_set(found: Any) -> None:
    """Refuses what is not a set of neurons where one is expected: a file's name, or scores that no rule was applied to.

    Raises:
        PLNDError: saying how to come by one.
    """
    if not isinstance(found, NeuronSet):
        what = found if isinstance(found, str | Path) else type(found).__name__
        raise PLNDError(
            f"{what}: expected a NeuronSet; read a file with plnd.NeuronSet.load(…), choose from scores with .select(…)"
        )


def _operand(operation: str, neurons: NeuronSet) -> dict[str, Any]:
    return {
        "operation": operation,
        "language": neurons.metadata.language,
        "neurons": len(neurons),
        "sha256": neurons.digest,
    }


def _zeros(indices: _Arrays) -> dict[str, np.ndarray]:
    return {name: np.zeros(len(v), dtype=np.float32) for name, v in indices.items()}
