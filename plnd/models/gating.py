"""What a feed-forward makes of its gate and up projections, and what is left where a row of one of them is zero.

With h = act(gate)·up and act(0) = 0 a row of `gate_proj`, the same row of `up_proj` and the same column of `down_proj`
have one importance (eq. 5 of arXiv:2402.18815): without any one of them h[k] is 0. Where something is left of h[k]
without the row of `up_proj`, that row's change is h[k] less what is left, and its importance one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gating:
    """act(gate)·up, or act(up) where there is no gate, with act(0) = 0.

    Attributes:
        activation: the non-linearity.
    """

    activation: Callable[[Tensor], Tensor]

    def inner(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """The inner activations h, [..., width], of gate and up, both [..., width]."""
        return self.activation(up) if gate is None else self.activation(gate) * up

    def without_up(self, gate: Tensor | None, like: Tensor) -> Tensor | None:
        """What is left of h where up is 0, to be broadcast to `like`; None: nothing."""
        return None


@dataclass(frozen=True)
class OffsetGating(Gating):
    """act(up) where act(0) is not 0, as of xIELU (arXiv:2411.13010) in transformers, which keeps off 0 by 10⁻⁶."""

    def without_up(self, gate: Tensor | None, like: Tensor) -> Tensor | None:
        """act(0), one number."""
        return self.activation(like.new_zeros(1))


@dataclass(frozen=True)
class ClampedSwiGLU(Gating):
    """g·σ(αg)·(u + 1), with g = min(gate, limit) and u = up clamped to ±limit, as gpt-oss has it.

    Attributes:
        alpha: α.
        limit: of gate and up.
    """

    activation: Callable[[Tensor], Tensor]
    limit: float

    @classmethod
    def of(cls, alpha: float, limit: float) -> ClampedSwiGLU:
        """From the model's numbers."""

        def swish(gate: Tensor) -> Tensor:
            clamped = gate.clamp(max=limit)
            return clamped * torch.sigmoid(clamped * alpha)

        return cls(swish, limit)

    def inner(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """See `Gating`."""
        assert gate is not None
        return self.activation(gate) * (up.clamp(-self.limit, self.limit) + 1)

    def without_up(self, gate: Tensor | None, like: Tensor) -> Tensor | None:
        """g·σ(αg)."""
        assert gate is not None
        return self.activation(gate)
