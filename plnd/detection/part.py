"""Parts of scores: what each shard of a detection found, as a file, and the scores that all of them make."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plnd.detection.config import mean_is_per_token
from plnd.detection.documents import Skipped, combined_digest
from plnd.detection.shards import Shard
from plnd.detection.tally import Tally
from plnd.detection.totals import NUMBERS, ROWS, Totals, at_least, mean_and_deviation
from plnd.errors import CorpusError, PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.io.metadata import SCORES, CorpusDescription, PartMetadata, ScoresMetadata, SectionDescription
from plnd.neurons.scores import Scores
from plnd.numbers import is_whole

NON_FINITE = "non-finite importance"
"""Why a document that was measured is left out."""
_ADVICE = "merge the parts of one run"
_WORDS = {
    "plnd": "plnd's version",
    "weights": "the digest of the model's weights",
    "sha256": "the digest of the corpus",
    "read": "the number of documents in the corpus",
    "short": "what is too short in the corpus",
}


@dataclass(frozen=True, eq=False)
class Part:
    """What one shard of a detection found (`plnd.detect_shard`); `merge` makes scores of all of them.

    Attributes:
        metadata: what the artifact will say, with this shard's own numbers of documents and tokens; what was skipped,
            and of which tokens the corpus is, is said section by section.
        totals: the numbers of every neuron over those documents; empty if there were none.
    """

    metadata: PartMetadata
    totals: Totals

    def __repr__(self) -> str:
        said = self.metadata
        about = f"language={said.language!r}, model={said.model.name!r}"
        return f"Part({self.shard} over {said.corpus.documents:,} documents, {about})"

    @property
    def shard(self) -> Shard:
        """Which part of how many it is."""
        return Shard(self.metadata.shard.number, self.metadata.shard.count)

    # scores

    def scores(self) -> Scores:
        """The scores of the documents that were scored.

        Raises:
            CorpusError: if there were none.
        """
        said, corpus = self.metadata, self._corpus()
        if not corpus.documents:
            counts = corpus.counts_skipped()
            raise CorpusError(
                f"{corpus.source or 'corpus'}: no document to score among {sum(each.read for each in said.sections)}"
                f" ({counts.get(_short(said), 0)} {_short(said)}, {counts.get(NON_FINITE, 0)} with {NON_FINITE})"
            )
        parts: tuple[dict[str, np.ndarray], ...] = ({}, {}, {}, {}, {})
        for site, (_, values) in zip(said.sites, self.totals.sites(), strict=True):
            block, _, kind = site.name.rpartition(".")
            numbers = self._numbers(kind, values.cpu())
            for projection in site.projections:
                for part, vector in zip(parts, numbers, strict=True):
                    part[f"{block}.{projection}"] = vector.numpy()
        minimum, mean, worst_rank, mean_log, std_log = parts
        return Scores(minimum, mean, worst_rank, self._scores_metadata(), mean_log, std_log)

    def _corpus(self) -> CorpusDescription:
        """The corpus of all sections, whose documents are numbered from one to the next."""
        reasons = {_short(self.metadata): Skipped(), NON_FINITE: Skipped()}
        begin = 0
        for section in self.metadata.sections:
            for skipped, more in zip(reasons.values(), (section.short, section.non_finite), strict=True):
                skipped.merge(Skipped(more.count, [begin + number for number in more.numbers]))
            begin += section.read
        met = {reason: skipped for reason, skipped in reasons.items() if skipped.count}
        return self.metadata.corpus.replaced(
            sha256=combined_digest([section.sha256 for section in self.metadata.sections]),
            skipped={reason: skipped.numbers for reason, skipped in met.items()},
            skipped_counts={reason: skipped.count for reason, skipped in met.items()},
        )

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
        form = {"format": SCORES, "version": ScoresMetadata.newest}
        return ScoresMetadata.of({**said, **form, "corpus": self._corpus()})

    # files

    def save(self, path: str | Path) -> str:
        """Writes the part in one step; returns its SHA-256."""
        return write_bytes(self.to_bytes(), path)

    def to_bytes(self) -> bytes:
        """The part as bytes."""
        return artifact.encode({"values": self.totals.values.cpu().contiguous().numpy()}, self.metadata)

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
            metadata = artifact.check_metadata(path, stream.metadata, PartMetadata)
            artifact.check_scores(path, metadata)
            place = stream.get_slice("values") if stream.keys() == ["values"] else None
            if place is None or place.dtype != "F64":
                raise artifact.bad(path, "expected one tensor, `values`, of float64; make this part again")
            if math.prod(place.shape) > ROWS * sum(metadata.model.widths.values()):
                raise artifact.bad(path, "holds more numbers than its metadata has neurons for; make this part again")
            values = torch.tensor(stream.get_tensor("values"))
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
    whole: _Whole | None = None
    for given in parts:
        part = given if isinstance(given, Part) else Part.load(given)
        whole = whole or _Whole(part.metadata)
        whole.add(f"part {part.shard}" if isinstance(given, Part) else str(given), part)
    if whole is None:
        raise PLNDError("no parts, expected all those of one run")
    return whole.scores()


class _Whole:
    """The parts of one run so far."""

    def __init__(self, first: PartMetadata) -> None:
        self.metadata = first
        self.tally = Tally()
        self.names: dict[int, str] = {}  # shard to name of its part
        self.sections: dict[int, tuple[str, SectionDescription]] = {}  # number to the first part that has read it
        self.measured: tuple[str, PartMetadata] | None = None  # the first part that had documents

    def add(self, name: str, part: Part) -> None:
        """Takes in a part.

        Raises:
            PLNDError: if it is of another run, or there already.
        """
        said = part.metadata
        first = next(iter(self.names.values()), name)
        if said.shard.count != self.metadata.shard.count:
            counts = f"one of {said.shard.count} shards, but {first} of {self.metadata.shard.count}"
            raise PLNDError(f"{name}: {counts}; {_ADVICE}")
        _check_equal(name, _of_the_run(said), first, _of_the_run(self.metadata))
        if said.shard.number in self.names:
            raise PLNDError(f"{name}: shard {part.shard}, and so is {self.names[said.shard.number]}; give each once")
        if said.sites:
            self.measured = self.measured or (name, said)
            _check_equal(name, _of_what_was_measured(said), self.measured[0], _of_what_was_measured(self.measured[1]))
        self._add_sections(name, said)
        self.names[said.shard.number] = name
        self.tally.merge(Tally(said.corpus.documents, said.corpus.tokens, totals=part.totals))

    def _add_sections(self, name: str, said: PartMetadata) -> None:
        for section in said.sections:
            if section.number not in self.sections:
                self.sections[section.number] = name, section
                continue
            first, found = self.sections[section.number]
            _check_equal(name, _of_the_section(section), first, _of_the_section(found))
            left_out = Skipped(**found.non_finite)
            left_out.merge(Skipped(**section.non_finite))
            self.sections[section.number] = first, found.replaced(non_finite=asdict(left_out))

    def scores(self) -> Scores:
        """Those of the run.

        Raises:
            PLNDError: if parts are missing.
            CorpusError: if no document was scored.
        """
        count, sections = self.metadata.shard.count, self.metadata.section_count
        if missing := count - len(self.names):
            first = islice((n for n in range(1, count + 1) if n not in self.names), 8)
            named = ", ".join(str(Shard(number, count)) for number in first)
            more = f" and {missing - 8} more" if missing > 8 else ""
            raise PLNDError(f"shard {named}{more}: no part of it; detect it, and merge all {count} parts")
        if len(self.sections) != sections:
            raise PLNDError(
                f"{len(self.sections)} of {sections} sections of the corpus were read; detect all parts again"
            )
        said = self.metadata if self.measured is None else self.measured[1]
        corpus = said.corpus.replaced(documents=self.tally.documents, tokens=self.tally.tokens)
        in_order = [section for _, (_, section) in sorted(self.sections.items())]
        return Part(said.replaced(corpus=corpus, sections=in_order), self.tally.totals).scores()


def _short(metadata: PartMetadata) -> str:
    return f"shorter than {metadata.method['min_length']} tokens"


def _check_equal(name: str, found: Mapping[str, Any], first: str, expected: Mapping[str, Any]) -> None:
    """Refuses a part that says otherwise than another, both with their names."""
    for field in sorted(found.keys() | expected.keys(), key=lambda field: (field.startswith("model.widths"), field)):
        mine, theirs = found.get(field), expected.get(field)
        if mine != theirs:
            what = _WORDS.get(field, field)
            raise PLNDError(f"{name}: {what} is {mine!r:.70}, but {theirs!r:.70} in {first}; {_ADVICE}")


def _of_the_run(metadata: PartMetadata) -> dict[str, Any]:
    """What all parts of a run say, each field by its full name."""
    said = {name: value for name, value in metadata.items() if name not in ("shard", "sections", "sites")}
    said["corpus"] = {name: metadata.corpus[name] for name in ("source", "max_length")}
    said["method"] = {name: value for name, value in metadata.method.items() if name != "projections"}
    return _flat(said)


def _of_what_was_measured(metadata: PartMetadata) -> dict[str, Any]:
    """What all parts say that have documents."""
    return {"method.projections": metadata.method.projections, "sites": metadata.sites}


def _of_the_section(section: SectionDescription) -> dict[str, Any]:
    """What all parts say that have read the same section; whose documents they measured aside."""
    return {"read": section.read, "sha256": section.sha256, "short": section.short}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {full: inner for key in value for full, inner in _flat(value[key], f"{name}.{key}".lstrip(".")).items()}


def _problems(metadata: PartMetadata, values: Tensor) -> Iterator[str]:
    """What in a part cannot be, in words."""
    documents = metadata.corpus.documents
    shard, sections = Shard(metadata.shard.number, metadata.shard.count), [each.number for each in metadata.sections]
    if not 1 <= shard.number <= shard.count:
        yield f"metadata says shard {shard}"
    elif len(set(sections)) < len(sections) or any(
        number >= metadata.section_count or shard.within(number, metadata.section_count) is None for number in sections
    ):
        yield f"metadata says that shard {shard} read sections {sections!r:.60} of {metadata.section_count}"
    for skipped in (skipped for each in metadata.sections for skipped in (each.short, each.non_finite)):
        if skipped.count < len(skipped.numbers):
            yield f"metadata counts {skipped.count} skipped documents and names more"
    for site in metadata.sites:
        block, _, _ = site.name.rpartition(".")
        for projection in site.projections:
            if metadata.model.widths.get(f"{block}.{projection}") != site.width:
                yield f"metadata gives {site.name!r:.60} {site.width} neurons, but {projection!r:.60} has others"
    scored = {projection for site in metadata.sites for projection in site.projections}
    if len({site.name for site in metadata.sites}) < len(metadata.sites) or scored != {*metadata.method.projections}:
        yield "metadata names sites twice, or others than its projections"
    if not is_whole(metadata.method.get("min_length")):
        yield "metadata does not say min_length"
    neurons = sum(site.width for site in metadata.sites)
    if values.shape != (ROWS, neurons):
        yield f"values of shape {list(values.shape)}, expected [{ROWS}, {neurons}]"
    elif bool(documents) != bool(neurons):
        yield f"{documents} documents and {neurons} neurons"
    elif neurons:
        minimum, worst_rank, total, _, squares = values[:NUMBERS]
        widths = torch.tensor([site.width for site in metadata.sites])
        if not torch.isfinite(values).all() or min(map(torch.min, (minimum, worst_rank, total, squares))) < 0:
            yield "values that are negative or not finite"
        elif (worst_rank >= widths.repeat_interleave(widths)).any() or (worst_rank != worst_rank.round()).any():
            yield "ranks that no neuron can have"
