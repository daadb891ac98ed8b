"""The importance of every neuron of one projection for one document: pure functions, no model in sight.

All of them evaluate Imp(N|c) of the PLND paper (arXiv:2402.18815, eq. 1) in closed form: the Frobenius norm, over
tokens and hidden channels, of the change of a sub-layer's output when neuron N is set to zero. Padding is already
removed. Results are float32, or float64 for float64 input; sums are accumulated in that dtype. Norms are not divided by
the number of tokens, so a longer document scores higher.

Axis names: `seq` tokens, `hidden` residual channels, `width` neurons, `heads` query heads, `groups` key-value heads,
`head_dim` channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from plnd.importance import memory
from plnd.importance.memory import accumulation_dtype, cells, chunks


class _Vectors(NamedTuple):
    """What a readout keeps of its weights W, [hidden, width], of `dtype`.

    Attributes:
        column_norm: ‖W[:, k]‖ times the factor, [width].
        gained_norm: ‖γW[:, k]‖, [width], γ the norm's gain; None where there is no norm.
        gain: γ, [hidden].
        signs: random, [hidden].
        sums: of each column times the signs, [width].
    """

    dtype: torch.dtype
    column_norm: Tensor
    gained_norm: Tensor | None
    gain: Tensor | None
    signs: Tensor
    sums: Tensor


class Readout:
    """How a sub-layer's inner activations reach the residual stream: its output projection and, if any, its post-norm.

    Holds vectors of the projection's width, computed once, when they are first asked for (the weights may be there only
    while their block runs), and no matrix: a packed or offloaded one would not fit.

    Args:
        source: gives the output projection (`o_proj` or `down_proj`), [hidden, width].
        gain: gives the gain of the RMS norm applied to the sub-layer's output, [hidden]; None where there is none.
        eps: that norm's epsilon.
        factor: what the sub-layer's output is multiplied by, where no norm is applied to it.
        products: from vectors [..., hidden] to their scalar products with every column; None: `source` does.
    """

    def __init__(
        self,
        source: Callable[[], Tensor],
        gain: Callable[[], Tensor] | None = None,
        eps: float = 0.0,
        factor: float = 1.0,
        products: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source = source
        self.products = products
        self.eps = eps
        self.factor = factor
        self._gain = gain

    @cached_property
    def _vectors(self) -> _Vectors:
        """From one reading."""
        weight = self.source()
        dtype = accumulation_dtype(weight.dtype)
        gain = None if self._gain is None else self._gain().to(dtype)
        signs = _signs(len(weight), dtype, weight.device)
        gained = None if gain is None else torch.linalg.vector_norm(weight * gain[:, None], dim=0)
        norm = _square_sum(weight).sqrt() * self.factor
        return _Vectors(weight.dtype, norm, gained, gain, signs, _signed_sum(weight, signs))

    def read(self) -> None:
        """Reads the weights now."""
        self._vectors  # noqa: B018

    @property
    def column_norm(self) -> Tensor:
        """‖W[:, k]‖ times the factor, [width]."""
        return self._vectors.column_norm

    @property
    def gained_norm(self) -> Tensor | None:
        """‖γW[:, k]‖, [width], γ the norm's gain; None where there is no norm."""
        return self._vectors.gained_norm

    @property
    def gain(self) -> Tensor | None:
        """γ, [hidden]; None where there is no norm."""
        return self._vectors.gain

    def gram(self, groups: int, head_dim: int, *, gained: bool = False) -> Tensor:
        """⟨W_o[:, h j], W_o[:, h' j]⟩ for query heads h, h' of each group: [per_group, per_group, groups, head_dim]."""
        dtype = self.column_norm.dtype
        weight = self.source().to(dtype) * self.factor
        if gained and self.gain is not None:
            weight = weight * self.gain[:, None]
        return _between_heads(weight.view(len(weight), groups, -1, head_dim))

    def joins(self, output: Tensor) -> Tensor:
        """What a sub-layer's output f, [seq, hidden], adds to the residual stream: a new tensor."""
        if self.gain is None:
            return output * self.factor
        f = output.to(self.gain.dtype)
        normed = f * (f.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.gain
        return normed.to(output.dtype)

    def along(self, output: Tensor) -> Tensor:
        """⟨f, s⟩ of outputs f, [..., hidden], of the projection and one vector s of random signs."""
        signs = self._vectors.signs
        return output.to(signs) @ signs

    def expected(self, inner: Tensor) -> Tensor:
        """The same, [seq], of what the weights make of an input, [seq, width]."""
        sums = self._vectors.sums
        return inner.to(sums.dtype) @ sums

    def projections(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """⟨f, w⟩ and ⟨γ²f, w⟩ of every token's sub-layer output f, [seq, hidden], and every column w; [seq, width]."""
        assert self.gain is not None
        outputs = (output, output * self.gain.square())
        if self.products is not None:
            plain, gained = self.products(torch.stack([f.to(self._vectors.dtype) for f in outputs])).to(self.gain.dtype)
            return plain, gained
        weight = self.source()
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
    """Importance of every input column of the output projection (eq. 4 and eq. 5, in closed form).

    For `down_proj` this is the importance of the same row of `up_proj` and `gate_proj` too: each of the three zeroes
    inner[:, k]. The Frobenius norm of the change, the outer product of inner[:, k] and W[:, k], is that of its factors.

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
    for rows in chunks(inner.shape[0], memory.ROWS_BUDGET // inner.shape[1]):
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
    for chunk in chunks(context.shape[0], memory.ROWS_BUDGET // context.shape[1]):
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


def _square_sum(x: Tensor) -> Tensor:
    """Σ_i x[i]² of [rows, columns], in parts that stay in cache."""
    total = torch.zeros(x.shape[1], dtype=accumulation_dtype(x.dtype), device=x.device)
    for rows in chunks(len(x), cells(x.device) // x.shape[1]):
        total += x[rows].to(total.dtype).square().sum(0)
    return total


def _signs(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same random signs every time, [count]."""
    signs = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs.to(device, dtype)


def _signed_sum(x: Tensor, signs: Tensor) -> Tensor:
    """Σ_i signs[i]·x[i] of [rows, columns], in parts that stay in cache."""
    total = torch.zeros(x.shape[1], dtype=signs.dtype, device=x.device)
    for rows in chunks(len(x), cells(x.device) // x.shape[1]):
        total += signs[rows] @ x[rows].to(signs.dtype)
    return total


def _between_heads(x: Tensor) -> Tensor:
    """Σ_i x[i, g, a, j]·x[i, g, b, j], [per_group, per_group, groups, head_dim] of [rows, groups, per_group, head_dim].

    In parts that stay in cache.
    """
    _, groups, per_group, head_dim = x.shape
    total = torch.zeros(groups, per_group, per_group, head_dim, dtype=accumulation_dtype(x.dtype), device=x.device)
    for rows in chunks(len(x), cells(x.device) // total.numel()):
        part = x[rows].to(total.dtype)
        total += (part[:, :, :, None] * part[:, :, None]).sum(0)
    return total.permute(1, 2, 0, 3)
