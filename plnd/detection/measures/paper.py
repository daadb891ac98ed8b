"""The importance of the PLND paper (arXiv:2402.18815, eq. 1), by the closed forms of `plnd.importance`.

They take a block to compute what its row of the families table says, so each block is held to that on the first
document (`plnd.detection.measures.proof`). Of a model that is read block by block, what they need of a block's weights
is taken in its first pass: they are not there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from plnd.detection.config import QK
from plnd.detection.measures.proof import GateProof, ReadoutProof, ResidualProof
from plnd.detection.measures.traces import AttentionTraces, Pair
from plnd.detection.observer import Handle, ObservedBlock, forward_pass
from plnd.importance.attention import Attention, attention_importance
from plnd.importance.sublayers import Readout, attention_output_importance, column_importance
from plnd.models.blockwise import weights_of
from plnd.models.families import Norm


class PaperImportance:
    """Importance of every neuron of every projection.

    Args:
        qk: how rows of `q_proj` and `k_proj` are measured; `off` leaves both out.
    """

    def __init__(self, qk: QK) -> None:
        self.qk = qk

    run = staticmethod(forward_pass)

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `Measure`."""
        residuals: dict[nn.Module, ResidualProof] = {}  # a block and its cross-attention are one module
        for block in blocks:
            if block.module not in residuals:
                residuals[block.module] = ResidualProof(block)
                yield from residuals[block.module].hooks()
            residual = residuals[block.module]
            if block.has("o_proj"):
                yield from AttentionOutputs(block, residual).hooks()
            if self.qk != "off" and block.has("q_proj"):
                yield from AttentionTraces(block, partial(self._queries_and_keys, block)).hooks()
            if block.stack.activation:
                yield from FeedForward(block, residual).hooks()

    def _queries_and_keys(self, block: ObservedBlock, trace: Attention) -> tuple[Tensor, Tensor]:
        return attention_importance(trace, self.qk, block.alive)  # type: ignore[arg-type]


class AttentionOutputs:
    """Importance of the columns of a block's `o_proj` and of the rows of its `v_proj` (sites `output` and `value`).

    Where values are normed their rows have no closed form, and the columns are measured alone.
    """

    def __init__(self, block: ObservedBlock, residual: ResidualProof) -> None:
        self.block, self.residual = block, residual
        self.readout = readout_of(block, "o_proj", block.stack.attention_norm)
        self.proof = ReadoutProof(block, "o_proj", self.readout)
        self.values = block.has("v_proj")
        if self.values and not is_blockwise(block):
            self.grams  # noqa: B018  read now: of weights that are spread over processes, not in a pass

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place."""
        yield self.block.after("o_proj", self._measure)
        yield from self.proof.hooks()

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor | None]:
        """Without the norm's gain and, where there is a norm, with it."""
        shape = (self.block.target("v_proj").width // self.block.head_dim, self.block.head_dim)
        gained = None if self.readout.gain is None else self.readout.gram(*shape, gained=True)
        return self.readout.gram(*shape), gained

    def _measure(self, context: Tensor, output: Tensor) -> None:
        """From input [batch, seq, heads * head_dim] and output [batch, seq, hidden] of `o_proj`."""
        documents = self.block.documents(context, output)
        if self.values:
            both = [attention_output_importance(c, f, self.readout, *self.grams) for c, f in documents]
            self.block.emit_both(("output", "value"), both)
        else:
            self.block.emit("output", [column_importance(c, f, self.readout) for c, f in documents])
        self.residual.add(output, self.readout)


class FeedForward:
    """Importance of a block's feed-forward neurons, fused experts too.

    They are one site, `ffn`, or where something is left of a neuron without its row of `up_proj`, two: `row`, that row,
    and `column`, all others.
    """

    def __init__(self, block: ObservedBlock, residual: ResidualProof) -> None:
        self.block, self.residual, self.gating = block, residual, block.gating
        self.proof = GateProof(block)
        self.readout = readout_of(block, "down_proj", block.stack.feed_forward_norm)
        self.sites = ("ffn",) if block.stack.gating == "product" else ("column", "row")
        self.passed: Pair | None = None  # input and output of `down_proj`, until the gate of the whole is known
        self.gate: Tensor | None = None  # of the whole, [batch·seq, 1]

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place."""
        stack = self.block.stack
        if stack.experts:
            yield self.block.sum_over_experts(self.sites, self._of_expert, self._norms)
            yield self.block.at(stack.experts).register_forward_hook(self._add_experts)
            return
        if stack.feed_forward_gate is None:
            yield self.block.after("down_proj", self._measure)
        else:
            yield self.block.after("down_proj", self._keep_passed)
            yield self.block.at(stack.feed_forward_gate).register_forward_hook(self._keep_gate)
        yield from ReadoutProof(self.block, "down_proj", self.readout).hooks()
        yield from self.proof.hooks()

    def _keep_passed(self, inner: Tensor, output: Tensor) -> None:
        self.passed = (inner, output)
        self._measure_gated()

    def _keep_gate(self, module: object, args: tuple, output: Tensor) -> None:
        self.gate = output.sigmoid()
        self._measure_gated()

    def _measure_gated(self) -> None:
        """As soon as both are there, in whichever order a model computes them."""
        if self.passed is None or self.gate is None:
            return
        (inner, output), gate, self.passed, self.gate = self.passed, self.gate, None, None
        self._measure(*(x * gate.view(*x.shape[:-1], 1) for x in (inner, output)))

    def _measure(self, inner: Tensor, output: Tensor) -> None:
        """From input [batch, seq, width] and output [batch, seq, hidden] of `down_proj`."""
        documents = list(self.block.documents(inner, output))
        self.block.emit(self.sites[0], [column_importance(h, f, self.readout) for h, f in documents])
        left = self.gating.without_up(None, inner)
        if left is not None:
            self.block.emit("row", [column_importance(h - left, f, self.readout) for h, f in documents])
        self.residual.add(output, self.readout)

    def _of_expert(self, fused: Tensor, arrived: Tensor, inner: Tensor, share: Tensor) -> Tensor:
        """Neuron k of an expert adds share·inner[k]·W_down[:, k] to a token that is routed to it."""
        self.proof.add(fused, arrived)
        left = self.gating.without_up(self.block.target("gate_proj").select(fused), inner)
        changes = inner if left is None else torch.cat((inner, inner - left), dim=-1)
        return (changes * share).to(self.readout.column_norm.dtype).square()

    def _norms(self, squares: Tensor) -> Tensor:
        return squares.sqrt() * self.readout.column_norm

    def _add_experts(self, module: object, args: tuple, output: Tensor) -> None:
        if self.block.stack.scaled_inputs:
            experts = self.block.target("down_proj").experts
            assert experts is not None
            output = output.unflatten(0, (experts, -1)).sum(0)
        self.residual.add(output, self.readout)


def is_blockwise(block: ObservedBlock) -> bool:
    """Whether a block has its weights only while something passes."""
    return weights_of(block.observer.layout.model) is not None


def readout_of(block: ObservedBlock, projection: str, norm: Norm | None) -> Readout:
    """How a sub-layer's output projection, and the norm behind it, if any, reach the residual stream."""
    weight = block.target(projection).weight
    factor = partial(block.factor, "attention" if projection == "o_proj" else "feed_forward")
    if norm is None:
        readout = Readout(weight, factor=factor())
    else:
        eps, products = block.at(f"{norm.module}.{norm.eps}"), block.products(projection)
        readout = Readout(weight, lambda: block.gain(norm) * factor(), eps, products=products)
    if not is_blockwise(block):
        readout.read()  # what cannot be read is refused before a pass
    return readout
