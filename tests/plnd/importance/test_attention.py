"""Attention with sinks: both algorithms against the softmax taken anew, and against a sink that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plnd.importance.attention import Attention, attention_importance

HEADS, GROUPS, SEQ, HEAD_DIM = 4, 2, 8, 6


def trace(size: float) -> Attention:
    """One document's attention, with sinks that take much of the softmax and little, in float64."""
    generator = torch.Generator().manual_seed(0)
    query = size * torch.randn(HEADS, SEQ, HEAD_DIM, generator=generator, dtype=torch.float64)
    key = size * torch.randn(GROUPS, SEQ, HEAD_DIM, generator=generator, dtype=torch.float64)
    sinks = torch.tensor([2.0, -1.0, 0.5, 4.0], dtype=torch.float64)
    return Attention(query, key, query, key, scaling=0.4, sinks=sinks)


def probabilities(query: torch.Tensor, key: torch.Tensor, scaling: float, sinks: torch.Tensor) -> torch.Tensor:
    """Those of the keys, [heads, seq, seq]: a softmax of one logit more, which is dropped."""
    logits = query @ key.repeat_interleave(HEADS // GROUPS, 0).mT * scaling
    logits = logits.masked_fill(torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1), -torch.inf)
    logits = torch.cat((logits, sinks.view(-1, 1, 1).expand(HEADS, SEQ, 1)), dim=-1)
    return torch.softmax(logits, dim=-1)[..., :-1]


@pytest.mark.parametrize("size", [0.01, 1.0, 15.0])
def test_exact_is_the_softmax_taken_anew(size):
    """Each row's importance is the norm of the change of the keys' probabilities, up to changes of hundreds."""
    given = trace(size)
    before = probabilities(given.query, given.key, given.scaling, given.sinks)
    for found, name in zip(attention_importance(given, "exact"), ("query", "key"), strict=True):
        expected = []
        for row in range(len(found)):
            changed = {"query": given.query.clone(), "key": given.key.clone()}
            changed[name][row // HEAD_DIM, :, row % HEAD_DIM] = 0
            expected.append((probabilities(**changed, scaling=given.scaling, sinks=given.sinks) - before).norm())
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_first_order_is_its_derivative():
    """Where changes are small, the Jacobian is as exact as they are small."""
    given = trace(0.01)
    for exact, first in zip(*(attention_importance(given, way) for way in ("exact", "first_order")), strict=True):
        torch.testing.assert_close(first, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_a_sink_without_weight_is_none(algorithm):
    """The negative: with a logit of -∞ all is as without; and one of weight changes the result."""
    given = trace(1.0)
    plain = attention_importance(replace(given, sinks=None), algorithm)
    nothing = attention_importance(
        replace(given, sinks=torch.full((HEADS,), -torch.inf, dtype=torch.float64)), algorithm
    )
    for x, y, z in zip(plain, nothing, attention_importance(given, algorithm), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=0)
        assert not torch.allclose(x, z, rtol=1e-2)
