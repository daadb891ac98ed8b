"""What else can be done with a set of neurons than to switch them off: interventions on their values, with no trace.

A neuron's value is what leaves its row (`q k v gate up`: the module's output, its bias and what an adapter adds
included, before anything else happens to it), or what enters its column (`o down`).

| kind | what the value becomes, at every token | |
|---|---|---|
| `zero` | 0, and of a row its bias with it | `plnd.deactivated` (zero ablation) |
| `mean` | its mean over a reference corpus | ablation that does not leave the distribution (mean ablation) |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plnd.deactivation import deactivated
from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout, Target, locate
from plnd.models.running import replacing
from plnd.neurons.neuron_set import NeuronSet

Kind = Literal["zero", "mean"]
KINDS = ("zero", "mean")


@contextmanager
def intervened(
    model: nn.Module, neurons: NeuronSet, *, kind: Kind = "zero", values: Mapping[str, np.ndarray] | None = None
) -> Iterator[nn.Module]:
    """The model with the values of `neurons` replaced; on exit, also by an exception, it is bit for bit what it was.

    `mean` hangs hooks on the modules and touches no weight. Inside, what `torch.compile` made runs as if it were not
    compiled. Contexts may be nested: of a neuron that several name, the innermost decides. A copy of the model that is
    made inside keeps the values replaced; with `mean` it cannot be pickled.

    Args:
        model: as for `plnd.deactivated`.
        neurons: which.
        kind: one of `KINDS`.
        values: of `mean`, address to the value of every neuron there, [width]; only those of `neurons` are read.

    Raises:
        ModelMismatchError: if the neurons were made for a model of another family, depth or width.
        FamilyError: if neurons lie in fused experts, where no module has their value, or a module serves two blocks; in
            a pass, if a block runs without the module that has them.
        PLNDError: if the kind is unknown; if values are missing, have another width, are not finite, or are given where
            none belong; if another thread works on the model; in a pass, if an adapter was put around a module inside.
    """
    if kind not in KINDS:
        raise PLNDError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "zero":
        if values is not None:
            raise PLNDError("values belong to kind=mean; zero has none")
        with deactivated(model, neurons):
            yield model
        return
    layout = Layout(model)
    neurons.check_model(layout.description())
    targets = [layout.targets[name] for name, _ in neurons.items()]
    _check_alone(layout, targets)
    means = {target.name: _means(target, values or {}, neurons.indices[target.name]) for target in targets}
    with ExitStack() as stack:
        stack.enter_context(replacing(layout.model))
        for target in targets:
            index = target.storage(torch.from_numpy(neurons.indices[target.name]).long())
            replacement = _Replacement(target, index, means[target.name])
            for handle in replacement.hooks():
                stack.callback(handle.remove)
        yield model


def _check_alone(layout: Layout, targets: list[Target]) -> None:
    """Refuses neurons whose value no module of their own has."""
    modules = [id(module) for _, module in layout.model.named_modules(remove_duplicate=False)]
    for target in targets:
        if target.experts is not None:
            raise FamilyError(
                f"{target.name}: no hook sees the values of fused experts' neurons: use kind=zero, or neurons of other"
                " projections"
            )
        if modules.count(id(target.module)) > 1:
            raise FamilyError(f"{target.name}: its module is shared with another block; it cannot be changed alone")


def _means(target: Target, values: Mapping[str, np.ndarray], indices: np.ndarray) -> Tensor:
    """The values of some neurons of one projection, [neurons] float64."""
    found = values.get(target.name)
    if found is None or np.shape(found) != (target.width,):
        what = "no values" if found is None else f"values of shape {np.shape(found)}"
        raise PLNDError(f"{target.name}: {what}, expected the mean of each of its {target.width} neurons")
    chosen = np.asarray(found, dtype=np.float64)[indices]
    if not np.isfinite(chosen).all():
        raise PLNDError(f"{target.name}: a mean that is not finite: take it over other documents, or in another dtype")
    return torch.from_numpy(chosen)


class _Replacement:
    """The hooks that replace the values of some neurons of one projection.

    Args:
        target: the projection.
        index: where the neurons lie in the features of its module, int64 [neurons].
        values: what they become, float64 [neurons].
    """

    def __init__(self, target: Target, index: Tensor, values: Tensor) -> None:
        self.target, self.index, self.values, self.ran = target, index, values, False

    def hooks(self) -> Iterator[Any]:
        """Puts them in place: one that replaces, and two that hold the block to running it."""
        module = self.target.module
        if self.target.projection.axis == "row":
            yield module.register_forward_hook(lambda module, args, output: self._replaced(output))
        else:
            yield module.register_forward_pre_hook(lambda module, args: (self._replaced(args[0]), *args[1:]))
        yield self.target.block.register_forward_pre_hook(lambda block, args: self._before())
        yield self.target.block.register_forward_hook(lambda block, args, output: self._after())

    def _replaced(self, features: Tensor) -> Tensor:
        self.ran = True
        index, values = self.index.to(features.device), self.values.to(features.device, features.dtype)
        return features.index_copy(-1, index, values.expand(*features.shape[:-1], len(values)))

    def _before(self) -> None:
        self.ran = False
        try:
            found: Any = locate(self.target.block, self.target.projection.module)
        except AttributeError:
            found = None
        if found is not self.target.module:
            raise PLNDError(
                f"{self.target.name} has become {type(found).__name__}, from {type(self.target.module).__name__}, while"
                " its neurons' values were replaced: add, merge and unload adapters before or after"
            )

    def _after(self) -> None:
        if not self.ran:
            raise FamilyError(
                f"{self.target.name}: its block ran without calling {type(self.target.module).__name__}, so that the"
                " values of its neurons cannot be replaced: use kind=zero"
            )
