"""What the PLND paper's published code computes, where that differs from the printed formulas, to compare old results.

The code is DAMO-NLP-SG/multilingual_analysis (commit be2b161), `neuron_detection/transformers/models/*/modeling_*.py`
for Llama, Mistral and Gemma 2. For one document, with all sums over its tokens:

- `up_proj` and `down_proj`: Σ|up_proj(x)|, before it meets the gate; both the same (`LlamaMLP.forward`).
- `q_proj`: Σ(softmax(S - Δ_c) - softmax(S))², not its root, with Δ_c[i, j] = q̃_i[c]·k̃_j[c] of the queries and keys
  after norm and rotation, not scaled as S is, and taken after S has been soft-capped and masked
  (`LlamaAttention.shared_forward`).
- `k_proj`: the numbers of `q_proj` again, one for every channel of every query head.
- `v_proj` and `o_proj`: Σ|context|, the input of `o_proj`, one for every channel of every query head. The code measures
  `o_proj` too, though its script writes no file of it.
- `gate_proj` is not measured.

Rows of keys and values are measured in the space of queries there. Here a row has the largest number of the query rows
that it serves: it is found where one of them is, as `plnd convert` maps old sets.

The published Mistral file attends without a causal mask: transformers drops the mask for PyTorch's SDPA, the default,
which the file replaces by a function that knows none. So it is here, see `sees_all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from plnd.detection.config import QK
from plnd.detection.measures.traces import AttentionTraces
from plnd.detection.observer import Handle, ObservedBlock, forward_pass
from plnd.errors import FamilyError, PLNDError
from plnd.importance import memory
from plnd.importance.attention import Attention, attention_importance
from plnd.importance.memory import accumulation_dtype
from plnd.models.layout import Layout

SEES_ALL = ("mistral",)
"""Families whose published file attends without a causal mask."""


class OfficialImportance:
    """Measures as the published code does.

    Args:
        qk: `off` leaves rows of `q_proj` and `k_proj` out; they have one form here.
    """

    def __init__(self, qk: QK) -> None:
        self.qk = qk

    run = staticmethod(forward_pass)

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `Measure`."""
        for block in blocks:
            if block.has("o_proj"):
                yield block.before("o_proj", partial(self._outputs_and_values, block))
            if self.qk != "off" and block.has("q_proj"):
                yield from AttentionTraces(block, partial(self._queries_and_keys, block)).hooks()
            if block.stack.experts:
                yield block.sum_over_experts(("up",), partial(self._up_of_expert, block))
            elif block.stack.activation:
                yield block.after("up_proj", partial(self._up, block))

    def _outputs_and_values(self, block: ObservedBlock, context: Tensor) -> None:
        sums = [absolute_sum(c) for (c,) in block.documents(context)]
        block.emit_both(("output", "value"), [(x, largest(x, block)) for x in sums])

    def _queries_and_keys(self, block: ObservedBlock, trace: Attention) -> tuple[Tensor, Tensor]:
        change = squared_change(trace)
        return change, largest(change, block)

    def _up(self, block: ObservedBlock, _: Tensor, output: Tensor) -> None:
        up = block.target("up_proj").select(output)
        block.emit("up", [absolute_sum(x) for (x,) in block.documents(up)])

    def _up_of_expert(self, block: ObservedBlock, fused: Tensor, *_: Tensor) -> Tensor:
        return block.target("up_proj").select(fused).abs().to(accumulation_dtype(fused.dtype))


def largest(importance: Tensor, block: ObservedBlock) -> Tensor:
    """From query rows, [heads * head_dim], to the key or value rows that serve them, [groups * head_dim]."""
    groups = block.target("v_proj").width // block.head_dim
    return importance.view(groups, -1, block.head_dim).amax(1).flatten()


def absolute_sum(x: Tensor) -> Tensor:
    """Σ|x| over tokens: [seq, width] to [width], in the accumulation dtype."""
    return x.abs().sum(0, dtype=accumulation_dtype(x.dtype))


def squared_change(trace: Attention) -> Tensor:
    """Σ(softmax(S - Δ_c) - softmax(S))² over queries and keys, for every channel c of every query head.

    Δ_c[i, j] = q̃_i[c]·k̃_j[c], unscaled, of queries and keys as they enter the scalar product. Memory is that of
    `plnd.importance.attention.attention_importance`; with a soft-cap also one more block of `ROWS_BUDGET` elements.

    Args:
        trace: the document's queries, keys and mask.
    Returns:
        [heads * head_dim].
    """
    dtype = accumulation_dtype(trace.query.dtype)
    query, key = trace.query_rotated.to(dtype), trace.key_rotated.to(dtype)
    # What eq. 10 calls Δ_c is scaled and before rotation: queries that are neither give this Δ_c.
    trace = replace(trace, query=query / trace.scaling, key=key, query_rotated=query, key_rotated=key)
    trace = replace(trace, rotary=None, query_norm=None, key_norm=None)
    heads, _, head_dim = query.shape
    channels = torch.ones(heads * head_dim, dtype=torch.bool, device=query.device)
    none = torch.zeros(len(key) * head_dim, dtype=torch.bool, device=query.device)
    parts = [trace] if trace.softcap is None else _capped(trace)
    return sum(attention_importance(part, "exact", (channels, none))[0].square() for part in parts)  # type: ignore[return-value]


def _capped(trace: Attention) -> Iterator[Attention]:
    """The same attention, some queries at a time, with the soft-cap as part of an additive mask: Δ_c comes after it."""
    assert trace.softcap is not None
    heads, queries, _ = trace.query_rotated.shape
    keys = trace.key_rotated.repeat_interleave(heads // len(trace.key_rotated), dim=0)
    mask = trace.mask
    if mask is None:
        mask = torch.ones(1, queries, keys.shape[1], dtype=torch.bool, device=keys.device).tril_()
    size = max(1, memory.ROWS_BUDGET // (heads * keys.shape[1]))
    for start in range(0, queries, size):
        rows = slice(start, start + size)
        query = trace.query_rotated[:, rows]
        logits = query @ keys.mT * trace.scaling
        bias = trace.softcap * torch.tanh(logits / trace.softcap) - logits
        part = mask[:, rows]
        bias = bias.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else bias + part
        yield replace(trace, query=trace.query[:, rows], query_rotated=query, mask=bias, softcap=None)


def check_official(layout: Layout, max_length: int) -> None:
    """Refuses models for which the published code says nothing.

    Raises:
        FamilyError: for a model with an encoder, or that is one, with latent attention, or whose values are normed.
        PLNDError: for documents as long as Mistral's window, from where on the published file computes something else.
    """
    config = layout.model.config
    if getattr(config, "is_encoder_decoder", False):
        raise FamilyError(
            f"model family {config.model_type!r} has an encoder, of which the published code knows nothing: use"
            " --scoring paper"
        )
    if layout.family.masked:
        raise FamilyError(
            f"model family {config.model_type!r} fills in masked tokens, of which the published code knows nothing: use"
            " --scoring paper"
        )
    if any(stack.latent for stack in layout.family.stacks):
        raise FamilyError(
            f"model family {layout.family.name!r} has latent attention, of which the published code knows nothing: use"
            " --scoring paper"
        )
    attends = [stack for stack in layout.family.stacks if stack.attention]
    if not all(any(p.name == "v_proj" for p in stack.projections) for stack in attends):
        raise FamilyError(
            f"model family {layout.family.name!r}: rows of v_proj are not measured, which the published code does: use"
            " --scoring paper"
        )
    window = getattr(config.get_text_config(), "sliding_window", None)
    if sees_all(layout) and window is not None and max_length >= window:
        raise PLNDError(
            f"max_length={max_length}: what the published code for {config.model_type} computes is known for documents"
            f" shorter than the sliding window of {window} tokens; use a smaller one"
        )


def sees_all(layout: Layout) -> bool:
    """Whether the published file for this family attends to all tokens of a document, also to later ones."""
    return layout.model.config.get_text_config().model_type in SEES_ALL


def mask_of_all(attention_mask: Tensor) -> Tensor:
    """A mask with which every token sees all tokens of its document, from [batch, seq] to [batch, 1, seq, seq]."""
    real = attention_mask.bool()
    return (real[:, None, :] | ~real[:, :, None])[:, None]
