"""What artifacts say of themselves: the fields of their metadata, a type for each form (docs/artifacts.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import InstanceOf
from typing_extensions import Self

from plnd.errors import PLNDError
from plnd.model_description import Count, ModelDescription, Record
from plnd.version import __version__

SCORES, PART, NEURONS, ROLES = "plnd.scores", "plnd.part", "plnd.neurons", "plnd.roles"
MEANS, DIRECTION, ROUTING = "plnd.means", "plnd.direction", "plnd.routing"


class CorpusDescription(Record):
    """Which documents were read.

    Attributes:
        source: where they come from; None if nobody said.
        sha256: of their tokens, or empty if there were none.
        documents: how many were scored.
        tokens: how many they have together.
        max_length: documents are cut to so many tokens.
        skipped: reason to the numbers of documents that were not scored, the first ones if they are many.
        skipped_counts: reason to how many these are; artifacts of before name all.
    """

    source: str | None
    sha256: str
    documents: Count
    tokens: Count
    max_length: Count
    skipped: dict[str, list[Count]]
    skipped_counts: dict[str, Count] = {}

    def counts_skipped(self) -> dict[str, int]:
        """Reason to how many documents were not scored for it."""
        return {reason: len(numbers) for reason, numbers in self.skipped.items()} | self.skipped_counts


class MethodDescription(Record):
    """How neurons were scored: the method's name, what was scored, and settings that depend on the method."""

    name: str
    projections: list[str]
    epsilon: InstanceOf[float] | None = None
    log_floor: InstanceOf[float] | None = None


class Rule(Record):
    """Which neurons were kept: the rule's name, and numbers that depend on the rule."""

    name: str


class Operand(Record):
    """What was done to a set after it was selected, and with which other set."""

    operation: str
    language: str | None = None
    neurons: Count | None = None
    sha256: str | None = None


class Metadata(Record):
    """What every artifact says."""

    form: ClassVar[str]
    made_by: ClassVar[str]
    """What the form is called, and the command that makes it, for errors."""
    newest: ClassVar[int] = 1
    """The version of the form that is written; those before are read."""
    checked_since: ClassVar[int] = 2
    """The version from which on a file has a checksum."""

    format: str
    version: Count
    plnd: str
    model: ModelDescription


class ScoresMetadata(Metadata):
    """What a scores artifact says."""

    form = SCORES
    made_by = "scores (from `plnd detect`)"
    newest = 3  # since 2 with the logs that contrast reads
    checked_since = 3

    language: str | None
    corpus: CorpusDescription
    method: MethodDescription
    dtype: str


class ShardDescription(Record):
    """Which share of a run's documents was scored: number `number`, from 1, of `count`."""

    number: Count
    count: Count


class SiteDescription(Record):
    """What was measured once of so many neurons, and the projections that have them: «0.ffn» has gate, up and down."""

    name: str
    width: Count
    projections: list[str]


class SkippedDescription(Record):
    """Documents that were not scored for one reason: how many, and the numbers of the first of them."""

    count: Count
    numbers: list[Count]


class SectionDescription(Record):
    """What one shard met in one section of a corpus.

    Attributes:
        number: of the section, from 0.
        read: documents, whatever became of them.
        sha256: of the tokens of those that are long enough.
        short: those that are not.
        non_finite: those of this shard's share that gave numbers that are not finite.
    """

    number: Count
    read: Count
    sha256: str
    short: SkippedDescription
    non_finite: SkippedDescription


class PartMetadata(ScoresMetadata):
    """What a part of scores says: of its corpus the documents and tokens that its own shard scored.

    Attributes:
        shard: which part of how many it is.
        section_count: sections of the whole corpus.
        sections: those that were read for this part.
        weights: digest of the model's weights, which its name does not say.
        window: batches whose documents were sorted by length together.
        sites: whose numbers follow one another in the part.
    """

    form = PART
    made_by = "a part (from `plnd detect --shard`)"
    newest = checked_since = 1

    shard: ShardDescription
    section_count: Count
    sections: list[SectionDescription]
    weights: str
    window: Count
    sites: list[SiteDescription]


class UnitsDescription(Record):
    """Of which units a set of neurons is made, with all their neurons and no other.

    Attributes:
        unit: the kind, one of `plnd.neurons.units.UNITS`.
        projections: of which the neurons are.
        members: block to the numbers of the experts, or heads, ascending.
    """

    unit: str
    projections: list[str]
    members: dict[str, list[Count]]

    @property
    def number(self) -> int:
        """How many they are."""
        return sum(map(len, self.members.values()))


class NeuronsMetadata(ScoresMetadata):
    """What a neurons artifact says: the same as the scores that the set was selected from, and how that was done.

    Attributes:
        rule: which neurons were kept.
        scores_sha256: of the scores artifact; empty if there was none.
        operands: what was done to the set since.
        control: how neurons were drawn at random in place of the set's.
        units: the experts, or heads, that were chosen, as long as the set is made of whole ones.
    """

    form = NEURONS
    made_by = "neurons (from `plnd select` or `plnd combine`)"
    newest = 2
    checked_since = 2

    rule: Rule
    scores_sha256: str
    operands: list[Operand] = []
    control: Rule | None = None
    units: UnitsDescription | None = None

    @classmethod
    def selected(cls, scores: ScoresMetadata, rule: Mapping[str, Any], scores_sha256: str) -> Self:
        """Of the neurons that a rule keeps of some scores."""
        said = {"format": NEURONS, "version": cls.newest, "rule": rule, "scores_sha256": scores_sha256}
        return cls.of(scores | said)

    @classmethod
    def completed(cls, said: Mapping[str, Any]) -> Self:
        """With what was said, the model at least, and «unknown» for what was not."""
        if type(said) is cls and said.format == NEURONS:
            return said
        unknown = {
            "format": NEURONS,
            "version": cls.newest,
            "plnd": __version__,
            "language": None,
            "corpus": {"source": None, "sha256": "", "documents": 0, "tokens": 0, "max_length": 0, "skipped": {}},
            "method": {"name": "unknown", "projections": []},
            "dtype": "unknown",
            "rule": {"name": "unknown"},
            "scores_sha256": "",
        }
        if said.get("format", NEURONS) != NEURONS:  # what scores say
            said = {**said, "format": NEURONS, "version": cls.newest}
        found = cls.of({**unknown, **said})
        if not 1 <= found.version <= cls.newest:
            raise PLNDError(f"format version {found.version}, expected 1 to {cls.newest}")
        return found


class ParallelCorpus(Record):
    """Which examples roles were found in."""

    source: str | None
    sha256: str
    documents: Count
    tokens: Count
    fewshot: Count


class RolesMethod(Record):
    """How roles were found: of which tokens, and above which activations a neuron is active."""

    name: str
    tokens: str
    thresholds: list[InstanceOf[float]]


class RolesMetadata(Metadata):
    """What a roles artifact says.

    Attributes:
        languages: in the order of the bits of a pattern.
        tasks: the lm-eval task of each language; None if the examples are not from lm-eval.
        documents: of each example, its number in each language's task.
        corpus: where examples come from.
        method: how roles were found.
        dtype: of the model.
    """

    form = ROLES
    made_by = "roles (from `plnd roles`)"
    newest = 2

    languages: list[str]
    tasks: list[str] | None
    documents: list[list[Count]]
    corpus: ParallelCorpus
    method: RolesMethod
    dtype: str


class MeansMetadata(Metadata):
    """What a means artifact says.

    Attributes:
        corpora: language to the documents whose tokens the means are over, all together.
        dtype: of the model.
    """

    form = MEANS
    made_by = "means (from `plnd reference`)"
    checked_since = 1

    corpora: dict[str, CorpusDescription]
    dtype: str


class DirectionMetadata(MeansMetadata):
    """What a direction artifact says.

    Attributes:
        language: towards which it leads.
        against: from which others, each of which weighs the same.
        hidden: channels of the hidden states.
        modules: block to the name of its module below the model's body, as lm-eval's `steered` model names hookpoints.
    """

    form = DIRECTION
    made_by = "a direction (from `plnd reference`)"

    language: str
    against: list[str]
    hidden: Count
    modules: dict[str, str]


class RoutingMetadata(MeansMetadata):
    """What a routing artifact says.

    Attributes:
        chosen: of each block with experts, to how many of them every token goes.
    """

    form = ROUTING
    made_by = "routing (from `plnd routing`)"

    chosen: dict[str, Count]
