"""Whether a block computes what the closed forms take it to compute, held on the first tokens of one document.

A model's modules say what it has, not what it does with their outputs: a factor before the residual stream, a clamp
between two projections or an adapter's addition would make every importance wrong without a sign. So each block is
asked once. Every check costs less than one token's pass, and none needs a weight a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plnd.detection.observer import Handle, ObservedBlock
from plnd.errors import FamilyError
from plnd.importance.attention import Attention, as_assumed
from plnd.importance.memory import accumulation_dtype
from plnd.importance.sublayers import Readout
from plnd.models.gating import Gating
from plnd.models.layout import missing
from plnd.models.quantised import dequantised
from plnd.models.spread import local


def finite(*tensors: Tensor) -> bool:
    """Whether the document says anything."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def adds_up(before: Tensor, after: Tensor, parts: list[Tensor]) -> bool:
    """Whether a block's output is its input plus what its sub-layers add: all [seq, hidden]."""
    dtype = accumulation_dtype(after.dtype)
    terms = [x.to(after.device, dtype) for x in (before, *parts)]
    size = torch.stack([x.abs() for x in terms]).sum(0)
    return _near(after.to(dtype), torch.stack(terms).sum(0), size, _rounding(before, after, *parts))


def gated(inner: Tensor, gate: Tensor | None, up: Tensor, gating: Gating) -> bool:
    """Whether a feed-forward's inner activations are what its row says of gate and up: all [seq, width]."""
    expected = gating.inner(gate, up)
    dtype = accumulation_dtype(inner.dtype)
    found, expected = inner.to(dtype), expected.to(inner.device, dtype)
    size = expected.abs() + expected.square().mean().sqrt()
    return _near(found, expected, size, _rounding(inner, up))


def read_out(expected: Tensor, output: Tensor, readout: Readout, bias: Tensor | None, rounding: float) -> bool:
    """Whether a projection's output [seq, hidden] is that of the measured weights for its input.

    Seen along one direction of random signs, in which rounding adds up as it does in the norm.

    Args:
        expected: what the input makes of the weights in that direction, [seq] (`Readout.expected`).
        output: of the projection.
        readout: what is measured of it.
        bias: what is added beside the weights, [hidden].
        rounding: by how much of a token's output both may differ.
    """
    found = readout.along(output)
    expected = expected if bias is None else expected + readout.along(bias)
    return _near(found, expected, torch.linalg.vector_norm(output.to(found.dtype), dim=-1), rounding)


class ResidualProof:
    """What a block adds to the residual stream, against what its sub-layers gave.

    Args:
        block: the block, or one of its parts.
    """

    def __init__(self, block: ObservedBlock) -> None:
        self.block = block
        self.proven = False
        self.before: Tensor | None = None
        self.parts: list[Tensor] = []

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place; what the block's sub-layers give is told to `add`."""
        yield self.block.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield self.block.module.register_forward_hook(self.block.told(self._leave))
        for path in self.block.stack.beside:
            yield self.block.at(path).register_forward_hook(self._add_beside)
        for path in self.block.stack.stream_norms:
            yield self.block.at(path).register_forward_hook(self._norm_stream)

    def add(self, output: Tensor, readout: Readout) -> None:
        """A sub-layer's output [batch, seq, hidden], which goes through the readout's norm, if any."""
        if not self.proven:
            self.parts.append(readout.joins(self.block.first(output)))

    def _add_beside(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not self.proven:
            found = self.block.first(output[0] if isinstance(output, tuple) else output)
            self.parts.append(found * self.block.factor("beside"))

    def _norm_stream(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Of what a norm of the stream gives the next sub-layer adds to."""
        if not self.proven and self.before is not None:
            if finite(args[0], output, *self.parts):
                self._hold(self.block.first(args[0]))
            self.before, self.parts = self.block.first(output).clone(), []

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.proven:
            return
        hidden = args[0] if args else kwargs.get("hidden_states")
        if hidden is None:
            raise missing(self.block.family, f"block {self.block.name}'s input", "hidden_states")
        self.before = self.block.first(hidden) * self.block.block.stream_factor  # a copy: some add to it in place
        self.parts = []

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.proven or self.before is None:
            return
        after = self.block.first(output[0] if isinstance(output, tuple) else output)
        if finite(self.before, after, *self.parts):  # else this document says nothing; one of the next batch may
            self._hold(after)
            self.proven = True
        self.before, self.parts = None, []

    def _hold(self, after: Tensor) -> None:
        assert self.before is not None
        if not adds_up(self.before, after, self.parts):
            raise FamilyError(
                f"block {self.block.name}: its output is not its input plus the outputs of attention and feed-forward,"
                f" which the families table says of {self.block.family} (a factor, a norm or an order of its own), so"
                " eq. 1 has another form there: give the family a row that says so (docs/families.md)"
            )


class ReadoutProof:
    """Whether the weights of `o_proj` or `down_proj` are all that makes its output.

    Args:
        block: the block.
        projection: which of the two.
        readout: what is measured of it.
    """

    def __init__(self, block: ObservedBlock, projection: str, readout: Readout) -> None:
        self.block, self.projection, self.readout = block, projection, readout
        self.proven = False

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place."""
        yield self.block.after(self.projection, self._see)

    def _see(self, inner: Tensor, output: Tensor) -> None:
        if self.proven:
            return
        inner, output = self.block.first(inner), self.block.first(output)
        if not finite(inner, output):
            return
        stored = local(self.block.target(self.projection).stored)
        if type(stored) in (Tensor, nn.Parameter) and stored.is_floating_point():
            expected, rounding = self.readout.expected(inner), 4 * _rounding(inner, output)
            self.block.add_up(self.projection, expected, partial(self._hold, output, rounding))
        self.proven = True  # a layer of packed weights rounds its input too

    def _hold(self, output: Tensor, rounding: float, expected: Tensor) -> None:
        plain: Any = self.block.target(self.projection).plain
        bias = None if getattr(plain, "bias", None) is None else dequantised(plain, "bias")
        if not read_out(expected, output, self.readout, bias, rounding):
            raise FamilyError(
                f"block {self.block.name}: the output of {self.projection} is not its weights times its input, so"
                " the weights are not all that would have to be measured: merge adapters first, or load the model"
                " without them"
            )


class GateProof:
    """Whether the feed-forward's inner activations are what its non-linearity makes of gate and up.

    Args:
        block: the block, which has a feed-forward.

    Raises:
        FamilyError: if the non-linearity does not map 0 to 0, so that no closed form holds.
    """

    def __init__(self, block: ObservedBlock) -> None:
        self.block = block
        self.gates = [name for name in block.projections if name in ("gate_proj", "up_proj")]
        self.gating = block.gating
        if block.stack.gating != "offset" and float(self.gating.activation(torch.zeros(1))) != 0:
            raise FamilyError(
                f"block {block.name}: the activation {self.gating.activation} does not map 0 to 0, which eq. 5 needs"
            )
        self.proven = False
        self.outputs: dict[str, Tensor] = {}  # of gate and up in the pass at hand, [seq, width]
        self.inner: Tensor | None = None

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place; of fused experts, which have no modules to hook, `add` is told instead."""
        for name in self.gates:
            yield self.block.after(name, self._keeper(name))
        yield self.block.before("down_proj", self._arrive)
        yield self.block.after("down_proj", self._see)

    def add(self, fused: Tensor, inner: Tensor) -> None:
        """One expert's output of `gate_up_proj` [tokens, 2·width] and inner activations [tokens, width]."""
        if not self.proven and finite(fused):
            self._hold(inner, {name: self.block.target(name).select(fused) for name in self.gates})

    def _keeper(self, name: str) -> Callable[[Tensor, Tensor], None]:
        target = self.block.target(name)

        def keep(_: Tensor, output: Tensor) -> None:
            if not self.proven:  # copied: some activations work in place
                self.outputs[name] = self.block.first(target.select(output)).clone()

        return keep

    def _arrive(self, inner: Tensor) -> None:
        if not self.proven:
            self.inner = inner

    def _see(self, inner: Tensor, output: Tensor) -> None:
        if self.proven or self.inner is None:
            return
        arrived, outputs, self.inner, self.outputs = self.block.first(self.inner), self.outputs, None, {}
        if finite(arrived, self.block.first(output)):
            self._hold(arrived, outputs)

    def _hold(self, inner: Tensor, outputs: dict[str, Tensor]) -> None:
        if not gated(inner, outputs.get("gate_proj"), outputs["up_proj"], self.gating):
            raise FamilyError(
                f"block {self.block.name}: between {' and '.join(self.gates)} and down_proj the feed-forward computes"
                f" something else than the families table says of {self.block.family}, so eq. 5 has another form there:"
                " plnd cannot measure this model"
            )
        self.proven = True


class AttentionProof:
    """Whether attention is what its trace says, for the first document that is finite.

    Args:
        block: the block.
    """

    def __init__(self, block: ObservedBlock) -> None:
        self.block = block
        self.proven = False
        self.trace: Attention | None = None
        self.value: Tensor | None = None  # of the pass at hand, [groups, seq, head_dim], also where no row has a form
        self.context: Tensor | None = None  # [seq, heads * head_dim]
        self.gate: Tensor | None = None  # what the heads' outputs are multiplied by, of the same shape

    def hooks(self) -> Iterator[Handle]:
        """Puts it in place; the document's queries, keys and mask are told to `add`."""
        if self.block.has("v_proj"):
            yield self.block.after("v_proj", self._keep_value)
        if self.block.stack.head_gates:
            yield self.block.after("q_proj", self._keep_gate)
        yield self.block.before("o_proj", self._keep_context)

    def add(self, trace: Attention, value: Tensor | None = None) -> None:
        """The first document's queries, keys and mask in the pass at hand.

        Args:
            trace: they.
            value: values as they enter attention, [groups, seq, head_dim]; read where the block has no `v_proj`.
        """
        if not self.proven:
            self.trace = trace
            if not self.block.has("v_proj"):
                self.value = value
            self._hold()

    def _keep_value(self, _: Tensor, output: Tensor) -> None:
        if not self.proven:
            value = next(self.block.documents(self.block.target("v_proj").select(output)))[0]
            self.value = value.unflatten(-1, (-1, self.block.head_dim)).transpose(0, 1)

    def _keep_gate(self, _: Tensor, output: Tensor) -> None:
        if not self.proven:
            gates = output.unflatten(-1, (-1, 2, self.block.head_dim))[..., 1, :].flatten(-2).sigmoid()
            self.gate = next(self.block.documents(gates))[0]

    def _keep_context(self, context: Tensor) -> None:
        if not self.proven:
            self.context = next(self.block.documents(context))[0]
            self._hold()

    def _hold(self) -> None:
        """As soon as all are there; outside the interface the trace comes last."""
        if self.trace is None or self.context is None or self.value is None:
            return
        trace, value, context, gate = self.trace, self.value, self.context, self.gate
        self.trace = self.value = self.context = self.gate = None
        if not torch.isfinite(context).all():
            return  # this document says nothing; the first one of the next batch may
        if not as_assumed(trace, value, context, gate):
            raise FamilyError(
                f"block {self.block.name}: attention is not what the families table says of {self.block.family}, so"
                " eq. 10 cannot be evaluated: detect with --qk off"
            )
        self.proven = True


def _rounding(*tensors: Tensor) -> float:
    """Far above what rounding to the coarsest of the dtypes does, and far below another form's difference."""
    return max(8 * max(torch.finfo(tensor.dtype).eps for tensor in tensors), 1e-4)


def _near(found: Tensor, expected: Tensor, size: Tensor, rounding: float) -> bool:
    return bool(((found - expected).abs() <= rounding * size).all())
