"""The change of attention probabilities, channel by channel, as Triton kernels for GPUs in float32.

`changes` is for `exact`: nothing of the size [queries, keys, channels] is stored, each program keeps the sums of some
rows and channels in registers and goes over the keys. `weights` and `spreads` are what `first_order` does before and
after its matrix products. No sum depends on which program ends first, so that the same numbers come out every time.
Compiled by Triton at the first call and kept on disk; run in Python where TRITON_INTERPRET=1.
`plnd.importance.softmax` gives the same numbers without this module, in PyTorch; `plnd.importance.triton_softmax` calls
what is here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime import JITFunction


@triton.jit
def _expm1_small(x):
    """e^x - 1 for |x| <= 1/4, to float32 rounding."""
    return x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.008333334 + x * 0.0013888889)))))


@triton.jit
def _expm1(x):
    """e^x - 1 for x <= 88."""
    return tl.where(tl.abs(x) < 0.25, _expm1_small(x), tl.exp(x) - 1.0)


@triton.jit
def _tanh(x):
    """tanh(x), and 1 - tanh²(x) without cancellation."""
    small = tl.exp(-2.0 * tl.abs(x))
    below = 1.0 / (1.0 + small)
    tanh = tl.where(tl.abs(x) < 0.125, -_expm1_small(-2.0 * tl.abs(x)), 1.0 - small) * below
    return tl.where(x < 0, -tanh, tanh), 4.0 * small * below * below


@triton.jit
def _deltas(
    a, b, k, v, v2, w, s_row, keys, at, inside, channels, cap, SECOND: tl.constexpr, LOGIT: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """The changes of some logits, [rows, keys, channels].

    Args:
        a, b, k: what belongs to the queries, [rows, 1, channels].
        v, v2, w: pointers to what belongs to the keys, at the channels, [1, 1, channels].
        s_row: pointers to the rows of logits, [rows, 1, 1].
        keys: numbers of the keys among those of the rows, [1, keys, 1].
        at: where the keys begin among all, a number.
        inside: which of keys and channels there are, [1, keys, channels].
    """
    place = (at + keys) * channels
    d = a * tl.load(v + place, mask=inside, other=0.0)
    if SECOND:
        d += b * tl.load(v2 + place, mask=inside, other=0.0)
    if LOGIT:
        d += k * tl.load(w + place, mask=inside, other=0.0) * tl.load(s_row + keys)
    if CAPPED:  # cap·tanh((s + d) / cap) - cap·tanh(s / cap), nothing cancelling
        t, slope = _tanh(tl.load(s_row + keys) / cap)
        e = _expm1(tl.minimum(tl.maximum(d * (2.0 / cap), -40.0), 40.0))
        d = cap * slope * e / (e * (1.0 + t) + 2.0)
    return d


@triton.jit
def _moderate(
    p_row, s_row, a, b, k, m, sunk, v, v2, w, begin, end, at, there, asked, channels, cap, SMALL: tl.constexpr,
    SECOND: tl.constexpr, LOGIT: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Σ_j (after - before)² of each row and channel, [rows, channels], where no |δ - m| is above 40; `SMALL`: 1/4.

    With ε = e^(δ - m) - 1 and ζ = Σpε the change of a probability is p(ε - ζ)/(1 + ζ), whatever m; near Σpδ it leaves
    nothing of order one to cancel. A sink of probability `sunk`, [rows, 1, 1], has a part in ζ, with δ = 0.
    """
    zeta = tl.zeros([ROWS, KEYS, CHANNELS], tl.float32)
    cross = tl.zeros([ROWS, KEYS, CHANNELS], tl.float32)
    square = tl.zeros([ROWS, KEYS, CHANNELS], tl.float32)
    mass = tl.zeros([ROWS, KEYS, 1], tl.float32)
    j = tl.arange(0, KEYS)[None, :, None]
    for start in range(begin, end, KEYS):
        inside = start + j < end
        keys = tl.minimum(start + j, end - 1)
        p = tl.load(p_row + keys, mask=inside & there, other=0.0)
        d = _deltas(a, b, k, v, v2, w, s_row, keys, at, inside & asked, channels, cap, SECOND, LOGIT, CAPPED) - m
        if SMALL:
            e = p * _expm1_small(d)
        else:
            e = p * _expm1(tl.minimum(d, 88.0))  # larger only where p is 0
        zeta += e
        cross += p * e
        square += e * e
        mass += p * p
    z = tl.sum(zeta, 1)
    if SINKS:
        if SMALL:
            z += tl.sum(sunk * _expm1_small(-m), 1)
        else:
            z += tl.sum(sunk * _expm1(-m), 1)
    change = tl.sum(square, 1) - z * (2.0 * tl.sum(cross, 1) - z * tl.sum(mass, 1))
    return tl.where(change < 0, 0.0, change) / ((1.0 + z) * (1.0 + z))  # a maximum with 0 would hide what is no number


@triton.jit
def _literal(
    p_row, s_row, a, b, k, sunk, v, v2, w, begin, end, at, there, asked, channels, cap,
    SECOND: tl.constexpr, LOGIT: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The same for changes of any size: p(e^(δ - L) - 1) with L = ln Σpe^δ, which a first pass over the keys finds."""
    top = tl.full([ROWS, KEYS, CHANNELS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS, KEYS, CHANNELS], tl.float32)
    j = tl.arange(0, KEYS)[None, :, None]
    for start in range(begin, end, KEYS):
        inside = start + j < end
        keys = tl.minimum(start + j, end - 1)
        p = tl.load(p_row + keys, mask=inside & there, other=0.0)
        d = _deltas(a, b, k, v, v2, w, s_row, keys, at, inside & asked, channels, cap, SECOND, LOGIT, CAPPED)
        d = tl.where(p > 0, d, -1.0e30)
        higher = tl.maximum(top, d)
        total = total * tl.exp(top - higher) + p * tl.exp(d - higher)
        top = higher
    highest = tl.max(top, 1, keep_dims=True)
    if SINKS:
        highest = tl.where(sunk > 0, tl.maximum(highest, 0.0), highest)
    total = tl.sum(total * tl.exp(top - highest), 1, keep_dims=True)
    if SINKS:
        total += sunk * tl.exp(-tl.maximum(highest, 0.0))
    norm = highest + tl.log(tl.where(total > 0, total, 1.0))
    square = tl.zeros([ROWS, KEYS, CHANNELS], tl.float32)
    for start in range(begin, end, KEYS):
        inside = start + j < end
        keys = tl.minimum(start + j, end - 1)
        p = tl.load(p_row + keys, mask=inside & there, other=0.0)
        d = _deltas(a, b, k, v, v2, w, s_row, keys, at, inside & asked, channels, cap, SECOND, LOGIT, CAPPED)
        e = p * _expm1(tl.minimum(d - norm, 88.0))
        square += e * e
    return tl.sum(square, 1)


@triton.jit(do_not_specialize=("rows", "seen", "queries", "keys", "query", "key"))  # else compiled for many lengths
def changes(
    p, s, u, u2, r, v, v2, w, mean, v_top, v2_top, w_top, s_top, sink, channel, count, out,
    rows, seen, heads, queries, keys, channels, query, key, cap,
    HEADS_U: tl.constexpr, HEADS_R: tl.constexpr, HEADS_WANTED: tl.constexpr,
    SECOND: tl.constexpr, LOGIT: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Σ_i ‖softmax(s_i + δ_ic) - p_i‖² over `ROWS` rows of p, for each head and channel c.

    δ[i, j, c] = u[i, c]·v[j, c] (+ u2[i, c]·v2[j, c]) (+ r[i, c]·w[j, c]·s[i, j]), through a soft-cap if there is one.
    What `SECOND`, `LOGIT`, `CAPPED` and `SINKS` switch off is not compiled, and its arrays are not read. Arrays are
    float32 and contiguous. A program takes `ROWS` rows of one head, and `CHANNELS` of its channels. What is no number
    in a row of p is none in the sums.

    Args:
        p: probabilities, [groups, rows, heads, seen].
        s: logits before the soft-cap, [groups, rows, heads, seen], finite.
        u, u2: [groups, heads or 1 (`HEADS_U`), queries, channels]; row i of `p` is query `query` + i here.
        r: the same with `HEADS_R` heads.
        v, v2, w: [groups, keys, channels]; column j of `p` is key `key` + j here.
        mean: about Σ_j pδ, [groups, rows, heads, channels].
        v_top, v2_top, w_top: the largest |v|, |v2| and |w|, [groups, channels].
        s_top: the largest |s| of each row, [groups, rows, heads].
        sink: of each row the probability that is no key's and whose logit does not change, [groups, rows, heads].
        channel, count: which channels are wanted, and how many, [groups, heads or 1 (`HEADS_WANTED`), channels] int32,
            [groups, heads or 1] int32.
        out: [blocks of rows, groups, heads, channels], of which the wanted channels are written.
    """
    group = (tl.program_id(2) // heads).to(tl.int64)
    head = tl.program_id(2) % heads
    wanted = group * HEADS_WANTED + tl.minimum(head, HEADS_WANTED - 1)
    number = tl.load(count + wanted)
    if tl.program_id(1) * CHANNELS >= number:
        return
    place = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_asked = place < number
    which = tl.load(channel + wanted * channels + place, mask=is_asked, other=0)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (group * rows + tl.minimum(i, rows - 1)) * heads + head
    begin, end = _visible(p + row[:, None] * seen, i < rows, seen, ROWS, WIDE)
    begin = begin // KEYS * KEYS

    there, asked = (i < rows)[:, None, None], is_asked[None, None, :]
    c, p_row, s_row = which[None, None, :], p + row[:, None, None] * seen, s + row[:, None, None] * seen
    line = query + tl.minimum(i, rows - 1)[:, None, None]
    own = ((group * HEADS_U + tl.minimum(head, HEADS_U - 1)) * queries + line) * channels + c
    here = there & asked
    a = tl.load(u + own, mask=here, other=0.0)
    b = a
    k = a
    reach = tl.abs(a) * tl.load(v_top + group * channels + c)
    if SECOND:
        b = tl.load(u2 + own, mask=here, other=0.0)
        reach += tl.abs(b) * tl.load(v2_top + group * channels + c)
    if LOGIT:
        own = ((group * HEADS_R + tl.minimum(head, HEADS_R - 1)) * queries + line) * channels + c
        k = tl.load(r + own, mask=here, other=0.0)
        reach += tl.abs(k) * tl.load(w_top + group * channels + c) * tl.load(s_top + row[:, None, None])
    m = tl.load(mean + row[:, None, None] * channels + c, mask=here, other=0.0)
    reach += tl.abs(m)
    sunk = m
    if SINKS:
        sunk = tl.load(sink + row[:, None, None], mask=there, other=0.0)
    first = group * keys * channels + c
    v += first
    v2 += first
    w += first
    top = tl.max(reach)
    if top <= 0.25:
        change = _moderate(
            p_row, s_row, a, b, k, m, sunk, v, v2, w, begin, end, key, there, asked, channels, cap, True,
            SECOND, LOGIT, CAPPED, SINKS, ROWS, KEYS, CHANNELS,
        )  # fmt: skip
    elif top <= 40.0:
        change = _moderate(
            p_row, s_row, a, b, k, m, sunk, v, v2, w, begin, end, key, there, asked, channels, cap, False,
            SECOND, LOGIT, CAPPED, SINKS, ROWS, KEYS, CHANNELS,
        )  # fmt: skip
    else:
        change = _literal(
            p_row, s_row, a, b, k, sunk, v, v2, w, begin, end, key, there, asked, channels, cap,
            SECOND, LOGIT, CAPPED, SINKS, ROWS, KEYS, CHANNELS,
        )  # fmt: skip
    total = tl.sum(change, 0)
    groups_heads = tl.num_programs(2).to(tl.int64)
    to = (tl.program_id(0) * groups_heads + tl.program_id(2)) * channels
    tl.store(out + to + which, total, mask=is_asked)


@triton.jit
def _visible(p_row, there, seen, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """The first key that some row gives a probability, or what is no number, and the one behind the last."""
    first = tl.full([ROWS, WIDE], 2147483647, tl.int32)
    last = tl.zeros([ROWS, WIDE], tl.int32)
    j = tl.arange(0, WIDE)[None, :]
    for start in range(0, seen, WIDE):
        keys = start + j
        p = tl.load(p_row + keys, mask=there[:, None] & (keys < seen), other=0.0)
        first = tl.minimum(first, tl.where(p != 0, keys, 2147483647))
        last = tl.maximum(last, tl.where(p != 0, keys + 1, 0))
    return tl.min(first), tl.max(last)


@triton.jit
def weights(
    p, s, first, second, third, scaled, scaled2, scaled3, sums, seen, total, cap,
    LOGIT: tl.constexpr, CAPPED: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """What `first_order` multiplies by, from one reading of a row of probabilities and logits: a program for each row.

    Args:
        p, s: probabilities and logits, [total, seen]; `s` is read with `LOGIT` or `CAPPED` only.
        first, third: p·slope and p²·slope², with `CAPPED`; slope = 1 - tanh²(s / cap), else 1.
        second: p²·slope.
        scaled, scaled2, scaled3: first, second and third times s, with `LOGIT`.
        sums: [4, total]: Σp², and with `LOGIT` Σ first·s, Σ second·s, Σ third·s².
    """
    row = tl.program_id(0).to(tl.int64)
    mass = tl.zeros([KEYS], tl.float32)
    along = tl.zeros([KEYS], tl.float32)
    along2 = tl.zeros([KEYS], tl.float32)
    along3 = tl.zeros([KEYS], tl.float32)
    for start in range(0, seen, KEYS):
        keys = start + tl.arange(0, KEYS)
        inside = keys < seen
        at = row * seen + keys
        x = tl.load(p + at, mask=inside, other=0.0)
        square = x * x
        mass += square
        y = x
        z = square
        t = square
        if LOGIT or CAPPED:
            logit = tl.load(s + at, mask=inside, other=0.0)
            if CAPPED:
                _, slope = _tanh(logit / cap)
                y = x * slope
                z = square * slope
                t = z * slope
                tl.store(first + at, y, mask=inside)
                tl.store(third + at, t, mask=inside)
            if LOGIT:
                tl.store(scaled + at, y * logit, mask=inside)
                tl.store(scaled2 + at, z * logit, mask=inside)
                tl.store(scaled3 + at, t * logit, mask=inside)
                along += y * logit
                along2 += z * logit
                along3 += t * logit * logit
        tl.store(second + at, z, mask=inside)
    tl.store(sums + row, tl.sum(mass))
    if LOGIT:
        tl.store(sums + total + row, tl.sum(along))
        tl.store(sums + 2 * total + row, tl.sum(along2))
        tl.store(sums + 3 * total + row, tl.sum(along3))


@triton.jit
def _sums_of(first, row_at, there, c, d, channels, TURNS: tl.constexpr, DERIVED: tl.constexpr):
    """From a row of sums: of the keys' own, of their turned, of the keys, and the last of the partners."""
    own = tl.load(first + row_at + c, mask=there, other=0.0)
    turned = own
    if TURNS:
        turned = tl.load(first + row_at + channels + c, mask=there, other=0.0)
    if DERIVED:
        key = -own
        partner = key
        if TURNS:
            partner = -tl.load(first + row_at + d, mask=there, other=0.0) - turned
            key -= tl.load(first + row_at + channels + d, mask=there, other=0.0)
    else:
        behind = row_at + channels
        if TURNS:
            behind += channels
        key = tl.load(first + behind + c, mask=there, other=0.0)
        partner = key
        if TURNS:
            partner = tl.load(first + behind + d, mask=there, other=0.0)
    return own, turned, key, partner


@triton.jit
def spreads(
    first, second, squares, sums, channel, factor, turned, other, rescale, along, key_first, key_second, out, out_keys,
    rows, heads, queries, channels, query, total, first_width, second_width, squares_width, scale,
    TURNS: tl.constexpr, DERIVED: tl.constexpr, RESCALED: tl.constexpr, KEYS_RESCALED: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What `first_order` makes of its matrix products.

    Σ_i Σ_j p²δ² - 2·m·Σ_j p²δ + m²·Σ_j p², m = Σ_j pδ, for the queries; without the first term for the keys. A program
    takes `ROWS` rows of one head, and all channels. Channel c turns with c ± channels / 2.

    Args:
        first, second: sums over keys of the weights `first` and `second`, times the keys' own, turned (with `TURNS`)
            and, unless `DERIVED` from those, the keys, [groups, rows * heads, ...], rows `first_width` and
            `second_width` apart.
        squares: those of `third` times k_c², and with `TURNS` k_c·k_c', rows `squares_width` apart.
        sums: of `weights`, [4, total].
        channel, other: the queries' own channels and what the keys meet, [groups, heads, queries, channels]; row i here
            is query `query` + i.
        factor, turned: of own and turned, [queries, channels], with `TURNS`; else own is `scale`.
        rescale: the queries' ρ - 1, as `channel`; along: sums of third·s times the keys, [groups, rows * heads,
            channels]; both with `RESCALED`.
        key_first, key_second: sums of first·s and second·s times the keys' ρ - 1, as `along`, with `KEYS_RESCALED`.
        out, out_keys: [blocks of rows, groups, heads, channels].
    """
    group = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    i = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    c = tl.arange(0, CHANNELS)[None, :]
    there = (i < rows) & (c < channels)
    half = channels // 2
    d = tl.where(c < half, c + half, c - half)
    row = (group * rows + i) * heads + head
    line = query + i
    token = ((group * heads + head) * queries + line) * channels

    x = tl.load(channel + token + c, mask=there, other=0.0)
    a = x * scale
    b = a
    if TURNS:
        a = x * tl.load(factor + line * channels + c, mask=there, other=0.0)
        b = x * tl.load(turned + line * channels + c, mask=there, other=0.0)
    y = tl.load(other + token + c, mask=there, other=0.0)
    own, own_turned, key, partner = _sums_of(first, row * first_width, there, c, d, channels, TURNS, DERIVED)
    own2, own_turned2, key2, partner2 = _sums_of(
        second, row * second_width, there, c, d, channels, TURNS, DERIVED
    )  # fmt: skip
    mean, cross, mean_keys, cross_keys = a * key, a * key2, y * own, y * own2
    square = a * a * tl.load(squares + row * squares_width + c, mask=there, other=0.0)
    if TURNS:
        z = tl.load(other + token + d, mask=there, other=0.0)
        mean += b * partner
        cross += b * partner2
        mean_keys += z * own_turned
        cross_keys += z * own_turned2
        pair = tl.load(squares + row * squares_width + channels + tl.minimum(c, d), mask=there, other=0.0)
        square += b * b * tl.load(squares + row * squares_width + d, mask=there, other=0.0) + 2.0 * a * b * pair
    lines = i < rows
    mass = tl.load(sums + row, mask=lines, other=0.0)
    if RESCALED:
        k = tl.load(rescale + token + c, mask=there, other=0.0)
        product = a * tl.load(along + row * channels + c, mask=there, other=0.0)
        if TURNS:
            product += b * tl.load(along + row * channels + d, mask=there, other=0.0)
        square += k * (k * tl.load(sums + 3 * total + row, mask=lines, other=0.0) + 2.0 * product)
        mean += k * tl.load(sums + total + row, mask=lines, other=0.0)
        cross += k * tl.load(sums + 2 * total + row, mask=lines, other=0.0)
    if KEYS_RESCALED:
        mean_keys += tl.load(key_first + row * channels + c, mask=there, other=0.0)
        cross_keys += tl.load(key_second + row * channels + c, mask=there, other=0.0)
    queries_sum = tl.sum(square + mean * (mean * mass - 2.0 * cross), 0)
    keys_sum = tl.sum(mean_keys * (mean_keys * mass - 2.0 * cross_keys), 0)
    n = tl.arange(0, CHANNELS)
    to = (tl.program_id(0) * tl.num_programs(1).to(tl.int64) + tl.program_id(1)) * channels + n
    tl.store(out + to, queries_sum, mask=n < channels)
    tl.store(out_keys + to, keys_sum, mask=n < channels)


INTERPRETED = not isinstance(changes, JITFunction)
"""Whether the kernels run in Python, on any device: TRITON_INTERPRET=1 was set when this was imported."""


def try_out(device: torch.device) -> None:
    """Compiles and runs a small kernel; raises what Triton raises where that cannot be, without a C compiler say."""
    x = torch.ones(1, 16, device=device)
    with torch.cuda.device_of(x):
        weights[(1,)](x, x, x, x, x, x, x, x, x.new_empty(4), 16, 1, 1.0, LOGIT=False, CAPPED=False, KEYS=16)
