"""Whether a block computes what the closed forms take it to compute, held on the first tokens of one document.

A model's modules say what it has, not what it does with their outputs: a factor before the residual stream, a clamp
between two projections or an adapter's addition would make every importance wrong without a sign. So each block is
asked once. Every check costs less than one token's pass, and none needs a weight a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from plnd.errors import FamilyError
from plnd.importance.memory import accumulation_dtype
from plnd.importance.sublayers import Readout
from plnd.models.layout import Block, missing


def finite(*tensors: Tensor) -> bool:
    """Whether the document says anything."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def adds_up(before: Tensor, after: Tensor, parts: list[Tensor]) -> bool:
    """Whether a block's output is its input plus what its sub-layers add: all [seq, hidden]."""
    dtype = accumulation_dtype(after.dtype)
    terms = [x.to(after.device, dtype) for x in (before, *parts)]
    size = torch.stack([x.abs() for x in terms]).sum(0)
    return _near(after.to(dtype), torch.stack(terms).sum(0), size, _rounding(before, after, *parts))


def gated(inner: Tensor, gate: Tensor | None, up: Tensor, activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether a feed-forward's inner activations are act(gate)·up, or act(up) without a gate: all [seq, width]."""
    expected = activation(up) if gate is None else activation(gate) * up
    dtype = accumulation_dtype(inner.dtype)
    found, expected = inner.to(dtype), expected.to(inner.device, dtype)
    size = expected.abs() + expected.square().mean().sqrt()
    return _near(found, expected, size, _rounding(inner, up))


def read_out(inner: Tensor, output: Tensor, readout: Readout, bias: Tensor | None) -> bool:
    """Whether a projection's output [seq, hidden] is that of the measured weights for its input [seq, width].

    Seen along one direction of random signs, in which rounding adds up as it does in the norm.
    """
    found, expected = readout.seen(inner, output, bias)
    size = torch.linalg.vector_norm(output.to(found.dtype), dim=-1)
    return _near(found, expected, size, 4 * _rounding(inner, output))


class Residual:
    """What a block adds to the residual stream, against what its sub-layers gave.

    Args:
        block: the block, or one of its parts.
        first: the first document's tokens of a batch, [batch, seq, hidden] to [seq, hidden].
    """

    def __init__(self, block: Block, first: Callable[[Tensor], Tensor]) -> None:
        self.block, self.first = block, first
        self.before: Tensor | None = None
        self.parts: list[Tensor] = []
        self.unproven = True

    def hooks(self) -> Iterator[Any]:
        """Handles, each with `remove`."""
        yield self.block.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield self.block.module.register_forward_hook(self._leave)

    def add(self, output: Tensor, readout: Readout) -> None:
        """A sub-layer's output [batch, seq, hidden], which goes through the readout's norm, if any."""
        if self.unproven:
            self.parts.append(readout.joins(self.first(output)))

    def _enter(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.unproven:
            return
        hidden = args[0] if args else kwargs.get("hidden_states")
        if hidden is None:
            raise missing(self.block.family, f"block {self.block.name}'s input", "hidden_states")
        self.before, self.parts = self.first(hidden).clone(), []  # some blocks add to it in place

    def _leave(self, module: Any, args: tuple, output: Any) -> None:
        if not self.unproven or self.before is None:
            return
        after = self.first(output[0] if isinstance(output, tuple) else output)
        before, parts, self.before, self.parts = self.before, self.parts, None, []
        if not finite(before, after, *parts):
            return  # this document says nothing; the first one of the next batch may
        if not adds_up(before, after, parts):
            raise FamilyError(
                f"block {self.block.name}: its output is not its input plus the outputs of attention and feed-forward,"
                f" which the families table says of {self.block.family} (a factor, a norm or an order of its own), so"
                " eq. 1 has another form there: give the family a row that says so (docs/families.md)"
            )
        self.unproven = False


def _rounding(*tensors: Tensor) -> float:
    """Far above what rounding to the coarsest of the dtypes does, and far below another form's difference."""
    return max(8 * max(torch.finfo(tensor.dtype).eps for tensor in tensors), 1e-4)


def _near(found: Tensor, expected: Tensor, size: Tensor, rounding: float) -> bool:
    return bool(((found - expected).abs() <= rounding * size).all())
