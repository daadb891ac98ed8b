"""Fused experts, one after the other, as a function of transformers' own interface: what passes is seen and changed.

No module stands between the projections of fused experts on which a hook could hang. A module whose experts run through
this function calls the watch that `put_watch` gave it, and has its values changed as `change_values` was told.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ExpertsInterface

from plnd.errors import FamilyError
from plnd.models.layout import Target
from plnd.models.quantised import packing

IMPLEMENTATION = "plnd_experts"
"""The name of the function, as `config._experts_implementation`."""


@dataclass(frozen=True)
class Routed:
    """The tokens that went to one expert.

    Attributes:
        expert: its number.
        tokens: which of the batch, int64 [tokens]; a batch's rows follow one another, padding included.
        count: tokens of the whole batch.
    """

    expert: int
    tokens: Tensor
    count: int


Change = Callable[[Routed, Tensor], Tensor]
"""From what leaves an expert's fused rows, or enters its columns, [tokens, features], to what does so instead."""


@dataclass
class _Attribute:
    """An attribute put on a module, with the `remove` of a hook handle."""

    module: nn.Module
    name: str

    def remove(self) -> None:
        delattr(self.module, self.name)


def put_watch(module: nn.Module, watch: Callable) -> _Attribute:
    """Tells `module`, experts or attention, whom to call as it runs."""
    module._plnd_watch = watch  # type: ignore[assignment]
    return _Attribute(module, "_plnd_watch")


class _Changes:
    """What is changed in one module of fused experts, in the order in which it was asked for; copies with the module.

    While there is something, the module has a configuration of its own, which names the function below: all other
    modules, and the model's own choice, stay as they are.

    Attributes:
        config: the module's own.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.of: dict[int, tuple[str, Change]] = {}
        self.last = 0

    def changed(self, axis: str, routed: Routed, values: Tensor) -> Tensor:
        for at, change in self.of.values():
            if at == axis:
                values = change(routed, values)
        return values


@dataclass
class _Changed:
    """A change, with the `remove` of a hook handle."""

    module: nn.Module
    number: int

    def remove(self) -> None:
        """Takes it away, and with the last one all traces."""
        changes = _changes(self.module)
        if changes is None or self.number not in changes.of:
            return
        del changes.of[self.number]
        if not changes.of:
            self.module.config = changes.config  # type: ignore[assignment]
            del self.module._plnd_changes


def change_values(target: Target, change: Change) -> _Changed:
    """Changes values of a projection of fused experts in every pass, until the returned handle is removed.

    Args:
        target: the projection, of which `change` receives what leaves the fused module's rows, or enters its columns.
        change: called for every expert to which tokens went.

    Raises:
        FamilyError: if the experts are packed, do not go through transformers' interface, or are spread over processes.
    """
    module: Any = target.plain
    if target.own:
        raise FamilyError(
            f"{target.name}: values of experts that are spread over processes cannot be changed: use mode=weights"
        )
    check_dense(target)
    if not (hasattr(module, "config") and hasattr(module, "_apply_gate")):
        raise FamilyError(
            f"{target.name}: {type(module).__name__} does not go through transformers' ExpertsInterface, so that its"
            " neurons' values cannot be changed: use mode=weights"
        )
    changes = _changes(module)
    if changes is None:
        changes = module._plnd_changes = _Changes(module.config)
        module.config = copy.copy(module.config)
        module.config._experts_implementation = IMPLEMENTATION
    changes.last += 1
    changes.of[changes.last] = (target.projection.axis, change)
    return _Changed(module, changes.last)


def _changes(module: Any) -> _Changes | None:
    return getattr(module, "_plnd_changes", None)


def check_dense(experts: Target) -> None:
    """Refuses fused experts that are packed: the pass here multiplies by slices of what is stored.

    Raises:
        FamilyError: saying how.
    """
    if reason := packing(experts.plain, experts.projection.parameter):
        raise FamilyError(f"{experts.name}: {reason}, expected dense experts: load the model unquantised")


def experts_forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Fused experts, one after the other; the watch sees inner activations as they arrive, and as columns get them.

    Args:
        module: the fused experts.
        hidden: [tokens, hidden].
        index: the experts of each token, [tokens, experts per token]. Of experts that are spread over processes, those
            that this one does not have share the first number behind its own.
        weights: their shares, likewise.
    """
    watch = module._plnd_watch(len(hidden)) if hasattr(module, "_plnd_watch") else None  # type: ignore[operator]
    changes = _changes(module)
    output = torch.zeros_like(hidden)
    for expert in index[index < len(module.gate_up_proj)].unique().tolist():  # type: ignore[arg-type]
        token, place = (index == expert).nonzero(as_tuple=True)
        routed, share = Routed(expert, token, len(hidden)), weights[token, place, None]
        fused = _product(module, "gate_up_proj", expert, hidden[token])
        if changes is not None:
            fused = changes.changed("row", routed, fused)
        arrived = inner = module._apply_gate(fused)  # type: ignore[operator]
        if changes is not None:
            inner = changes.changed("column", routed, arrived)
        if watch is not None:
            watch.add(expert, token, fused, arrived, inner, share)
        output.index_add_(0, token, (_product(module, "down_proj", expert, inner) * share).to(output.dtype))
    if watch is not None:
        watch.done()
    return output


def watch_scaled(module: Any, args: tuple[Tensor], output: Tensor) -> None:
    """Shows the watch of experts that receive every token times its share what each makes of its own tokens.

    Args:
        args: that input, [experts·tokens, hidden].
        output: of the same shape.

    Raises:
        FamilyError: if the output is not what the inner activations make of `down_proj`.
    """
    if not hasattr(module, "_plnd_watch"):
        return
    count = len(module.gate_up_proj)
    inputs, outputs = (x.unflatten(0, (count, -1)) for x in (args[0], output))
    watch = module._plnd_watch(inputs.shape[1])
    for expert in range(count):
        token = inputs[expert].any(-1).nonzero().flatten()
        if not len(token):
            continue
        fused = inputs[expert, token] @ module.gate_up_proj[expert]
        gate, up = fused.chunk(2, dim=-1)
        inner = up * module.act_fn(gate)
        found, expected = outputs[expert, token[:1]], inner[:1] @ module.down_proj[expert]
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().amax()), equal_nan=True):
            raise FamilyError(
                f"{type(module).__name__}: its outputs are not those of its gate, up and down projections"
            )
        watch.add(expert, token, fused, inner, inner, torch.ones_like(fused[:, :1]))
    watch.done()


def _product(module: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    """One expert's product, and its bias where it has one."""
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias", None)
    return linear(
        x, weight.mT if getattr(module, "is_transposed", False) else weight, None if bias is None else bias[expert]
    )


ExpertsInterface.register(IMPLEMENTATION, experts_forward)


class ByExpert:
    """Neurons of fused experts' projection by the expert that they belong to.

    Attributes:
        of: expert to the places of its neurons in the features that a change receives, int64, and their numbers among
            those that were given, int64.
    """

    def __init__(self, target: Target, neurons: Tensor) -> None:
        assert target.experts is not None
        each = target.width // target.experts
        places = neurons % each if target.projection.axis == "column" else target.storage(neurons % each)
        self.of: dict[int, tuple[Tensor, Tensor]] = {}
        for expert in (neurons // each).unique().tolist():
            own = (neurons // each == expert).nonzero().flatten()
            self.of[expert] = places[own], own


class ZeroValues:
    """A change that zeroes the values of some neurons, int64 [neurons], of fused experts' projection."""

    def __init__(self, target: Target, neurons: Tensor) -> None:
        self.neurons = ByExpert(target, neurons)

    def __call__(self, routed: Routed, values: Tensor) -> Tensor:
        """See `Change`."""
        if routed.expert not in self.neurons.of:
            return values
        places, _ = self.neurons.of[routed.expert]
        return values.index_fill(-1, places.to(values.device), 0)
