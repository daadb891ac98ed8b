"""What is known of single neurons, as plain values and as JSON (docs/neurons.md has the schema)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from plnd import notebook

FORMAT, VERSION = "plnd.inspection", 1
IMPORTANCE, MEAN_SIZE = "importance", "mean |value|"
"""What tells how much a neuron is to a language: its scores, or its values on the documents."""


@dataclass(frozen=True)
class Firing:
    """A token on which a neuron fires, in its context.

    Attributes:
        value: of the neuron there, with its sign.
        token: the text of the token; of one that is a part of a character, the whole character.
        before, after: the text around it, as many tokens as were asked for; empty at the ends of a document.
        document: its number among the language's documents, from 0.
        position: of the token in the document, from 0.
        token_id: of the tokenizer.
    """

    value: float
    token: str
    before: str
    after: str
    document: int
    position: int
    token_id: int


@dataclass(frozen=True)
class LanguageProfile:
    """What a neuron does on the documents of one language.

    Attributes:
        language: of the documents.
        importance: its mean importance in the language's scores; None where there are no scores of it.
        mean: mean of its value over tokens.
        mean_size: mean of `|value|` over tokens.
        large: share of tokens with a large value (`NeuronProfile.large`).
        firings: the tokens of largest `|value|`, at most one a document as far as there are enough documents.
    """

    language: str
    importance: float | None
    mean: float
    mean_size: float
    large: float
    firings: tuple[Firing, ...]


@dataclass(frozen=True)
class WrittenToken:
    """A token that a neuron makes more or less likely.

    Attributes:
        token_id: of the tokenizer.
        text: of the token.
        logit: what the neuron's direction, scaled by the final norm as if it stood alone, adds to the token's logit.
    """

    token_id: int
    text: str
    logit: float


@dataclass(frozen=True)
class Writing:
    """What a neuron writes into the residual stream, as tokens (the logit lens of its direction).

    Attributes:
        how: which direction was decoded, in words; of a neuron that writes none, why.
        promoted: the tokens of largest logit where the value is positive; where it is negative they are suppressed.
        suppressed: those of smallest logit, the smallest first.
    """

    how: str
    promoted: tuple[WrittenToken, ...] = ()
    suppressed: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True)
class NeuronProfile:
    """One neuron.

    Attributes:
        address: `"{block}.{projection}"`.
        index: in the projection's own space.
        importance: in the set that it is from; None if it was named, and not in a set.
        also: further neurons of the set, `"{block}.{projection}.{index}"`, that are the same feed-forward neuron.
        value: what its value is, in words.
        large: the `|value|` from which it counts as large: about half (0.4 to 0.5) of the largest in any language.
        languages: what it does in each.
        writing: what it writes.
    """

    address: str
    index: int
    importance: float | None
    also: tuple[str, ...]
    value: str
    large: float
    languages: tuple[LanguageProfile, ...]
    writing: Writing

    def __repr__(self) -> str:
        return f"NeuronProfile({self.name}, {', '.join(one.language for one in self.languages)})"

    @property
    def name(self) -> str:
        """`"{block}.{projection}.{index}"`."""
        return f"{self.address}.{self.index}"


@dataclass(frozen=True)
class CorpusRead:
    """What was read of a language's corpus: documents, and the tokens in them that count."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class Inspection:
    """Some neurons of one model.

    Attributes:
        model: name or path of the model.
        language: that the set of neurons was made for; None if they were named, or the set does not say.
        sha256: of the set; None if there was none.
        chosen_from: number of neurons in the set.
        measure: what tells how important a neuron is to a language: `importance` (from scores) or `mean |value|`.
        corpora: what was read, by language.
        neurons: the profiles, the most important first.
    """

    model: str
    language: str | None
    sha256: str | None
    chosen_from: int
    measure: str
    corpora: dict[str, CorpusRead]
    neurons: tuple[NeuronProfile, ...]

    def __repr__(self) -> str:
        read = ", ".join(self.corpora)
        return f"Inspection({len(self.neurons):,} of {self.chosen_from:,} neurons, in {read}, model={self.model!r})"

    def _repr_html_(self) -> str:
        facts = {"set": self.language, "model": self.model, "shown": f"{self.measure} in each language"}
        rows = []
        for neuron in self.neurons:
            numbers = self.by_language(neuron).values()
            rows.append((neuron.name, *("" if value is None else f"{value:.3g}" for value in numbers)))
        title = f"Inspection: {len(self.neurons):,} of {self.chosen_from:,} neurons"
        return notebook.card(title, facts, notebook.table(("neuron", *self.corpora), rows))

    def by_language(self, neuron: NeuronProfile) -> dict[str, float | None]:
        """`measure` of one of the neurons in each language."""
        scored = self.measure == IMPORTANCE
        return {one.language: one.importance if scored else one.mean_size for one in neuron.languages}

    def to_json(self) -> str:
        """All of it as JSON, UTF-8 readable (docs/neurons.md)."""
        facts = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace").decode() + "\n"  # half a surrogate pair is no UTF-8
