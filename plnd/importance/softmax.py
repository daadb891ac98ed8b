"""How far attention probabilities move when logits change by a sum of rank-one terms: a class for each way to measure.

Each class takes in rows of attention (`add`) and gives the squared changes of all channels (`totals`).
`plnd.importance.attention` says which changes of which logits; `plnd.importance.kernels` holds the loops of the
compiled classes, and `plnd.importance.triton_softmax` has the classes for a GPU.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from plnd.importance.memory import SCRATCH, accumulation_dtype, cells, chunks


@dataclass(frozen=True)
class Side:
    """How the logits change when channel c of the queries, or of the keys, is zeroed.

    δ[i, j, c] = own[c]·other[c] (+ turned[c]·other[c']) (+ rescale[c]·s[i, j]): `own`, `turned` and `rescale` belong to
    the token whose channel is zeroed, `other` to the one it meets, and c' = c ± head_dim/2 is what c turns with.
    `own` and `turned` are the channel times a factor, [seq, head_dim] or a number. `entered` is `other` as it enters
    the scalar product, without the gain of a norm that the zeroed channel goes through after rotation. All others are
    [groups, per_group or 1, seq, head_dim].
    """

    channel: Tensor
    other: Tensor
    factor: Tensor | float
    turned_factor: Tensor | None
    rescale: Tensor | None
    entered: Tensor

    @property
    def own(self) -> Tensor:
        """What `other` of the same channel is multiplied by."""
        return self.channel * self.factor

    @property
    def turned(self) -> Tensor | None:
        """What `other` of the channel that c turns with is multiplied by; None where channels do not turn."""
        return None if self.turned_factor is None else self.channel * self.turned_factor

    def pick(self, groups: Tensor | None, order: Tensor | None) -> Side:
        """Some groups by their numbers, or all, their channels in an order."""

        def of_groups(x: Tensor) -> Tensor:
            return in_order(x if groups is None else x.index_select(0, groups))

        def in_order(x: Tensor) -> Tensor:
            return x if order is None else x[..., order]

        return self._mapped(of_groups, in_order)

    def cut(self, own: slice, other: slice) -> Side:
        """Part of the tokens."""
        part = self._mapped(lambda x: x[:, :, own], lambda x: x[own])
        return replace(part, other=self.other[:, :, other], entered=self.entered[:, :, other])

    def elsewhere(self, shift: int) -> Side:
        """What is left of the change for the head that comes `shift` after the channel's own."""
        rescale = None if self.rescale is None else roll_heads(self.rescale, shift)
        return Side(self.channel, self.other, 0.0, None, rescale, self.entered)

    def _mapped(self, of_heads: Callable[[Tensor], Tensor], of_factors: Callable[[Tensor], Tensor]) -> Side:
        return Side(
            of_heads(self.channel),
            of_heads(self.other),
            of_factors(self.factor) if isinstance(self.factor, Tensor) else self.factor,
            None if self.turned_factor is None else of_factors(self.turned_factor),
            None if self.rescale is None else of_heads(self.rescale),
            of_heads(self.entered),
        )

    def along(self, products: Tensor) -> Tensor:
        """Σ_j of some weights times δ without the rescaled logits, given those sums of `other`."""
        result, turned = self.own * products, self.turned
        return result if turned is None else _add_partner(result, turned, products)

    def against(self, own: Tensor, turned: Tensor | None) -> Tensor:
        """The same where own and turned belong to j, given those sums of own and of turned."""
        result = self.other * own
        return result if turned is None else _add_partner(result, turned, self.other)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """The summands of δ without the rescaled logits: what belongs to the zeroed token, and to the other."""
        factors, turned = [(self.own, self.other)], self.turned
        return factors if turned is None else [*factors, (turned, swapped_halves(self.other))]


def swapped_halves(x: Tensor) -> Tensor:
    """What every channel turns with: the one half a head away, see `_order`."""
    return x.roll(x.shape[-1] // 2, dims=-1)


def _add_partner(result: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """Adds factor·`swapped_halves(x)` in place, without a copy of x."""
    for to, scale, part in zip(result.chunk(2, -1), factor.chunk(2, -1), reversed(x.chunk(2, -1)), strict=True):
        to.addcmul_(scale, part)
    return result


def roll_heads(x: Tensor, shift: int) -> Tensor:
    """Heads [groups, per_group, ...] put round by `shift`."""
    return x.flatten(0, 1).roll(shift, 0).view(x.shape)


def times(name: str, x: Tensor, factor: Tensor | float) -> Tensor:
    """x·factor, [groups, per_group, seq, head_dim], in memory that is used again and in the order of `stacked`."""
    return torch.mul(x, factor, out=stacked_scratch(name, x.shape, x))


def stacked_scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for [groups, per_group, rows, n] in the order of `stacked`."""
    groups, per_group, rows, width = shape
    return unstacked(SCRATCH(name, (groups, rows, per_group, width), like))


def stacked(x: Tensor) -> Tensor:
    """[groups, per_group, rows, n] as [groups, rows * per_group, n]: the rows of a group's heads, token by token.

    In this order tensors lie in memory (see `unstacked`), so that neither a part of the tokens nor this is a copy.
    """
    return x.transpose(1, 2).flatten(1, 2)


def unstacked(x: Tensor) -> Tensor:
    """[groups, rows, per_group, n] in memory as the [groups, per_group, rows, n] that formulas speak of."""
    return x.transpose(1, 2)


Engine = Literal["triton", "numba", "torch"]


def engine(dtype: torch.dtype, device: torch.device) -> Engine:
    """What changes of attention run on: Triton on a GPU, Numba on a CPU, for all but float64; PyTorch otherwise.

    And PyTorch where these are not installed or do not run. Under TRITON_INTERPRET=1 Triton's kernels run on a CPU too.
    """
    if accumulation_dtype(dtype) != torch.float32:
        return "torch"
    if (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and triton_kernels(device):
        return "triton"
    return "numba" if device.type == "cpu" and compiled_kernels() is not None else "torch"


@functools.cache
def compiled_kernels() -> Any:
    """The module `plnd.importance.kernels`; None where Numba is absent or does not fit the installed NumPy."""
    try:
        from plnd.importance import kernels
    except ImportError:
        return None
    return kernels


@functools.cache
def triton_kernels(device: torch.device) -> Any:
    """The module `plnd.importance.triton_kernels`; None where Triton is absent, or, with a warning, does not run."""
    try:
        from plnd.importance import triton_kernels as kernels
    except ImportError:
        return None
    if device.type != "cuda":
        return kernels if kernels.INTERPRETED else None
    try:
        kernels.try_out(device)
    except Exception as error:  # whatever a compiler, a driver or a card says
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"Triton does not run on {device} ({reason}): queries and keys are measured in PyTorch, which is slower",
            stacklevel=2,
        )
        return None
    return kernels


class FirstOrder:
    """Σ_i ‖p_i∘(δ_i - Σ_j p_ij δ_ij)‖² for every channel of both sides, in matrix products.

    Expanding the square leaves sums over j, or for the keys' δ² over i, of p, p² times what belongs to j (or i) alone:
    no [rows, seen, channels] tensor. What is multiplied by the same weights is multiplied together; without head norms
    sums of keys need no product of their own.
    """

    rows = 64

    def __init__(self, sides: list[Side], wanted: list[Tensor], softcap: float | None) -> None:
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
        columns = [*linear, self._squares("key squares", key[:, None])[:, 0]]
        width = sum(x.shape[-1] for x in columns)
        self.columns = torch.cat(columns, dim=-1, out=SCRATCH("columns", (*key.shape[:-1], width), key))
        self.row_squares = self._squares("query squares", query)
        self.square = SCRATCH("sums", (*key.shape[:-1], width - self.linear), key).zero_()
        self.queries = query.new_zeros(*query.shape[:2], self.head_dim)
        self.keys = key.new_zeros(len(key), 1, self.head_dim)
        self.with_logit = None if key_side.rescale is None else torch.zeros_like(key)
        self.logit_square = None if key_side.rescale is None else torch.zeros_like(key[..., :1])

    def _key(self, own: Sequence[Tensor]) -> Tensor:
        """Keys without a head norm, or sums of them, from own (and turned): the channels' own parts, put together."""
        return -own[0] if len(own) == 1 else -own[0] - swapped_halves(own[1])

    def _squares(self, name: str, x: Tensor) -> Tensor:
        """x_c², and x_c·x_c' once for each pair where channels turn, [groups, per_group, seq, columns]."""
        first, second = x.chunk(2, -1)
        pairs = 0 if self.sides[0].turned_factor is None else first.shape[-1]
        result = stacked_scratch(name, (*x.shape[:3], self.head_dim + pairs), x)
        torch.mul(x, x, out=result[..., : self.head_dim])
        if pairs:
            torch.mul(first, second, out=result[..., self.head_dim :])
        return result

    def _square(self, side: Side, squares: Tensor) -> Tensor:
        """Σ of some weights times (own·other + turned·other')², given those sums of `_squares(other)`."""
        own, turned = side.own, side.turned
        plain, pairs = squares[..., : self.head_dim], squares[..., self.head_dim :]
        result = own.square() * plain
        if turned is not None:
            _add_partner(result, turned.square(), plain)
            for half, factor in zip(result.chunk(2, -1), (own * turned).chunk(2, -1), strict=True):
                half.addcmul_(factor, pairs, value=2)
        return result

    def _along(self, products: Tensor, query_side: Side, key_side: Side) -> list[Tensor]:
        """Σ_j of some weights times both sides' δ without rescaled logits, given those sums of the linear columns."""
        linear = products[..., : self.linear].split(self.head_dim, dim=-1)
        own, key = (linear, self._key(linear)) if self.derived else (linear[:-1], linear[-1])
        return [query_side.along(key), key_side.against(own[0], own[1] if len(own) > 1 else None)]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        query_side, key_side = self.sides[0].cut(rows, seen), self.sides[1].cut(seen, rows)
        p = p[..., : logits.shape[-1]]  # without a sink, whose logit does not change
        square = p * p
        weights = (p, square, square)
        if self.softcap is not None:
            slope = 1 - torch.tanh(logits / self.softcap).square()
            weights = (p * slope, square * slope, square * slope * slope)
        first = product(weights[0], self.columns[:, seen, : self.linear])
        if self.softcap is None:
            second, squares = product(square, self.columns[:, seen]).split((self.linear, self.square.shape[-1]), -1)
        else:
            second = product(weights[1], self.columns[:, seen, : self.linear])
            squares = product(weights[2], self.columns[:, seen, self.linear :])
        self.square[:, seen].add_(_transposed(weights[2], self.row_squares[:, :, rows]))
        mass = square.sum(-1, keepdim=True)
        means, crosses = (self._along(x, query_side, key_side) for x in (first, second))
        query_square = self._square(query_side, squares)
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
            self.with_logit[:, seen] += _transposed(scaled[2], key_side.other)
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


class CompiledFirstOrder(FirstOrder):
    """The same on a CPU in float32, for heads that turn and have no norm: after the products, one compiled pass."""

    def __init__(self, sides: list[Side], wanted: list[Tensor], softcap: float | None) -> None:
        super().__init__(sides, wanted, softcap)
        self.kernels, side = compiled_kernels(), sides[0]
        assert isinstance(side.factor, Tensor) and side.turned_factor is not None
        self.factors = [_contiguous(x) for x in (side.factor, side.turned_factor)]
        self.channel, self.other = (_contiguous(x.permute(2, 0, 1, 3)) for x in (side.channel, sides[1].other))

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        weights, columns = stacked(p), self.columns[:, seen]
        squares = torch.mul(weights, weights, out=SCRATCH("square", weights.shape, p))

        def product(name: str, weights: Tensor, columns: Tensor) -> Tensor:
            return torch.bmm(weights, columns, out=SCRATCH(name, (*weights.shape[:2], columns.shape[-1]), p))

        first = product("first", weights, columns[..., : self.linear])
        second = product("second", squares, columns)
        self.square[:, seen].add_(product("third", squares.mT, stacked(self.row_squares[:, :, rows])))
        sums = (x.numpy() for x in (first, second, squares.sum(-1)))
        queries, keys = self.kernels.spreads(*sums, self.channel, *self.factors, self.other, rows.start)
        self.queries += torch.from_numpy(queries)
        self.keys += torch.from_numpy(keys)[:, None]


def product(weight: Tensor, columns: Tensor) -> Tensor:
    """Σ_j weight_ij·columns_jc, [groups, per_group, rows, columns]."""
    return unstacked((stacked(weight) @ columns).unflatten(1, weight.transpose(1, 2).shape[1:3]))


def _transposed(weight: Tensor, x: Tensor) -> Tensor:
    """Σ_i weight_ij·x_ic over the rows of all heads of a group, [groups, seen, channels]."""
    return stacked(weight).mT @ stacked(x)


class Exact:
    """Σ_i ‖softmax(s_i + δ_i) - p_i‖² for every channel of both sides, in PyTorch.

    With δ centred on its mean Σpδ, ε = e^δ - 1 and ζ = Σpε ≥ 0, the change of a probability is p(ε - ζ)/(1 + ζ): of the
    order of δ, nothing of order one cancels. Where a centred δ is so large that squares of e^δ would overflow, the
    row's softmax is taken as it is, its exponents lowered by as much. A sink is a column of p behind those of the keys,
    whose logit does not change, and whose probability's change is left out.
    """

    rows = 128
    largest = 40.0  # of an exponent

    def __init__(self, sides: list[Side], wanted: list[Tensor], softcap: float | None) -> None:
        self.sides, self.softcap = sides, softcap
        self.results = [x.new_zeros(x.shape, dtype=sides[0].own.dtype) for x in wanted]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        parts = (self.sides[0].cut(rows, seen), self.sides[1].cut(seen, rows))
        for side, result, terms in zip(parts, self.results, map(terms_of, parts, (True, False)), strict=True):
            for g, h in itertools.product(range(p.shape[0]), range(p.shape[1])):
                heads = [[x[g, min(h, x.shape[1] - 1)] for x in term] for term in terms]
                change = self._change(p[g, h], logits[g, h], heads, side.rescale is not None)
                result[g, min(h, result.shape[1] - 1)] += change

    def _change(self, p: Tensor, s: Tensor, terms: list[list[Tensor]], with_logit: bool) -> Tensor:
        """One head's Σ, [channels], from δ = Σ u[rows, channels]·v[seen, channels], the last times s `with_logit`."""
        (rows, seen), sink = s.shape, p.shape[1] - s.shape[1]
        columns = [pad(v.mT, (0, sink)).contiguous() for _, v in terms]
        s = pad(s, (0, sink))
        budget = cells(p.device)
        result = p.new_zeros(len(columns[0]))
        for channels in chunks(len(result), budget // seen):
            for chunk in chunks(rows, budget // (seen * (channels.stop - channels.start))):
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
                    change = _norm(after.div_((q @ after.mT).mT).sub_(1).mul_(q)[..., :seen])
                epsilon = delta.expm1_()
                zeta = (q @ epsilon.mT).mT
                change = torch.where(lowered > 0, change, _norm(epsilon.sub_(zeta).mul_(q)[..., :seen]) / (1 + zeta))
                result[channels] += change.square().sum((0, 2))
        return result

    def totals(self) -> list[Tensor]:
        """For queries [groups, per_group, head_dim], for keys [groups, 1, head_dim]."""
        return self.results


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def terms_of(side: Side, of_queries: bool) -> list[tuple[Tensor, Tensor]]:
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


class CompiledExact:
    """The same as `Exact` on the threads of a CPU, in float32, by `plnd.importance.kernels`."""

    rows = 128
    task = 32  # rows of a group's heads that one call takes; fixed, so that sums do not depend on the number of threads

    def __init__(self, sides: list[Side], wanted: list[Tensor], softcap: float | None) -> None:
        self.kernels, self.softcap = compiled_kernels(), softcap
        self.second, self.logit = sides[0].turned is not None or None, []
        self.wanted = [x.numpy() for x in wanted]
        self.results = [np.zeros(x.shape) for x in wanted]
        self.terms = []
        for side, of_queries in zip(sides, (True, False), strict=True):
            self.logit.append(side.rescale is not None or None)
            self.terms.append([(_contiguous(u), *self._columns(v)) for u, v in terms_of(side, of_queries)])

    def _columns(self, v: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """What belongs to keys as [groups, head_dim, keys and padding], and its largest size, [groups, head_dim]."""
        columns = pad(v[:, 0].mT, (0, self.kernels.LANES))
        return _contiguous(columns), _contiguous(columns.abs().amax(-1))

    def _padded(self, x: Tensor) -> np.ndarray:
        x, missing = x.transpose(1, 2), -x.shape[-1] % self.kernels.LANES
        return _contiguous(pad(x, (0, missing)) if missing else x)

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
            for part in chunks(p.shape[2], self.task)
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
