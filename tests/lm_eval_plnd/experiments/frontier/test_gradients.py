"""Gradients of neurons: what they are, and that the model is as it was."""

from __future__ import annotations

import pytest
import torch

from lm_eval_plnd.experiments.frontier.gradients import squared_gradients
from plnd.errors import PLNDError
from plnd.models.layout import Layout
from tiny import tiny_model
from tuning import batch, loss_of


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_they_are_the_slopes_of_the_loss(name):
    """The squares of differences of the loss over those of a neuron's entries, of two documents the mean.

    Norms are computed in float32 whatever the model's dtype, which small differences drown in.
    """
    model = tiny_model(name, torch.float64).requires_grad_(False)
    layout, documents = Layout(model), batch(rows=2).tolist()
    found = squared_gradients(model, layout, documents)
    assert found.keys() == layout.targets.keys()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())

    @torch.no_grad()
    def loss(ids):
        return loss_of(model, torch.tensor([ids]))

    address = "0.down_proj"
    target = layout.targets[address]
    weight, place = target.stored, int(target.storage(torch.tensor([1])))
    part = weight.data.select(target.dim, place)
    squares = []
    for ids in documents:
        entries, step = [], 1e-2
        for entry in range(len(part)):
            values = []
            for sign in (1, -1):
                part[entry] += sign * step
                values.append(loss(ids))
                part[entry] -= sign * step
            entries.append((values[0] - values[1]) / (2 * step))
        squares.append(torch.stack(entries).square().sum())
    assert found[address][1] == pytest.approx(float(sum(squares)) / 2, rel=0.01)


def test_without_documents_there_are_none():
    """One line; nothing is left to be trained."""
    model = tiny_model("llama").requires_grad_(False)
    with pytest.raises(PLNDError, match="no document to measure gradients on"):
        squared_gradients(model, Layout(model), [])
    assert not any(p.requires_grad for p in model.parameters())
