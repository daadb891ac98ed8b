"""The importance of every neuron of one projection for one document: pure functions, no model in sight.

All of them evaluate Imp(N|c) of the PLND paper (arXiv:2402.18815, eq. 1) in closed form: the Frobenius norm, over
tokens and hidden channels, of the change of a sub-layer's output when neuron N is set to zero. Padding is already
removed. Results are float32, or float64 for float64 input; sums are accumulated in that dtype. Norms are not divided by
the number of tokens, so a longer document scores higher.

Axis names: `seq` tokens, `hidden` residual channels, `width` neurons, `heads` query heads, `groups` key-value heads,
`head_dim` channels of one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

ROWS = 128
"""Queries handled at once; keys that none of them sees, after the last one or before a window, cost nothing."""
ROWS_BUDGET = 2**22
"""Elements of one [heads, rows, seq] block of attention probabilities; five such blocks are alive at once."""
CELLS_BUDGET = 2**18
"""Elements of one [rows, channels, seq] block of `exact` on CPU (it stays in cache); two are alive at once."""
CELLS_BUDGET_ACCELERATOR = 2**25
"""The same on an accelerator, where launches cost more than memory traffic."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other floating-point dtype."""
    return torch.promote_types(dtype, torch.float32)


class Readout:
    """How a sub-layer's inner activations reach the residual stream: its output projection and, if any, its post-norm.

    Holds two vectors of the projection's width, computed once, beside references to the model's own tensors.

    Args:
        weight: the output projection (`o_proj` or `down_proj`), [hidden, width].
        gain: gain of the RMS norm applied to the sub-layer's output, [hidden]; None where there is no such norm.
        eps: that norm's epsilon.
    """

    def __init__(self, weight: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> None:
        dtype = accumulation_dtype(weight.dtype)
        self.weight = weight
        self.eps = eps
        self.gain = None if gain is None else gain.to(dtype)
        self.column_norm = weight.to(dtype).square().sum(0).sqrt()
        self.gained_norm = None if self.gain is None else torch.linalg.vector_norm(weight * self.gain[:, None], dim=0)

    def gram(self, groups: int, head_dim: int, *, gained: bool = False) -> Tensor:
        """⟨W_o[:, h j], W_o[:, h' j]⟩ for query heads h, h' of each group: [per_group, per_group, groups, head_dim]."""
        dtype = self.column_norm.dtype
        weight = self.weight.to(dtype)
        if gained and self.gain is not None:
            weight = weight * self.gain[:, None]
        columns = weight.view(weight.shape[0], groups, -1, head_dim)
        return torch.einsum("ogaj,ogbj->abgj", columns, columns)

    def projections(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """⟨f, w⟩ and ⟨γ²f, w⟩ of every token's sub-layer output f, [seq, hidden], and every column w; [seq, width]."""
        assert self.gain is not None
        outputs = (output, output * self.gain.square())
        plain, gained = ((f.to(self.weight.dtype) @ self.weight).to(self.gain.dtype) for f in outputs)
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
        return inner.to(dtype).square().sum(0).sqrt() * readout.column_norm
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
    columns, rows = torch.zeros_like(readout.column_norm), gram.new_zeros(groups, head_dim)
    pairs = [(a, b, 1 if a == b else 2) for a in range(per_group) for b in range(a, per_group)]
    for chunk in _chunks(context.shape[0], ROWS_BUDGET // context.shape[1]):
        ctx = context[chunk].to(gram.dtype)
        heads = ctx.view(shape)
        if readout.gain is None:
            columns += ctx.square().sum(0) * readout.column_norm.square()
            for a, b, times in pairs:
                rows += times * gram[a, b] * (heads[:, :, a] * heads[:, :, b]).sum(0)
            continue
        assert gained_gram is not None and readout.gained_norm is not None
        f = output[chunk]
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


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm over the channels of one head, between projection and rotation: gain [head_dim] and epsilon."""

    gain: Tensor
    eps: float


@dataclass(frozen=True)
class Attention:
    """One document's way through one attention sub-layer, padding removed.

    Attributes:
        query, key: output of `q_proj` [heads, seq, head_dim] and `k_proj` [groups, seq, head_dim], before norm and
            rotation.
        query_rotated, key_rotated: the same as they enter the scalar product, after norm and rotation.
        scaling: factor of the scalar product, 1/√d in eq. 6.
        cos, sin: rotary factors, [seq, head_dim]; None where positions are not rotated.
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
    cos: Tensor | None = None
    sin: Tensor | None = None
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    mask: Tensor | None = None
    softcap: float | None = None


def rotated_as_assumed(trace: Attention) -> bool:
    """Whether the scalar product's queries and keys are what the head norm and the rotation of halves make of them.

    The changes of the logits hold for no other: not where neighbouring channels are rotated, nor with a factor between.
    """
    for x, rotated, norm in (
        (trace.query, trace.query_rotated, trace.query_norm),
        (trace.key, trace.key_rotated, trace.key_norm),
    ):
        expected, _ = _normed(x, norm)
        if trace.cos is not None and trace.sin is not None:
            if trace.cos.shape[-1] != x.shape[-1]:
                return False
            first, second = expected.chunk(2, dim=-1)
            expected = expected * trace.cos + torch.cat((-second, first), dim=-1) * trace.sin
        rounding = 0.1 if x.dtype.itemsize < 4 else 1e-3  # far above it, and far below another rotation's difference
        if ((rotated - expected).abs() > rounding * expected.abs().max()).any():
            return False
    return True


@dataclass(frozen=True)
class _Term:
    """One summand u[i, c]·v[j, c] (times the logit s[i, j] if `with_logit`) of a logit's change, for every channel c.

    Where `turned`, v[j, c] is that of the channel that c turns with, so that terms can share products with one v.
    """

    u: Tensor  # [groups, per_group, seq or 1, head_dim or 1]
    v: Tensor  # [groups, seq or 1, head_dim or 1]
    turned: bool = False
    with_logit: bool = False

    def values(self) -> Tensor:
        """v itself."""
        return _partner(self.v) if self.turned else self.v


def _partner(x: Tensor) -> Tensor:
    """Every channel's partner in rotation, along the last dimension: Hugging Face turns c < d/2 with c + d/2."""
    return x.roll(x.shape[-1] // 2, dims=-1)


def attention_importance(trace: Attention, algorithm: Literal["exact", "first_order"]) -> tuple[Tensor, Tensor]:
    """Importance of every row of `q_proj` and of `k_proj` (eq. 10): the change of the attention probabilities.

    ‖softmax(S - Δ_c) - softmax(S)‖ over all query heads that row c feeds: its own head for a query row, the group's
    heads for a key row. Δ_c is rank one before rotation; a head norm rescales the row's whole logit vector by
    ρ = √((ms + ε) / (ms - x_c²/d + ε)).

    Extra memory: five blocks of `ROWS_BUDGET` and, for `exact`, two of `CELLS_BUDGET` elements, whatever the document's
    length (as long as one row of attention probabilities of all heads fits).

    Args:
        trace: the document's queries, keys and mask.
        algorithm: `exact` evaluates the softmax of every changed logit; `first_order` its Jacobian at the unchanged
            one, ‖p∘(δ - Σpδ)‖, in matrix products the size of attention.
    Returns:
        For queries [heads * head_dim], for keys [groups * head_dim].
    """
    dtype = accumulation_dtype(trace.query.dtype)
    heads, seq, head_dim = trace.query.shape
    groups = trace.key.shape[0]
    query = trace.query_rotated.to(dtype).view(groups, heads // groups, seq, head_dim) * trace.scaling
    key = trace.key_rotated.to(dtype)
    sides = (_query_terms(trace, key), _key_terms(trace, query))
    totals = query.new_zeros(2, groups, heads // groups, head_dim)
    change = _exact if algorithm == "exact" else _first_order
    for rows in _chunks(seq, min(ROWS, ROWS_BUDGET // (heads * seq))):
        logits, p, seen = _logits(query[:, :, rows], key, trace, rows)
        for total, terms in zip(totals, sides, strict=True):
            views = {id(t.v): _cut(t.v, seen, dim=1) for t in terms}
            chunk = [replace(t, u=_cut(t.u, rows, dim=2), v=views[id(t.v)]) for t in terms]
            total += change(logits, p, chunk, trace.softcap)
    totals = totals.clamp_min(0)
    return totals[0].sqrt().flatten(), totals[1].sum(1).sqrt().flatten()


def _query_terms(trace: Attention, key: Tensor) -> list[_Term]:
    """Change of the logits when channel c of the query is zeroed: (ρ-1)s - ρ·q_c·⟨R_i e_c, k̃_j⟩."""
    channel, rho = _normed(trace.query, trace.query_norm)
    scaled = -rho * channel * trace.scaling

    def grouped(x: Tensor) -> Tensor:
        return x.view(key.shape[0], -1, *x.shape[1:])

    terms = []
    for factor, turned in _rotation(trace, key.dtype):
        terms.append(_Term(grouped(scaled * factor), key, turned))
    if trace.query_norm is not None:
        terms.append(_Term(grouped(rho - 1), key.new_ones(1, 1, 1), with_logit=True))
    return terms


def _key_terms(trace: Attention, query: Tensor) -> list[_Term]:
    """Change of the logits when channel c of the key is zeroed: (ρ-1)s - ρ·k_c·⟨q̃_i, R_j e_c⟩."""
    channel, rho = _normed(trace.key, trace.key_norm)
    scaled = -rho * channel
    terms = []
    for factor, turned in _rotation(trace, query.dtype):
        terms.append(_Term(_partner(query) if turned else query, scaled * factor))
    if trace.key_norm is not None:
        terms.append(_Term(query.new_ones(1, 1, 1, 1), rho - 1, with_logit=True))
    return terms


def _normed(x: Tensor, norm: HeadNorm | None) -> tuple[Tensor, Tensor]:
    """The channels after the head norm, and ρ: by what zeroing each channel rescales the others. Both like x."""
    x = x.to(accumulation_dtype(x.dtype))
    if norm is None:
        return x, x.new_ones(()).expand(x.shape)
    square = x.square()
    mean = square.mean(-1, keepdim=True) + norm.eps
    rho = (mean / (mean - square / x.shape[-1]).clamp_min(norm.eps)).sqrt()
    return x * mean.rsqrt() * norm.gain.to(x.dtype), rho


def _rotation(trace: Attention, dtype: torch.dtype) -> list[tuple[Tensor | float, bool]]:
    """What ⟨R e_c, x⟩ is made of: factors of x_c (False) and of its partner x_c' (True)."""
    if trace.cos is None or trace.sin is None:
        return [(1.0, False)]
    low, high = _partner(trace.sin.to(dtype)).chunk(2, dim=-1)
    return [(trace.cos.to(dtype), False), (torch.cat((low, -high), dim=-1), True)]


def _logits(query: Tensor, key: Tensor, trace: Attention, rows: slice) -> tuple[Tensor, Tensor, slice]:
    """Logits before soft-cap and probabilities, both [groups, per_group, rows, seen], and which keys they see."""
    groups, per_group, count, _ = query.shape
    seq = key.shape[1]
    seen = slice(0, rows.stop)
    if trace.mask is not None:
        visible = trace.mask[:, rows] if trace.mask.dtype == torch.bool else torch.isfinite(trace.mask[:, rows])
        columns = visible.flatten(0, 1).any(0).nonzero()
        seen = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, seq)
    logits = (query.flatten(1, 2) @ key[:, seen].mT).view(groups, per_group, count, -1)
    scores = logits if trace.softcap is None else trace.softcap * torch.tanh(logits / trace.softcap)
    if trace.mask is None:
        position = torch.arange(seq, device=key.device)
        scores = scores.masked_fill(position[None, seen] > position[rows, None], -torch.inf)
    else:
        mask = trace.mask[:, rows, seen]
        mask = mask.view(groups, per_group, count, -1) if mask.shape[0] > 1 else mask
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return logits, torch.softmax(scores, dim=-1), seen


def _first_order(logits: Tensor, p: Tensor, terms: list[_Term], softcap: float | None) -> Tensor:
    """Σ_i ‖p_i∘(δ_i - Σ_j p_ij δ_ij)‖² for every channel, [groups, per_group, head_dim], δ the sum of `terms`.

    Expanding the square leaves products of p, p² with the terms' v only: no [rows, seen, channels] tensor.
    """
    p_squared = p.square()
    weights = (p, p_squared, p_squared)
    if softcap is not None:
        slope = 1 - torch.tanh(logits / softcap).square()
        weights = (p * slope, p_squared * slope, p_squared * slope * slope)
    squares = {id(t.v): t.v.square() for t in terms}  # alive as long as their ids are keys
    known: dict[tuple[int, int, int], Tensor] = {}

    def product(kind: int, power: int, v: Tensor) -> Tensor:
        """Σ_j weight_ij·s_ij^power·v_jc: [groups, per_group, rows, channels]."""
        weight = weights[kind] if power == 0 else weights[kind] * logits**power
        if v.shape[1] == 1:
            return weight.sum(-1, keepdim=True) * v[:, None]
        return (weight.flatten(1, 2) @ v).unflatten(1, weight.shape[1:3])

    def shared(kind: int, power: int, v: Tensor, turned: bool) -> Tensor:
        """The same for a v that two terms share, one of them turned."""
        key = (kind, power, id(v))
        if key not in known:
            known[key] = product(kind, power, v)
        return _partner(known[key]) if turned else known[key]

    def square_of(a: _Term, b: _Term) -> Tensor:
        power = a.with_logit + b.with_logit
        if a.v is b.v and a.turned == b.turned:
            return shared(2, power, squares[id(a.v)], a.turned)
        return product(2, power, a.values() * b.values())

    mean = sum(t.u * shared(0, t.with_logit, t.v, t.turned) for t in terms)
    cross = sum(t.u * shared(1, t.with_logit, t.v, t.turned) for t in terms)
    pairs = [(a, b, 1 if a is b else 2) for n, a in enumerate(terms) for b in terms[n:]]
    square = sum(times * a.u * b.u * square_of(a, b) for a, b, times in pairs)
    mass = p_squared.sum(-1, keepdim=True)
    return (square - 2 * mean * cross + mean * mean * mass).clamp_min(0).sum(2)  # type: ignore[union-attr]


def _exact(logits: Tensor, p: Tensor, terms: list[_Term], softcap: float | None) -> Tensor:
    """Σ_i ‖softmax(s_i + δ_i) - p_i‖² for every channel, [groups, per_group, head_dim], δ the sum of `terms`.

    With ε = exp(δ) - 1 and ζ = Σpε, the changed probability is p(1+ε)/(1+ζ), so the squared change of one row is
    (Σp²ε² - 2ζΣp²ε + ζ²Σp²)/(1+ζ)²: every sum is of the order of δ, nothing of order one cancels.
    """
    groups, per_group, rows, seen = p.shape
    head_dim = max(max(t.u.shape[-1], t.v.shape[-1]) for t in terms)
    budget = CELLS_BUDGET if p.device.type == "cpu" else CELLS_BUDGET_ACCELERATOR
    sums = p.new_empty(groups, per_group, rows, 3, head_dim)
    weights = torch.stack((p, p.square()), dim=-2)  # [groups, per_group, rows, 2, seen]
    for g in range(groups):
        columns = [t.values()[min(g, t.v.shape[0] - 1)].mT.contiguous() for t in terms]  # [channels, seen]
        for h in range(per_group):
            factors = [t.u[min(g, t.u.shape[0] - 1), min(h, t.u.shape[1] - 1)] for t in terms]  # [rows, channels]
            for channels in _chunks(head_dim, budget // seen):
                v = [_cut(x, channels, 0) for x in columns]
                u = [_cut(x, channels, 1)[..., None] for x in factors]
                for chunk in _chunks(rows, budget // (seen * (channels.stop - channels.start))):
                    s, w = logits[g, h, chunk, None], weights[g, h, chunk]
                    delta = _delta(s, terms, [_cut(x, chunk, 0) for x in u], v)
                    if softcap is not None:
                        delta = softcap * (torch.tanh(delta.add_(s).div_(softcap)) - torch.tanh(s / softcap))
                    epsilon = delta.exp_().sub_(1)
                    # few rows times many columns: the other way round the same product takes four times as long
                    sums[g, h, chunk, :2, channels] = w @ epsilon.mT
                    sums[g, h, chunk, 2:, channels] = w[:, 1:] @ epsilon.square_().mT
    zeta, cross, square = sums.unbind(-2)  # Σpε, Σp²ε, Σp²ε²
    mass = weights[..., 1, :].sum(-1, keepdim=True)
    return ((square - 2 * zeta * cross + zeta * zeta * mass) / (1 + zeta).square()).clamp_min(0).sum(2)


def _delta(s: Tensor, terms: list[_Term], factors: list[Tensor], columns: list[Tensor]) -> Tensor:
    """The change of the logits, [rows, channels, seen], as the sum of `terms`.

    Args:
        s: the logits, [rows, 1, seen].
        factors: each term's u, [rows, channels, 1].
        columns: each term's v, [channels, seen].
    """
    delta = factors[0] * columns[0]
    for term, u, v in zip(terms[1:], factors[1:], columns[1:], strict=True):
        if term.with_logit:
            delta.addcmul_(u * v if v.shape[-1] > 1 else u, s)
        else:
            delta.addcmul_(u, v)
    return delta


def _cut(x: Tensor, part: slice, dim: int) -> Tensor:
    """A part along one dimension; a dimension of one stays, to be broadcast."""
    return x if x.shape[dim] == 1 else x.narrow(dim, part.start, part.stop - part.start)


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `range(length)`, each of at most `size` (but at least one) elements."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
