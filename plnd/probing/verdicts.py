"""Which projections' closed forms agree with brute force, on a twin, for a row that is known or guessed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.detection.measures.paper import AttentionOutputs, FeedForward, PaperImportance
from plnd.detection.measures.proof import ResidualProof
from plnd.detection.measures.traces import AttentionTraces
from plnd.detection.observer import SITES, Handle, ObservedBlock, Observer, forward_pass
from plnd.errors import PLNDError
from plnd.importance.attention import Attention, attention_importance
from plnd.models.families import Family, Projection
from plnd.models.layout import Block, Layout
from plnd.probing.brute_force import BlockRuns
from plnd.probing.float64 import float64
from plnd.probing.twins import document

EXACT = 1e-9
"""Largest difference, relative to the largest importance of the projection, that rounding in float64 may make."""
Group = tuple[str, ...]
Known = dict[tuple[str, Projection, str | None], Tensor]
ATTENTION_OUTPUTS: Group = ("v_proj", "o_proj")
QUERIES_AND_KEYS: Group = ("q_proj", "k_proj")
FEED_FORWARD: Group = ("gate_proj", "up_proj", "down_proj")
_IN_OTHER_WORDS = {
    QUERIES_AND_KEYS: "attention is not softmax(q·k)·v of what its projections give (a gate, a sink, a norm of values,"
    " a rotation or factor that no row can name)",
    ATTENTION_OUTPUTS: "attention's output is not its projection's",
    FEED_FORWARD: "what enters down_proj is not act(gate)·up",
}


@dataclass(frozen=True)
class Verdict:
    """What was found of one projection of one block.

    Attributes:
        block: its number.
        projection: its name.
        error: largest difference of the closed form from brute force, relative to the largest importance; None: one of
            the two could not be evaluated.
        reason: why it is not exact; empty where it is.
    """

    block: str
    projection: str
    error: float | None
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether the closed form is brute force, to rounding."""
        return not self.reason

    def __str__(self) -> str:
        error = "" if self.error is None else f" (largest error {self.error:.0e})"
        return f"exact{error}" if self.exact else f"not exact{error}: {self.reason}"


class _OneGroup:
    """A measure of a few projections of one block: the closed forms as detection takes them, proofs and all."""

    def __init__(self, name: str, group: Group) -> None:
        self.name, self.group = name, group

    run = staticmethod(forward_pass)

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `plnd.detection.observer.Measure`."""
        block = next(block for block in blocks if block.name == self.name)
        if self.group == ATTENTION_OUTPUTS:
            yield from AttentionOutputs(block, ResidualProof(block)).hooks()
        elif self.group == FEED_FORWARD:
            yield from FeedForward(block, ResidualProof(block)).hooks()
        else:
            yield from AttentionTraces(block, _exact).hooks()


def _exact(trace: Attention) -> tuple[Tensor, Tensor]:
    return attention_importance(trace, "exact", None)


class Bench:
    """A twin, and what brute force has found of it so far.

    Args:
        model: the twin.
        family: a row that says where its projections are; of each kind of block one stack may differ.
        only: number of the only block that the row is about; None: of all.
        known: what brute force has found before of this model; it asks neither norms nor rotations of a row.
    """

    def __init__(self, model: Any, family: Family, only: int | None = None, known: Known | None = None) -> None:
        self.layout = Layout(model, family=family)
        self.ids = document()
        self.known: Known = {} if known is None else known
        if only is not None:
            self.layout.blocks = [block for block in self.layout.blocks if block.name == str(only)]

    def block(self, name: str) -> Block:
        """The block of a name."""
        return next(block for block in self.layout.blocks if block.name == name)

    def verdicts(self, name: str, group: Group) -> list[Verdict]:
        """Of the projections of a group that a block has."""
        block = self.block(name)
        wanted = [p.name for p in block.stack.projections if p.name in group]
        if not wanted:
            return []
        with float64(), torch.no_grad():
            found, refusal = self._closed_forms(name, group)
            return [self._verdict(block, projection, found.get(projection), refusal) for projection in wanted]

    def _closed_forms(self, name: str, group: Group) -> tuple[dict[str, Tensor], str]:
        """Importance by projection, and what the proofs refused."""
        found: dict[str, Tensor] = {}

        def sink(block: str, site: str, importance: Tensor) -> None:
            found.update({projection: importance[0] for projection in SITES[site]})

        observer = Observer(self.layout, _OneGroup(name, group), sink, [(0, len(self.ids))])
        refusal = ""
        try:
            with observer.attached():
                self.layout.forward(self.ids[None], torch.ones_like(self.ids[None]))
        except PLNDError as error:
            refusal = _IN_OTHER_WORDS[group] if "families table says" in str(error) else str(error)
            refusal = refusal.removeprefix(f"block {name}: ")
        except Exception as error:  # a model may fail in its own way under a row that is wrong
            refusal = f"the closed form cannot be evaluated ({_line(error)})"
        return found, refusal

    def _verdict(self, block: Block, projection: str, found: Tensor | None, refusal: str) -> Verdict:
        say = partial(Verdict, block.name, projection)
        try:
            expected = self._brute_force(block, projection)
        except Exception as error:
            return say(None, refusal or f"brute force cannot be evaluated ({_line(error)})")
        if found is None:
            return say(None, refusal or "the closed form was not evaluated")
        if found.shape != expected.shape:
            return say(
                None, refusal or f"{found.numel()} neurons by the closed form, {expected.numel()} by brute force"
            )
        largest = float(expected.abs().max())
        if not (largest > 0 and torch.isfinite(found).all() and torch.isfinite(expected).all()):
            return say(None, refusal or "no neuron of it changes anything, or not by a finite number")
        off = float((found - expected).abs().max()) / largest
        if off > EXACT:
            return say(off, refusal or "the closed form is not what brute force finds")
        return say(off, refusal)

    def _brute_force(self, block: Block, projection: str) -> Tensor:
        target, stack = self.layout.targets[f"{block.name}.{projection}"], block.stack
        heads = projection in QUERIES_AND_KEYS
        frozen = stack.feed_forward if projection in ATTENTION_PROJECTIONS and not heads else None
        key = (block.name, target.projection, stack.attention if heads else frozen)
        if key not in self.known:
            runs, neurons = BlockRuns(self.layout, block.module, self.ids), range(target.width)
            if heads:
                self.known[key] = runs.attention_changes(target, neurons, stack.attention or "")
            else:
                self.known[key] = runs.changes(target, neurons, frozen)
        return self.known[key]


def detection_refuses(model: Any, family: Family, qk: bool) -> str:
    """What detection itself says of a twin under a row: nothing where it measures every block.

    Args:
        model: the twin.
        family: the row.
        qk: queries and keys too.
    """
    ids = document()
    try:
        layout = Layout(model, family=family)
        observer = Observer(layout, PaperImportance("exact" if qk else "off"), _nowhere, [(0, len(ids))])
        with float64(), observer.attached():
            observer.run(ids[None], torch.ones_like(ids[None]))
    except PLNDError as error:
        return str(error)
    except Exception as error:
        return _line(error)
    return ""


def _nowhere(block: str, site: str, importance: Tensor) -> None:
    pass


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
