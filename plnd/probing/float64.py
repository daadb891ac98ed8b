"""Arithmetic in float64 throughout, also where transformers casts to float32 (norms, softmax, rotations).

The noise of those casts would hide an agreement of closed forms with brute force to the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class KeepFloat64(TorchFunctionMode):
    """Lifts casts of float64 tensors to float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: D102
        kwargs = dict(kwargs or {})
        double = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if double and func is torch.Tensor.float:
            return args[0]
        if double and func is torch.Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")):
            return args[0]
        if double and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__) and torch.float64 in (x.dtype for x in args):
            args = [x.double() for x in args]  # rotary positions, in releases that cast their frequencies
        return func(*args, **kwargs)


@contextmanager
def float64() -> Iterator[None]:
    """New tensors, and casts to float32, are float64 inside."""
    before: Any = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with KeepFloat64():
            yield
    finally:
        torch.set_default_dtype(before)
