"""The slow, literal way: deactivate one neuron at a time and measure what changes (eq. 1 as it is written).

The closed forms of `plnd.importance` are held to this; their speed is measured against it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plnd.addresses import ATTENTION_PROJECTIONS, split_address
from plnd.deactivation import zeroed
from plnd.models.families import Stack
from plnd.models.layout import Layout, locate
from plnd.models.running import hooked

At = Literal["block", "sublayer", "attention"]


@torch.no_grad()
def sequential(
    model: nn.Module, input_ids: Tensor, address: str, *, neurons: Sequence[int] | None = None, at: At = "block"
) -> Tensor:
    """Importance of neurons of one projection for one document, by one pass through the block for each neuron.

    Args:
        model: the model; for `at="attention"` loaded with `attn_implementation="eager"`.
        input_ids: token ids of the document, [seq].
        address: `"{block}.{projection}"`.
        neurons: which neurons; all by default.
        at: where the change is measured. `block`: the block's output, eq. 1. `sublayer`: what the attention or
            feed-forward sub-layer adds to the residual stream, which eq. 4 and 5 evaluate. `attention`: the attention
            probabilities, eq. 10.
    Returns:
        [len(neurons)], in the model's dtype (at least float32): Frobenius norm of the change.
    """
    layout = Layout.of_all(model)
    target = layout.targets[address]
    name, projection = split_address(address)
    block = next(block for block in layout.blocks if block.name == name)
    path = _measured(block.stack, projection, at)
    sublayer: Literal["attention", "feed_forward"] = (
        "attention" if projection in ATTENTION_PROJECTIONS else "feed_forward"
    )
    factor = block.factor(sublayer) if at == "sublayer" else 1.0
    with hooked(layout.model):
        args, kwargs = _block_input(layout, block.module, input_ids)
        if at == "attention" and "output_attentions" in kwargs:  # older releases have to be asked
            kwargs = kwargs | {"output_attentions": True}
        before = _run(block.module, args, kwargs, path, at)
        results = []
        for neuron in range(target.width) if neurons is None else neurons:
            with zeroed(target, [neuron]):
                change = _run(block.module, args, kwargs, path, at) - before
                results.append(factor * torch.linalg.vector_norm(change))
    return torch.stack(results)


def _measured(stack: Stack, projection: str, at: At) -> str:
    """The module, below the block, whose output is compared; "" is the block itself."""
    attention = projection in ATTENTION_PROJECTIONS
    if at == "block":
        return ""
    if at == "attention":
        assert stack.attention is not None
        return stack.attention
    norm = stack.attention_norm if attention else stack.feed_forward_norm
    sublayer = (stack.attention_output or stack.attention) if attention else stack.feed_forward
    assert sublayer is not None
    return norm.module if norm else sublayer


def _block_input(layout: Layout, block: nn.Module, input_ids: Tensor) -> tuple[tuple, dict[str, Any]]:
    """What the block receives when the document goes through the model."""
    seen: list[tuple[tuple, dict[str, Any]]] = []
    handle = block.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        layout.forward(input_ids[None], torch.ones_like(input_ids[None]))
    finally:
        handle.remove()
    return seen[0]


def _run(block: nn.Module, args: tuple, kwargs: dict[str, Any], path: str, at: At) -> Tensor:
    seen: list[Any] = []
    handle = locate(block, path).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        block(*args, **kwargs)
    finally:
        handle.remove()
    output = seen[0]
    if isinstance(output, tuple):
        output = output[-1 if at == "attention" else 0]
    assert output is not None, 'at="attention" needs a model with attn_implementation="eager"'
    return output.to(torch.promote_types(output.dtype, torch.float32), copy=True)  # some blocks add to it in place
