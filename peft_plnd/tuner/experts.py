"""Fused experts of which some rows and columns are trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.layer import NeuronSelectLayer, added
from plnd.models.quantised import packing

ROWS, COLUMNS = "gate_up_proj", "down_proj"
"""The parameters whose rows, and whose columns, are neurons, as transformers names them in every family."""


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of fused experts.

    Attributes:
        experts: how many they are.
        rows: of one expert's `gate_up_proj`, twice its width.
        columns: of one expert's `down_proj`, its width.
        hidden: channels that experts receive and give.
        transposed: the parameters are [experts, in, out], not [experts, out, in].
    """

    experts: int
    rows: int
    columns: int
    hidden: int
    transposed: bool


def expert_shape(module: nn.Module) -> ExpertShape | None:
    """Sizes of a module of fused experts; None for any other module, and where its experts are packed."""
    stored = (getattr(module, name, None) for name in (ROWS, COLUMNS))
    dense = [x for x in stored if isinstance(x, nn.Parameter) and x.dim() == 3 and x.is_floating_point()]
    if len(dense) < 2 or packing(module, ROWS) or packing(module, COLUMNS):
        return None
    for transposed in (False, True):
        (count, rows, hidden), (also, out, columns) = (x.mT.shape if transposed else x.shape for x in dense)
        if (count, hidden, rows) == (also, out, 2 * columns):
            return ExpertShape(count, rows, columns, hidden, transposed)
    return None


class NeuronSelectExperts(nn.Module, NeuronSelectLayer):
    """Fused experts with neuron-select adapters.

    Row e·F + r is row r of the F of expert e's `gate_up_proj`, column e·w + k column k of the w of its `down_proj`. No
    entry is in both. The experts run, in whatever implementation the model has, on their parameters with the active
    adapters added to the neurons, in the parameters' dtype: what they compute is what they compute when merged, and a
    pass needs room for a copy of each parameter that changes, as PEFT's `target_parameters` does.

    Attributes: those of `NeuronSelectLayer`, with

        neuron_select_out: adapter to changes of rows, [number of rows, hidden].
        neuron_select_in: adapter to changes of columns, [hidden, number of columns].
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        NeuronSelectLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self._before: list[dict[str, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        """What a mixture asks its experts for, and the wrapper does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def _read_shape(self, plain: nn.Module) -> None:
        shape = expert_shape(plain)
        if shape is None:
            raise NeuronSelectError(f"{type(plain).__name__} has no fused experts")
        self.shape = shape
        self.out_features, self.in_features = shape.experts * shape.rows, shape.experts * shape.columns
        self.row_size = self.column_size = shape.hidden
        self.transposed = shape.transposed

    @property
    def _bias(self) -> str:
        return f"{ROWS}_bias"

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        like: Tensor = getattr(self.get_base_layer(), ROWS)
        device = device or like.device
        for name in (*self.adapter_layer_names, *self.other_param_names):
            parts = getattr(self, name)
            if adapter_name in parts and parts[adapter_name].device.type != "meta":
                dtype = like.dtype if parts[adapter_name].is_floating_point() else None
                parts[adapter_name] = parts[adapter_name].to(device=device, dtype=dtype)

    def check_merge(self) -> None:
        """Does nothing: packed experts are refused before they are wrapped."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: experts have different numbers of neurons, and LoRA one rank for all of them."""
        return False

    def get_delta_weight(self, adapter: str, parameter: str = COLUMNS) -> Tensor:
        """The adapter's change of one parameter, dense, as the parameter is stored."""
        delta = torch.zeros_like(getattr(self.get_base_layer(), parameter))
        for name, place, change in self._changes(adapter):
            if name == parameter:
                delta[place] = change.to(delta)
        return delta

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The experts' output, with the active adapters added to the parameters.

        Raises:
            NeuronSelectError: if `adapter_names` is given.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise NeuronSelectError(
                "adapter_names= names an adapter for each row of the batch, which fused experts do not see: set one"
                " adapter for all, or leave the experts out with projections="
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(hidden, *args, **kwargs)
        changed: dict[str, Tensor] = {}
        for adapter in self.active_adapters:
            for name, place, change in self._changes(adapter):
                if name not in changed:
                    changed[name] = getattr(self.get_base_layer(), name).clone()
                changed[name][place] = added(changed[name][place], change)
        return functional_call(self.base_layer, changed, (hidden, *args), kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the parameters, at least in float32, and casts again.

        Args:
            safe_merge: refuse to merge where a result is not finite; the parameters are then as they were.
            adapter_names: the adapters; by default the active ones.

        Raises:
            NeuronSelectError: if `safe_merge` finds a value that is not finite.
        """
        own = self._get_available_adapters()
        for adapter in [name for name in check_adapters_to_merge(self, adapter_names) if name in own]:
            parts = [(name, place, self._stored(name), change) for name, place, change in self._changes(adapter)]
            before = {name: stored[place] for name, place, stored, _ in parts}  # a copy: the index is a tensor
            after = {name: added(before[name], change) for name, _, _, change in parts}
            if safe_merge and not all(bool(part.isfinite().all()) for part in after.values()):
                raise NeuronSelectError(  # PEFT's own words
                    f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken"
                )
            for name, place, stored, _ in parts:
                stored[place] = after[name]
            self._before.append(before)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts back what merging overwrote, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter, before = self.merged_adapters.pop(), self._before.pop()
            for name, place, _ in self._changes(adapter):
                self._stored(name)[place] = before[name].to(self._stored(name))

    @torch.no_grad()
    def fill(self, adapter: str, weights: dict[str, float]) -> None:
        """Sets the changes of `adapter` to the weighted sum of those of other adapters."""
        for parts, places in (
            (self.neuron_select_out, self.neuron_select_rows),
            (self.neuron_select_in, self.neuron_select_columns),
            (self.neuron_select_bias, self.neuron_select_rows),
        ):
            if adapter not in parts:
                continue
            dim, total = int(parts is self.neuron_select_in), parts[adapter].data.zero_()
            for name, weight in weights.items():
                if name in parts:
                    place = torch.searchsorted(places[adapter], places[name])
                    total.index_add_(dim, place, parts[name].to(total), alpha=weight)

    def _stored(self, name: str) -> Tensor:
        return getattr(self.get_base_layer(), name).data

    def _changes(self, adapter: str) -> Iterator[tuple[str, tuple, Tensor]]:
        """What an adapter changes: parameter, which of its entries, and by how much; neurons first."""
        if adapter in self.neuron_select_out:
            expert, row = _apart(self.neuron_select_rows[adapter], self.shape.rows)
            yield (
                ROWS,
                (expert, slice(None), row) if self.transposed else (expert, row),
                self.neuron_select_out[adapter],
            )
            if adapter in self.neuron_select_bias:
                yield self._bias, (expert, row), self.neuron_select_bias[adapter]
        if adapter in self.neuron_select_in:
            expert, column = _apart(self.neuron_select_columns[adapter], self.shape.columns)
            place = (expert, column) if self.transposed else (expert, slice(None), column)
            yield COLUMNS, place, self.neuron_select_in[adapter].T


def _apart(neurons: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """The expert, and the number within it, of neurons that are counted over all experts."""
    return neurons // each, neurons % each
