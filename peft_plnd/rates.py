"""Learning rates of single neurons: those that matter more for the language move faster, or slower, than the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from peft_plnd.selection import places
from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.layer import NeuronSelectLayer
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet


def importance_rates(
    model: nn.Module, neurons: NeuronSet, power: float = 0.5, adapter_name: str = "default"
) -> dict[nn.Parameter, Tensor]:
    """A factor of the learning rate for every neuron of an adapter: its importance to a power, 1 on average.

    Importances are compared within a projection of a block, so that the learning rate of each stays, on average, what
    the optimizer says.

    Args:
        model: a PEFT model, or a transformers model with adapters, that has the adapter.
        neurons: with the importances; the set that the adapter was made from.
        power: 1 for factors proportional to importance, below 0 for slower important neurons, 0 for none.
        adapter_name: the adapter.

    Returns:
        The adapter's deltas to factors that broadcast over them: rows [rows, 1], columns [1, columns], biases [rows].

    Raises:
        NeuronSelectError: if the adapter trains a neuron that the set does not have, or one whose importance is 0 (a
            random control's are), or there is no such adapter.
    """
    factors: dict[nn.Parameter, Tensor] = {}
    targets = Layout(model).targets
    for address, chosen in neurons.items():
        target = targets[address]
        layer = target.module
        if not isinstance(layer, NeuronSelectLayer):
            continue
        rows = target.projection.axis == "row"
        buffers = layer.neuron_select_rows if rows else layer.neuron_select_columns
        if adapter_name not in buffers:
            continue
        kept = buffers[adapter_name].cpu()
        stored = places(target, chosen)
        here = torch.isin(stored, kept)
        importance = torch.from_numpy(np.asarray(neurons.importance[address], dtype=np.float64))[here]
        if not bool((importance > 0).all()):
            raise NeuronSelectError(
                f"{address}: a neuron of importance 0, of which no rate can be made; leave the rates alone"
            )
        factor = importance**power
        found = torch.searchsorted(kept, stored[here])
        for parameter, shape in _parameters(layer, adapter_name, rows):
            all_of_it = factors.setdefault(parameter, torch.full(shape, torch.nan, dtype=torch.float64))
            all_of_it.view(-1)[found] = factor / factor.mean()
    _check_complete(model, adapter_name, factors)
    return {parameter: factor.to(parameter) for parameter, factor in factors.items()}


def _parameters(layer: NeuronSelectLayer, adapter: str, rows: bool) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
    """An adapter's deltas of rows or of columns, and the shape of one number for each neuron."""
    if not rows:
        columns = layer.neuron_select_in[adapter]
        return [(columns, (1, columns.shape[1]))]
    rows_of = layer.neuron_select_out[adapter]
    found: list[tuple[nn.Parameter, tuple[int, ...]]] = [(rows_of, (len(rows_of), 1))]
    if adapter in layer.neuron_select_bias:
        found.append((layer.neuron_select_bias[adapter], (len(layer.neuron_select_bias[adapter]),)))
    return found


def _check_complete(model: nn.Module, adapter: str, factors: Mapping[nn.Parameter, Tensor]) -> None:
    deltas = 0
    for name, layer in model.named_modules():
        if not isinstance(layer, NeuronSelectLayer):
            continue
        for parts in (layer.neuron_select_out, layer.neuron_select_in, layer.neuron_select_bias):
            if adapter in parts:
                deltas += 1
                if parts[adapter] not in factors or bool(factors[parts[adapter]].isnan().any()):
                    raise NeuronSelectError(
                        f"{name}: the adapter {adapter!r} trains neurons that the set does not have; give the set that"
                        " it was made from"
                    )
    if not deltas:
        raise NeuronSelectError(f"the model has no neuron-select adapter {adapter!r}")


def scale_rates(optimizer: Optimizer, factors: Mapping[nn.Parameter, Tensor]) -> Callable[[], None]:
    """Gives entries of parameters learning rates of their own: `factors` times that of the optimizer.

    A step of AdamW, SGD and whatever else moves by a multiple of its learning rate is then the one that it would be
    with these rates, weight decay included. The optimizer's state is not touched: checkpoints stay what they are.

    Args:
        optimizer: any of `torch.optim`; schedules go on as they would.
        factors: parameters to factors that broadcast over them, as of `importance_rates`.

    Returns:
        What ends it, to be called.

    Raises:
        NeuronSelectError: if the optimizer does not train one of the parameters.
    """
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if len(trained & factors.keys()) < len(factors):
        raise NeuronSelectError("factors of parameters that the optimizer does not train; make them of the same model")
    before: dict[nn.Parameter, Tensor] = {}

    def keep(*_: object) -> None:
        before.update({parameter: parameter.detach().clone() for parameter in factors})

    @torch.no_grad()
    def scale(*_: object) -> None:
        for parameter, factor in factors.items():
            parameter.copy_(torch.addcmul(before[parameter], parameter - before[parameter], factor.to(parameter)))
        before.clear()

    handles = optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(scale)

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
