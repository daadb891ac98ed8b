"""The four roles as codes: of every pattern of languages, packed at two bits a neuron, and counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plnd.errors import PLNDError

ROLES = ("all_shared", "partial_shared", "specific", "non_activated")
"""In the order of their codes, 0 to 3."""
_ROLES_OF_BYTE = np.array([[sum(byte >> shift & 3 == code for shift in (0, 2, 4, 6)) for code in range(4)]
                           for byte in range(256)])  # fmt: skip


def role_table(languages: int, among: Sequence[int] | None = None) -> np.ndarray:
    """The role of every pattern of languages.

    Args:
        languages: P; pattern n is that of a neuron that is active in language p if bit p of n is set.
        among: only these languages count; by default all.
    Returns:
        uint8 [2^P], codes of `ROLES`. Of two languages none is partial-shared: one is specific, two are all.
    """
    chosen = list(range(languages) if among is None else among)
    if len(set(chosen)) < 2:
        raise PLNDError("roles need at least two languages")
    patterns = np.arange(2**languages)
    count = sum((patterns >> p) & 1 for p in set(chosen))
    return np.select([count == len(set(chosen)), count == 0, count == 1], [0, 3, 2], 1).astype(np.uint8)


def pack(roles: np.ndarray) -> np.ndarray:
    """Role codes, uint8 [examples, neurons], at two bits each, the first lowest: uint8 [examples, ⌈neurons / 4⌉]."""
    padded = np.pad(roles, ((0, 0), (0, -roles.shape[1] % 4))).reshape(len(roles), -1, 4)
    return padded[..., 0] | padded[..., 1] << 2 | padded[..., 2] << 4 | padded[..., 3] << 6


def unpack(packed: np.ndarray, neurons: int) -> np.ndarray:
    """What `pack` packed: uint8 [examples, neurons]."""
    return (packed[..., None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3).reshape(len(packed), -1)[:, :neurons]


def role_counts(packed: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """How many neurons of each block have each role.

    Args:
        packed: uint8 [examples, bytes].
        widths: neurons of each block, [blocks].

    Returns:
        int64 [blocks, roles].
    """
    ends = np.cumsum(widths)
    counts = np.zeros((len(widths), 4), dtype=np.int64)
    for block, (start, end) in enumerate(zip(ends - widths, ends, strict=True)):
        first, last = start // 4, -(-end // 4)  # bytes, of which the outermost may have neurons of other blocks
        counts[block] = np.bincount(packed[:, first:last].ravel(), minlength=256) @ _ROLES_OF_BYTE
        for place, beyond in ((first, range(4 * first, start)), (last - 1, range(end, 4 * last))):
            for neuron in beyond:
                counts[block] -= np.bincount(packed[:, place] >> 2 * (neuron % 4) & 3, minlength=4)
    return counts
