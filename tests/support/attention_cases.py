"""Random attention of every kind that the terms of a change can have."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from plnd.importance import attention
from plnd.importance.attention import Attention, HeadNorm, Rotary

QUERIES, HEAD_DIM = 70, 8  # more than two tasks of rows, and keys that do not fill the last lanes


def trace(
    *,
    heads: int = 4,
    groups: int = 2,
    queries: int = QUERIES,
    keys: int | None = None,
    pairs: str | None = "halves",
    norm: bool = False,
    mask: str | None = None,
    softcap: float | None = None,
    size: float = 1.0,
    shared: float = 0.0,
) -> Attention:
    """Random attention in float64: `size` scales the logits, `shared` is a part that all keys have in common."""
    keys = queries if keys is None else keys
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = size * normal(heads, queries, HEAD_DIM), normal(groups, keys, HEAD_DIM) + shared
    rotary, norms = None, [None, None]
    if pairs is not None:
        turning = HEAD_DIM // 2 if pairs == "neighbours" else HEAD_DIM  # the others stay as they are
        angle = torch.arange(queries, dtype=torch.float64)[:, None] * 0.5 ** torch.arange(turning // 2)
        angle = angle.repeat_interleave(2, -1) if pairs == "neighbours" else torch.cat((angle, angle), -1)
        rotary = Rotary.of(angle.cos(), angle.sin(), HEAD_DIM, pairs)
    if norm:
        norms = [HeadNorm(size * (1 + 0.1 * normal(HEAD_DIM)), 1e-6) for _ in norms]
    entered = [attention.rotated(x, n, rotary) for x, n in zip((query, key), norms, strict=True)]
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    masks = {
        "window": ((j <= i) & (j > i - queries * 2 // 7))[None],
        "bias": torch.where(j <= i, -0.3 * (i - j).double(), -torch.inf) * torch.arange(1, heads + 1)[:, None, None],
        "all": torch.ones(1, 1, keys, dtype=torch.bool),
    }
    seen = None if mask is None else masks[mask]
    return Attention(query, key, *entered, HEAD_DIM**-0.5, rotary, *norms, mask=seen, softcap=softcap)


def single(t: Attention) -> Attention:
    """The same in float32."""

    def cast(x: object) -> object:
        if isinstance(x, torch.Tensor):
            return x.float() if x.is_floating_point() else x
        return replace(x, **{f.name: cast(getattr(x, f.name)) for f in fields(x)}) if hasattr(x, "__dict__") else x

    return replace(t, **{f.name: cast(getattr(t, f.name)) for f in fields(t)})


CASES = {
    "plain": dict(pairs=None),
    "halves": dict(),
    "neighbours, part of the channels": dict(pairs="neighbours"),
    "head norm": dict(norm=True),
    "head norm, no rotation": dict(norm=True, pairs=None),
    "soft-cap": dict(softcap=3.0),
    "soft-cap and head norm": dict(softcap=3.0, norm=True, pairs="neighbours"),
    "window": dict(mask="window"),
    "biases by head": dict(mask="bias", pairs=None),
    "more keys than queries, all seen": dict(mask="all", keys=101, pairs=None),
    "fewer keys than queries": dict(keys=37, pairs=None, mask="all"),
    "multi-query": dict(groups=1),
    "a head each": dict(groups=4),
    "small": dict(size=0.1),
    "sharp": dict(size=10.0),
    "one-hot": dict(size=25.0),
    "shared by all keys": dict(shared=40.0, size=5.0, pairs=None),
    "shared by all keys, rotated": dict(shared=8.0, size=2.0),
}


def error(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Largest difference, relative to the largest importance of its side."""
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))
