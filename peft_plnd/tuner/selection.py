"""From names and shares to indices: which rows and columns of which modules of a given model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_plnd.tuner.config import AXES
from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.experts import expert_shape
from peft_plnd.tuner.layer import linear_shape
from plnd.neurons.random_draw import draw

Indices = dict[str, dict[str, list[int]]]


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that an adapter could wrap or extend, by name: not what lies inside an adapter layer."""
    names: dict[str, nn.Module] = {}
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{outer}.") for outer in wrapped):
            continue
        names[name] = module
        if isinstance(module, BaseTunerLayer):
            wrapped.append(name)
    return names


def locate(neurons: Mapping[str, Mapping[str, list[int]]], model: nn.Module) -> Indices:
    """Neurons given by module name, each under its module's full name in this model, ascending.

    A name is a module's full name, or else the end of one or of several.

    Raises:
        NeuronSelectError: if a name fits no module, or the indices do not fit it.
    """
    names, located = module_names(model), {}
    for wanted, chosen in neurons.items():
        found = [wanted] if wanted in names else [name for name in names if name.endswith(f".{wanted}")]
        if not found:
            raise NeuronSelectError(f"neurons are named in {wanted!r}, but the model has no such module")
        for name in found:
            check_indices(name, names[name], chosen)
            located[name] = {axis: sorted(chosen[axis]) for axis in AXES if chosen.get(axis)}
    return located


def draw_rows(names: Iterable[str], model: nn.Module, fraction: float, seed: int) -> Indices:
    """A reproducible random fraction of the output rows of every module that is named.

    The draw of a module (`random_draw.draw`) depends on the seed and its name alone: not on the machine, on other
    modules, or on their order.

    Raises:
        NeuronSelectError: if a module cannot be tuned.
    """
    modules = module_names(model)
    return {
        name: {"out": draw_share(name, shape_of(name, modules[name])[0], fraction, seed).tolist()} for name in names
    }


def draw_share(name: str, width: int, fraction: float, seed: int) -> np.ndarray:
    """A fraction of `width` indices, rounded, at least one; ascending int64."""
    return draw(width, max(1, round(fraction * width)), seed, name)


def check_indices(name: str, module: nn.Module, chosen: Mapping[str, Iterable[int]]) -> None:
    """Refuses indices that are not distinct whole numbers within the module's shape.

    Raises:
        NeuronSelectError: naming the module and what is wrong.
    """
    shape = dict(zip(AXES, shape_of(name, module), strict=True))
    if unknown := sorted(chosen.keys() - shape.keys()):
        raise NeuronSelectError(f"{name}: unknown axis {unknown[0]!r}: expected 'out' (rows) or 'in' (columns)")
    for axis, values in chosen.items():
        values = list(values)
        if not all(isinstance(value, int) for value in values):
            raise NeuronSelectError(f"{name}: {axis!r} holds something that is not a whole number")
        if values and not 0 <= min(values) <= max(values) < shape[axis]:
            worst = min(values) if min(values) < 0 else max(values)
            raise NeuronSelectError(f"{name}: {axis!r} holds {worst}, but the module has {shape[axis]} features there")
        if len(set(values)) != len(values):
            raise NeuronSelectError(f"{name}: {axis!r} names a neuron twice")


def shape_of(name: str, module: nn.Module) -> tuple[int, int]:
    """(out, in) of a module that can be tuned, inside an adapter or not; of fused experts those of all together."""
    plain = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if (shape := linear_shape(plain)) is not None:
        return shape
    if (experts := expert_shape(plain)) is not None:
        return experts.experts * experts.rows, experts.experts * experts.columns
    raise NeuronSelectError(
        f"Target module {name} ({type(plain).__name__}) is not supported: neurons can be trained in linear layers, "
        "dense or quantised, in Conv1D, and in experts fused into one parameter if they are dense; leave it out with "
        "projections=, target_modules= or exclude_modules="
    )
