"""Attention and fused experts that a watch looks into, registered with transformers' own interfaces.

A module whose model runs with them (`observed_attention`, `observed_experts`) calls the watch that
`plnd.models.experts.put_watch` gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from plnd.errors import FamilyError
from plnd.models.experts import IMPLEMENTATION, watch_scaled
from plnd.models.layout import Layout


class RoutedSums:
    """Sums over each document's tokens, expert by expert, during one pass through fused experts.

    Args:
        spans: (first, last + 1) token of every document of the batch.
        tokens: of the batch, padding included.
        shape: number of experts, and of each one's neurons.
        term: what is summed: of the output of `gate_up_proj` [tokens, 2·width], the inner activations as they arrive
            and as the columns of `down_proj` get them, if some are off, both [tokens, width], and the tokens' shares of
            this expert [tokens, 1].
        emit: receives the sums, [documents, experts·width], at the end; an expert without tokens has zeros.
    """

    def __init__(
        self,
        spans: Sequence[tuple[int, int]],
        tokens: int,
        shape: tuple[int, int],
        term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        emit: Callable[[Tensor], None],
    ) -> None:
        self.documents, self.shape, self.term, self.emit = len(spans), shape, term, emit
        owner = torch.full((len(spans), tokens // len(spans)), len(spans))  # padding belongs to none
        for index, (start, stop) in enumerate(spans):
            owner[index, start:stop] = index
        self.owner = owner.flatten()
        self.sums: dict[int, Tensor] = {}

    def add(self, expert: int, routed: Tensor, fused: Tensor, arrived: Tensor, inner: Tensor, share: Tensor) -> None:
        """Takes in one expert's tokens `routed`, with their projections, activations and shares."""
        value = self.term(fused, arrived, inner, share)
        total = value.new_zeros(self.documents + 1, value.shape[-1])
        self.sums[expert] = total.index_add_(0, self.owner.to(value.device)[routed.to(value.device)], value)

    def done(self) -> None:
        """The pass is over."""
        experts, width = self.shape
        some = next(iter(self.sums.values()), None)
        nothing = torch.zeros(self.documents + 1, width) if some is None else torch.zeros_like(some)
        self.emit(torch.cat([self.sums.get(expert, nothing) for expert in range(experts)], dim=1)[:-1])


_NAME = "plnd_observed"


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA, after the block's watch has seen the queries and keys; with what SDPA lacks, soft-cap or sink, in full."""
    scaling = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    softcap, bias = kwargs.get("softcap"), kwargs.get("position_bias")
    mask = attention_mask
    if bias is not None:
        if mask is None:
            mask = bias if not module.is_causal else bias + _causal(query, key)
        else:
            mask = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
    sinks = kwargs.get("s_aux")
    if hasattr(module, "_plnd_watch"):  # not of another model, which shares its configuration
        module._plnd_watch(query, key, value, mask, scaling, softcap, sinks)  # type: ignore[operator]
    if softcap is None and sinks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    logits = query @ key.mT * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None:
        logits = logits + _causal(query, key)
    else:
        lowest = torch.finfo(logits.dtype).min  # not -inf: padding sees nothing, and would become nan
        logits = logits.masked_fill(~mask, lowest) if mask.dtype == torch.bool else logits + mask
    if sinks is not None:
        logits = torch.cat((logits, sinks.to(logits).view(-1, 1, 1).expand(*logits.shape[:-1], 1)), dim=-1)
    p = torch.softmax(logits, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    p = p[..., : key.shape[2]]  # without the sink, which has no value
    return (p @ value).transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """An additive causal mask, [queries, keys]."""
    return query.new_full((query.shape[-2], key.shape[-2]), -torch.inf).triu(1)


AttentionInterface.register(_NAME, _observed_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def observed_attention(layout: Layout) -> Iterator[None]:
    """The model runs with the observed attention function; its own is put back on exit."""
    model: Any = layout.model
    if not (model._supports_sdpa or any(stack.softcap or stack.sinks for stack in layout.family.stacks)):
        raise FamilyError(
            f"{type(model).__name__} cannot run with PyTorch's SDPA, so its queries and keys cannot be observed: detect"
            " with --qk off"
        )
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        if model.config._attn_implementation != _NAME:
            raise FamilyError(
                f"{type(model).__name__} does not use transformers' AttentionInterface, so its queries and keys cannot"
                " be observed: detect with --qk off"
            )
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def observed_experts(layout: Layout) -> Iterator[None]:
    """The model's mixtures run with the observed experts; their own implementation is put back on exit.

    Those that receive scaled inputs have one implementation, beside which their inner activations are computed anew.
    Set in their configurations: the model's own method knows no registered names before transformers 5.8.
    """
    mixtures = [block for block in layout.blocks if block.stack.experts]
    experts = [block.experts for block in mixtures if not block.stack.scaled_inputs]
    scaled = [block.experts for block in mixtures if block.stack.scaled_inputs]
    configs = {id(module.config): module.config for module in experts}.values()
    before = [config._experts_implementation for config in configs]
    handles = [module.register_forward_hook(watch_scaled) for module in scaled]
    try:
        for config in configs:
            config._experts_implementation = IMPLEMENTATION
        yield
    finally:
        for handle in handles:
            handle.remove()
        for config, name in zip(configs, before, strict=True):
            config._experts_implementation = name
