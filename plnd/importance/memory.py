"""Memory: how much is computed at once, and what is used again from one document to the next."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

ROWS_BUDGET = 2**22
"""Elements of one [heads, rows, seq] block of attention probabilities; five such blocks are alive at once."""
ROWS_BUDGET_ACCELERATOR = 2**25
"""The same on an accelerator, where launches cost more than memory traffic."""
CELLS_BUDGET = 2**18
"""Elements of one block of `exact`, [rows, channels, seq], or of column sums on CPU (it stays in cache); two are alive
at once."""
CELLS_BUDGET_ACCELERATOR = 2**25
"""The same on an accelerator, where launches cost more than memory traffic."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other floating-point dtype."""
    return torch.promote_types(dtype, torch.float32)


def cells(device: torch.device) -> int:
    """The budget of elements that are handled at once, see `CELLS_BUDGET`."""
    return CELLS_BUDGET if device.type == "cpu" else CELLS_BUDGET_ACCELERATOR


def rows_budget(device: torch.device) -> int:
    """The budget of elements of a block of attention probabilities, see `ROWS_BUDGET`."""
    return ROWS_BUDGET if device.type == "cpu" else ROWS_BUDGET_ACCELERATOR


def sent(x: Tensor, device: torch.device) -> Tensor:
    """What is on the CPU on another device, for which nobody waits: a plain `to` waits for all that it has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def chunks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `range(length)`, each of at most `size` (but at least one) elements."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class Scratch(threading.local):
    """Memory that is used again: fresh pages from the system cost more than much of what is computed in them."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the next one of this name."""
        count, known = math.prod(shape), self.flat.get(name)
        if known is None or len(known) < count or known.dtype != like.dtype or known.device != like.device:
            self.flat[name] = known = like.new_empty(count)
        return known[:count].view(shape)


SCRATCH = Scratch()


def release_memory() -> None:
    """Gives back what `attention_importance` keeps between documents, in this thread."""
    SCRATCH.flat.clear()
