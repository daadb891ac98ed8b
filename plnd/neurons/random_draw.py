"""Neurons drawn at random, the same ones on every machine and with every version of numpy."""

from __future__ import annotations

import hashlib

import numpy as np


def draw(width: int, count: int, seed: int, *address: str | int) -> np.ndarray:
    """`count` of the neurons 0 to `width` - 1, each as likely as any other.

    A draw depends on the seed and the address alone, and a larger one there holds every smaller one.

    Args:
        width: neurons to draw from.
        count: at most `width`.
        seed: another one draws others.
        address: where the neurons are, so that every place has its own draw: `"0.q_proj"`, or an example and a block.

    Returns:
        [count] int64, ascending.
    """
    return np.sort(shuffled(width, seed, *address)[:count])


def shuffled(width: int, seed: int, *address: str | int) -> np.ndarray:
    """The neurons 0 to `width` - 1 in a random order, of which `draw` takes the first ones, [width] int64.

    They are put in the order of one random number each: numpy keeps the bits of a generator, though not the methods
    that stand on them.
    """
    text = "/".join(map(str, (seed, *address)))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.PCG64(key).random_raw(width).argsort(kind="stable")
