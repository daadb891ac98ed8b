"""What is left of a feed-forward neuron without a row of its gate, of its up projection: against zeroing the row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plnd.models.gating import ClampedSwiGLU, Gating, OffsetGating

TOKENS, WIDTH = 9, 7


def drawn(seed: int) -> torch.Tensor:
    """Outputs of a projection, [tokens, width], far beyond the clamps."""
    return 3 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def xielu(x: torch.Tensor) -> torch.Tensor:
    """xIELU with α = β = ½, kept off 0 as transformers keeps it."""
    below = torch.full_like(x, -1e-6)
    return torch.where(x > 0, x * x / 2 + x / 2, (torch.expm1(torch.minimum(x, below)) - x) / 2 + x / 2)


@pytest.mark.parametrize(
    "gating, gated",
    [
        (Gating(nn.functional.silu), True),
        (Gating(lambda x: nn.functional.relu(x).square()), False),
        (OffsetGating(xielu), False),
        (ClampedSwiGLU.of(1.702, 1.5), True),
    ],
    ids=["swiglu", "squared relu", "xielu", "clamped swiglu"],
)
def test_what_is_left_without_a_row(gating, gated):
    """Zeroing row k of up leaves what `without_up` says, and of the gate nothing: the formulas of both sites."""
    gate, up = drawn(1) if gated else None, drawn(2)
    left = gating.without_up(gate, up)
    for k in range(WIDTH):
        without = up.clone()
        without[:, k] = 0
        found = gating.inner(gate, without)[:, k]
        expected = torch.zeros(TOKENS, dtype=torch.float64) if left is None else left.expand(TOKENS, WIDTH)[:, k]
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
        if gate is not None:
            without = gate.clone()
            without[:, k] = 0
            assert not gating.inner(without, up)[:, k].any()


def test_clamped_swiglu_by_hand():
    """Gate 5 and up -9 with limit 2 and α = 1 are 2·σ(2)·(-2 + 1)."""
    found = ClampedSwiGLU.of(1.0, 2.0).inner(torch.tensor([5.0]), torch.tensor([-9.0]))
    torch.testing.assert_close(found, -2 * torch.sigmoid(torch.tensor([2.0])))
