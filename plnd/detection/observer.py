"""Shows a measure every block of a model during forward passes, and hands out what it measures as soon as it is known.

Nothing of the model's code is replaced: inputs and outputs of projections come from hooks, what enters attention and
fused experts from functions registered with transformers' own interfaces (`plnd.detection.interfaces`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from plnd.detection.interfaces import RoutedSums, observed_attention, observed_experts
from plnd.detection.meeting import Meeting
from plnd.importance.attention import ROWS, visible_keys
from plnd.importance.memory import release_memory
from plnd.models.experts import check_dense, put_watch
from plnd.models.families import Rotation
from plnd.models.gating import Gating
from plnd.models.layout import Block, Layout, Target
from plnd.models.parts import Part, Parts
from plnd.models.running import hooked

MASKS = 4
"""Masks of a pass that are remembered: a model has one of each kind of attention."""
SITES = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("o_proj",),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
    "up": ("up_proj", "down_proj"),
    "column": ("gate_proj", "down_proj"),
    "row": ("up_proj",),
}
"""What is measured once, and the projections whose neurons share the measurement (eq. 5: up, gate and down are one;
`column` and `row` where they are not)."""

Sink = Callable[[str, str, Tensor], None]
"""Receives (block, site, importance [documents, width]) during the forward pass."""


class Handle(Protocol):
    """Something that is in place until it is removed, as torch's hooks are."""

    def remove(self) -> None:
        """Takes it away."""


class Measure(Protocol):
    """What is measured of every block. How to add one: `plnd.detection.measures.choice`."""

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """Puts in place what measures `blocks` in the passes that follow, and gives each part as soon as it is there.

        Raises:
            FamilyError: if a block lacks what the measure needs, or computes something else than it assumes.
        """

    def run(self, layout: Layout, input_ids: Tensor, attention_mask: Tensor) -> None:
        """One pass over a batch: `forward_pass`, or what the measure needs beside it.

        Args:
            layout: the model.
            input_ids: [batch, seq].
            attention_mask: [batch, seq], 1 for tokens and 0 for padding, or what the measure lets them see instead.
        """


def forward_pass(layout: Layout, input_ids: Tensor, attention_mask: Tensor) -> None:
    """The `run` of a measure for which the body's forward pass, without the head, is enough."""
    layout.forward(input_ids, attention_mask)


@dataclass
class Observer:
    """Measures during forward passes of `layout`'s model, between `attached()` and its exit.

    Attributes:
        layout: the model.
        measure: what is measured of each block.
        sink: receives each result.
        spans: (first, last + 1) token of every document of the batch in the pass that follows.
        alive: block to the rows of `q_proj` and, where it has it, `k_proj` that are wanted, both boolean [width]; a
            measure may leave the others at 0. Of blocks that are not named all are wanted. On the CPU.
        ranges: of masks of the pass at hand what `visible` makes of them, by the mask's id, with the mask, so that it
            stays its own.
    """

    layout: Layout
    measure: Measure
    sink: Sink
    spans: list[tuple[int, int]] = field(default_factory=list)
    alive: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    ranges: dict[int, tuple[Tensor, list[tuple[list[int], list[int]]]]] = field(default_factory=dict, repr=False)

    @cached_property
    def parts(self) -> Parts:
        """What this process has of the model, and sees of it."""
        return Parts(self.layout)

    @cached_property
    def meeting(self) -> Meeting | None:
        """Where the processes of a model that is spread over them put together what each has measured."""
        return None if self.layout.group is None else Meeting(self.layout.group)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place and gradients off; on exit the model is as it was.

        Raises:
            FamilyError: if a block lacks what the table says it has, or what the measure needs; during the passes, if a
                block computes something else than the measure assumes; and where queries and keys are wanted, if they
                cannot be observed.
            PLNDError: if another thread works on the model.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(hooked(self.layout.model))
            stack.callback(release_memory)
            stack.callback(self.ranges.clear)
            blocks = [ObservedBlock(self, block) for block in self.layout.blocks]
            for handle in self.measure.hooks(blocks):
                stack.callback(handle.remove)
            if self.layout.interface and any(block.attention_watched for block in blocks):
                stack.enter_context(observed_attention(self.layout))
            if any(block.experts_watched for block in blocks):
                stack.enter_context(observed_experts(self.layout))
            yield

    def run(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """One pass over a batch of documents, whose `spans` are set; see `Measure.run`.

        Raises:
            PLNDError: of a model that is spread over processes, in each of them: what one was refused.
        """
        self.ranges.clear()
        if self.meeting is None:
            self.measure.run(self.layout, input_ids, attention_mask)
            return
        self.meeting.begin(input_ids)
        self.measure.run(self.layout, input_ids, attention_mask)
        for block, site, importance in self.meeting.end():
            self.sink(block, site, importance)

    def visible(self, mask: Tensor) -> list[tuple[list[int], list[int]]]:
        """Of every document `Attention.visible`; of a mask without heads, which many blocks may have, read once.

        Args:
            mask: [batch or 1, heads or 1, seq, seq].
        """
        if id(mask) in self.ranges:
            return self.ranges[id(mask)][1]
        of_mask, found = visible_keys(mask), []
        for index, (start, stop) in enumerate(self.spans):
            rows = of_mask[index % len(of_mask)][start:stop]
            edges = zip(*([min(max(x - start, 0), stop - start) for x in row] for row in rows), strict=True)
            first, last = map(list, edges)
            found.append((first, last))
        if mask.shape[1] == 1:
            while len(self.ranges) >= MASKS:
                self.ranges.pop(next(iter(self.ranges)))
            self.ranges[id(mask)] = mask, found
        return found


class ObservedBlock:
    """One block during passes: what its projections receive and give, document by document.

    Args:
        observer: whose passes these are, and who receives the results.
        block: the block.

    Attributes:
        name, module, stack, family, at, gain, factor: those of the block.
        attention: its attention module.
        head_dim: channels of one of its heads.
        attention_watched, experts_watched: whether the model must run with the observed attention, or experts.

    Raises:
        FamilyError: if the block lacks what its row names, before a pass of a model that may fail in its own way.
    """

    def __init__(self, observer: Observer, block: Block) -> None:
        self.observer, self.block, self.name, self.module = observer, block, block.name, block.module
        self.stack, self.family, self.at, self.gain = block.stack, block.family, block.at, block.gain
        self.factor = block.factor
        self._check_paths()
        if self.stack.attention is not None:
            self.head_dim = int(self.at(self.stack.head_dim))
            self.attention: nn.Module = self.at(self.stack.attention)
        self.attention_watched = self.experts_watched = False

    def _check_paths(self) -> None:
        stack = self.stack
        for norm in (stack.query_norm, stack.key_norm, stack.attention_norm, stack.feed_forward_norm):
            if norm is not None:
                self.at(f"{norm.module}.weight" if norm.weight else norm.module)
                self.at(f"{norm.module}.{norm.eps}")
        rotation = stack.rotation or Rotation()
        gate, factors = stack.feed_forward_gate, (stack.factor, *astuple(stack.factors))
        for path in (rotation.when, rotation.window, stack.feed_forward, stack.experts, gate, *stack.beside, *factors):
            if path is not None:
                self.at(path)

    # what is there

    @property
    def projections(self) -> list[str]:
        """Names of the block's projections, in the table's order."""
        return [projection.name for projection in self.stack.projections]

    def has(self, projection: str) -> bool:
        """Whether the block has a projection."""
        return projection in self.projections

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """The non-linearity of the block's feed-forward; only where it has one."""
        return self.gating.activation

    @property
    def gating(self) -> Gating:
        """What the block's feed-forward makes of gate and up; only where it has one."""
        return self.block.gating

    def target(self, projection: str) -> Target:
        """Where a projection's weights lie; of a model that is spread over processes, of the part that hooks see."""
        return self._seen(projection).target

    def _seen(self, projection: str) -> Part:
        return self.observer.parts.seen[f"{self.name}.{projection}"]

    def products(self, projection: str) -> Callable[[Tensor], Tensor] | None:
        """See `plnd.models.parts.Parts.products`."""
        return self.observer.parts.products(f"{self.name}.{projection}")

    def add_up(self, projection: str, partial: Tensor, see: Callable[[Tensor], None]) -> None:
        """Calls `see` with a sum over all neurons of a projection, given that over those that hooks see.

        Where they are not all, the others' are added when the pass is over.
        """
        meeting = self.observer.meeting
        if meeting is None or self._seen(projection).shares is None:
            see(partial)
        else:
            meeting.add_up(partial, self.told(see))

    # what passes

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first, last + 1) token of every document of the batch."""
        return self.observer.spans

    def documents(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each document's own tokens, [seq, ...], of [batch, seq, ...] tensors."""
        tensors = tuple(self.by_document(tensor) for tensor in tensors)
        for index, (start, stop) in enumerate(self.spans):
            yield tuple(tensor[index, start:stop] for tensor in tensors)

    def first(self, tensor: Tensor) -> Tensor:
        """The first document's first `ROWS` tokens, [seq, ...], of [batch, seq, ...]: what proofs look at."""
        start, stop = self.spans[0]
        return self.by_document(tensor)[0, start : min(stop, start + ROWS)]

    def by_document(self, tensor: Tensor) -> Tensor:
        """[batch, seq, width] also of a tensor whose first two dimensions the model has flattened, or set apart."""
        return tensor if tensor.dim() == 3 else tensor.reshape(len(self.spans), -1, tensor.shape[-1])

    def before(self, projection: str, see: Callable[[Tensor], None]) -> Handle:
        """Calls `see` with the input of a projection's module as it arrives, before hooks switch columns off."""
        module, see = self.target(projection).module, self.told(see)
        return module.register_forward_pre_hook(lambda module, args: see(args[0]), prepend=True)

    def after(self, projection: str, see: Callable[[Tensor, Tensor], None]) -> Handle:
        """Calls `see` with input and output of a projection's module; its own rows are `target(…).select(output)`."""
        module, see = self.target(projection).module, self.told(see)
        return module.register_forward_hook(lambda module, args, output: see(args[0], output))

    def told(self, see: Callable[..., None]) -> Callable[..., None]:
        """`see`, whose refusals wait for the end of a pass in which other processes take part."""
        return see if self.observer.meeting is None else self.observer.meeting.waiting(see)

    def watch_attention(self, see: Callable[..., None]) -> Handle:
        """Calls `see` with what enters attention, as `plnd.detection.interfaces` gives it; once for each block."""
        self.attention_watched = True
        return put_watch(self.attention, self.told(see))

    def sum_over_experts(
        self,
        sites: Sequence[str],
        term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        finish: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> Handle:
        """Emits sums over the tokens that are routed to each of the fused experts; once for each block.

        Args:
            sites: what is emitted at the end of each pass.
            term: what is summed over each document's tokens, [tokens, sites·width]: of the output of `gate_up_proj`
                [tokens, 2·width], the inner activations as they arrive and as the columns of `down_proj` get them, both
                [tokens, width], and the tokens' shares of this expert [tokens, 1].
            finish: from the sums of a site to what is emitted, both [documents, experts·width].

        Raises:
            FamilyError: if the experts are packed: the pass multiplies by slices of what is stored.
        """
        gate, down = self.target("gate_proj"), self.target("down_proj")
        for target in (gate, down):
            check_dense(target)

        def emit(sums: Tensor) -> None:
            assert down.experts is not None
            for site, values in zip(sites, sums.unflatten(1, (down.experts, len(sites), -1)).unbind(2), strict=True):
                self.emit(site, list(finish(values.flatten(1))))

        def watch(tokens: int) -> RoutedSums:
            assert down.experts is not None
            shape = (down.experts, len(sites) * down.width // down.experts)
            return RoutedSums(self.spans, tokens, shape, term, emit)

        self.experts_watched = True
        return put_watch(self.block.experts, watch)

    # what comes of it

    @property
    def alive(self) -> tuple[Tensor, Tensor | None] | None:
        """Which rows of `q_proj` and `k_proj`, where the block has it, are wanted; None: all."""
        alive = None if self.stack.latent else self.observer.alive.get(self.name)
        if alive is None or self._seen("q_proj").shares is None:
            return alive
        queries, keys = (
            None if x is None else x[self._seen(name).neurons]
            for x, name in zip(alive, ("q_proj", "k_proj"), strict=True)
        )
        assert queries is not None
        return queries, keys

    def emit(self, site: str, importance: Sequence[Tensor]) -> None:
        """Hands out the importance of a site (see `SITES`), [width] for each document of the batch."""
        values, meeting = torch.stack(list(importance)), self.observer.meeting
        if meeting is None:
            self.observer.sink(self.name, site, values)
        else:
            projection = next(name for name in SITES[site] if name in self.projections)
            meeting.bring(self.name, site, values, self._seen(projection))

    def emit_both(self, sites: tuple[str, str], importance: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The same of two sites that are measured together."""
        for site, values in zip(sites, zip(*importance, strict=True), strict=True):
            self.emit(site, values)
