"""`exact` and `first_order` on a GPU, by the Triton kernels of `plnd.importance.triton_kernels`.

The classes take in rows of attention as those of `plnd.importance.softmax` do, and give the same numbers. No launch
waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plnd.importance import triton_kernels as kernels
from plnd.importance.softmax import FirstOrder, Side, product, stacked, terms_of


class Tile(NamedTuple):
    """What one program of `exact` holds at once, each a power of two, and how many warps it has.

    Fixed, as the last places of the sums depend on them: what is resumed on another card is then the same.
    """

    rows: int = 8
    keys: int = 8
    channels: int = 32
    warps: int = 4


TILE = Tile()
WIDE = 64
"""Keys that are looked at together for where a row's probabilities begin and end."""
KEYS_AT_ONCE = 1024
"""Keys of one row that a program of `weights` holds."""
SPREAD_CELLS = 1024
"""Rows times channels of one program of `spreads`."""


class _Terms(NamedTuple):
    """A side's δ, in the order of `plnd.importance.triton_kernels.changes`.

    Attributes:
        own: u, u2 and r, [groups, heads or 1, queries, channels].
        met: v, v2 and w, [groups, keys, channels].
        tops: the largest sizes of v, v2 and w, [groups, channels].
        second, logit: whether there is a second term, and one of the rescaled logits.
    """

    own: list[Tensor]
    met: list[Tensor]
    tops: list[Tensor]
    second: bool
    logit: bool

    @classmethod
    def of(cls, side: Side, of_queries: bool, centred: bool) -> _Terms:
        """`centred`: what all keys share, and no softmax sees, is taken out."""
        terms = [(u.contiguous(), v[:, 0].contiguous()) for u, v in terms_of(side, of_queries)]
        logit, second = side.rescale is not None, side.turned is not None
        for number in range(len(terms) - logit if centred else 0):
            u, v = terms[number]
            terms[number] = (u, v - (v.amax(1, keepdim=True) + v.amin(1, keepdim=True)) / 2)
        first, last = terms[0], terms[-1]
        places = [first, terms[1] if second else first, last]
        met = [v for _, v in places]
        return cls([u for u, _ in places], met, [v.abs().amax(1) for v in met], second, logit)


class TritonExact:
    """The same as `plnd.importance.softmax.Exact` on a GPU, in float32.

    Args:
        sides: changes by the queries and by the keys.
        wanted: which channels of each, boolean, [groups, per_group, head_dim] and [groups, 1, head_dim].
        softcap: of the logits.
        tile: what one program holds; by default `TILE`.
    """

    rows = 1024
    sinks = False
    """Whether probabilities have a column more, the sinks': these see what all keys share."""

    def __init__(
        self, sides: list[Side], wanted: list[Tensor], softcap: float | None, tile: Tile | None = None
    ) -> None:
        self.softcap, self.tile = softcap, tile or TILE
        centred = softcap is None and not self.sinks
        self.terms = [_Terms.of(side, first, centred) for side, first in zip(sides, (True, False), strict=True)]
        self.channel = [
            torch.argsort((~x).byte(), dim=-1, stable=True).int() for x in wanted
        ]  # those that are wanted come first
        self.count = [x.sum(-1, dtype=torch.int32) for x in wanted]
        self.results = [torch.zeros(x.shape, dtype=torch.float64, device=x.device) for x in wanted]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        shape, tile = logits.shape, self.tile
        p, sink = p[..., : shape[-1]], p[..., shape[-1] :]
        weights = p
        if self.softcap is not None:
            weights = p * (1 - torch.tanh(logits / self.softcap).square())
        p, s = stacked(p).contiguous(), stacked(logits).contiguous()
        sink = stacked(sink).contiguous() if self.sinks else p
        top = s.abs().amax(-1) if any(terms.logit for terms in self.terms) else p
        for terms, channel, count, result in zip(self.terms, self.channel, self.count, self.results, strict=True):
            groups, heads, n, keys = shape
            channels = result.shape[-1]
            blocks = -(-n // tile.rows)
            out = p.new_zeros(blocks, groups, heads, channels)
            mean = stacked(_about_mean(terms, weights, logits, seen, rows)).contiguous()
            with torch.cuda.device_of(p):  # Triton launches on the current one
                kernels.changes[(blocks, -(-channels // tile.channels), groups * heads)](
                    p, s, *terms.own, *terms.met, mean, *terms.tops, top, sink, channel, count, out,
                    n, keys, heads, terms.own[0].shape[2], terms.met[0].shape[1], channels, rows.start, seen.start,
                    float(self.softcap or 1), HEADS_U=terms.own[0].shape[1], HEADS_R=terms.own[2].shape[1],
                    HEADS_WANTED=result.shape[1], SECOND=terms.second, LOGIT=terms.logit,
                    CAPPED=self.softcap is not None, SINKS=self.sinks, ROWS=tile.rows, KEYS=tile.keys,
                    CHANNELS=tile.channels, WIDE=WIDE, num_warps=tile.warps,
                )  # fmt: skip
            change = out.sum(0, dtype=torch.float64)
            result += change if result.shape[1] == heads else change.sum(1, keepdim=True)

    def totals(self) -> list[Tensor]:
        """For queries [groups, per_group, head_dim], for keys [groups, 1, head_dim], in float64."""
        return self.results


class TritonExactWithSinks(TritonExact):
    """The same where each head has a sink: a column of p behind those of the keys, whose logit does not change."""

    sinks = True


def _about_mean(terms: _Terms, weights: Tensor, logits: Tensor, seen: slice, rows: slice) -> Tensor:
    """About Σ_j pδ, [groups, per_group, rows, channels]: nothing depends on how exactly, so in half precision."""
    half = weights.bfloat16()
    result: Tensor | float = 0.0
    plain = [(terms.own[number], terms.met[number]) for number in range(1 + terms.second)]
    for u, v in plain:
        result = result + u[:, :, rows] * product(half, v[:, seen].bfloat16())
    if terms.logit:
        result = result + terms.own[2][:, :, rows] * product(
            (weights * logits).bfloat16(), terms.met[2][:, seen].bfloat16()
        )
    assert isinstance(result, Tensor)
    return result


class TritonFirstOrder(FirstOrder):
    """The same as `FirstOrder` on a GPU, in float32: between the products and behind them one kernel each."""

    rows = 1024

    def __init__(self, sides: list[Side], wanted: list[Tensor], softcap: float | None) -> None:
        super().__init__(sides, wanted, softcap)
        side = sides[0]
        self.channel, self.other = side.channel.contiguous(), sides[1].other.contiguous()
        self.factors = [
            x.contiguous() if isinstance(x, Tensor) else self.channel for x in (side.factor, side.turned_factor)
        ]
        self.scale = 1.0 if isinstance(side.factor, Tensor) else float(side.factor)
        self.turns = side.turned_factor is not None
        self.rescales = [None if x.rescale is None else x.rescale.contiguous() for x in sides]

    def add(self, logits: Tensor, p: Tensor, seen: slice, rows: slice) -> None:
        """Takes in rows of attention, [groups, per_group, rows, seen], and which keys and queries they are."""
        groups, heads, n, keys = logits.shape
        p = p[..., :keys]  # without a sink, whose logit does not change
        weights, scaled, sums = self._weights(stacked(p).contiguous(), stacked(logits).contiguous())
        columns, linear = self.columns[:, seen], self.linear
        first = weights[0] @ columns[..., :linear]
        if self.softcap is None:
            second, squares = (weights[1] @ columns).split((linear, columns.shape[-1] - linear), -1)
        else:
            second, squares = weights[1] @ columns[..., :linear], weights[2] @ columns[..., linear:]
        self.square[:, seen].add_(weights[2].mT @ stacked(self.row_squares[:, :, rows]))
        query_rescale, key_rescale = self.rescales
        along = key_first = key_second = first
        if query_rescale is not None:
            along = scaled[2] @ self.sides[0].other[:, 0, seen]
        if key_rescale is not None:
            assert self.with_logit is not None and self.logit_square is not None
            key_first, key_second = (x @ key_rescale[:, 0, seen] for x in scaled[:2])
            self.with_logit[:, seen] += scaled[2].mT @ stacked(self.other[:, :, rows])
            self.logit_square[:, seen] += (scaled[2] * stacked(logits)).sum(1)[..., None]
        width = 1 << (self.head_dim - 1).bit_length()
        size = max(1, SPREAD_CELLS // width)
        blocks = -(-n // size)
        out = p.new_empty(2, blocks, groups, heads, self.head_dim)
        with torch.cuda.device_of(p):
            kernels.spreads[(blocks, groups * heads)](
                first, second, squares, sums, self.channel, *self.factors, self.other,
                self.channel if query_rescale is None else query_rescale, along, key_first, key_second, *out,
                n, heads, self.channel.shape[2], self.head_dim, rows.start, sums.shape[1],
                first.stride(1), second.stride(1), squares.stride(1), self.scale,
                TURNS=self.turns, DERIVED=self.derived, RESCALED=query_rescale is not None,
                KEYS_RESCALED=key_rescale is not None, ROWS=size, CHANNELS=width, num_warps=8,
            )  # fmt: skip
        queries, keys = out.sum(1)
        self.queries += queries
        self.keys += keys.sum(1, keepdim=True)

    def _weights(self, p: Tensor, s: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What the columns are multiplied by, the same times the logits (both as needed), and `sums` of the kernel."""
        groups, lines, seen = p.shape
        capped, logit = self.softcap is not None, any(x is not None for x in self.rescales)
        second = torch.empty_like(p)
        first, third = (torch.empty_like(p), torch.empty_like(p)) if capped else (p, second)
        scaled = [torch.empty_like(p) if logit else p for _ in range(3)]
        sums = p.new_empty(4, groups * lines)
        with torch.cuda.device_of(p):
            kernels.weights[(groups * lines,)](
                p, s, first, second, third, *scaled, sums, seen, groups * lines, float(self.softcap or 1),
                LOGIT=logit, CAPPED=capped, KEYS=KEYS_AT_ONCE,
            )  # fmt: skip
        return [first, second, third], scaled, sums
