"""Tensors of which a process has a part only (`DTensor`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def is_spread(tensor: Any) -> bool:
    """Whether a process has a part of a tensor only (a `DTensor` of torch)."""
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def local(tensor: Any) -> Any:
    """This process's part of a tensor that is spread, which shares its memory; any other tensor itself."""
    import torch

    if not is_spread(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Any) -> Tensor:
    """All of a tensor, gathered from its processes where it is spread."""
    return tensor.full_tensor() if is_spread(tensor) else tensor
