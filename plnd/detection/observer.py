"""Watches a model's forward pass and hands out the importance of every neuron, as soon as it can be computed.

Nothing of the model's code is replaced: inputs and outputs of projections come from hooks, queries and keys from an
attention function registered with transformers' own `AttentionInterface`, which calls PyTorch's SDPA and so leaves the
pass as it is; in families whose attention does not go through that interface, from the arguments of the attention
module. Fused experts are watched by a function registered with transformers' `ExpertsInterface`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plnd.detection.config import QK
from plnd.detection.interfaces import RoutedSums, observed_attention, observed_experts, put_watch
from plnd.detection.proof import Residual, finite, gated, read_out
from plnd.errors import FamilyError
from plnd.importance.attention import ROWS, Attention, HeadNorm, Rotary, as_assumed, attention_importance, rotated
from plnd.importance.memory import release_memory
from plnd.importance.sublayers import Readout, attention_output_importance, column_importance
from plnd.models.families import Norm
from plnd.models.layout import Block, Layout, Target, missing
from plnd.models.quantised import dequantised, packing
from plnd.models.running import hooked

SITES = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("o_proj",),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
    "up": ("up_proj", "down_proj"),
}
"""What is measured once, and the projections whose neurons share the measurement (eq. 5: up, gate and down are one)."""

Sink = Callable[[str, str, Tensor], None]
"""Receives (block, site, importance [documents, width]) during the forward pass."""


@dataclass
class Observer:
    """Computes importances during forward passes of `layout`'s model, between `attached()` and its exit.

    Attributes:
        layout: the model.
        qk: how rows of `q_proj` and `k_proj` are measured; `off` leaves both out.
        sink: receives each result.
        spans: (first, last + 1) token of every document of the batch in the pass that follows.
        alive: block to the rows of `q_proj` and `k_proj` that are wanted, both boolean [width]; the others' importance
            is 0. Of blocks that are not named all are wanted.
        watch: what is measured in each block; a subclass of `BlockWatch` measures something else than the paper's
            importance.
    """

    layout: Layout
    qk: QK
    sink: Sink
    spans: list[tuple[int, int]] = field(default_factory=list)
    alive: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    watch: Callable[[Observer, Block, Residual], BlockWatch] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place and gradients off; on exit the model is as it was.

        Raises:
            FamilyError: if the feed-forward non-linearity does not map 0 to 0, so that no closed form holds, or a block
                lacks what the table says it has; during the passes, if a block computes something else than the table
                says; and where queries and keys are wanted, if they cannot be observed.
            PLNDError: if another thread works on the model.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(hooked(self.layout.model))
            stack.callback(release_memory)
            residuals: dict[int, Residual] = {}  # those of a block and of its cross-attention are one
            for block in self.layout.blocks:
                residual = residuals.setdefault(id(block.module), Residual(block, self.first))
                for handle in (self.watch or BlockWatch)(self, block, residual).hooks():
                    stack.callback(handle.remove)
            if self.qk != "off" and self.layout.interface:
                stack.enter_context(observed_attention(self.layout))
            stack.enter_context(observed_experts(self.layout))
            yield

    def first(self, tensor: Tensor) -> Tensor:
        """The first document's first tokens, [seq, ...], of [batch, seq, ...]; some models flatten the first two."""
        start, stop = self.spans[0]
        tensor = tensor if tensor.dim() == 3 else tensor.unflatten(0, (len(self.spans), -1))
        return tensor[0, start : min(stop, start + ROWS)]


class BlockWatch:
    """The hooks of one block and what they carry from one to the next within a pass.

    Args:
        observer: whom the results are handed to.
        block: the block.
        residual: what holds the block's output to its sub-layers'.
    """

    def __init__(self, observer: Observer, block: Block, residual: Residual) -> None:
        self.observer, self.name, self.stack, self.at = observer, block.name, block.stack, block.at
        self.family, self.residual = block.family, residual
        self._check_paths()
        self.head_dim = int(self.at(self.stack.head_dim))
        self.attention: nn.Module = self.at(self.stack.attention)
        self.rows: dict[str, Tensor] = {}
        self.rotary: tuple[Tensor, Tensor] | None = None
        self.unproven = True
        self.first_trace: Attention | None = None
        self.first_context: Tensor | None = None
        self.unproven_feed_forward = self.unproven_readout = True
        self.before_activation: dict[str, Tensor] = {}
        self.arrived: dict[str, Tensor] = {}
        self._prepare()

    def _check_paths(self) -> None:
        """That the block has what its row names, before a pass of a model that may fail in its own way without it."""
        stack = self.stack
        for norm in (stack.query_norm, stack.key_norm, stack.attention_norm, stack.feed_forward_norm):
            if norm is not None:
                self.at(f"{norm.module}.weight")
                self.at(f"{norm.module}.{norm.eps}")
        when = stack.rotation.when if stack.rotation else None
        for path in (when, stack.feed_forward, stack.experts):
            if path is not None:
                self.at(path)

    def _prepare(self) -> None:
        """What the measure needs of the weights."""
        self.attention_readout = self._readout("o_proj", self.stack.attention_norm)
        groups = self._target("v_proj").width // self.head_dim
        self.gram = self.attention_readout.gram(groups, self.head_dim)
        gained = self.attention_readout.gain is not None
        self.gained_gram = self.attention_readout.gram(groups, self.head_dim, gained=True) if gained else None
        if self.stack.activation:
            self.activation = self.at(self.stack.activation)
            if float(self.activation(torch.zeros(1))) != 0:
                raise FamilyError(
                    f"block {self.name}: the activation {self.activation} does not map 0 to 0, which eq. 5 needs"
                )
            self.ffn = self._readout("down_proj", self.stack.feed_forward_norm)

    def hooks(self) -> Iterator[Any]:
        """Handles, each with `remove`."""
        yield from self._feed_forward_hooks()
        yield from self._attention_hooks()
        yield from self._proof_hooks()

    @staticmethod
    def _check_dense(experts: Target) -> None:
        """Refuses fused experts that are packed: the pass here multiplies by slices of what is stored."""
        if reason := packing(experts.plain, experts.projection.parameter):
            raise FamilyError(f"{experts.name}: {reason}, expected dense experts: load the model unquantised")

    @property
    def _watched(self) -> str:
        """The projection at which the feed-forward is watched."""
        return "down_proj"

    def _feed_forward_hooks(self) -> Iterator[Any]:
        if self.stack.experts:
            for projection in ("gate_proj", "down_proj"):
                self._check_dense(self._target(projection))
            yield put_watch(self.at(self.stack.experts), self._experts)
        elif self.stack.activation:
            yield self._target(self._watched).module.register_forward_hook(self._feed_forward)

    def _proof_hooks(self) -> Iterator[Any]:
        """What holds the block to the forms by which it is measured."""
        if self.residual.block.name == self.name:
            yield from self.residual.hooks()
        if self.stack.experts:
            yield self.at(self.stack.experts).register_forward_hook(self._experts_output)
        elif self.stack.activation:
            for name in self._gates:
                yield self._target(name).module.register_forward_hook(self._gate_keeper(name))
            yield self._target("down_proj").module.register_forward_pre_hook(self._arrival("down_proj"), prepend=True)
        yield self._target("o_proj").module.register_forward_pre_hook(self._arrival("o_proj"), prepend=True)

    def _attention_hooks(self) -> Iterator[Any]:
        yield self._target("o_proj").module.register_forward_hook(self._attention_output)
        if self.observer.qk == "off":
            return
        for name in ("q_proj", "k_proj", "v_proj"):
            yield self._target(name).module.register_forward_hook(self._keeper(name))
        yield self.attention.register_forward_pre_hook(self._before_attention, with_kwargs=True)
        if self.observer.layout.interface:
            yield put_watch(self.attention, self._queries_and_keys)
        else:
            yield self.attention.register_forward_hook(self._after_attention, with_kwargs=True)

    def _target(self, projection: str) -> Target:
        return self.observer.layout.targets[f"{self.name}.{projection}"]

    def _readout(self, projection: str, norm: Norm | None) -> Readout:
        target = self._target(projection)
        if norm is None:
            return Readout(target.weight, factor=float(self.at(self.stack.factor)) if self.stack.factor else 1.0)
        return Readout(target.weight, self._gain(norm), self.at(f"{norm.module}.{norm.eps}"))

    def _emit(self, site: str, importance: Sequence[Tensor]) -> None:
        self.observer.sink(self.name, site, torch.stack(list(importance)))

    def _documents(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each document's own tokens of [batch, seq, ...] tensors; some models flatten the first two."""
        spans = self.observer.spans
        tensors = tuple(x if x.dim() == 3 else x.unflatten(0, (len(spans), -1)) for x in tensors)
        for index, (start, stop) in enumerate(spans):
            yield tuple(tensor[index, start:stop] for tensor in tensors)

    # feed-forward

    def _feed_forward(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._emit("ffn", [column_importance(h, f, self.ffn) for h, f in self._documents(args[0], output)])
        self.residual.add(output, self.ffn)
        if self.unproven_feed_forward:
            gates, self.before_activation = self.before_activation, {}
            arrived = self.observer.first(self.arrived.pop("down_proj", args[0]))
            if self._read_out("down_proj", self.observer.first(args[0]), self.observer.first(output), self.ffn):
                self._prove_gates(arrived, gates)

    @property
    def _gates(self) -> list[str]:
        return [p.name for p in self.stack.projections if p.name in ("gate_proj", "up_proj")]

    def _gate_keeper(self, name: str) -> Callable:
        target = self._target(name)

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            if self.unproven_feed_forward:  # copied: some activations work in place
                self.before_activation[name] = self.observer.first(target.select(output)).clone()

        return keep

    def _arrival(self, name: str) -> Callable:
        """Keeps what arrives at a projection, before hooks switch columns off (`plnd.deactivated`)."""

        def keep(module: nn.Module, args: tuple) -> None:
            if self.unproven_feed_forward if name == "down_proj" else self.unproven and self.observer.qk != "off":
                self.arrived[name] = args[0]

        return keep

    def _prove_gates(self, inner: Tensor, gates: dict[str, Tensor]) -> None:
        """Holds the input of `down_proj` to what gate and up make of it."""
        if not gated(inner, gates.get("gate_proj"), gates["up_proj"], self.activation):
            raise FamilyError(
                f"block {self.name}: between {' and '.join(self._gates)} and down_proj the feed-forward computes"
                f" something else than the families table says of {self.family}, so eq. 5 has another form there: plnd"
                " cannot measure this model"
            )
        self.unproven_feed_forward = False

    def _read_out(self, name: str, inner: Tensor, output: Tensor, readout: Readout) -> bool:
        """Whether the document is finite, and its output that of the projection's weights, as far as they are dense."""
        if not finite(inner, output):
            return False
        target = self._target(name)
        plain: Any = target.plain
        dense = type(target.stored) in (Tensor, nn.Parameter) and target.stored.is_floating_point()
        if dense:  # a layer of packed weights rounds its input too
            bias = None if getattr(plain, "bias", None) is None else dequantised(plain, "bias")
            if not read_out(inner, output, readout, bias):
                raise FamilyError(
                    f"block {self.name}: the output of {name} is not its weights times its input, so the weights are"
                    " not all that would have to be measured: merge adapters first, or load the model without them"
                )
        return True

    def _experts_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.residual.add(output, self.ffn)

    def _experts(self, tokens: int) -> RoutedSums:
        """See `_sum_routed`. An expert's neuron k adds share·h[k]·W_down[:, k] to a token that is routed to it."""
        norm = self.ffn.column_norm

        def term(fused: Tensor, inner: Tensor, share: Tensor) -> Tensor:
            if self.unproven_feed_forward and finite(fused):
                self._prove_gates(inner, {name: self._target(name).select(fused) for name in self._gates})
            return (inner * share).to(norm.dtype).square()

        return self._sum_routed("ffn", tokens, term, lambda total: total.sqrt() * norm)

    def _sum_routed(
        self,
        site: str,
        tokens: int,
        term: Callable[[Tensor, Tensor, Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
    ) -> RoutedSums:
        """What a pass through fused experts calls.

        Args:
            site: what is emitted at the end of the pass.
            tokens: of the batch, padding included.
            term: summed over each document's tokens: of the output of `gate_up_proj` [tokens, 2·width], the inner
                activations [tokens, width] and the tokens' shares of this expert [tokens, 1].
            finish: from those sums to importances, [documents, experts·width].
        """
        target = self._target("down_proj")
        assert target.experts is not None

        def emit(sums: Tensor) -> None:
            self._emit(site, list(finish(sums)))

        return RoutedSums(self.observer.spans, tokens, target.experts, term, emit)

    # attention

    def _attention_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        results = [self._outputs_and_values(c, f) for c, f in self._documents(args[0], output)]
        for site, importance in zip(("output", "value"), zip(*results, strict=True), strict=True):
            self._emit(site, importance)
        self._prove_output(args[0], output)
        if self.observer.qk != "off" and self.unproven:
            self.first_context = next(self._documents(self.arrived.pop("o_proj", args[0])))[0]
            self._prove()

    def _prove_output(self, context: Tensor, output: Tensor) -> None:
        """Holds the output of `o_proj` to its weights, and to the residual stream."""
        self.residual.add(output, self.attention_readout)
        if self.unproven_readout:
            inner, first = self.observer.first(context), self.observer.first(output)
            self.unproven_readout = not self._read_out("o_proj", inner, first, self.attention_readout)

    def _outputs_and_values(self, context: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Of `o_proj` and `v_proj`, from the input [seq, heads * head_dim] and output [seq, hidden] of `o_proj`."""
        return attention_output_importance(context, output, self.attention_readout, self.gram, self.gained_gram)

    def _keeper(self, name: str) -> Callable:
        target = self._target(name)

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            if name != "v_proj" or self.unproven:
                self.rows[name] = target.select(output)

        return keep

    def _before_attention(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        rotation = self.stack.rotation
        self.rotary = None
        if rotation is None or not (rotation.when is None or self.at(rotation.when)):
            return
        if rotation.table is None:
            self.rotary = self._argument(kwargs, "position_embeddings")
            return
        if "position_embeddings" in kwargs:
            lines = kwargs["position_embeddings"]
        else:
            table = self.at(rotation.table)
            lines = table[self._argument(kwargs, "position_ids").to(table.device)].chunk(2, dim=-1)
        sin, cos = (x.repeat_interleave(2, dim=-1) for x in lines)
        self.rotary = (cos, sin)

    def _argument(self, kwargs: dict, name: str) -> Any:
        """What the attention module receives by keyword."""
        if name not in kwargs:
            raise missing(self.family, f"block {self.name}: the call of {self.stack.attention}", name)
        return kwargs[name]

    def _after_attention(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Of an attention module outside the interface: its queries, keys and mask put together from its arguments."""
        if self.stack.relative_bias:
            self._queries_and_keys(None, None, self._relative_bias(kwargs, output), 1.0, None)
            return
        mask = self._argument(kwargs, "attention_mask")
        if self.stack.alibi:
            bias = self._argument(kwargs, "alibi").unflatten(0, (len(self.observer.spans), -1))
            mask = bias if mask is None else bias + mask
        self._queries_and_keys(None, None, mask, self.head_dim**-0.5, None)

    def _relative_bias(self, kwargs: dict, output: Any) -> Tensor:
        """T5's bias of relative positions and mask, [batch or 1, heads or 1, queries, keys]."""
        if "mask" in kwargs:  # T5 makes them in one block, and every attention module hands them on
            return output[1]
        attention: Any = self.attention
        queries, keys = (self.rows[name].shape[1] for name in ("q_proj", "k_proj"))
        if attention.has_relative_attention_bias:
            bias = attention.compute_bias(queries, keys)
        else:
            bias = self.rows["q_proj"].new_zeros(1, 1, queries, keys)
        mask = self._argument(kwargs, "attention_mask")
        return bias if mask is None else bias + mask

    def _queries_and_keys(
        self, query: Tensor | None, key: Tensor | None, mask: Tensor | None, scaling: float, softcap: float | None
    ) -> None:
        """The importances of the queries and keys of a pass.

        Args:
            query, key: as they enter the scalar product, [batch, heads, seq, head_dim]; None: computed from the
                projections' outputs.
            mask: boolean (may be seen) or additive, [batch or 1, heads or 1, seq, seq]; None: causal.
            scaling: factor of the scalar product.
            softcap: soft-cap of the logits.
        """
        if self.stack.scaled_queries and query is not None:
            scaling = self.head_dim**-0.5
            query = query / scaling
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
        norms = [self._head_norm(norm) for norm in (self.stack.query_norm, self.stack.key_norm)]
        results: dict[str, list[Tensor]] = {"query": [], "key": []}
        for index, (start, stop) in enumerate(self.observer.spans):
            span = slice(start, stop)
            q, k = (self._heads(name, index, span) for name in ("q_proj", "k_proj"))
            rotary = self._rotary(index, span)
            trace = Attention(
                query=q,
                key=k,
                query_rotated=rotated(q, norms[0], rotary) if query is None else query[index, :, span],
                key_rotated=rotated(k, norms[1], rotary) if key is None else key[index, :, span],
                scaling=scaling,
                rotary=rotary,
                query_norm=norms[0],
                key_norm=norms[1],
                mask=None if mask is None else mask[index % len(mask), :, span, span],
                softcap=softcap,
            )
            if self.unproven and index == 0:
                self.first_trace = trace
                self._prove()
            for measured, importance in zip(results.values(), self._queries_and_keys_of(trace), strict=True):
                measured.append(importance)
        self.rotary = None
        for side, importances in results.items():
            self._emit(side, importances)

    def _queries_and_keys_of(self, trace: Attention) -> tuple[Tensor, Tensor]:
        """Of `q_proj` and `k_proj`, for one document."""
        alive = self.observer.alive.get(self.name)
        return attention_importance(trace, self.observer.qk, alive)  # type: ignore[arg-type]

    def _rotary(self, index: int, span: slice) -> Rotary | None:
        if self.rotary is None or self.stack.rotation is None:
            return None
        cos, sin = (x[index % len(x), span] for x in self.rotary)
        return Rotary.of(cos, sin, self.head_dim, self.stack.rotation.pairs)

    def _heads(self, name: str, index: int, span: slice) -> Tensor:
        """A document's rows, [heads, seq, head_dim]."""
        return self.rows[name][index, span].unflatten(-1, (-1, self.head_dim)).transpose(0, 1)

    def _head_norm(self, norm: Norm | None) -> HeadNorm | None:
        if norm is None:
            return None
        return HeadNorm(self._gain(norm), self.at(f"{norm.module}.{norm.eps}"), norm.whole)

    def _gain(self, norm: Norm) -> Tensor:
        """What a norm multiplies by, in its accumulation dtype."""
        weight = dequantised(self.at(norm.module))
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + norm.offset

    def _prove(self) -> None:
        """Holds the first document's attention, as it was put together here, against what the model computed."""
        if self.first_trace is None or self.first_context is None:
            return
        trace, context, self.first_trace, self.first_context = self.first_trace, self.first_context, None, None
        if not torch.isfinite(context).all():
            return  # this document says nothing; the first one of the next batch may
        value = self._heads("v_proj", 0, slice(*self.observer.spans[0]))
        if not as_assumed(trace, value, context):
            raise FamilyError(
                f"block {self.name}: attention is not what the families table says of"
                f" {self.observer.layout.family.name}, so eq. 10 cannot be evaluated: detect with --qk off"
            )
        self.unproven = False
