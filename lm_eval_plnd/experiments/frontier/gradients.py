"""How large the gradient of the loss is in every neuron's row or column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plnd.errors import PLNDError

if TYPE_CHECKING:
    from torch import nn

    from plnd.models.layout import Layout


def squared_gradients(model: nn.Module, layout: Layout, documents: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """The squared L2 norm of the gradient of a document's mean loss in each row or column, a mean over documents.

    That is the sum of the diagonal of the (empirical) Fisher information over a neuron's parameters.

    Args:
        model: of causal language modelling, of which nothing is trained; it stays so.
        layout: of the model.
        documents: token ids, two or more each; one is read at a time.

    Returns:
        Address to [width] float32, of all projections but experts that are fused in one parameter.

    Raises:
        PLNDError: if there is no document.
    """
    import torch

    targets = {address: target for address, target in layout.targets.items() if target.experts is None}
    places = {address: target.storage(torch.arange(target.width)) for address, target in targets.items()}
    total = {address: torch.zeros(target.width, dtype=torch.float64) for address, target in targets.items()}
    weights = [target.stored for target in targets.values()]
    device = weights[0].device
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for document in documents:
            ids = torch.tensor([list(document)], device=device)
            model(input_ids=ids, labels=ids).loss.backward()
            for address, target in targets.items():
                squares = target.stored.grad.float().square().sum(1 - target.dim).cpu()
                total[address] += squares[places[address]]
            for weight in weights:
                weight.grad = None
            count += 1
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
    if not count:
        raise PLNDError("no document to measure gradients on")
    return {address: (values / count).numpy().astype(np.float32) for address, values in total.items()}
