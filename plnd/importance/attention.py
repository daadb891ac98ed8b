"""The importance of every row of `q_proj` and `k_proj` for one document (eq. 10), from its queries and keys.

Axis names: `seq` tokens, `heads` query heads, `groups` key-value heads, `per_group` query heads of one of them,
`head_dim` channels of one head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from plnd.importance import memory
from plnd.importance.memory import accumulation_dtype, chunks
from plnd.importance.softmax import (
    CompiledExact,
    CompiledFirstOrder,
    Engine,
    Exact,
    FirstOrder,
    Side,
    engine,
    roll_heads,
    stacked,
    stacked_scratch,
    swapped_halves,
    times,
)

if TYPE_CHECKING:
    from plnd.importance.triton_softmax import TritonExact

Measurement: TypeAlias = "Exact | CompiledExact | FirstOrder | TritonExact"
"""What takes in rows of attention; on a GPU its equal in `plnd.importance.triton_softmax`."""
ROWS = 128
"""Tokens of a document whose attention `as_assumed` recomputes."""


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm of queries or keys between projection and rotation.

    Attributes:
        gain: [head_dim] over the channels of each head; [heads * head_dim] over those of all heads together.
        eps: epsilon.
        whole: the mean square is taken over all heads, so that a channel rescales the logits of every head.
        turned: the norm comes after the rotation, which leaves a head's mean square as it is.
    """

    gain: Tensor
    eps: float
    whole: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: every channel turns with its partner, x ↦ x·cos + sign·x[partner]·sin.

    Attributes:
        cos, sin: [seq, head_dim]; 1 and 0 for channels that do not turn.
        partner: [head_dim] int64, an involution.
        sign: [head_dim], -1 for the first channel of a pair and 1 for the second.
        order: [head_dim], an order in which every channel's partner is half a head away; None: it is so already.
            Channels that do not turn are put opposite each other; their sine is 0.
    """

    cos: Tensor
    sin: Tensor
    partner: Tensor
    sign: Tensor
    order: Tensor | None = None

    @classmethod
    def of(
        cls, cos: Tensor, sin: Tensor, head_dim: int, pairs: Literal["halves", "neighbours"], *, last: bool = False
    ) -> Rotary:
        """From Hugging Face's factors, [seq, rotated channels], of which a head may have fewer than channels.

        They are those of its first channels, or its last.
        """
        turning, device = cos.shape[-1], cos.device
        around = (head_dim - turning, 0) if last else (0, head_dim - turning)
        return cls(pad(cos, around, value=1), pad(sin, around), *_pairs(head_dim, turning, pairs, last, device))

    def __call__(self, x: Tensor) -> Tensor:
        """x after rotation, [..., seq, head_dim]."""
        return x * self.cos + self.sign * x[..., self.partner] * self.sin


@dataclass(frozen=True)
class Attention:
    """One document's way through one attention sub-layer, padding removed.

    Attributes:
        query, key: output of `q_proj` [heads, seq, head_dim] and `k_proj` [groups, seq, head_dim], before norm and
            rotation; no key (None) where rows of `k_proj` have no form or there are none.
        query_rotated, key_rotated: the same as they enter the scalar product, after norm and rotation.
        scaling: factor of the scalar product, 1/√d in eq. 6.
        rotary: rotary positions; None where there are none.
        query_norm, key_norm: head norms, or None.
        mask: [heads or 1, seq, seq], True (or a finite additive value) where a query may see a key; None for plain
            causal.
        softcap: c of c·tanh(s/c), applied to the scaled scalar product before the mask; None where there is none.
        visible: with a mask, of every query the first key that some head may see, and the one behind the last; None:
            read from the mask, and the device is waited for.
        sinks: [heads], a logit that takes part in each head's softmax beside those of the keys, and stands for none;
            None where there is none.
        temperature: [seq], what the rotated queries are multiplied by; None: nothing.
    """

    query: Tensor
    key: Tensor | None
    query_rotated: Tensor
    key_rotated: Tensor
    scaling: float
    rotary: Rotary | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    mask: Tensor | None = None
    softcap: float | None = None
    visible: tuple[list[int], list[int]] | None = None
    sinks: Tensor | None = None
    temperature: Tensor | None = None


@functools.lru_cache(maxsize=32)
def _pairs(
    head_dim: int, turning: int, pairs: str, last: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Partner, sign and order of `Rotary`: made on the CPU, and once, so that no document waits for the device."""
    channel = torch.arange(head_dim)
    partner = channel.clone()
    turned = partner[head_dim - turning :] if last else partner[:turning]
    turned.copy_(turned.view((2, -1) if pairs == "halves" else (-1, 2)).flip(0 if pairs == "halves" else 1).flatten())
    sign = torch.where(partner > channel, -1, 1)
    order = None
    if not torch.equal(partner, swapped_halves(channel)):
        first, still = channel[channel < partner], channel[channel == partner]
        order = torch.cat((first, still[: len(still) // 2], partner[first], still[len(still) // 2 :])).to(device)
    return partner.to(device), sign.to(device), order


def visible_keys(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Of every query the first key that some head may see, and the one behind the last: one wait for the device.

    Args:
        mask: boolean, or additive (what is below half of the lowest number is not seen), [batch, heads or 1, queries,
            keys].
    Returns:
        [batch][queries]; 0 and 0 where nothing is seen.
    """
    seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)
    place = torch.arange(seen.shape[-1], dtype=torch.int32, device=seen.device)
    last = torch.where(seen, place + 1, 0).amax(-1)
    first = torch.where(seen, place, seen.shape[-1]).amin(-1).minimum(last)
    return torch.stack((first, last), dim=-1).tolist()


def rotated(x: Tensor, norm: HeadNorm | None, rotary: Rotary | None, temperature: Tensor | None = None) -> Tensor:
    """Queries or keys as they enter the scalar product, from a projection's output [heads, seq, head_dim]."""
    channels, _ = _normed(x, norm)
    channels = channels if rotary is None else rotary(channels)
    if norm is not None and norm.turned:
        channels = channels * norm.gain.to(channels.dtype)
    return channels if temperature is None else channels * temperature[:, None]


def as_assumed(trace: Attention, value: Tensor, context: Tensor, gate: Tensor | None = None) -> bool:
    """Whether a model's attention is what `trace` says, so that the changes of its logits are those of eq. 10.

    Held against the model's own queries, keys and head outputs, for the first `ROWS` tokens. Another rotation or norm,
    a factor, a bias, a soft-cap or a sink that the trace does not know shows in one of them.

    Args:
        trace: the document's queries, keys and mask.
        value: output of `v_proj`, [groups, seq, head_dim].
        context: head outputs, [seq, heads * head_dim].
        gate: what they have been multiplied by, of the same shape; None: nothing.
    """

    def close(found: Tensor, expected: Tensor) -> bool:
        rounding = 0.1 if value.dtype.itemsize < 4 else 1e-3  # far above it, and far below another form's difference
        return bool(((found - expected).abs() <= rounding * expected.abs().max()).all())

    rows = slice(0, min(ROWS, trace.query.shape[1]))
    rotary = trace.rotary and replace(trace.rotary, cos=trace.rotary.cos[rows], sin=trace.rotary.sin[rows])
    temperature = None if trace.temperature is None else trace.temperature[rows]
    for x, entered, norm, factor in (
        (trace.query, trace.query_rotated, trace.query_norm, temperature),
        (trace.key, trace.key_rotated, trace.key_norm, None),
    ):
        if x is not None and not close(entered[:, rows], rotated(x[:, rows], norm, rotary, factor)):
            return False
    groups, dtype = len(trace.key_rotated), accumulation_dtype(trace.query.dtype)
    query = trace.query_rotated.to(dtype).unflatten(0, (groups, -1)) * trace.scaling
    _, p, seen = _logits(query[:, :, rows], trace.key_rotated.to(dtype), trace, rows)
    p = p if trace.sinks is None else p[..., :-1]
    expected = (p @ value.to(dtype)[:, None, seen]).flatten(0, 1).transpose(0, 1).flatten(1)
    expected = expected if gate is None else expected * gate[rows]
    return close(context[rows], expected)


def attention_importance(
    trace: Attention,
    algorithm: Literal["exact", "first_order"],
    alive: tuple[Tensor, Tensor | None] | None = None,
    on: Engine | None = None,
) -> tuple[Tensor, Tensor]:
    """Importance of every row of `q_proj` and of `k_proj` (eq. 10): the change of the attention probabilities.

    ‖softmax(S - Δ_c) - softmax(S)‖ over all query heads that row c feeds: its own head for a query row, the group's
    heads for a key row. Δ_c is rank one before rotation; a head norm rescales the row's whole logit vector by
    ρ = √((ms + ε) / (ms - x_c²/d + ε)).

    Logits and probabilities are float32 also for half-precision queries and keys, whose products it holds exactly. A
    key whose probability float32 does not hold (below 1e-38) is taken to have none after the change either.
    On a CPU in float32 `exact` runs on `plnd.importance.kernels` (see `engine`), on as many threads as PyTorch has; the
    result does not depend on how many. `first_order` uses it too, for rotated heads without a norm. On a GPU in float32
    both run on `plnd.importance.triton_kernels`.

    Extra memory: five blocks of `rows_budget` elements (on a GPU up to nine with a soft-cap or head norms), copies of
    the queries and keys and, for `exact` in PyTorch, two blocks of `cells` elements, whatever the document's length
    (as long as one row of attention probabilities of all heads fits).

    Args:
        trace: the document's queries, keys and mask.
        algorithm: `exact` evaluates the softmax of every changed logit; `first_order` its Jacobian at the unchanged
            one, ‖p∘(δ - Σpδ)‖, in matrix products the size of attention.
        alive: which rows of `q_proj` [heads * head_dim] and `k_proj` [groups * head_dim] are wanted; by default all. On
            the CPU, so that the device need not be waited for. Without keys before rotation no row of `k_proj` is.
        on: what computes; by default `engine`'s choice.
    Returns:
        For queries [heads * head_dim], for keys [groups * head_dim]; 0 for rows that are not wanted.
    """
    dtype, device = accumulation_dtype(trace.query.dtype), trace.query.device
    heads, queries, head_dim = trace.query.shape
    groups = len(trace.key_rotated)
    shapes = ((groups, heads // groups, head_dim), (groups, 1, head_dim))
    whole = any(norm is not None and norm.whole for norm in (trace.query_norm, trace.key_norm))
    chosen: Tensor | None = None  # groups, by their numbers; None: all
    if trace.key is None:
        trace, alive = _with_keys_as_they_enter(trace, alive)
    if alive is None:
        wanted = [torch.ones(shape, dtype=torch.bool, device=device) for shape in shapes]
    else:
        asked = [x.cpu().view(shape) for x, shape in zip(alive, shapes, strict=True) if x is not None]
        active = asked[0].flatten(1).any(1) | asked[1].flatten(1).any(1)
        if not (whole or active.all()):
            chosen = memory.sent(active.nonzero()[:, 0], device)
        wanted = [memory.sent(x, device) for x in asked]
    results = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    if chosen is None or len(chosen):
        order = None if trace.rotary is None else trace.rotary.order
        sides = [side.pick(chosen, order) for side in _sides(trace, dtype)]
        if chosen is not None:
            wanted = [x.index_select(0, chosen) for x in wanted]
            mask, sinks = (_of_groups(x, groups, chosen) for x in (trace.mask, trace.sinks))
            trace = replace(trace, mask=mask, sinks=sinks)
        if order is not None:
            wanted = [x[..., order] for x in wanted]
        kind = measurement(algorithm, trace, on or engine(dtype, device))
        totals = _measured(kind, trace, sides, wanted, range(heads if whole else 1))
        for result, total, asked_for in zip(results, totals, wanted, strict=True):
            importance = torch.where(asked_for, total.clamp_min(0).sqrt().to(dtype), 0)
            importance = importance if order is None else importance[..., order.argsort()]
            if chosen is None:
                result.copy_(importance)
            else:
                result.index_copy_(0, chosen, importance)
    return results[0].flatten(), results[1].flatten()


def _with_keys_as_they_enter(
    trace: Attention, alive: tuple[Tensor, Tensor | None] | None
) -> tuple[Attention, tuple[Tensor, Tensor]]:
    """The same attention with keys of which no row is wanted."""
    heads, _, head_dim = trace.query.shape
    queries = torch.ones(heads * head_dim, dtype=torch.bool) if alive is None else alive[0]
    keys = torch.zeros(len(trace.key_rotated) * head_dim, dtype=torch.bool)
    return replace(trace, key=trace.key_rotated, key_norm=None), (queries, keys)


def measurement(algorithm: Literal["exact", "first_order"], trace: Attention, engine: Engine) -> type[Measurement]:
    """What measures a document: on Triton every kind of attention has its kernels, on Numba some have not."""
    if engine == "triton":
        from plnd.importance import triton_softmax  # Triton may be absent

        if algorithm == "first_order":
            return triton_softmax.TritonFirstOrder
        return triton_softmax.TritonExact if trace.sinks is None else triton_softmax.TritonExactWithSinks
    plain = engine == "numba" and trace.sinks is None
    if algorithm == "exact":
        return CompiledExact if plain else Exact
    plain &= trace.query_norm is None and trace.key_norm is None and trace.softcap is None
    return CompiledFirstOrder if plain and trace.rotary is not None else FirstOrder


def _measured(
    kind: type[Measurement],
    trace: Attention,
    sides: list[Side],
    wanted: list[Tensor],
    shifts: range,
) -> list[Tensor]:
    """Squared changes, summed over queries, for every channel of the queries and of the keys.

    A norm over all heads makes a channel rescale the logits of other heads too: with a shift of n, head h is changed by
    the channels of head h - n, which have no other effect on it.
    """
    query, key = sides[1].entered, sides[0].entered[:, 0]
    chunk = min(kind.rows, memory.rows_budget(query.device) // (query.shape[0] * query.shape[1] * key.shape[1]))
    totals = [torch.zeros(x.shape, dtype=query.dtype, device=x.device) for x in wanted]
    for shift in shifts:
        if shift == 0:
            measure = kind(sides, wanted, trace.softcap)
        else:
            asked = [roll_heads(x, shift) & (shift < x.shape[0] * x.shape[1]) for x in wanted]
            measure = kind([side.elsewhere(shift) for side in sides], asked, trace.softcap)
        for rows in chunks(query.shape[2], chunk):
            measure.add(*_logits(query[:, :, rows], key, trace, rows), rows)
        for total, part, x in zip(totals, measure.totals(), wanted, strict=True):
            if shift < x.shape[0] * x.shape[1]:
                total += roll_heads(part, -shift)
    return totals


def _of_groups(mask: Tensor | None, groups: int, chosen: Tensor) -> Tensor | None:
    """A mask's, or sinks', heads that belong to some of the groups."""
    if mask is None or len(mask) == 1:
        return mask
    return mask.unflatten(0, (groups, -1)).index_select(0, chosen).flatten(0, 1)


def _sides(trace: Attention, dtype: torch.dtype) -> list[Side]:
    """Changes by the queries, (ρ-1)s - ρ·q_c·⟨R_i e_c, k̃_j⟩, and by the keys, (ρ-1)s - ρ·k_c·⟨q̃_i, R_j e_c⟩."""
    assert trace.key is not None
    groups = len(trace.key)
    query, key = (
        times(name, x.to(dtype).unflatten(0, (groups, -1)), factor)
        for name, x, factor in (("query", trace.query_rotated, trace.scaling), ("key", trace.key_rotated, 1.0))
    )
    sides: list[Side] = []
    for x, norm, scaling, entered, temperature in (
        (trace.query, trace.query_norm, trace.scaling, key, trace.temperature),
        (trace.key, trace.key_norm, 1.0, query, None),
    ):
        channel, rho = _normed(x, norm)
        if norm is not None:
            channel = channel * rho
        if temperature is not None:
            channel = channel * temperature[:, None].to(dtype)
        other = entered
        if norm is not None and norm.turned:
            other = stacked_scratch(f"gained {len(sides)}", entered.shape, entered).copy_(entered * norm.gain.to(dtype))
        own, turned = _rotation(trace.rotary, dtype)
        rescale = None if norm is None else (rho - 1).unflatten(0, (groups, -1))
        channel = channel.unflatten(0, (groups, -1))
        turned_factor = None if turned is None else turned * -scaling
        sides.append(Side(channel, other, own * -scaling, turned_factor, rescale, entered))
    return sides


def _normed(x: Tensor, norm: HeadNorm | None) -> tuple[Tensor, Tensor]:
    """The channels after the head norm, and ρ: by what zeroing each channel rescales the others. Both like x."""
    x = x.to(accumulation_dtype(x.dtype))
    if norm is None:
        return x, x.new_ones(()).expand(x.shape)
    square, gain = x.square(), torch.ones_like(norm.gain) if norm.turned else norm.gain.to(x.dtype)
    count = x.shape[-1]
    mean = square.mean(-1, keepdim=True)
    if norm.whole:
        count, mean, gain = count * len(x), mean.mean(0, keepdim=True), gain.view(len(x), 1, -1)
    mean = mean + norm.eps
    rho = (mean / (mean - square / count).clamp_min(norm.eps)).sqrt()
    return x * mean.rsqrt() * gain, rho


def _rotation(rotary: Rotary | None, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | None]:
    """What ⟨R e_c, x⟩ is made of: the factor of x_c, and that of its partner's x_c'."""
    if rotary is None:
        return 1.0, None
    return rotary.cos.to(dtype), (rotary.sign * rotary.sin.to(dtype))[:, rotary.partner]


@functools.lru_cache(maxsize=8)
def _triangle(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the logits of `count` tokens among themselves so that none sees a later one."""
    return torch.full((count, count), -torch.inf, dtype=dtype, device=device).triu_(1)


def _seen(trace: Attention, mask: Tensor, rows: slice) -> slice:
    """The keys that some of the rows may see, `mask` theirs; all keys where they see none."""
    if trace.visible is None:
        visible = mask if mask.dtype == torch.bool else torch.isfinite(mask)
        columns = visible.flatten(0, 1).any(0).nonzero()
        first, last = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    else:
        firsts, lasts = (x if len(x) == 1 else x[rows] for x in trace.visible)
        first, last = min(firsts), max(lasts)
    return slice(first, last) if first < last else slice(0, trace.key_rotated.shape[1])


def _logits(query: Tensor, key: Tensor, trace: Attention, rows: slice) -> tuple[Tensor, Tensor, slice]:
    """Logits before soft-cap and probabilities, both [groups, per_group, rows, seen], and which keys they see.

    With sinks the probabilities have one column more, the sink's.
    The logits are those of the mask too where nothing needs them without: a head norm or a soft-cap does.
    """
    groups, per_group, count, _ = query.shape
    keys = key.shape[1]
    causal = trace.mask is None and trace.query.shape[1] == keys
    seen = slice(0, rows.stop if causal else keys)
    mask = trace.mask
    if mask is not None:
        mask = mask[:, rows] if mask.shape[1] > 1 else mask
        seen = _seen(trace, mask, rows)
        mask = mask[..., seen]
        mask = mask.unflatten(0, (groups, per_group)) if len(mask) > 1 else mask
    shape = (groups, per_group, count, seen.stop - seen.start)
    logits = stacked_scratch("logits", shape, query)
    torch.bmm(stacked(query), key[:, seen].mT, out=stacked(logits))
    scores = logits
    if trace.softcap is not None:
        scores = trace.softcap * torch.tanh(logits / trace.softcap)
    elif trace.query_norm is not None or trace.key_norm is not None:
        scores = logits.clone()
    if causal:
        scores[..., rows].add_(_triangle(count, scores.dtype, scores.device))
    elif mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    if trace.sinks is not None:
        sinks = trace.sinks.to(scores).view(groups, per_group, 1, 1).expand(*shape[:3], 1)
        return logits, torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1), seen
    p = stacked_scratch("p", shape, query)
    torch.softmax(stacked(scores), dim=-1, out=stacked(p))
    return logits, p, seen
