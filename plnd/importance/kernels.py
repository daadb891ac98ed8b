"""The change of attention probabilities, channel by channel, as compiled loops for CPUs in float32.

`changes` is for `exact`: nothing of the size [queries, keys, channels] is stored, one row of keys at a time stays in
the processor's first cache, and every loop over it is vectorised. `spreads` is for `first_order`. Compiled by Numba at
the first call, in seconds, and kept on disk.
`plnd.importance.softmax` gives the same numbers without this module, in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

LANES = 32
"""Keys are taken in multiples of this many: arrays over keys are padded to it. One of probability 0 changes nothing."""

_FLAGS = {"contract", "reassoc", "nsz", "arcp"}  # sums may be reordered; infinities and NaNs stay what they are
_OPTIONS: dict[str, Any] = {"fastmath": _FLAGS, "nogil": True, "error_model": "numpy"}
_inner = numba.njit(**_OPTIONS)  # compiled, and kept, as a part of what calls it


def _jit(function: Any) -> Any:
    """Compiled for the types that it is called with; kept on disk where there is a folder to write to."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**_OPTIONS)(function)


_ONE, _HALF, _TWO, _ZERO = (np.float32(x) for x in (1, 0.5, 2, 0))
_C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(n)) for n in (3, 4, 5, 6))
_PER_LN2, _LN2, _LN2_REST = np.float32(1 / math.log(2)), np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
_SMALL = np.float32(0.4)  # up to here one polynomial is e^x - 1
_MODERATE = np.float32(40)  # up to here the squares of e^x fit into float32


@_inner
def _expm1_small(x):
    """e^x - 1 for |x| <= 0.4, to float32 rounding."""
    return x * (_ONE + x * (_HALF + x * (_C3 + x * (_C4 + x * (_C5 + x * _C6)))))


@_inner
def _expm1(x):
    """e^x - 1 for |x| <= 80: 2^n·(e^r - 1) + (2^n - 1), r what is left of x after n·ln 2."""
    n = np.floor(x * _PER_LN2 + _HALF)
    r = (x - n * _LN2) - n * _LN2_REST
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return power * _expm1_small(r) + (power - _ONE)


@_inner
def _delta(a, x, second, b, y, logit, r, w, s, capped, t, cap):
    """The change of one logit; what a None switches off is not compiled."""
    d = a * x
    if second is not None:
        d += b * y
    if logit is not None:
        d += r * w * s
    if capped is not None:  # cap·tanh((s + d) / cap) - cap·tanh(s / cap), nothing cancelling
        e = _expm1(max(min(d * (_TWO / cap), _MODERATE), -_MODERATE))
        d = cap * (_ONE - t * t) * e / (e * (_ONE + t) + _TWO)
    return d


@_inner
def _literal(p, d):
    """‖pe^d / Σpe^d - p‖² in float64, for changes past float32's range."""
    top = -np.inf
    for j in range(len(p)):
        if p[j] > 0:
            top = max(top, d[j])
    total, square, cross, mass = 0.0, 0.0, 0.0, 0.0
    for j in range(len(p)):
        if p[j] > 0:
            before = np.float64(p[j])
            after = before * math.exp(np.float64(d[j]) - top)
            total += after
            square += after * after
            cross += after * before
            mass += before * before
    return max(square / total**2 - 2 * cross / total + mass, 0.0)


@_inner
def _spread(p, d, mean):
    """Largest |d - mean| where p is not 0; elsewhere d becomes the mean."""
    spread = _ZERO
    for j in range(len(p)):
        if p[j] == 0:
            d[j] = mean
        spread = max(spread, abs(d[j] - mean))
    return spread


@_inner
def _means(own, own2, turned, turned2, a, b, a2, b2, x, y):
    """Σ_j of weights times δ, for a pair of channels of the queries, then of the keys, from those sums of the keys'."""
    key, key2 = -(own + turned2), -(own2 + turned)
    return a * key + a2 * key2, b * key2 + b2 * key, x * own + y * turned, y * own2 + x * turned2


@_inner
def _visible(p, first, last):
    """The range of keys of each row whose probability is not 0, widened to multiples of `LANES`."""
    for i in range(len(p)):
        begin, end = 0, p.shape[1]
        while end > 0 and p[i, end - 1] == 0:
            end -= 1
        while begin < end and p[i, begin] == 0:
            begin += 1
        first[i], last[i] = begin // LANES * LANES, (end + LANES - 1) // LANES * LANES


@_jit
def changes(
    p, u, v, v_top, second, u2, v2, v2_top, logit, r, w, w_top, s, capped, t, cap, start, stop, query, key, wanted
):
    """Σ_i ‖softmax(s_i + δ_ic) - p_i‖² over rows `start` to `stop` of p, for each head of a group and channel c.

    δ[i, j, c] = u[i, c]·v[c, j] (+ u2[i, c]·v2[c, j]) (+ r[i, c]·w[c, j]·s[i, j]), through a soft-cap if there is one.
    `second`, `logit` and `capped` are True or None; what None switches off is left out of the compiled code, and its
    arrays are not read. Arrays are float32 and C-contiguous.

    Args:
        p: probabilities, [rows, heads, seen]; `seen` a multiple of `LANES`.
        u, u2, r: [heads or 1, queries, channels]; row i of `p` is query `query` + i here.
        v, v2, w: [channels, keys]; column j of `p` is key `key` + j here.
        v_top, v2_top, w_top: the largest |v|, |v2| and |w| of each channel, [channels].
        s: logits before the soft-cap, [rows, heads, seen], finite.
        t, cap: tanh(s / cap), [rows, heads, seen], and the soft-cap.
        wanted: boolean, [heads or 1, channels]; the others are 0.
    Returns:
        [heads, channels], float64; inside a row sums are float32.
    """
    rows, heads, seen = p.shape
    channels = len(v_top)
    # unsigned, so that indices need no check for counting from the end, which would keep loops from being vectorised
    first, last = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
    s_top = np.zeros(rows, np.float32)
    o = np.uint64(key)
    row = np.empty(seen, np.float32)
    result = np.zeros((heads, channels), np.float64)
    for h in range(heads):
        _visible(p[start:stop, h], first[start:stop], last[start:stop])
        if logit is not None:
            for i in range(start, stop):
                s_top[i] = _ZERO
                for j in range(first[i], last[i]):
                    if p[i, h, j] > 0:
                        s_top[i] = max(s_top[i], abs(s[i, h, j]))
        hu, hu2, hr, hw = min(h, len(u) - 1), min(h, len(u2) - 1), min(h, len(r) - 1), min(h, len(wanted) - 1)
        for c in range(channels):
            if not wanted[hw, c]:
                continue
            total = 0.0
            for i in range(start, stop):
                begin, end = first[i], last[i]
                a, b, k = u[hu, query + i, c], u2[hu2, query + i, c], r[hr, query + i, c]
                reach = abs(a) * v_top[c]
                if second is not None:
                    reach += abs(b) * v2_top[c]
                if logit is not None:
                    reach += abs(k) * w_top[c] * s_top[i]
                if reach == 0:
                    continue
                zeta = _ZERO
                if reach <= _SMALL:
                    for j in range(begin, end):
                        e = p[i, h, j] * _expm1_small(
                            _delta(
                                a, v[c, o + j], second, b, v2[c, o + j], logit, k, w[c, o + j], s[i, h, j],
                                capped, t[i, h, j], cap,
                            )
                        )  # fmt: skip
                        row[j] = e
                        zeta += e
                else:
                    mean = _ZERO
                    for j in range(begin, end):
                        d = _delta(
                            a, v[c, o + j], second, b, v2[c, o + j], logit, k, w[c, o + j], s[i, h, j],
                            capped, t[i, h, j], cap,
                        )  # fmt: skip
                        row[j] = d
                        mean += p[i, h, j] * d
                    if not reach + abs(mean) <= _MODERATE:
                        q, d = p[i, h, begin:end], row[begin:end]
                        if not _spread(q, d, mean) <= _MODERATE:
                            total += _literal(q, d)
                            continue
                    for j in range(begin, end):  # what all logits share changes nothing; without it Σpe^δ >= 1
                        e = p[i, h, j] * _expm1(row[j] - mean)
                        row[j] = e
                        zeta += e
                square = _ZERO
                for j in range(begin, end):
                    d = row[j] - zeta * p[i, h, j]
                    square += d * d
                total += square / (_ONE + zeta) ** 2
            result[h, c] = total
    return result


@_jit
def spreads(first, second, mass, channel, cos, sin, other, query):
    """What `first_order` makes of its matrix products where channels turn and there is no head norm.

    Σ_i Σ_j p²δ² - 2·m·Σ_j p²δ + m²·Σ_j p², m = Σ_j pδ, for the queries; without the first term for the keys. Arrays are
    float32 and C-contiguous; channel c turns with c ± channels / 2.

    Args:
        first, second: sums over keys of p, and of p², times the keys' own and turned; in `second` then those of p²
            times k_c² and k_c·k_c', [groups, rows * heads, columns].
        mass: Σ_j p², [groups, rows * heads].
        channel, other: the queries' own channels and what the keys meet, [queries, groups, heads, channels]; row i here
            is query `query` + i.
        cos, sin: the factors of own and turned, [queries, channels].
    Returns:
        For queries [groups, heads, channels], for keys [groups, channels].
    """
    _, groups, heads, channels = channel.shape
    rows = np.uint64(mass.shape[1] // heads)
    half = np.uint64(channels // 2)  # unsigned, see `changes`
    n, s_, start, per_row = np.uint64(channels), np.uint64(2 * channels), np.uint64(query), np.uint64(heads)
    queries, keys = np.zeros((groups, heads, channels), np.float32), np.zeros((groups, channels), np.float32)
    for g in range(groups):
        for i in range(rows):
            q = start + i
            for h in range(per_row):
                r = i * per_row + h
                weight = mass[g, r]
                for c in range(half):
                    e = c + half
                    x, y = channel[q, g, h, c], channel[q, g, h, e]
                    a, b, a2, b2 = x * cos[q, c], y * cos[q, e], x * sin[q, c], y * sin[q, e]
                    x, y = other[q, g, h, c], other[q, g, h, e]
                    m, m2, n1, n2 = _means(
                        first[g, r, c], first[g, r, e], first[g, r, n + c], first[g, r, n + e], a, b, a2, b2, x, y
                    )
                    s, s2, t1, t2 = _means(
                        second[g, r, c], second[g, r, e], second[g, r, n + c], second[g, r, n + e], a, b, a2, b2, x, y
                    )
                    k, k2, pair = second[g, r, s_ + c], second[g, r, s_ + e], _TWO * second[g, r, s_ + n + c]
                    queries[g, h, c] += a * (a * k + a2 * pair) + a2 * a2 * k2 + m * (m * weight - _TWO * s)
                    queries[g, h, e] += b * (b * k2 + b2 * pair) + b2 * b2 * k + m2 * (m2 * weight - _TWO * s2)
                    keys[g, c] += n1 * (n1 * weight - _TWO * t1)
                    keys[g, e] += n2 * (n2 * weight - _TWO * t2)
    return queries, keys
