"""Parts of scores: what each shard of a detection found, as a file, and the scores that all of them make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as serialize
from torch import Tensor

from plnd.addresses import PROJECTIONS
from plnd.detection.config import mean_is_per_token
from plnd.detection.documents import Skipped
from plnd.detection.shards import Shard
from plnd.detection.tally import Tally
from plnd.detection.totals import NUMBERS, ROWS, Totals, at_least, mean_and_deviation
from plnd.errors import CorpusError, PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import SCORES, PartMetadata, ScoresMetadata
from plnd.neurons.scores import Scores

NON_FINITE = "non-finite importance"
"""Why a document that was measured is left out."""
_COUNTED = ("documents", "tokens", "skipped", "skipped_counts")
"""What a part says of its own documents."""
_WORDS = {
    "plnd": "plnd's version",
    "weights": "the digest of the model's weights",
    "corpus.sha256": "the digest of the corpus",
    "read": "the number of documents in the corpus",
}


@dataclass(frozen=True, eq=False)
class Part:
    """What one shard of a detection found (`plnd.detect_shard`); `merge` makes scores of all of them.

    Attributes:
        metadata: what the artifact will say, with this shard's own numbers of documents and tokens.
        totals: the numbers of every neuron over those documents; empty if there were none.
    """

    metadata: PartMetadata
    totals: Totals

    def __repr__(self) -> str:
        said = self.metadata
        about = f"language={said.language!r}, model={said.model.name!r}"
        return f"Part({self.shard} over {said.corpus.documents:,} documents, {about})"

    @classmethod
    def of(cls, said: Mapping[str, Any], tally: Tally) -> Part:
        """A part that says this of model, corpus and method, and has these numbers; what they tell is filled in."""
        corpus = said["corpus"]
        reasons = {reason: Skipped(corpus["skipped_counts"][reason], numbers)
                   for reason, numbers in corpus["skipped"].items()} | {NON_FINITE: tally.non_finite}  # fmt: skip
        reasons = {reason: skipped for reason, skipped in reasons.items() if skipped.count}
        counted = {
            "documents": tally.documents,
            "tokens": tally.tokens,
            "skipped": {reason: skipped.numbers for reason, skipped in reasons.items()},
            "skipped_counts": {reason: skipped.count for reason, skipped in reasons.items()},
        }
        sites = said["sites"] if tally.documents else []
        scored = {projection for site in sites for projection in site["projections"]}
        method = {**said["method"], "projections": [name for name in PROJECTIONS if name in scored]}
        said = {**said, "corpus": {**corpus, **counted}, "method": method, "sites": sites}
        return cls(PartMetadata.of(said), tally.totals if sites else Totals.empty({}))

    @property
    def shard(self) -> Shard:
        """Which part of how many it is."""
        return Shard(self.metadata.shard.number, self.metadata.shard.count)

    @property
    def tally(self) -> Tally:
        """Its numbers, with those of its documents."""
        corpus = self.metadata.corpus
        left_out = Skipped(corpus.skipped_counts.get(NON_FINITE, 0), list(corpus.skipped.get(NON_FINITE, ())))
        return Tally(corpus.documents, corpus.tokens, left_out, self.totals)

    # scores

    def scores(self) -> Scores:
        """The scores of the documents that were scored.

        Raises:
            CorpusError: if there were none.
        """
        said = self.metadata
        if not said.corpus.documents:
            skipped = ", ".join(f"{count} {reason}" for reason, count in self._skipped().items())
            raise CorpusError(f"{said.corpus.source or 'corpus'}: no document to score among {said.read} ({skipped})")
        parts: tuple[dict[str, np.ndarray], ...] = ({}, {}, {}, {}, {})
        for site, (_, values) in zip(said.sites, self.totals.sites(), strict=True):
            block, _, kind = site.name.rpartition(".")
            numbers = self._numbers(kind, values.cpu())
            for projection in site.projections:
                for part, vector in zip(parts, numbers, strict=True):
                    part[f"{block}.{projection}"] = vector.numpy()
        minimum, mean, worst_rank, mean_log, std_log = parts
        return Scores(minimum, mean, worst_rank, self._scores_metadata(), mean_log, std_log)

    def _skipped(self) -> dict[str, int]:
        """How many documents were left out, by what the error says of it."""
        counts, minimum = self.metadata.corpus.skipped_counts, self.metadata.method["min_length"]
        short = f"shorter than {minimum} tokens"
        return {short: counts.get(short, 0), f"with {NON_FINITE}": counts.get(NON_FINITE, 0)}

    def _numbers(self, kind: str, values: Tensor) -> tuple[Tensor, ...]:
        """Minimum, mean, worst rank, mean and standard deviation of logs of a site, [width], from its totals.

        All are float32, the rank is int32.
        """
        corpus, method = self.metadata.corpus, self.metadata.method
        minimum, worst_rank, total, logs, squares = values
        mean_log, std_log = mean_and_deviation(logs, squares, corpus.documents)
        if method.epsilon is not None and kind in ("query", "key"):
            kept = at_least(method.epsilon, minimum)
            minimum, total = minimum.where(kept, 0), total.where(kept, 0)
            worst_rank = torch.full_like(worst_rank, len(worst_rank) - 1)
            mean_log, std_log = torch.zeros_like(mean_log), torch.zeros_like(std_log)
        mean = total / (corpus.tokens if mean_is_per_token(self.metadata.method.name) else corpus.documents)
        return minimum.float(), mean.float(), worst_rank.int(), mean_log.float(), std_log.float()

    def _scores_metadata(self) -> ScoresMetadata:
        own = PartMetadata.model_fields.keys() - ScoresMetadata.model_fields.keys()
        said = {name: value for name, value in self.metadata.items() if name not in own}
        return ScoresMetadata.of({**said, "format": SCORES, "version": ScoresMetadata.newest})

    # files

    def save(self, path: str | Path) -> str:
        """Writes the part in one step; returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    def to_bytes(self) -> bytes:
        """The part as bytes."""
        metadata = {artifact.METADATA_KEY: artifact.to_json(self.metadata)}
        return serialize({"values": self.totals.values.cpu().contiguous().numpy()}, metadata=metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of the file that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Part:
        """Reads a part, trusting nothing.

        Raises:
            ArtifactError: one line that says what is wrong with the file, and what to do.
        """
        path = Path(path)
        with artifact.opened(path) as stream:
            metadata = artifact.check_metadata(path, artifact.metadata_of(path, stream), PartMetadata)
            artifact.check_scores(path, metadata)
            if set(stream.keys()) != {"values"} or stream.get_slice("values").get_dtype() != "F64":
                raise artifact.bad(path, "expected one tensor, `values`, of float64; make this part again")
            values = torch.from_numpy(stream.get_tensor("values"))
        for problem in _problems(metadata, values):
            raise artifact.bad(path, f"{problem}; make this part again")
        return cls(metadata, Totals({site.name: site.width for site in metadata.sites}, values))


def merge(parts: Iterable[Part | str | Path]) -> Scores:
    """The scores of a run from all its parts, in any order; one part is in memory at a time.

    They are those of the run without shards: sums of totals do not depend on the order (`Totals`).

    Args:
        parts: of each shard one, or the file where it is.

    Raises:
        PLNDError: if one is missing, there twice, or of another run (other model, corpus, settings or version).
        ArtifactError: if a file is no part, or damaged.
        CorpusError: if no document was scored.
    """
    if isinstance(parts, str | Path | Part):
        raise PLNDError(f"{parts}: one part, expected a list of all of them")
    names: dict[int, str] = {}
    first, measured = None, None
    tally = Tally()
    for given in parts:
        part = given if isinstance(given, Part) else Part.load(given)
        name = f"part {part.shard}" if isinstance(given, Part) else str(given)
        first = first or (name, part.metadata)
        measured = measured or ((name, part.metadata) if part.metadata.sites else None)
        for other in filter(None, (first, measured)):
            _check_same_run((name, part.metadata), other)
        if part.shard.number in names:
            raise PLNDError(f"{name}: shard {part.shard}, and so is {names[part.shard.number]}; give each once")
        names[part.shard.number] = name
        tally.merge(part.tally)
    if first is None:
        raise PLNDError("no parts, expected all those of one run")
    _check_all_there(names, first[1].shard.count)
    return Part.of((measured or first)[1], tally).scores()


def _check_same_run(one: tuple[str, PartMetadata], other: tuple[str, PartMetadata]) -> None:
    """Refuses a part of another run than the other's, both with their names, and says what differs."""
    (name, mine), (first, theirs) = one, other
    counts = mine.shard.count, theirs.shard.count
    if counts[0] != counts[1]:
        raise PLNDError(f"{name}: one of {counts[0]} shards, but {first} of {counts[1]}; merge the parts of one run")
    found, expected = _of_the_run(mine), _of_the_run(theirs)
    for field in sorted(found.keys() | expected.keys(), key=lambda field: (field.startswith("model.widths"), field)):
        if found.get(field) != expected.get(field):
            what, values = _WORDS.get(field, field), (found.get(field), expected.get(field))
            raise PLNDError(
                f"{name}: {what} is {values[0]!r:.70}, but {values[1]!r:.70} in {first}; merge the parts of one run"
            )
    if mine.sites and theirs.sites and mine.sites != theirs.sites:
        raise PLNDError(f"{name}: measured elsewhere in the model than {first}; merge the parts of one run")


def _of_the_run(metadata: PartMetadata) -> dict[str, Any]:
    """What all parts of a run say, each field by its full name."""
    corpus, method = metadata.corpus, metadata.method
    common = {name: value for name, value in corpus.items() if name not in _COUNTED}
    common["skipped"] = {reason: n for reason, n in corpus.counts_skipped().items() if reason != NON_FINITE}
    settings = {name: value for name, value in method.items() if name != "projections"}
    said = {name: value for name, value in metadata.items() if name not in ("shard", "sites")}
    return _flat({**said, "corpus": common, "method": settings})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {full: inner for key in value for full, inner in _flat(value[key], f"{name}.{key}".lstrip(".")).items()}


def _check_all_there(names: Mapping[int, str], count: int) -> None:
    """Refuses to merge less than all parts."""
    missing = [str(Shard(number, count)) for number in range(1, count + 1) if number not in names]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise PLNDError(f"shard {', '.join(missing[:8])}{more}: no part of it; detect it, and merge all {count} parts")


def _problems(metadata: PartMetadata, values: Tensor) -> Iterator[str]:
    """What in a part cannot be, in words."""
    shard, documents = metadata.shard, metadata.corpus.documents
    if not 1 <= shard.number <= shard.count:
        yield f"metadata says shard {shard.number}/{shard.count}"
    for site in metadata.sites:
        block, _, _ = site.name.rpartition(".")
        for projection in site.projections:
            if metadata.model.widths.get(f"{block}.{projection}") != site.width:
                yield f"metadata gives {site.name!r:.60} {site.width} neurons, but {projection!r:.60} has others"
    neurons = sum(site.width for site in metadata.sites)
    if values.shape != (ROWS, neurons):
        yield f"values of shape {list(values.shape)}, expected [{ROWS}, {neurons}]"
    elif bool(documents) != bool(neurons):
        yield f"{documents} documents and {neurons} neurons"
    elif neurons:
        minimum, worst_rank, total, _, squares = values[:NUMBERS]
        highest = torch.tensor([site.width for site in metadata.sites]).repeat_interleave(
            torch.tensor([site.width for site in metadata.sites])
        )
        if not torch.isfinite(values).all() or min(map(torch.min, (minimum, worst_rank, total, squares))) < 0:
            yield "values that are negative or not finite"
        elif (worst_rank >= highest).any() or (worst_rank != worst_rank.round()).any():
            yield "ranks that no neuron can have"
