"""Watches a model's forward pass and hands out the importance of every neuron, as soon as it can be computed.

Nothing of the model's code is replaced: inputs and outputs of projections come from hooks, queries and keys from an
attention function registered with transformers' own `AttentionInterface`, which calls PyTorch's SDPA and so leaves the
pass as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from plnd.errors import FamilyError
from plnd.families import Layout, Norm, Target
from plnd.importance import (
    Attention,
    HeadNorm,
    Readout,
    attention_importance,
    attention_output_importance,
    column_importance,
    rotated_as_assumed,
)

QK = Literal["exact", "first_order", "off"]

SITES = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("o_proj",),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
}
"""What is measured once, and the projections whose neurons share the measurement (eq. 5: up, gate and down are one)."""

Sink = Callable[[int, str, Tensor], None]
"""Receives (block, site, importance [documents, width]) during the forward pass."""


@dataclass
class Observer:
    """Computes importances during forward passes of `layout`'s model, between `attached()` and its exit.

    Attributes:
        layout: the model.
        qk: how rows of `q_proj` and `k_proj` are measured; `off` leaves both out.
        sink: receives each result.
        spans: (first, last + 1) token of every document of the batch in the pass that follows.
    """

    layout: Layout
    qk: QK
    sink: Sink
    spans: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place and gradients off; on exit the model is as it was.

        Raises:
            FamilyError: if the feed-forward non-linearity does not map 0 to 0, so that no closed form holds; and where
                queries and keys are wanted, if they cannot be observed or are not rotated as the table's are.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for number, block in enumerate(self.layout.blocks):
                watch = _BlockWatch(self, number, block)
                for handle in watch.hooks():
                    stack.callback(handle.remove)
            if self.qk != "off":
                stack.enter_context(_attention_implementation(self.layout.model, _NAME))
            yield


class _BlockWatch:
    """The hooks of one block and what they carry from one to the next within a pass."""

    def __init__(self, observer: Observer, number: int, block: nn.Module) -> None:
        self.observer, self.number, self.block = observer, number, block
        self.family = observer.layout.family
        self.head_dim = int(_attribute(block, self.family.head_dim))
        self.attention = block.get_submodule(self.family.attention)
        activation = _attribute(block, self.family.activation)
        if float(activation(torch.zeros(1))) != 0:
            raise FamilyError(f"block {number}: the activation {activation} does not map 0 to 0, which eq. 5 needs")
        self.ffn = self._readout("down_proj", self.family.feed_forward_norm)
        self.attention_readout = self._readout("o_proj", self.family.attention_norm)
        groups = self._target("v_proj").width // self.head_dim
        self.gram = self.attention_readout.gram(groups, self.head_dim)
        gained = self.attention_readout.gain is not None
        self.gained_gram = self.attention_readout.gram(groups, self.head_dim, gained=True) if gained else None
        self.rows: dict[str, Tensor] = {}
        self.rotary: tuple[Tensor, Tensor] | None = None

    def hooks(self) -> Iterator[Any]:
        yield self._target("down_proj").module.register_forward_hook(self._feed_forward)
        yield self._target("o_proj").module.register_forward_hook(self._attention_output)
        if self.observer.qk == "off":
            return
        for name in ("q_proj", "k_proj"):
            yield self._target(name).module.register_forward_hook(self._keeper(name))
        yield self.attention.register_forward_pre_hook(self._before_attention, with_kwargs=True)
        self.attention._plnd_watch = self._queries_and_keys  # type: ignore[assignment]
        yield _Attribute(self.attention, "_plnd_watch")

    def _target(self, projection: str) -> Target:
        return self.observer.layout.targets[f"{self.number}.{projection}"]

    def _readout(self, projection: str, norm: Norm | None) -> Readout:
        weight = self._target(projection).weight()
        if norm is None:
            return Readout(weight)
        module = self.block.get_submodule(norm.module)
        return Readout(weight, _gain(module, norm), getattr(module, norm.eps))

    def _emit(self, site: str, importance: Sequence[Tensor]) -> None:
        self.observer.sink(self.number, site, torch.stack(list(importance)))

    def _documents(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each document's own tokens of [batch, seq, ...] tensors."""
        for index, (start, stop) in enumerate(self.observer.spans):
            yield tuple(tensor[index, start:stop] for tensor in tensors)

    def _feed_forward(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._emit("ffn", [column_importance(h, f, self.ffn) for h, f in self._documents(args[0], output)])

    def _attention_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        readout, grams = self.attention_readout, (self.gram, self.gained_gram)
        results = [attention_output_importance(c, f, readout, *grams) for c, f in self._documents(args[0], output)]
        for site, importance in zip(("output", "value"), zip(*results, strict=True), strict=True):
            self._emit(site, importance)

    def _keeper(self, name: str) -> Callable:
        target = self._target(name)

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.rows[name] = output[..., target.start : target.start + target.width]

        return keep

    def _before_attention(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.family.rotary:
            self.rotary = kwargs["position_embeddings"]

    def _queries_and_keys(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None):
        """Called by the attention function with rotated queries [batch, heads, seq, head_dim] and keys."""
        query_norm, key_norm = (self._head_norm(n) for n in (self.family.query_norm, self.family.key_norm))
        results: dict[str, list[Tensor]] = {"query": [], "key": []}
        for index, (start, stop) in enumerate(self.observer.spans):
            span = slice(start, stop)
            rotary = None if self.rotary is None else [x[index % len(x), span] for x in self.rotary]
            trace = Attention(
                query=self.rows["q_proj"][index, span].unflatten(-1, (-1, self.head_dim)).transpose(0, 1),
                key=self.rows["k_proj"][index, span].unflatten(-1, (-1, self.head_dim)).transpose(0, 1),
                query_rotated=query[index, :, span],
                key_rotated=key[index, :, span],
                scaling=scaling,
                cos=None if rotary is None else rotary[0],
                sin=None if rotary is None else rotary[1],
                query_norm=query_norm,
                key_norm=key_norm,
                mask=None if mask is None else mask[index % len(mask), :, span, span],
                softcap=softcap,
            )
            if index == 0 and not rotated_as_assumed(trace):
                raise FamilyError(
                    f"block {self.number}: queries and keys are not rotated as Llama's are, so eq. 10 cannot be"
                    " evaluated: detect with --qk off"
                )
            query_importance, key_importance = attention_importance(trace, self.observer.qk)  # type: ignore[arg-type]
            results["query"].append(query_importance)
            results["key"].append(key_importance)
        self.rows.clear()
        self.rotary = None
        for side, importance in results.items():
            self._emit(side, importance)

    def _head_norm(self, norm: Norm | None) -> HeadNorm | None:
        if norm is None:
            return None
        module = self.block.get_submodule(norm.module)
        return HeadNorm(_gain(module, norm), getattr(module, norm.eps))


@dataclass
class _Attribute:
    """An attribute put on a module, with the `remove` of a hook handle."""

    module: nn.Module
    name: str

    def remove(self) -> None:
        delattr(self.module, self.name)


_NAME = "plnd_observed"


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA, after the block's watch has seen the queries and keys."""
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    module._plnd_watch(query, key, attention_mask, scaling, kwargs.get("softcap"))  # type: ignore[operator]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(_NAME, _observed_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def _attention_implementation(model: Any, name: str) -> Iterator[None]:
    """The model runs with the attention function `name`; its own is put back on exit."""
    if not model._supports_sdpa:
        raise FamilyError(
            f"{type(model).__name__} cannot run with PyTorch's SDPA, so its queries and keys cannot be observed: detect"
            " with --qk off"
        )
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise FamilyError(
                f"{type(model).__name__} does not use transformers' AttentionInterface, so its queries and keys cannot"
                " be observed: detect with --qk off"
            )
        yield
    finally:
        model.set_attn_implementation(before)


def _gain(module: nn.Module, norm: Norm) -> Tensor:
    """What the norm multiplies by, in its accumulation dtype."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + norm.offset


def _attribute(block: nn.Module, path: str) -> Any:
    """The attribute at a dotted path below a module."""
    value: Any = block
    for name in path.split("."):
        value = getattr(value, name)
    return value
