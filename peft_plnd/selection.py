"""From a mask or a share to indices: rows and columns of the projections that plnd knows of a given model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.tuner.config import DEFAULT_FRACTION
from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.selection import Indices, draw_rows, draw_share, module_names, shape_of
from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout, Target, unwrap
from plnd.neurons.history import rule_in_words
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.selection import chosen_addresses


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
    names, drawn, others = module_names(model), [], []
    for name in names if matched is None else matched:
        inside = targets.get(id(names[name]), [])
        drawn += [(target, draw_share(target.name, target.width, fraction, config.seed)) for target in inside]
        if not inside and matched is not None and config.projections is None and config.regions is None:
            others.append(name)
    return _gather(model, drawn) | draw_rows(others, model, fraction, config.seed)


def _gather(model: nn.Module, chosen: Iterable[tuple[Target, np.ndarray]]) -> Indices:
    """Neurons of logical projections as rows and columns of the modules that store them."""
    names = {id(module): name for name, module in module_names(model).items()}
    gathered: Indices = {}
    for target, neurons in chosen:
        name = names.get(id(target.module), target.name)
        shape_of(name, target.module)  # refuses what cannot be tuned
        axis = "out" if target.projection.axis == "row" else "in"
        module = gathered.setdefault(name, {})
        module[axis] = sorted([*module.get(axis, []), *places(target, neurons).tolist()])
    return gathered


def places(target: Target, neurons: np.ndarray) -> torch.Tensor:
    """Which rows or columns of its module a projection's neurons are, int64; of fused experts, counted over all."""
    indices = torch.from_numpy(np.asarray(neurons, dtype=np.int64))
    if target.experts is None:
        return target.storage(indices)
    expert, place = target.position(indices)
    return expert * target.stored.shape[target.expert_dim] + place


def _regions(config: NeuronSelectConfig) -> Regions | None:
    return None if config.regions is None else Regions.parse(config.regions, config.under, config.gen)
