"""Switches neurons off: every parameter of a neuron (its weights and, for a row, its bias) is zero while it lasts.

Two ways with one result. **weights** zeroes rows and columns in place: no cost per token, for ordinary dense weights.
**activations** zeroes a row's output or a column's input in a hook: for weights that are quantised, sharded, shared or
wrapped by a PEFT adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout, Target
from plnd.models.quantised import packing
from plnd.neurons.neuron_set import NeuronSet

Mode = Literal["auto", "weights", "activations"]
MODES = ("auto", "weights", "activations")


@contextmanager
def deactivated(model: nn.Module, neurons: NeuronSet, *, mode: Mode = "auto") -> Iterator[nn.Module]:
    """The model without `neurons`; on exit, also by an exception, every parameter is bit for bit what it was.

    Nested and repeated use is exact, as long as contexts close in the reverse order of their opening.

    Args:
        model: a transformers model of a known family, or a PEFT model around one.
        neurons: what to switch off.
        mode: `auto` takes `weights` where every touched weight is dense, on a device, unshared and not wrapped by an
            adapter.

    Raises:
        ModelMismatchError: if the neurons were made for a model of another family, depth or width.
        PLNDError: if `mode="weights"` and a weight cannot be edited in place.
    """
    restore = deactivate(model, neurons, mode=mode)
    try:
        yield model
    finally:
        restore()


def deactivate(model: nn.Module, neurons: NeuronSet, *, mode: Mode = "auto") -> Callable[[], None]:
    """Switches `neurons` off until the returned function is called, which restores the model bit for bit.

    Arguments and errors as for `deactivated`; nothing has changed if this raises.
    """
    if mode not in MODES:
        raise PLNDError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
    layout = Layout(model)
    neurons.check_model(layout.description())
    targets = [(layout.targets[name], indices.tolist()) for name, indices in neurons.items()]
    obstacle = _obstacle(layout.model, [target for target, _ in targets])
    if mode == "weights" and obstacle:
        raise PLNDError(f"{obstacle}: its weights cannot be zeroed in place; use mode=activations")
    if mode == "weights" or (mode == "auto" and not obstacle):
        return _zero_weights(targets)
    return _zero_activations(targets)


@contextmanager
def zeroed(target: Target, indices: Sequence[int]) -> Iterator[None]:
    """The neurons `indices` of one projection with zero parameters, restored on exit."""
    restore = _zero_weights([(target, indices)])
    try:
        yield
    finally:
        restore()


def _zero_weights(targets: list[tuple[Target, Sequence[int]]]) -> Callable[[], None]:
    edits: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
    for target, indices in targets:
        for tensor in target.parameters():
            position = target.position(torch.as_tensor(indices, dtype=torch.long, device=tensor.device))
            edits.append((tensor, position, tensor[position].clone()))
    for tensor, position, _ in edits:
        tensor[position] = 0

    def restore() -> None:
        for tensor, position, values in reversed(edits):
            tensor[position] = values

    return restore


def _zero_activations(targets: list[tuple[Target, Sequence[int]]]) -> Callable[[], None]:
    for target, _ in targets:
        if target.experts is not None:
            raise FamilyError(
                f"{target.name}: the neurons of fused experts can be switched off in the weights only (mode=weights,"
                " and weights that are dense and on a device)"
            )
    handles = []
    for target, indices in targets:
        index = target.storage(torch.as_tensor(indices, dtype=torch.long))
        if target.projection.axis == "row":
            handles.append(target.module.register_forward_hook(_zero_output(index)))
        else:
            handles.append(target.module.register_forward_pre_hook(_zero_input(index)))

    def restore() -> None:
        for handle in handles:
            handle.remove()

    return restore


def _zero_output(index: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.index_fill(-1, index.to(output.device), 0)

    return hook


def _zero_input(index: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple) -> tuple[Any, ...]:
        return (args[0].index_fill(-1, index.to(args[0].device), 0), *args[1:])

    return hook


def _obstacle(model: nn.Module, targets: list[Target]) -> str | None:
    """Why weights of `targets` must not be edited in place, in words; None if they may.

    Raises:
        FamilyError: if a module itself serves two blocks, so that neither mode can touch one of them alone.
    """
    modules = Counter(id(module) for name, module in model.named_modules(remove_duplicate=False))
    pointers = Counter(
        parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False) if not parameter.is_meta
    )
    for target in targets:
        if modules[id(target.module)] > 1:
            raise FamilyError(
                f"{target.name}: its module is shared with another block; its neurons cannot be switched off alone"
            )
    for target in targets:
        weight = target.stored
        if target.module is not target.plain:
            return f"{target.name} is wrapped by an adapter ({type(target.module).__name__})"
        if isinstance(weight, Tensor) and weight.is_meta:
            return f"{target.name} is offloaded"
        if reason := packing(target.plain, target.projection.parameter):
            return f"{target.name} is quantised or sharded ({reason})"
        if pointers[weight.data_ptr()] > 1:
            return f"{target.name} shares its weight with another module"
    return None
