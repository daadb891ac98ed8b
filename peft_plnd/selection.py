"""From a config to indices: which rows and columns of which modules of a given model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_plnd.config import AXES, DEFAULT_FRACTION, NeuronSelectConfig
from peft_plnd.errors import NeuronSelectError
from peft_plnd.layer import linear_shape
from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout, Target, unwrap
from plnd.neurons.history import rule_in_words
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.random_draw import draw
from plnd.neurons.regions import Regions
from plnd.neurons.selection import chosen_addresses

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


def find_layout(model: nn.Module) -> Layout | None:
    """The model's row of the families table, or None if it has none."""
    try:
        return Layout(model) if _has_family(model) else None
    except FamilyError:
        return None


def _has_family(model: nn.Module) -> bool:
    """Whether the model is one of transformers', or wraps one: it says of what family it is and where its body is."""
    try:
        unwrap(model)
    except PLNDError:
        return False
    return True


def from_mask(config: NeuronSelectConfig, model: nn.Module) -> tuple[Indices, dict[str, Any]]:
    """Indices of the config's mask in this model's modules, and what the mask was.

    Raises:
        PLNDError: if the mask cannot be read, was made for another model, lies in modules that cannot be tuned, or has
            no neuron in the chosen parts.
    """
    assert config.mask is not None
    neurons = config.mask if isinstance(config.mask, NeuronSet) else NeuronSet.load(config.mask)
    if not _has_family(model):
        raise NeuronSelectError(f"mask= needs a transformers model, not {type(model).__name__}: give neurons= instead")
    layout = Layout(model)
    neurons.check_model(layout.description())
    source = {
        "sha256": neurons.digest,
        "language": neurons.metadata.language,
        "neurons": len(neurons),
        "of": neurons.total,
        "rule": rule_in_words(neurons.metadata),
    }
    if config.projections is not None or config.regions is not None:
        neurons = neurons.restrict(projections=config.projections, regions=_regions(config))
    neurons.check_some("train")
    if config.whole:
        neurons = neurons.whole()
    if config.control == "random" and config.whole:
        neurons = neurons.restrict(projections="once").random_like(config.seed).whole()
    elif config.control == "random":
        neurons = neurons.random_like(config.seed)
    return _gather(model, [(layout.targets[address], chosen) for address, chosen in neurons.items()]), source


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


def from_fraction(config: NeuronSelectConfig, model: nn.Module, matched: Iterable[str] | None) -> Indices:
    """A reproducible random fraction of the neurons of every target.

    The draw of a target (`plnd.neurons.random_draw.draw`) depends on the seed and the target's name alone: not on the
    machine, on other targets, or on their order.

    Args:
        config: with `fraction` and `seed`.
        model: the model, of any kind.
        matched: the targeted modules, or None for every projection of the families table.

    Raises:
        NeuronSelectError: if `projections` or `regions` are named for a model that is not in the families table.
        FamilyError: if `matched` is None and the model is not in the families table.
    """
    fraction = DEFAULT_FRACTION if config.fraction is None else config.fraction
    layout = Layout(model) if matched is None else find_layout(model)
    if layout is None and (config.projections is not None or config.regions is not None):
        raise NeuronSelectError("projections= and regions= need a model of the families table (`plnd families`)")
    targets: dict[int, list[Target]] = {}
    if layout is not None:
        blocks = layout.description()["blocks"]
        for address in chosen_addresses(layout.widths, blocks, config.projections, _regions(config)):
            target = layout.targets[address]
            targets.setdefault(id(target.module), []).append(target)
    names, drawn, others = module_names(model), [], {}
    for name in names if matched is None else matched:
        inside = targets.get(id(names[name]), [])
        drawn += [(target, _draw(target.name, target.width, fraction, config.seed)) for target in inside]
        if not inside and matched is not None and config.projections is None and config.regions is None:
            rows = _shape(name, names[name])[0]
            others[name] = {"out": _draw(name, rows, fraction, config.seed).tolist()}
    return _gather(model, drawn) | others


def _draw(name: str, width: int, fraction: float, seed: int) -> np.ndarray:
    """A fraction of `width` indices, rounded, at least one; ascending int64."""
    return draw(width, max(1, round(fraction * width)), seed, name)


def check_indices(name: str, module: nn.Module, chosen: Mapping[str, Iterable[int]]) -> None:
    """Refuses indices that are not distinct whole numbers within the module's shape.

    Raises:
        NeuronSelectError: naming the module and what is wrong.
    """
    shape = dict(zip(AXES, _shape(name, module), strict=True))
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


def _gather(model: nn.Module, chosen: Iterable[tuple[Target, np.ndarray]]) -> Indices:
    """Neurons of logical projections as rows and columns of the modules that store them."""
    names = {id(module): name for name, module in module_names(model).items()}
    gathered: Indices = {}
    for target, neurons in chosen:
        name = names.get(id(target.module), target.name)
        _shape(name, target.module)
        axis = "out" if target.projection.axis == "row" else "in"
        stored = target.storage(torch.from_numpy(np.asarray(neurons, dtype=np.int64))).tolist()
        module = gathered.setdefault(name, {})
        module[axis] = sorted([*module.get(axis, []), *stored])
    return gathered


def _shape(name: str, module: nn.Module) -> tuple[int, int]:
    """(out, in) of a module that can be tuned, inside an adapter or not."""
    plain = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    shape = linear_shape(plain)
    if shape is None:
        raise NeuronSelectError(
            f"Target module {name} ({type(plain).__name__}) is not supported: neurons can be trained in linear layers, "
            "dense or quantised, and in Conv1D, not in experts fused into one parameter; leave it out with "
            "projections=, target_modules= or exclude_modules="
        )
    return shape


def _regions(config: NeuronSelectConfig) -> Regions | None:
    return None if config.regions is None else Regions.parse(config.regions, config.under, config.gen)
