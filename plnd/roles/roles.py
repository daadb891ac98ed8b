"""Neuron roles across languages: all-shared, partial-shared, specific, non-activated (arXiv:2406.09265, section 3).

For one example in P languages, each feed-forward neuron has the role that the number of languages gives it in which its
activation at the last token is above a threshold: all of them, some, one, none (eq. 3 to 6). The four roles partition
the neurons. Ratios count them by block (eq. 7), and are averaged over examples (eq. 8).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plnd import notebook
from plnd.errors import PLNDError
from plnd.io.artifact import Opened, Rows, opened
from plnd.io.metadata import ROLES as FORMAT
from plnd.io.metadata import RolesMetadata
from plnd.model_description import ModelDescription
from plnd.roles.codes import ROLES, pack, role_table, unpack
from plnd.roles.roles_file import packed_width, read_roles, role_widths, write_roles
from plnd.secrets import published
from plnd.version import __version__

if TYPE_CHECKING:
    from plnd.roles.activations import Chunk, Tokens
    from plnd.roles.parallel import Parallel


@dataclass(frozen=True, eq=False)
class Roles:
    """The roles of every feed-forward neuron of a model in a number of examples.

    Attributes:
        packed: uint8 [examples, bytes], two bits a neuron, all blocks one after the other (`pack`), or `Rows` of a
            file.
        patterns: int64 [thresholds, blocks, 2^P]: how many neurons, over all examples, were active in exactly the
            languages that the bits name. Ratios of any choice of languages follow from it.
        prompts: int64 [examples, P], what tells prompts apart (`plnd.roles.parallel.prompt_digest`).
        metadata: what the artifact says of model, languages, tasks, documents, corpus and method.
        digest: SHA-256 of the file that they were read from, if they were.
    """

    packed: np.ndarray | Rows
    patterns: np.ndarray
    prompts: np.ndarray
    metadata: RolesMetadata
    digest: str | None = None

    def __repr__(self) -> str:
        return f"Roles({len(self):,} examples in {', '.join(self.languages)}, model={self.model.name!r})"

    def _repr_html_(self) -> str:
        facts = {"examples": f"{len(self):,}", "languages": ", ".join(self.languages), "model": self.model}
        facts["tasks"] = ", ".join(self.tasks or ())
        rows = [(role.replace("_", "-"), f"{share:.1f}") for role, share in self.shares().items()]
        return notebook.card("Roles", facts, notebook.table(("role", "% of feed-forward neurons"), rows))

    @classmethod
    def load(cls, path: str | Path) -> Roles:
        """Opens a roles artifact.

        Raises:
            ArtifactError: one line that says what is wrong with the file; later, if it is written to meanwhile.
        """
        with opened(path) as stream:
            return cls.of_file(stream)

    @classmethod
    def of_file(cls, stream: Opened) -> Roles:
        """The same of a file that is open."""
        return cls(*read_roles(stream))

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def model(self) -> ModelDescription:
        """The model's description, with name, revision, model_type, blocks, widths."""
        return self.metadata.model

    @property
    def languages(self) -> list[str]:
        """Languages in the order of the bits of a pattern."""
        return self.metadata.languages

    @property
    def tasks(self) -> list[str] | None:
        """The lm-eval task of each language; None if the examples are not from lm-eval."""
        return self.metadata.tasks

    @property
    def thresholds(self) -> list[float]:
        """A neuron is active above it; the first one gives the roles of examples."""
        return self.metadata.method.thresholds

    @cached_property
    def widths(self) -> dict[str, int]:
        """Number of feed-forward neurons of every block, in order."""
        return role_widths(self.model.widths)

    @property
    def total(self) -> int:
        """Number of feed-forward neurons."""
        return sum(self.widths.values())

    # one example

    def codes(self, examples: slice | Sequence[int]) -> np.ndarray:
        """Codes of `ROLES` of some examples: uint8 [examples, neurons of all blocks]."""
        return unpack(np.asarray(self.packed[examples]), self.total)

    def of(self, example: int) -> dict[str, np.ndarray]:
        """Codes of `ROLES` in one example, uint8 [width], by block."""
        return self.by_block(self.codes([example])[0])

    def by_block(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """What lies one after the other for all neurons, by block."""
        parts = np.split(row, np.cumsum(list(self.widths.values()))[:-1])
        return dict(zip(self.widths, parts, strict=True))

    def example_of(self, task: str | None, document: int | None, digest: int) -> int:
        """The example that a prompt of an lm-eval task belongs to.

        The prompt tells; where several documents of a task ask the same, their number does, which lm-eval counts anew
        under `--samples`.

        Raises:
            PLNDError: if the task or the document is not in the artifact, or its prompt was another.
        """
        if self.tasks is None or task not in self.tasks:
            has = "no lm-eval task's" if self.tasks is None else f"those of {', '.join(self.tasks)}"
            raise PLNDError(f"task {task}: the artifact has no roles for its documents, but {has}")
        examples = self._index.get((task, digest), [])
        place = self.tasks.index(task)
        own = [n for n in examples if self.metadata.documents[n][place] == document]
        if len(examples) == 1 or own:
            return (own or examples)[0]
        if any(row[place] == document for row in self.metadata.documents):
            raise PLNDError(
                f"task {task}, document {document}: asked with another prompt than when its roles were found (other"
                " data, --num_fewshot or chat template?); make the roles again as it is asked now"
            )
        raise PLNDError(
            f"task {task}, document {document}: no roles for it among the artifact's {len(self)} examples; evaluate"
            " those (--limit, --samples), or make roles of more"
        )

    @cached_property
    def _index(self) -> dict[tuple[str, int], list[int]]:
        index: dict[tuple[str, int], list[int]] = {}
        for place, task in enumerate(self.tasks or ()):
            for example, digest in enumerate(self.prompts[:, place].tolist()):
                index.setdefault((task, digest), []).append(example)
        return index

    # all examples

    def ratios(self, languages: Sequence[str] | None = None, threshold: float | None = None) -> np.ndarray:
        """Percentage of neurons in each role, average over examples (eq. 8): float64 [blocks, roles].

        Args:
            languages: roles among these only (Figure 8); by default all.
            threshold: one of `thresholds` (Figure 20); by default the first.
        """
        patterns, neurons = self._patterns(threshold), np.array(list(self.widths.values())) * len(self)
        table = role_table(len(self.languages), None if languages is None else self._places(languages))
        counts = np.stack([patterns[:, table == code].sum(1) for code in range(len(ROLES))], axis=1)
        return 100 * counts / neurons[:, None]

    def shares(self) -> dict[str, float]:
        """Percentage of the whole model's neurons in each role, average over examples."""
        weights = np.array(list(self.widths.values())) / self.total
        return dict(zip(ROLES, map(float, weights @ self.ratios()), strict=True))

    def active(self, threshold: float | None = None) -> np.ndarray:
        """Percentage of neurons that are active in each language: float64 [blocks, P]."""
        neurons = np.array(list(self.widths.values())) * len(self)
        return 100 * self._with_bit(self._patterns(threshold)) / neurons[:, None]

    def shared_with(self, language: str) -> np.ndarray:
        """Percentage of the partial-shared neurons that `language` shares with each language (Figures 7 and 17, left).

        Returns:
            float64 [blocks, P]: of all partial-shared neurons, those that are active in both; at `language` itself,
            those that are active in it. nan where a block has none.
        """
        place = self._places([language])[0]
        table, numbers = role_table(len(self.languages)), np.arange(2 ** len(self.languages))
        partial = self._patterns(None) * (table == ROLES.index("partial_shared"))
        with np.errstate(invalid="ignore"):
            return 100 * self._with_bit(partial * (numbers >> place & 1)) / partial.sum(1)[:, None]

    def specific_to(self) -> np.ndarray:
        """Percentage of the specific neurons that are each language's (Figures 7, 17, right): float64 [blocks, P]."""
        table = role_table(len(self.languages))
        specific = self._patterns(None) * (table == ROLES.index("specific"))
        with np.errstate(invalid="ignore"):
            return 100 * self._with_bit(specific) / specific.sum(1)[:, None]

    def kept(self) -> np.ndarray:
        """Percentage of neurons with the same role in every example (Figures 5, 15, 16): float64 [blocks, roles]."""
        first = self.codes([0])[0]
        same = np.ones(self.total, dtype=bool)
        for start in range(0, len(self), 64):
            same &= (self.codes(slice(start, start + 64)) == first).all(0)
        found = self.by_block(np.where(same, first, len(ROLES)))
        return np.array([[100 * np.mean(part == code) for code in range(len(ROLES))] for part in found.values()])

    def _places(self, languages: Sequence[str]) -> list[int]:
        missing = [name for name in languages if name not in self.languages]
        if missing:
            raise PLNDError(f"no language {', '.join(missing)} in these roles: they have {', '.join(self.languages)}")
        return [self.languages.index(name) for name in languages]

    def _patterns(self, threshold: float | None) -> np.ndarray:
        if threshold is not None and threshold not in self.thresholds:
            raise PLNDError(
                f"no threshold {threshold} in these roles: they have {', '.join(map(str, self.thresholds))}"
            )
        return self.patterns[0 if threshold is None else self.thresholds.index(threshold)]

    def _with_bit(self, patterns: np.ndarray) -> np.ndarray:
        """Sums of [blocks, 2^P] over the patterns that have each language: [blocks, P]."""
        numbers = np.arange(patterns.shape[-1])
        return np.stack([patterns[:, (numbers >> p & 1) == 1].sum(1) for p in range(len(self.languages))], axis=1)


class Listener(Protocol):
    """What else wants to see the activations of a pass (`plnd.roles.attribution.Attribution` does)."""

    coefficients: bool

    def add(self, chunk: Chunk, codes: np.ndarray) -> None:
        """Sees some examples and the codes of their roles, uint8 [examples, neurons of all blocks]."""


def find_roles(
    model: Any,
    parallel: Parallel,
    inputs: Sequence[Sequence[Sequence[int]]],
    *,
    output: str | Path | None = None,
    tokens: Tokens = "last",
    thresholds: Sequence[float] = (0.0,),
    batch_size: int = 8,
    listener: Listener | None = None,
    progress: bool = False,
) -> Roles:
    """The role of every feed-forward neuron in every example, from one forward pass over each input.

    Args:
        model: a transformers model of a known family, encoder-decoder or decoder only.
        parallel: where the inputs come from.
        inputs: for each example, for each language, token ids (`Parallel.token_ids`).
        output: the artifact to write while the pass runs, so that memory does not grow with the examples; None keeps
            the roles in memory.
        tokens: `last`, a neuron is active if it is at the last token (section 3.2); `all`, if it is at any (Figure 6).
        thresholds: a neuron is active above it. The first one gives the examples' roles, the others ratios only.
        batch_size: inputs in one forward pass.
        listener: sees the activations too.
        progress: whether to draw a bar.

    Raises:
        FamilyError: if the model's feed-forward is not one that has roles.
        PLNDError: if an input is too long for the model or has tokens that it does not know, or an activation is not
            finite.
    """
    from plnd.deactivation import what_is_off
    from plnd.models.layout import Layout
    from plnd.models.running import measured
    from plnd.roles.activations import Watch, read_chunks

    if not thresholds or len(set(thresholds)) < len(thresholds):
        raise PLNDError("thresholds: expected at least one, each once")
    if batch_size < 1:
        raise PLNDError(f"batch size {batch_size}: expected 1 or more")
    layout = Layout.of_all(model)
    watch = Watch(layout, tokens, listener is not None and listener.coefficients)
    _check_lengths(layout.positions, inputs)
    for number, row in enumerate(inputs):
        layout.check_tokens((token for ids in row for token in ids), f"example {number}")
    languages = len(parallel.languages)
    said = {
        "format": FORMAT,
        "version": RolesMetadata.newest,
        "plnd": __version__,
        "model": layout.description(),
        "languages": list(parallel.languages),
        "tasks": None if parallel.tasks is None else list(parallel.tasks),
        "documents": [list(row) for row in parallel.documents or ()],
        "corpus": {
            "source": parallel.source and published(parallel.source),
            "sha256": hashlib.sha256(json.dumps([list(map(list, row)) for row in inputs]).encode()).hexdigest(),
            "documents": len(inputs),
            "tokens": sum(len(ids) for row in inputs for ids in row),
            "fewshot": parallel.fewshot,
        },
        "method": {"name": "sign", "tokens": tokens, "thresholds": [float(t) for t in thresholds]},
        "dtype": str(layout.model.dtype).removeprefix("torch."),
        **({"deactivated": off} if (off := what_is_off(layout.model)) else {}),
    }
    metadata = RolesMetadata.of(said)
    patterns = np.zeros((len(thresholds), len(watch.widths), 2**languages), dtype=np.int64)
    prompts = parallel.digests()
    table, edges = role_table(languages), np.cumsum(list(watch.widths.values()))[:-1]

    def rows() -> Iterator[np.ndarray]:
        with watch.attached():
            for chunk in read_chunks(watch, inputs, batch_size, progress=progress):
                for number, threshold in enumerate(thresholds):
                    found = active_patterns((chunk.activations > threshold).numpy())
                    if number == 0:
                        codes = table[found]
                    for block, part in enumerate(np.split(found, edges, axis=1)):
                        patterns[number, block] += np.bincount(part.ravel(), minlength=2**languages)
                if listener is not None:
                    listener.add(chunk, codes)
                yield pack(codes)

    with measured(layout.model, [block.module for block in layout.blocks]):
        if output is None:
            return Roles(np.concatenate(list(rows())), patterns, prompts, metadata)
        write_roles(output, metadata, patterns, prompts, rows())
    return Roles.load(output)


def active_patterns(active: np.ndarray) -> np.ndarray:
    """Which languages each neuron is active in, from bool [examples, P, neurons]: uint16 [examples, neurons]."""
    found = np.zeros((active.shape[0], active.shape[2]), dtype=np.uint16)
    for p in range(active.shape[1]):
        found |= active[:, p].astype(np.uint16) << np.uint16(p)
    return found


def _check_lengths(limit: int | None, inputs: Sequence[Sequence[Sequence[int]]]) -> None:
    longest = max(len(ids) for row in inputs for ids in row)
    if limit is not None and longest > limit:
        raise PLNDError(f"an input has {longest} tokens, and the model takes {limit}: leave out the longest examples")


def artifact_bytes(widths: Mapping[str, int], examples: int, languages: int, thresholds: int = 1) -> int:
    """Size of the tensors of a roles artifact.

    Five thousand examples of a 7B Llama (32 blocks of 11,008) in ten languages: 0.44 GB.
    """
    patterns = thresholds * len(role_widths(widths)) * 2**languages * 8
    return patterns + examples * (languages * 8 + packed_width(widths))
