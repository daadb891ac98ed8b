"""What the tests of peft_plnd share: masks of tiny models, batches, and a few steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from handmade import neurons_metadata
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet


def make_mask(model: nn.Module, path: Path, *, every: int = 4, experts: bool = False) -> NeuronSet:
    """Saves a mask of every `every`-th neuron of each projection, fused experts only if asked for."""
    layout = Layout(model)
    indices = {
        address: np.arange(len(address) % every, target.width, every, dtype=np.int32)
        for address, target in layout.targets.items()
        if experts or target.experts is None
    }
    importance = {address: np.ones(len(values), dtype=np.float32) for address, values in indices.items()}
    neurons = NeuronSet(indices, importance, neurons_metadata(model=layout.description()))
    neurons.save(path)
    return neurons


def batch(seed: int = 0, rows: int = 2, length: int = 7) -> torch.Tensor:
    """Random tokens, [rows, length]."""
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token of `ids` (of the same token, with an encoder), in the dtype of the logits."""
    if model.config.is_encoder_decoder:
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    logits = model(input_ids=ids).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def steps(
    model: Any,
    parameters: Iterable[nn.Parameter],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    count: int = 20,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Trains on another batch at every step; `between` runs between the backward pass and the step."""
    optimiser = optimizer(list(parameters))
    for step in range(count):
        loss_of(model, batch(step)).backward()
        between()
        optimiser.step()
        optimiser.zero_grad()


def fill(model: nn.Module, scale: float = 0.1, seed: int = 0) -> None:
    """Sets every trained parameter to random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
