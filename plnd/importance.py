"""The importance of every neuron of one projection for one document: pure functions, no model in sight.

All of them evaluate Imp(N|c) of the PLND paper (arXiv:2402.18815, eq. 1) in closed form: the Frobenius norm, over
tokens and hidden channels, of the change of a sub-layer's output when neuron N is set to zero. Padding is already
removed. Results are float32, or float64 for float64 input; sums are accumulated in that dtype. Norms are not divided by
the number of tokens, so a longer document scores higher.

Axis names: `seq` tokens, `hidden` residual channels, `width` neurons, `heads` query heads, `groups` key-value heads,
`head_dim` channels of one head.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

ROWS = 128
"""Queries handled at once; keys that none of them sees, after the last one or before a window, cost nothing."""
ROWS_BUDGET = 2**22
"""Elements of one [heads, rows, seq] block of attention probabilities; five such blocks are alive at once."""
CELLS_BUDGET = 2**18
"""Elements of one block of `exact`, [rows, channels, seq], or of column sums on CPU (it stays in cache); two are alive
at once."""
CELLS_BUDGET_ACCELERATOR = 2**25
"""The same on an accelerator, where launches cost more than memory traffic."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other floating-point dtype."""
    return torch.promote_types(dtype, torch.float32)


class Readout:
    """How a sub-layer's inner activations reach the residual stream: its output projection and, if any, its post-norm.

    Holds two vectors of the projection's width, computed once, and no matrix: a packed or offloaded one would not fit.

    Args:
        source: gives the output projection (`o_proj` or `down_proj`), [hidden, width].
        gain: gain of the RMS norm applied to the sub-layer's output, [hidden]; None where there is no such norm.
        eps: that norm's epsilon.
    """

    def __init__(self, source: Callable[[], Tensor], gain: Tensor | None = None, eps: float = 0.0) -> None:
        weight = source()
        dtype = accumulation_dtype(weight.dtype)
        self.source = source
        self.eps = eps
        self.gain = None if gain is None else gain.to(dtype)
        self.column_norm = _square_sum(weight).sqrt()
        self.gained_norm = None if self.gain is None else torch.linalg.vector_norm(weight * self.gain[:, None], dim=0)

    def gram(self, groups: int, head_dim: int, *, gained: bool = False) -> Tensor:
        """⟨W_o[:, h j], W_o[:, h' j]⟩ for query heads h, h' of each group: [per_group, per_group, groups, head_dim]."""
        dtype = self.column_norm.dtype
        weight = self.source().to(dtype)
        if gained and self.gain is not None:
            weight = weight * self.gain[:, None]
        return _between_heads(weight.view(len(weight), groups, -1, head_dim))

    def projections(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """⟨f, w⟩ and ⟨γ²f, w⟩ of every token's sub-layer output f, [seq, hidden], and every column w; [seq, width]."""
        assert self.gain is not None
        weight = self.source()
        outputs = (output, output * self.gain.square())
        plain, gained = ((f.to(weight.dtype) @ weight).to(self.gain.dtype) for f in outputs)
        return plain, gained

    def through_norm(
        self, output: Tensor, dot: Tensor, dot_gained: Tensor, square: Tensor, square_gained: Tensor
    ) -> Tensor:
        """Squared change of norm(f) when u is taken from f, given scalar products only.

        With r and r' the inverse RMS of f and f' = f - u: ‖γ(r'f' - rf)‖² = (r'-r)²‖γf‖² - 2r'(r'-r)⟨γ²f,u⟩ + r'²‖γu‖².

        Args:
            output: f, [seq, hidden].
            dot, dot_gained, square, square_gained: ⟨f,u⟩, ⟨γ²f,u⟩, ‖u‖², ‖γu‖², each [seq, ...].
        Returns:
            [...]: summed over tokens.
        """
        assert self.gain is not None
        output = output.to(self.gain.dtype)
        ones = (1,) * (dot.dim() - 1)
        hidden = output.shape[-1]
        mean_square = output.square().mean(-1).view(-1, *ones) + self.eps
        norm_gained = (output * self.gain).square().sum(-1).view(-1, *ones)
        loss = (2 * dot - square) / hidden  # how much the mean square shrinks; never past zero but by rounding
        after = (mean_square - loss).clamp_min(self.eps)
        r, r_after = mean_square.rsqrt(), after.rsqrt()
        growth = loss * (r * r_after).square() / (r + r_after)  # r' - r without cancellation
        change = growth.square() * norm_gained - 2 * r_after * growth * dot_gained + r_after.square() * square_gained
        return change.clamp_min(0).sum(0)


def column_importance(inner: Tensor, output: Tensor, readout: Readout) -> Tensor:
    """Importance of every input column of the output projection (eq. 4 and 5, in closed form).

    For `down_proj` this is the importance of the same row of `up_proj` and `gate_proj` too: each of the three zeroes
    inner[:, k].

    Args:
        inner: input of the output projection, [seq, width].
        output: output of the sub-layer before its post-norm, [seq, hidden]; read only where there is such a norm.
        readout: the output projection and post-norm.
    Returns:
        [width]: ‖inner[:, k]‖·‖W[:, k]‖ without a post-norm, the exact change behind it otherwise.
    """
    dtype = readout.column_norm.dtype
    if readout.gain is None:
        return _square_sum(inner).sqrt() * readout.column_norm
    assert readout.gained_norm is not None
    total = torch.zeros_like(readout.column_norm)
    for rows in _chunks(inner.shape[0], ROWS_BUDGET // inner.shape[1]):
        h, f = inner[rows].to(dtype), output[rows]
        dot, dot_gained = readout.projections(f)
        square = (h * readout.column_norm).square()
        total += readout.through_norm(f, h * dot, h * dot_gained, square, (h * readout.gained_norm).square())
    return total.sqrt()


def attention_output_importance(
    context: Tensor, output: Tensor, readout: Readout, gram: Tensor, gained_gram: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Importance of every input column of `o_proj`, and of every row of `v_proj`; such a row feeds its group's heads.

    Columns are those of `column_importance`. For row j of a group, exact with and without a value bias,
    Imp² = Σ_{h,h'} ⟨ctx_h[:, j], ctx_h'[:, j]⟩·⟨W_o[:, h j], W_o[:, h' j]⟩ over the group's heads h, h'.

    Args:
        context: concatenated head outputs, the input of `o_proj`, [seq, heads * head_dim].
        output: output of `o_proj`, [seq, hidden]; read only where a post-norm follows.
        readout: `o_proj` and post-norm.
        gram, gained_gram: `Readout.gram`, [per_group, per_group, groups, head_dim].
    Returns:
        For `o_proj` [heads * head_dim], for `v_proj` [groups * head_dim].
    """
    per_group, _, groups, head_dim = gram.shape
    shape = (-1, groups, per_group, head_dim)
    if readout.gain is None:
        products = _between_heads(context.view(shape))
        norms = products.diagonal(dim1=0, dim2=1).permute(0, 2, 1).sqrt()  # [groups, per_group, head_dim]
        changes = (products * gram).sum((0, 1)).clamp_min(0).sqrt()
        return norms.flatten() * readout.column_norm, changes.flatten()
    assert gained_gram is not None and readout.gained_norm is not None
    columns, rows = torch.zeros_like(readout.column_norm), gram.new_zeros(groups, head_dim)
    pairs = [(a, b, 1 if a == b else 2) for a in range(per_group) for b in range(a, per_group)]
    for chunk in _chunks(context.shape[0], ROWS_BUDGET // context.shape[1]):
        ctx = context[chunk].to(gram.dtype)
        heads, f = ctx.view(shape), output[chunk]
        dot, dot_gained = (ctx * projected for projected in readout.projections(f))
        squares = ((ctx * norm).square() for norm in (readout.column_norm, readout.gained_norm))
        columns += readout.through_norm(f, dot, dot_gained, *squares)
        square, square_gained = heads.new_zeros(2, len(heads), groups, head_dim)
        for a, b, times in pairs:
            product = times * heads[:, :, a] * heads[:, :, b]
            square += product * gram[a, b]
            square_gained += product * gained_gram[a, b]
        dot, dot_gained = (x.view(shape).sum(2) for x in (dot, dot_gained))
        rows += readout.through_norm(f, dot, dot_gained, square, square_gained)
    return columns.sqrt(), rows.clamp_min(0).sqrt().flatten()


def _cells(device: torch.device) -> int:
    """The budget of elements that are handled at once, see `CELLS_BUDGET`."""
    return CELLS_BUDGET if device.type == "cpu" else CELLS_BUDGET_ACCELERATOR


def _square_sum(x: Tensor) -> Tensor:
    """Σ_i x[i]² of [rows, columns], in parts that stay in cache."""
    total = torch.zeros(x.shape[1], dtype=accumulation_dtype(x.dtype), device=x.device)
    for rows in _chunks(len(x), _cells(x.device) // x.shape[1]):
        total += x[rows].to(total.dtype).square().sum(0)
    return total


def _between_heads(x: Tensor) -> Tensor:
    """Σ_i x[i, g, a, j]·x[i, g, b, j], [per_group, per_group, groups, head_dim] of [rows, groups, per_group, head_dim].

    In parts that stay in cache.
    """
    _, groups, per_group, head_dim = x.shape
    total = torch.zeros(groups, per_group, per_group, head_dim, dtype=accumulation_dtype(x.dtype), device=x.device)
    for rows in _chunks(len(x), _cells(x.device) // total.numel()):
        part = x[rows].to(total.dtype)
        total += (part[:, :, :, None] * part[:, :, None]).sum(0)
    return total.permute(1, 2, 0, 3)


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm of queries or keys between projection and rotation.

    Attributes:
        gain: [head_dim] over the channels of each head; [heads * head_dim] over those of all heads together.
        eps: epsilon.
        whole: the mean square is taken over all heads, so that a channel rescales the logits of every head.
    """

    gain: Tensor
    eps: float
    whole: bool = False


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: every channel turns with its partner, x ↦ x·cos + sign·x[partner]·sin.

    Attributes:
        cos, sin: [seq, head_dim]; 1 and 0 for channels that do not turn.
        partner: [head_dim] int64, an involution.
        sign: [head_dim], -1 for the first channel of a pair and 1 for the second.
    """

    cos: Tensor
    sin: Tensor
    partner: Tensor
    sign: Tensor

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, head_dim: int, pairs: Literal["halves", "neighbours"]) -> Rotary:
        """From Hugging Face's factors, [seq, rotated channels], of which a head may have fewer than channels."""
        turning, device = cos.shape[-1], cos.device
        cos = torch.cat((cos, cos.new_ones(len(cos), head_dim - turning)), dim=-1)
        sin = torch.cat((sin, sin.new_zeros(len(sin), head_dim - turning)), dim=-1)
        partner = torch.arange(head_dim, device=device)
        shape = (2, -1) if pairs == "halves" else (-1, 2)
        channels = partner[:turning].view(shape)
        partner[:turning] = channels.flip(0 if pairs == "halves" else 1).flatten()
        sign = torch.where(partner > torch.arange(head_dim, device=device), -1, 1)
        return cls(cos, sin, partner, sign)

    def __call__(self, x: Tensor) -> Tensor:
        """x after rotation, [..., seq, head_dim]."""
        return x * self.cos + self.sign * x[..., self.partner] * self.sin


@dataclass(frozen=True)
class Attention:
    """One document's way through one attention sub-layer, padding removed.

    Attributes:
        query, key: output of `q_proj` [heads, seq, head_dim] and `k_proj` [groups, seq, head_dim], before norm and
            rotation.
        query_rotated, key_rotated: the same as they enter the scalar product, after norm and rotation.
        scaling: factor of the scalar product, 1/√d in eq. 6.
        rotary: rotary positions; None where there are none.
        query_norm, key_norm: head norms, or None.
        mask: [heads or 1, seq, seq], True (or a finite additive value) where a query may see a key; None for plain
            causal.
        softcap: c of c·tanh(s/c), applied to the scaled scalar product before the mask; None where there is none.
    """

    query: Tensor
    key: Tensor
    query_rotated: Tensor
    key_rotated: Tensor
    scaling: float
    rotary: Rotary | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    mask: Tensor | None = None
    softcap: float | None = None


def rotated(x: Tensor, norm: HeadNorm | None, rotary: Rotary | None) -> Tensor:
    """Queries or keys as they enter the scalar product, from a projection's output [heads, seq, head_dim]."""
    channels, _ = _normed(x, norm)
    return channels if rotary is None else rotary(channels)


def as_assumed(trace: Attention, value: Tensor, context: Tensor) -> bool:
    """Whether a model's attention is what `trace` says, so that the changes of its logits are those of eq. 10.

    Held against the model's own queries, keys and head outputs, for the first `ROWS` tokens. Another rotation or norm,
    a factor, a bias, a soft-cap or a sink that the trace does not know shows in one of them.

    Args:
        trace: the document's queries, keys and mask.
        value: output of `v_proj`, [groups, seq, head_dim].
        context: head outputs, [seq, heads * head_dim].
    """

    def close(found: Tensor, expected: Tensor) -> bool:
        rounding = 0.1 if value.dtype.itemsize < 4 else 1e-3  # far above it, and far below another form's difference
        return bool(((found - expected).abs() <= rounding * expected.abs().max()).all())

    rows = slice(0, min(ROWS, trace.query.shape[1]))
    rotary = trace.rotary and replace(trace.rotary, cos=trace.rotary.cos[rows], sin=trace.rotary.sin[rows])
    for x, entered, norm in (
        (trace.query, trace.query_rotated, trace.query_norm),
        (trace.key, trace.key_rotated, trace.key_norm),
    ):
        if not close(entered[:, rows], rotated(x[:, rows], norm, rotary)):
            return False
    groups, dtype = len(trace.key), accumulation_dtype(trace.query.dtype)
    query = trace.query_rotated.to(dtype).unflatten(0, (groups, -1)) * trace.scaling
    _, p, seen = _logits(query[:, :, rows], trace.key_rotated.to(dtype), trace, rows)
    expected = (p @ value.to(dtype)[:, None, seen]).flatten(0, 1).transpose(0, 1).flatten(1)
    return close(context[rows], expected)


@dataclass(frozen=True)
class _Side:
    """How the logits change when channel c of the queries, or of the keys, is zeroed.

    δ[i, j, c] = own[c]·other[c] (+ turned[c]·other[c']) (+ rescale[c]·s[i, j]): `own`, `turned` and `rescale` belong to
    the token whose channel is zeroed, `other` to the one it meets, and c' = c ± head_dim/2 is what c turns with.
    All are [groups, per_group or 1, seq, head_dim].
    """

    own: Tensor
    other: Tensor
    turned: Tensor | None
    rescale: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> _Side:
        """The same with every tensor mapped."""
        return _Side(*(None if x is None else function(x) for x in vars(self).values()))  # type: ignore[arg-type]

    def cut(self, own: slice, other: slice) -> _Side:
        """Part of the tokens."""
        part = self.map(lambda x: x[:, :, own])
        return replace(part, other=self.other[:, :, other])

    def elsewhere(self, shift: int) -> _Side:
        """What is left of the change for the head that comes `shift` after the channel's own."""
        rescale = None if self.rescale is None else _roll(self.rescale, shift)
        return _Side(torch.zeros_like(self.own), self.other, None, rescale)

    def along(self, products: Tensor) -> Tensor:
        """Σ_j of some weights times δ without the rescaled logits, given those sums of `other`."""
        result = self.own * products
        return result if self.turned is None else _add_partner(result, self.turned, products)

    def against(self, own: Tensor, turned: Tensor | None) -> Tensor:
        """The same where own and turned belong to j, given those sums of own and of turned."""
        result = self.other * own
        return result if turned is None else _add_partner(result, turned, self.other)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """The summands of δ without the rescaled logits: what belongs to the zeroed token, and to the other."""
        factors = [(self.own, self.other)]
        return factors if self.turned is None else [*factors, (self.turned, _partner(self.other))]


def _partner(x: Tensor) -> Tensor:
    """What every channel turns with: the one half a head away, see `_order`."""
    return x.roll(x.shape[-1] // 2, dims=-1)


def _add_partner(result: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """Adds factor·`_partner(x)` in place, without a copy of x."""
    for to, scale, part in zip(result.chunk(2, -1), factor.chunk(2, -1), reversed(x.chunk(2, -1)), strict=True):
        to.addcmul_(scale, part)
    return result


def _order(rotary: Rotary | None) -> Tensor | None:
    """Order of the channels, [head_dim], in which every channel's partner is half a head away; None: it is so already.

    Channels that do not turn are put opposite each other; their sine is 0.
    """
    if rotary is None:
        return None
    partner = rotary.partner
    channel = torch.arange(len(partner), device=partner.device)
    if torch.equal(partner, _partner(channel)):
        return None
    first, still = channel[channel < partner], channel[channel == partner]
    return torch.cat((first, still[: len(still) // 2], partner[first], still[len(still) // 2 :]))


def attention_importance(
    trace: Attention, algorithm: Literal["exact", "first_order"], alive: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Importance of every row of `q_proj` and of `k_proj` (eq. 10): the change of the attention probabilities.

    ‖softmax(S - Δ_c) - softmax(S)‖ over all query heads that row c feeds: its own head for a query row, the group's
    heads for a key row. Δ_c is rank one before rotation; a head norm rescales the row's whole logit vector by
    ρ = √((ms + ε) / (ms - x_c²/d + ε)).

    Logits and probabilities are float32 also for half-precision queries and keys, whose products it holds exactly. A
    key whose probability float32 does not hold (below 1e-38) is taken to have none after the change either.
    On a CPU in float32 `exact` runs on `plnd.kernels` (see `engine`), on as many threads as PyTorch has; the result
    does not depend on how many. `first_order` uses it too, for rotated heads without a norm.

    Extra memory: five blocks of `ROWS_BUDGET`, a few copies of the queries and keys and, for `exact` in PyTorch, two
    blocks of `CELLS_BUDGET` elements, whatever the document's length (as long as one row of attention probabilities of
    all heads fits).

    Args:
        trace: the document's queries, keys and mask.
        algorithm: `exact` evaluates the softmax of every changed logit; `first_order` its Jacobian at the unchanged
            one, ‖p∘(δ - Σpδ)‖, in matrix products the size of attention.
        alive: which rows of `q_proj` [heads * head_dim] and `k_proj` [groups * head_dim] are wanted; by default all.
    Returns:
        For queries [heads * head_dim], for keys [groups * head_dim]; 0 for rows that are not wanted.
    """
    dtype, device = accumulation_dtype(trace.query.dtype), trace.query.device
    heads, queries, head_dim = trace.query.shape
    groups, keys, _ = trace.key.shape
    shapes = ((groups, heads // groups, head_dim), (groups, 1, head_dim))
    if alive is None:
        wanted = [torch.ones(shape, dtype=torch.bool, device=device) for shape in shapes]
    else:
        wanted = [x.to(device).view(shape) for x, shape in zip(alive, shapes, strict=True)]
    whole = any(norm is not None and norm.whole for norm in (trace.query_norm, trace.key_norm))
    active = wanted[0].flatten(1).any(1) | wanted[1].flatten(1).any(1) | torch.tensor(whole, device=device)
    results = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    if active.any():
        order = _order(trace.rotary)

        def pick(x: Tensor) -> Tensor:
            """The groups that are needed, their channels in order."""
            x = x if active.all() else x[active]
            return x if order is None else x[..., order]

        wanted = [pick(x) for x in wanted]
        sides = [side.map(pick) for side in _sides(trace, dtype)]
        if not active.all():
            trace = replace(trace, mask=_of_groups(trace.mask, active))
        compiled = algorithm == "exact" and engine(dtype, device) == "numba"
        kind = _Compiled if compiled else _Exact if algorithm == "exact" else _FirstOrder
        totals = _measured(kind, trace, sides, wanted, range(heads if whole else 1))
        for result, total, asked in zip(results, totals, wanted, strict=True):
            importance = torch.where(asked, total.clamp_min(0).sqrt().to(dtype), 0)
            result[active] = importance if order is None else importance[..., order.argsort()]
    return results[0].flatten(), results[1].flatten()


def _measured(
    kind: type[_Exact] | type[_Compiled] | type[_FirstOrder],
    trace: Attention,
    sides: list[_Side],
    wanted: list[Tensor],
    shifts: range,
) -> list[Tensor]:
    """Squared changes, summed over queries, for every channel of the queries and of the keys.

    A norm over all heads makes a channel rescale the logits of other heads too: with a shift of n, head h is changed by
    the channels of head h - n, which have no other effect on it.
    """
    query, key = sides[1].other, sides[0].other[:, 0]
    chunk = min(kind.rows, ROWS_BUDGET // (query.shape[0] * query.shape[1] * key.shape[1]))
    totals = [torch.zeros(x.shape, dtype=query.dtype, device=x.device) for x in wanted]
    for shift in shifts:
        if shift == 0:
            measure = kind(sides, wanted, trace.softcap)
        else:
            asked = [_roll(x, shift) & (shift < x.shape[0] * x.shape[1]) for x in wanted]
            measure = kind([side.elsewhere(shift) for side in sides], asked, trace.softcap)
        for rows in _chunks(query.shape[2], chunk):
            measure.add(*_logits(query[:, :, rows], key, trace, rows), rows)
        for total, part, x in zip(totals, measure.totals(), wanted, strict=True):
            if shift < x.shape[0] * x.shape[1]:
                total += _roll(part, -shift)
    return totals


def _roll(x: Tensor, shift: int) -> Tensor:
    """Heads [groups, per_group, ...] put round by `shift`."""
    return x.flatten(0, 1).roll(shift, 0).view(x.shape)


def engine(dtype: torch.dtype, device: torch.device) -> Literal["numba", "torch"]:
    """What `exact` runs on: Numba on a CPU for all but float64, where it is installed; PyTorch otherwise."""
    usable = device.type == "cpu" and accumulation_dtype(dtype) == torch.float32 and _kernels() is not None
    return "numba" if usable else "torch"


@functools.cache
def _kernels() -> Any:
    """The module `plnd.kernels`; None where Numba is absent or does not fit the installed NumPy."""
    try:
        from plnd import kernels
    except ImportError:
        return None
    return kernels


def _of_groups(mask: Tensor | None, active: Tensor) -> Tensor | None:
    """A mask's heads that belong to some groups, [groups]."""
    if mask is None or len(mask) == 1:
        return mask
    return mask.unflatten(0, (len(active), -1))[active].flatten(0, 1)


def _sides(trace: Attention, dtype: torch.dtype) -> list[_Side]:
    """Changes by the queries, (ρ-1)s - ρ·q_c·⟨R_i e_c, k̃_j⟩, and by the keys, (ρ-1)s - ρ·k_c·⟨q̃_i, R_j e_c⟩."""
    groups = len(trace.key)
    rotation = [factor for factor, _ in _rotation(trace, dtype)]
    query, key = (
        _times(name, x.to(dtype), factor).unflatten(0, (groups, -1))
        for name, x, factor in (("query", trace.query_rotated, trace.scaling), ("key", trace.key_rotated, 1.0))
    )
    sides = []
    for name, x, norm, scaling, other in (
        ("queries", trace.query, trace.query_norm, trace.scaling, key),
        ("keys", trace.key, trace.key_norm, 1.0, query),
    ):
        channel, rho = _normed(x, norm)
        if norm is not None:
            channel = channel * rho
        own, *turned = (
            _times(f"{name} {number}", channel, factor * -scaling).unflatten(0, (groups, -1))
            for number, factor in enumerate(rotation)
        )
        rescale = None if norm is None else (rho - 1).unflatten(0, (groups, -1))
        sides.append(_Side(own, other, turned[0] if turned else None, rescale))
    return sides


def _normed(x: Tensor, norm: HeadNorm | None) -> tuple[Tensor, Tensor]:
    """The channels after the head norm, and ρ: by what zeroing each channel rescales the others. Both like x."""
    x = x.to(accumulation_dtype(x.dtype))
    if norm is None:
        return x, x.new_ones(()).expand(x.shape)
    square, gain = x.square(), norm.gain.to(x.dtype)
    count = x.shape[-1]
    mean = square.mean(-1, keepdim=True)
    if norm.whole:
        count, mean, gain = count * len(x), mean.mean(0, keepdim=True), gain.view(len(x), 1, -1)
    mean = mean + norm.eps
    rho = (mean / (mean - square / count).clamp_min(norm.eps)).sqrt()
    return x * mean.rsqrt() * gain, rho


def _rotation(trace: Attention, dtype: torch.dtype) -> list[tuple[Tensor | float, Tensor | None]]:
    """What ⟨R e_c, x⟩ is made of: factors of x_c (None) and of its partner's x_c' (with the partners)."""
    if trace.rotary is None:
        return [(1.0, None)]
    partner = trace.rotary.partner
    turned = (trace.rotary.sign * trace.rotary.sin.to(dtype))[:, partner]
    return [(trace.rotary.cos.to(dtype), None), (turned, partner)]


def _times(name: str, x: Tensor, factor: Tensor | float) -> Tensor:
    """x·factor in memory that is used again, contiguous whatever the order of x in memory."""
    return torch.mul(x, factor, out=_SCRATCH(name, x.shape, x))


class _Scratch(threading.local):
    """Memory that is used again: fresh pages from the system cost more than much of what is computed in them."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the next one of this name."""
        count, known = math.prod(shape), self.flat.get(name)
        if known is None or len(known) < count or known.dtype != like.dtype or known.device != like.device:
            self.flat[name] = known = like.new_empty(count)
        return known[:count].view(shape)


_SCRATCH = _Scratch()


def release_memory() -> None:
    """Gives back what `attention_importance` keeps between documents, in this thread."""
    _SCRATCH.flat.clear()


@functools.lru_cache(maxsize=8)
def _triangle(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the logits of `count` tokens among themselves so that none sees a later one."""
    return torch.full((count, count), -torch.inf, dtype=dtype, device=device).triu_(1)


def _logits(query: Tensor, key: Tensor, trace: Attention, rows: slice) -> tuple[Tensor, Tensor, slice]:
    """Logits before soft-cap and probabilities, both [groups, per_group, rows, seen], and which keys they see.

    The logits are those of the mask too where nothing needs them without: a head norm or a soft-cap does.
    """
    groups, per_group, count, _ = query.shape
    keys = key.shape[1]
    causal = trace.mask is None and trace.query.shape[1] == keys
    seen = slice(0, rows.stop if causal else keys)
    mask = trace.mask
    if mask is not None:
        mask = mask[:, rows] if mask.shape[1] > 1 else mask
        visible = mask if mask.dtype == torch.bool else torch.isfinite(mask)
        columns = visible.flatten(0, 1).any(0).nonzero()
        seen = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else seen
        mask = mask[..., seen]
        mask = mask.unflatten(0, (groups, per_group)) if len(mask) > 1 else mask
    shape = (groups, per_group, count, seen.stop - seen.start)
    logits = _SCRATCH("logits", shape, query)
    torch.bmm(query.flatten(1, 2), key[:, seen].mT, out=logits.flatten(1, 2))
    scores = logits
    if trace.softcap is not None:
        scores = trace.softcap * torch.tanh(logits / trace.softcap)
    elif trace.query_norm is not None or trace.key_norm is not None:
        scores = logits.clone()
    if causal:
        scores[..., rows] += _triangle(count, scores.dtype, scores.device)
    elif mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return logits, torch.softmax(scores, dim=-1, out=_SCRATCH("p", shape, query)), seen


class _FirstOrder:
    """Σ_i ‖p_i∘(δ_i - Σ_j p_ij δ_ij)‖² for every channel of both sides, in matrix products.

    Expanding the square leaves sums over j, or for the keys' δ² over i, of p, p² times what belongs to j (or i) alone:
    no [rows, seen, channels] tensor. What is multiplied by the same weights is multiplied together; without head norms
    sums of keys need no product of their own. What follows the products takes one pass of `plnd.kernels` where it can.
    """

    rows = 96

    def __init__(self, sides: list[_Side], wanted: list[Tensor], softcap: float | None) -> None:
        self.sides, self.softcap = sides, softcap
        query_side, key_side = sides
        key, query = query_side.other[:, 0], key_side.other
        self.head_dim = key.shape[-1]
        linear = [own[:, 0] for own, _ in key_side.factors()]
        self.derived = query_side.rescale is None and key_side.rescale is None
        if self.derived:
            key = self._key(linear)
        else:
            linear.append(key)
        self.linear = len(linear) * self.head_dim
        self.kernels: Any = None
        if self.derived and query_side.turned is not None and engine(key.dtype, key.device) == "numba":
            self.kernels = _kernels()
            self.arrays = [_contiguous(x) for x in (query_side.own, query_side.turned, query)]
        self.columns = torch.cat([*linear, *self._squares(key)], dim=-1)
        width = self.columns.shape[-1] - self.linear
        self.row_squares = _SCRATCH("row_squares", (*query.shape[:3], width), query)
        torch.cat(self._squares(query), dim=-1, out=self.row_squares)
        self.queries = query.new_zeros(*query.shape[:2], self.head_dim)
        self.keys = key.new_zeros(len(key), 1, self.head_dim)
        self.square = key.new_zeros(*key.shape[:-1], width)
        self.with_logit = None if key_side.rescale is None else torch.zeros_like(key)
        self.logit_square = None if key_side.rescale is None else torch.zeros_like(key[..., :1])

    def _key(self, own: Sequence[Tensor]) -> Tensor:
        """Keys without a head norm, or sums of them, from own (and turned): the channels' own parts, put together."""
        return -own[0] if len(own) == 1 else -own[0] - _partner(own[1])

    def _squares(self, x: Tensor) -> list[Tensor]:
        """x_c², and x_c·x_c' once for each pair where channels turn."""
        if self.sides[0].turned is None:
            return [x.square()]
        first, second = x.chunk(2, -1)
        return [x.square(), first * second]

    def _square(self, side: _Side, squares: Tensor) -> Tensor:
        """Σ of some weights times (own·other + turned·other')², given those sums of `_squares(other)`."""
        plain, pairs = squares[..., : self.head_dim], squares[..., self.head_dim :]
        result = side.own.square() * plain
        if side.turned is not None:
            _add_partner(result, side.turned.square(), plain)
            for half, factor in zip(result.chunk(2, -1), (side.own * side.turned).chunk(2, -1), strict=True):
                half.addcmul_(factor, pairs, value=2)
        return result

    def _along(self, products: Tensor, query_side: _Side, key_side: _Side) -> list[Tensor]:
        """Σ_j of some weights times both sides' δ without rescaled logits, given those sums of the linear columns."""
        linear = products[..., : self.linear].split(self.head_dim, dim=-1)
        own, key = (linear, self._key(linear)) if self.derived else (linear[:-1], linear[-1])
        return [query_side.along(key), key_side.against(own[0], own[1] if len(own) > 1 else None)]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        query_side, key_side = self.sides[0].cut(rows, seen), self.sides[1].cut(seen, rows)
        shape = p.shape[1:3]
        square = torch.mul(p, p, out=_SCRATCH("square", p.shape, p))
        weights = (p, square, square)
        if self.softcap is not None:
            slope = 1 - torch.tanh(logits / self.softcap).square()
            weights = (p * slope, square * slope, square * slope * slope)
        columns = self.columns[:, seen]

        def product(weight: Tensor, columns: Tensor, name: str = "") -> Tensor:
            """Σ_j weight_ij·columns_jc, [groups, per_group, rows, columns]."""
            if not name:
                return (weight.flatten(1, 2) @ columns).unflatten(1, shape)
            result = _SCRATCH(name, (*weight.shape[:3], columns.shape[-1]), weight)
            torch.bmm(weight.flatten(1, 2), columns, out=result.flatten(1, 2))
            return result

        def transposed(weight: Tensor, x: Tensor) -> Tensor:
            """Σ_i weight_ij·x_ic over the rows of all heads of a group, [groups, seen, channels]."""
            return weight.flatten(1, 2).mT @ x.flatten(1, 2)

        first = product(weights[0], columns[..., : self.linear], "first")
        if self.softcap is None:
            second = product(square, columns, "second")
            squares, offset = second, self.linear
        else:
            second = product(weights[1], columns[..., : self.linear])
            squares, offset = product(weights[2], columns[..., self.linear :]), 0
        row_squares = self.row_squares[:, :, rows].flatten(1, 2)
        self.square[:, seen].baddbmm_(weights[2].flatten(1, 2).mT, row_squares)
        mass = square.sum(-1, keepdim=True)
        if self.kernels is not None:
            sums = (_contiguous(x) for x in (first, second, squares))
            spreads = self.kernels.spreads(*sums, offset, _contiguous(mass[..., 0]), *self.arrays, rows.start)
            queries, keys = map(torch.from_numpy, spreads)
            self.queries += queries
            self.keys += keys[:, None]
            return
        means, crosses = (self._along(x, query_side, key_side) for x in (first, second))
        query_square = self._square(query_side, squares[..., offset:])
        if query_side.rescale is not None or self.with_logit is not None:
            scaled = [weight * logits for weight in weights]
            totals = [x.sum(-1, keepdim=True) for x in (*scaled, scaled[2] * logits)]
        if query_side.rescale is not None:
            rescale = query_side.rescale
            along = query_side.along(product(scaled[2], query_side.other[:, 0]))
            query_square += rescale * (rescale * totals[3] + 2 * along)
            means[0].addcmul_(rescale, totals[0])
            crosses[0].addcmul_(rescale, totals[1])
        if self.with_logit is not None and self.logit_square is not None:
            self.with_logit[:, seen] += transposed(scaled[2], key_side.other)
            self.logit_square[:, seen] += (scaled[2] * logits).sum((1, 2))[..., None]
            assert key_side.rescale is not None
            means[1] += product(scaled[0], key_side.rescale[:, 0])
            crosses[1] += product(scaled[1], key_side.rescale[:, 0])
        rest = [mean * (mean * mass - 2 * cross) for mean, cross in zip(means, crosses, strict=True)]
        self.queries += (query_square + rest[0]).sum(2)
        self.keys += rest[1].sum((1, 2))[:, None]

    def totals(self) -> tuple[Tensor, Tensor]:
        """For queries [groups, per_group, head_dim], for keys [groups, 1, head_dim]."""
        side = self.sides[1]
        square = self._square(side, self.square[:, None])
        if side.rescale is not None and self.with_logit is not None and self.logit_square is not None:
            along = side.along(self.with_logit[:, None])
            square += side.rescale * (side.rescale * self.logit_square[:, None] + 2 * along)
        return self.queries, self.keys + square.sum(2)


class _Exact:
    """Σ_i ‖softmax(s_i + δ_i) - p_i‖² for every channel of both sides, in PyTorch.

    With δ centred on its mean Σpδ, ε = e^δ - 1 and ζ = Σpε ≥ 0, the change of a probability is p(ε - ζ)/(1 + ζ): of the
    order of δ, nothing of order one cancels. Where a centred δ is so large that squares of e^δ would overflow, the
    row's softmax is taken as it is, its exponents lowered by as much.
    """

    rows = 128
    largest = 40.0  # of an exponent

    def __init__(self, sides: list[_Side], wanted: list[Tensor], softcap: float | None) -> None:
        self.sides, self.softcap = sides, softcap
        self.results = [x.new_zeros(x.shape, dtype=sides[0].own.dtype) for x in wanted]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        parts = (self.sides[0].cut(rows, seen), self.sides[1].cut(seen, rows))
        for side, result, terms in zip(parts, self.results, map(_terms, parts, (True, False)), strict=True):
            for g, h in itertools.product(range(p.shape[0]), range(p.shape[1])):
                heads = [[x[g, min(h, x.shape[1] - 1)] for x in term] for term in terms]
                change = self._change(p[g, h], logits[g, h], heads, side.rescale is not None)
                result[g, min(h, result.shape[1] - 1)] += change

    def _change(self, p: Tensor, s: Tensor, terms: list[list[Tensor]], with_logit: bool) -> Tensor:
        """One head's Σ, [channels], from δ = Σ u[rows, channels]·v[seen, channels], the last times s `with_logit`."""
        rows, seen = p.shape
        columns = [v.mT.contiguous() for _, v in terms]
        budget = _cells(p.device)
        result = p.new_zeros(len(columns[0]))
        for channels in _chunks(len(result), budget // seen):
            for chunk in _chunks(rows, budget // (seen * (channels.stop - channels.start))):
                q, logit = p[chunk, None], s[chunk, None]
                delta = torch.zeros((), dtype=p.dtype, device=p.device)
                for number, ((u, _), v) in enumerate(zip(terms, columns, strict=True)):
                    u, v = u[chunk, channels, None], v[channels]
                    last = with_logit and number == len(terms) - 1
                    delta = torch.addcmul(delta, u * v, logit) if last else torch.addcmul(delta, u, v)
                if self.softcap is not None:
                    delta = _capped(delta, logit, self.softcap)
                delta.sub_((q @ delta.mT).mT)
                lowered = (
                    (delta * (q >= torch.finfo(q.dtype).tiny)).amax(-1, keepdim=True).sub_(self.largest).clamp_min_(0)
                )
                delta.sub_(lowered).clamp_max_(self.largest)  # larger only where p is 0 to the dtype
                change = torch.zeros_like(lowered)
                if lowered.any():
                    after = delta.exp()
                    change = _norm(after.div_((q @ after.mT).mT).sub_(1).mul_(q))
                epsilon = delta.expm1_()
                zeta = (q @ epsilon.mT).mT
                change = torch.where(lowered > 0, change, _norm(epsilon.sub_(zeta).mul_(q)) / (1 + zeta))
                result[channels] += change.square().sum((0, 2))
        return result

    def totals(self) -> list[Tensor]:
        """For queries [groups, per_group, head_dim], for keys [groups, 1, head_dim]."""
        return self.results


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _terms(side: _Side, of_queries: bool) -> list[tuple[Tensor, Tensor]]:
    """The summands of δ as (what belongs to the query, what belongs to the key); the last one the rescaled logits'."""
    terms = side.factors()
    if side.rescale is not None:
        terms.append((side.rescale, torch.ones_like(side.other)))
    return terms if of_queries else [(other, own) for own, other in terms]


def _capped(delta: Tensor, s: Tensor, softcap: float) -> Tensor:
    """c·tanh((s + δ)/c) - c·tanh(s/c), without cancellation, in the memory of δ and as much again."""
    tanh = torch.tanh(s / softcap)
    e = delta.mul_(2 / softcap).clamp_(-40, 40).expm1_()  # tanh(20) is 1 in float64
    below = (e * (1 + tanh)).add_(2)
    return e.mul_(softcap * (1 - tanh.square())).div_(below)


class _Compiled:
    """The same as `_Exact` on the threads of a CPU, in float32, by `plnd.kernels`."""

    rows = 128
    task = 32  # rows of a group's heads that one call takes; fixed, so that sums do not depend on the number of threads

    def __init__(self, sides: list[_Side], wanted: list[Tensor], softcap: float | None) -> None:
        self.kernels, self.softcap = _kernels(), softcap
        self.second, self.logit = sides[0].turned is not None or None, []
        self.wanted = [x.numpy() for x in wanted]
        self.results = [np.zeros(x.shape) for x in wanted]
        self.terms = []
        for side, of_queries in zip(sides, (True, False), strict=True):
            self.logit.append(side.rescale is not None or None)
            self.terms.append([(_contiguous(u), *self._columns(v)) for u, v in _terms(side, of_queries)])

    def _columns(self, v: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """What belongs to keys as [groups, head_dim, keys and padding], and its largest size, [groups, head_dim]."""
        columns = torch.nn.functional.pad(v[:, 0].mT, (0, self.kernels.LANES))
        return _contiguous(columns), _contiguous(columns.abs().amax(-1))

    def _padded(self, x: Tensor) -> np.ndarray:
        missing = -x.shape[-1] % self.kernels.LANES
        return _contiguous(torch.nn.functional.pad(x, (0, missing)) if missing else x)

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        probabilities = s = t = self._padded(p)
        if any(self.logit):
            s = self._padded(logits)
        if self.softcap is not None:
            t = self._padded(torch.tanh(logits / self.softcap))
        tasks = [
            (number, g, part)
            for number, g in itertools.product(range(2), range(len(p)))
            for part in _chunks(p.shape[2], self.task)
            if self.wanted[number][g].any()
        ]

        def run(task: tuple[int, int, slice]) -> np.ndarray:
            number, g, part = task
            terms = [(u[g], v[g], top[g]) for u, v, top in self.terms[number]]
            first, second, last = terms[0], terms[1 if self.second else 0], terms[-1]
            return self.kernels.changes(
                probabilities[g], *first, self.second, *second, self.logit[number], *last, s[g],
                self.softcap is not None or None, t[g], np.float32(self.softcap or 1),
                part.start, part.stop, rows.start, seen.start, self.wanted[number][g],
            )  # fmt: skip

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for (number, g, _), change in zip(tasks, pool.map(run, tasks), strict=True):
                result = self.results[number][g]
                result += change if len(result) == len(change) else change.sum(0)

    def totals(self) -> list[Tensor]:
        """For queries [groups, per_group, head_dim], for keys [groups, 1, head_dim], in float64."""
        return [torch.from_numpy(x) for x in self.results]


def _contiguous(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `range(length)`, each of at most `size` (but at least one) elements."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
