"""The importance of the PLND paper (arXiv:2402.18815, eq. 1), by the closed forms of `plnd.importance`.

They take a block to compute what its row of the families table says, so each block is held to that on the first
document (`plnd.detection.measures.proof`). Of a model that is read block by block, what they need of a block's weights
is taken in its first pass: they are not there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial

from torch import Tensor, nn

from plnd.detection.config import QK
from plnd.detection.measures.proof import GateProof, ReadoutProof, ResidualProof
from plnd.detection.measures.traces import AttentionTraces
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
            yield from AttentionOutputs(block, residual).hooks()
            if self.qk != "off":
                yield from AttentionTraces(block, partial(self._queries_and_keys, block)).hooks()
            if block.stack.activation:
                yield from FeedForward(block, residual).hooks()

    def _queries_and_keys(self, block: ObservedBlock, trace: Attention) -> tuple[Tensor, Tensor]:
        return attention_importance(trace, self.qk, block.alive)  # type: ignore[arg-type]


class AttentionOutputs:
    """Importance of the columns of a block's `o_proj` and of the rows of its `v_proj` (sites `output` and `value`)."""

    def __init__(self, block: ObservedBlock, residual: ResidualProof) -> None:
        self.block, self.residual = block, residual
        self.readout = readout_of(block, "o_proj", block.stack.attention_norm)
        self.proof = ReadoutProof(block, "o_proj", self.readout)
        if not is_blockwise(block):
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
        importance = [
            attention_output_importance(c, f, self.readout, *self.grams)
            for c, f in self.block.documents(context, output)
        ]
        self.block.emit_both(("output", "value"), importance)
        self.residual.add(output, self.readout)


class FeedForward:
    """Importance of a block's feed-forward neurons (site `ffn`), fused experts too."""

    def __init__(self, block: ObservedBlock, residual: ResidualProof) -> None:
        self.block, self.residual = block, residual
        self.gates = GateProof(block)
        self.readout = readout_of(block, "down_proj", block.stack.feed_forward_norm)

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place."""
        if self.block.stack.experts:
            yield self.block.sum_over_experts("ffn", self._of_expert, self._norms)
            yield self.block.at(self.block.stack.experts).register_forward_hook(self._add_experts)
            return
        yield self.block.after("down_proj", self._measure)
        yield from ReadoutProof(self.block, "down_proj", self.readout).hooks()
        yield from self.gates.hooks()

    def _measure(self, inner: Tensor, output: Tensor) -> None:
        """From input [batch, seq, width] and output [batch, seq, hidden] of `down_proj`."""
        importance = [column_importance(h, f, self.readout) for h, f in self.block.documents(inner, output)]
        self.block.emit("ffn", importance)
        self.residual.add(output, self.readout)

    def _of_expert(self, fused: Tensor, inner: Tensor, share: Tensor) -> Tensor:
        """Neuron k of an expert adds share·inner[k]·W_down[:, k] to a token that is routed to it."""
        self.gates.add(fused, inner)
        return (inner * share).to(self.readout.column_norm.dtype).square()

    def _norms(self, squares: Tensor) -> Tensor:
        return squares.sqrt() * self.readout.column_norm

    def _add_experts(self, module: object, args: tuple, output: Tensor) -> None:
        self.residual.add(output, self.readout)


def is_blockwise(block: ObservedBlock) -> bool:
    """Whether a block has its weights only while something passes."""
    return weights_of(block.observer.layout.model) is not None


def readout_of(block: ObservedBlock, projection: str, norm: Norm | None) -> Readout:
    """How a sub-layer's output projection, and the norm behind it, if any, reach the residual stream."""
    weight = block.target(projection).weight
    if norm is None:
        readout = Readout(weight, factor=float(block.at(block.stack.factor)) if block.stack.factor else 1.0)
    else:
        eps, products = block.at(f"{norm.module}.{norm.eps}"), block.products(projection)
        readout = Readout(weight, partial(block.gain, norm), eps, products=products)
    if not is_blockwise(block):
        readout.read()  # what cannot be read is refused before a pass
    return readout
