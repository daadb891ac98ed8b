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
    sinks: bool = False,
    turned: bool = False,
    temperature: bool = False,
    head_dim: int = HEAD_DIM,
) -> Attention:
    """Random attention in float64: `size` scales the logits, `shared` is a part that all keys have in common.

    `turned` puts head norms behind the rotation; `temperature` makes later queries larger.
    """
    keys = queries if keys is None else keys
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = size * normal(heads, queries, head_dim), normal(groups, keys, head_dim) + shared
    rotary, norms = None, [None, None]
    if pairs is not None:
        turning = head_dim // 2 if pairs == "neighbours" else head_dim  # the others stay as they are
        angle = torch.arange(queries, dtype=torch.float64)[:, None] * 0.5 ** torch.arange(turning // 2)
        angle = angle.repeat_interleave(2, -1) if pairs == "neighbours" else torch.cat((angle, angle), -1)
        rotary = Rotary.of(angle.cos(), angle.sin(), head_dim, pairs)
    if norm:
        norms = [HeadNorm(size * (1 + 0.1 * normal(head_dim)), 1e-6, turned=turned) for _ in norms]
    factor = 1 + 0.1 * torch.arange(queries, dtype=torch.float64) if temperature else None
    entered = attention.rotated(query, norms[0], rotary, factor), attention.rotated(key, norms[1], rotary)
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    masks = {
        "window": ((j <= i) & (j > i - queries * 2 // 7))[None],
        "bias": torch.where(j <= i, -0.3 * (i - j).double(), -torch.inf) * torch.arange(1, heads + 1)[:, None, None],
        "all": torch.ones(1, 1, keys, dtype=torch.bool),
    }
    seen = None if mask is None else masks[mask]
    return Attention(
        query, key, *entered, head_dim**-0.5, rotary, *norms, mask=seen, softcap=softcap,
        sinks=2 * normal(heads) if sinks else None, temperature=factor,
    )  # fmt: skip


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

FURTHER_CASES = {
    "sinks": dict(sinks=True),
    "sinks and window, small": dict(sinks=True, mask="window", size=0.1),
    "sinks, sharp": dict(sinks=True, size=10.0),
    "sinks, one-hot": dict(sinks=True, size=25.0),
    "sinks, shared by all keys": dict(sinks=True, shared=8.0, size=2.0),
    "sinks, shared by all keys, no rotation": dict(sinks=True, shared=8.0, size=0.5, pairs=None),
    "sinks, soft-cap and head norm": dict(sinks=True, softcap=3.0, norm=True),
    "head norm behind the rotation": dict(norm=True, turned=True),
    "head norm behind the rotation, soft-cap": dict(norm=True, turned=True, softcap=3.0, pairs="neighbours"),
    "temperature": dict(temperature=True),
    "80 channels": dict(head_dim=80, heads=1, groups=1, queries=3),
    "96 channels, soft-cap and head norm": dict(head_dim=96, heads=1, groups=1, queries=3, softcap=3.0, norm=True),
    "192 channels": dict(head_dim=192, heads=1, groups=1, queries=3, pairs="neighbours"),
    "256 channels": dict(head_dim=256, heads=1, groups=1, queries=3, pairs=None),
    "two tokens": dict(queries=2),
    "17 tokens, one more than two blocks of rows and keys": dict(queries=17),
}
"""Kinds of which the formulas of `test_kernels.py` know nothing, and sizes at which kernels' blocks end."""


def error(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Largest difference, relative to the largest importance of its side."""
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))
