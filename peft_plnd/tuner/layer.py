"""One linear layer of which some rows and columns are trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.packed import Kept, backend_of, check_merge, keep, put_back, write
from plnd.models.quantised import DENSE, dequantised


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a module that can be tuned: a linear layer, also quantised, or a `Conv1D`; else None."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    if isinstance(module, nn.Linear) or (hasattr(module, "in_features") and backend_of(module) is not None):
        return module.out_features, module.in_features  # type: ignore[return-value]
    return None


_TAKEN = {name for kind in (nn.ModuleDict, nn.ParameterDict, BufferDict) for name in dir(kind())}
"""What is an attribute already where adapters are kept by name."""


def check_name(adapter: str) -> None:
    """Refuses names under which torch keeps neither modules nor parameters nor buffers.

    Raises:
        NeuronSelectError: naming what is wrong.
    """
    if not isinstance(adapter, str) or not adapter or "." in adapter or adapter in _TAKEN:
        raise NeuronSelectError(
            f"adapter name {adapter!r}: expected a word without a dot that is no attribute of torch's modules"
            " (such as 'keys' or 'train')"
        )


@dataclass(frozen=True)
class _Parts:
    """The columns, rows and biases of a base layer that one adapter changes."""

    columns: Tensor | None  # [out, number of columns]
    rows: Tensor | None  # [number of rows, in]
    bias: Tensor | None  # [number of rows]


class NeuronSelectLayer(BaseTunerLayer):
    """The adapters of one linear layer.

    With W the layer's logical weight [out, in], R an adapter's rows and C its columns, an adapter adds to the output
    y[..., R] += x @ dR.T (+ db) and y += x[..., C] @ dC.T. An entry on both a selected row and a selected column
    belongs to the row: those entries of dC are masked, so they neither count nor receive a gradient.

    Attributes:
        neuron_select_out: adapter to dR, [number of rows, in].
        neuron_select_in: adapter to dC, [out, number of columns].
        neuron_select_bias: adapter to db, [number of rows], where the config trains biases and the layer has one.
        neuron_select_rows, neuron_select_columns: adapter to R and C, int64, ascending.
        out_features, in_features: numbers of rows and of columns.
        row_size, column_size: numbers of entries of a row, and of a column.
    """

    adapter_layer_names = ("neuron_select_out", "neuron_select_in", "neuron_select_bias")
    other_param_names = ("neuron_select_rows", "neuron_select_columns")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.neuron_select_out = nn.ParameterDict()
        self.neuron_select_in = nn.ParameterDict()
        self.neuron_select_bias = nn.ParameterDict()
        self.neuron_select_rows = BufferDict(persistent=False)
        self.neuron_select_columns = BufferDict(persistent=False)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._overwritten: list[_Parts] = []
        self._kept: Kept | None = None
        plain = self.get_base_layer()
        self._read_shape(plain)  # type: ignore[arg-type]
        self.quantization_backend = backend_of(plain, kwargs.get("get_apply_tensor_subclass"))

    def _read_shape(self, plain: nn.Module) -> None:
        shape = linear_shape(plain)
        if shape is None:
            raise NeuronSelectError(f"{type(plain).__name__} is not a linear layer")
        self.out_features, self.in_features = shape
        self.column_size, self.row_size = shape
        self.transposed = isinstance(plain, Conv1D)

    @property
    def _bias(self) -> str:
        """The attribute of the base layer that holds the rows' biases, if it has some."""
        return "bias"

    def update_layer(
        self,
        adapter_name: str,
        indices: Mapping[str, list[int]],
        *,
        bias: bool = False,
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Adds an adapter.

        Args:
            adapter_name: its name.
            indices: `out` to the rows and `in` to the columns, each ascending; either may be missing.
            bias: whether a selected row's bias trains, if the layer has one.
            init_weights: zero deltas; otherwise standard normal ones.
            inference_mode: do not train it.
        """
        initial = torch.zeros if init_weights else torch.randn
        if rows := indices.get("out"):
            self.neuron_select_rows[adapter_name] = torch.tensor(rows)
            self.neuron_select_out[adapter_name] = nn.Parameter(initial(len(rows), self.row_size))
            if bias and getattr(self.get_base_layer(), self._bias, None) is not None:
                self.neuron_select_bias[adapter_name] = nn.Parameter(initial(len(rows)))
        if columns := indices.get("in"):
            self.neuron_select_columns[adapter_name] = torch.tensor(columns)
            self.neuron_select_in[adapter_name] = nn.Parameter(initial(self.column_size, len(columns)))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self._widen(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _widen(self, adapter: str) -> None:
        """Deltas that took the dtype of a packed weight, such as 8-bit floats, are float32: they have to add up."""
        for parts in (self.neuron_select_out, self.neuron_select_in, self.neuron_select_bias):
            if adapter in parts and parts[adapter].dtype not in DENSE:
                parts[adapter] = nn.Parameter(parts[adapter].data.float())

    def get_base_weight(self) -> Tensor:
        """The weight of the base layer as it is stored, or a new tensor with what a packed one stands for.

        Raises:
            FamilyError: if it is packed in a way that is not known.
        """
        return dequantised(self.get_base_layer())

    def set_base_weight(self, weight_data: Tensor) -> None:
        """Sets the weight of the base layer, packed as it was.

        Raises:
            NeuronSelectError: if a packed one cannot be packed again so, or has values that are not finite.
        """
        if self.quantization_backend is None:
            super().set_base_weight(weight_data)
            return
        self.check_merge()
        write(self, weight_data)

    def check_merge(self) -> None:
        """Refuses a base layer that nothing can be merged into.

        Raises:
            NeuronSelectError: naming the kind of its weight.
        """
        check_merge(self.get_base_layer(), self.quantization_backend)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the change of the weight has at most as many ranks as there are neurons."""
        return True

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The adapter's change of the weight, dense, in the shape in which the layer stores its weight."""
        columns, rows = self._columns(adapter), self._rows(adapter)
        like = next(part for part in (rows, columns) if part is not None)
        delta = like.new_zeros(self.out_features, self.in_features)
        if columns is not None:
            delta = delta.index_copy(1, self.neuron_select_columns[adapter], columns)
        if rows is not None:
            delta = delta.index_copy(0, self.neuron_select_rows[adapter], rows)
        return delta.T if self.transposed else delta

    @torch.no_grad()
    def fill(self, adapter: str, weights: dict[str, float]) -> None:
        """Sets the changes of `adapter` to the weighted sum of those of other adapters; one dense matrix at a time."""
        own = self._get_available_adapters()
        total: Tensor | None = None
        for name, weight in weights.items():
            if name in own:
                change = self.get_delta_weight(name).mul(weight)
                total = change if total is None else total + change
        assert total is not None
        if self.transposed:
            total = total.T
        if adapter in self.neuron_select_out:
            self.neuron_select_out[adapter].copy_(total.index_select(0, self.neuron_select_rows[adapter]))
        if adapter in self.neuron_select_in:
            self.neuron_select_in[adapter].copy_(total.index_select(1, self.neuron_select_columns[adapter]))
        if adapter in self.neuron_select_bias:
            biases = self.neuron_select_bias[adapter].new_zeros(self.out_features)
            for name, weight in weights.items():
                if name in self.neuron_select_bias:
                    biases.index_add_(0, self.neuron_select_rows[name], self.neuron_select_bias[name], alpha=weight)
            self.neuron_select_bias[adapter].copy_(biases.index_select(0, self.neuron_select_rows[adapter]))

    def _rows(self, adapter: str) -> Tensor | None:
        """dR, [number of rows, in], or None."""
        return self.neuron_select_out[adapter] if adapter in self.neuron_select_out else None

    def _columns(self, adapter: str) -> Tensor | None:
        """dC, [out, number of columns], zero on the adapter's rows, or None."""
        if adapter not in self.neuron_select_in:
            return None
        columns = self.neuron_select_in[adapter]
        if adapter in self.neuron_select_rows:
            columns = columns.index_fill(0, self.neuron_select_rows[adapter], 0)
        return columns


class NeuronSelectLinear(nn.Module, NeuronSelectLayer):
    """A linear layer, a `Conv1D` or a quantised linear layer with neuron-select adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        NeuronSelectLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output for `x` [..., in] plus what the active adapters add, in the base layer's dtype.

        Deltas are cast to the dtype of `x` for the product, so float32 deltas over a bfloat16 base cost no float32 copy
        of the activations. With `adapter_names` each row of the batch has an adapter of its own.
        """
        names: list[str] | None = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if names is not None:
            self._check_names(names, x)
        result = self.base_layer(x, *args, **kwargs)
        if names is not None:
            for adapter in dict.fromkeys(names):
                index = torch.tensor([n for n, name in enumerate(names) if name == adapter], device=result.device)
                part = self._changed(result.index_select(0, index), x.index_select(0, index.to(x.device)), adapter)
                result = result.index_copy(0, index, part)
            return result
        if self.merged:
            return result
        for adapter in self.active_adapters:
            result = self._changed(result, x, adapter)
        return result

    def _changed(self, result: Tensor, x: Tensor, adapter: str) -> Tensor:
        """The layer's output for `x` plus what one adapter adds; as it is where the layer does not have the adapter."""
        columns, rows = self._columns(adapter), self._rows(adapter)
        if columns is not None:
            inner = x.index_select(-1, self.neuron_select_columns[adapter])
            result = result + F.linear(inner, columns.to(x.dtype)).to(result.dtype)
        if rows is not None:
            bias = self.neuron_select_bias[adapter].to(x.dtype) if adapter in self.neuron_select_bias else None
            change = F.linear(x, rows.to(x.dtype), bias).to(result.dtype)
            result = result.index_add(-1, self.neuron_select_rows[adapter], change)
        return result

    def _check_names(self, names: list[str], x: Tensor) -> None:
        """Refuses adapters by row where the layer does not see the rows of the batch, as experts do not.

        Raises:
            NeuronSelectError: saying what it sees.
        """
        if self.merged:
            raise NeuronSelectError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        if x.dim() != 3 or len(x) != len(names):
            raise NeuronSelectError(
                f"adapter_names= names {len(names)} adapters, and a layer with an adapter sees {list(x.shape)}:"
                " expected [batch, tokens, features] with one name for each row of the batch"
            )

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the base weight, in float32 (float64 for a float64 base), and casts or packs it again.

        A packed weight is packed again once, from what it was before the first merge, with all adapters added.

        Args:
            safe_merge: refuse to merge where a result is not finite; the weight is then as it was.
            adapter_names: the adapters; by default the active ones.

        Raises:
            NeuronSelectError: if `safe_merge` finds a value that is not finite, if one would be packed, or if the base
                weight is of a kind that nothing can be merged into; the layer is then as it was.
        """
        own = self._get_available_adapters()
        adapters = [name for name in check_adapters_to_merge(self, adapter_names) if name in own]
        if not adapters:
            return
        self.check_merge()
        if self.quantization_backend is not None:
            self._merge_packed(adapters)
            return
        for adapter in adapters:
            original, changed = self._merge_parts(adapter)
            if safe_merge and not all(part is None or bool(part.isfinite().all()) for part in vars(changed).values()):
                raise NeuronSelectError(  # PEFT's own words
                    f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken"
                )
            self._write(adapter, changed)
            self._overwritten.append(original)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts back what merging overwrote, bit for bit, also where the weight is packed."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self._kept is not None:
            put_back(self, self._kept)
            self._kept = None
            self.merged_adapters.clear()
        while self.merged_adapters:
            self._write(self.merged_adapters.pop(), self._overwritten.pop())

    def _merge_packed(self, adapters: list[str]) -> None:
        """Packs the base weight again with `adapters`, and those that are merged already, added."""
        assert self.quantization_backend is not None
        warnings.warn(
            f"Merging into {self.quantization_backend.backend_name} weights quantises them again: the merged layer is"
            " the same up to quantisation error only.",
            stacklevel=3,
        )
        before, kept = keep(self), self._kept
        if kept is None:
            kept = before
        else:
            put_back(self, kept)
        every = [*self.merged_adapters, *adapters]
        weight = self.get_base_weight()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for adapter in every:
            weight += self.get_delta_weight(adapter).to(weight)
        try:
            write(self, weight)
            for adapter in every:
                self._add_bias(adapter)
        except NeuronSelectError as error:
            put_back(self, before)
            raise NeuronSelectError(f"{error}. One of the adapters {', '.join(every)} seems to be broken") from None
        self._kept, self.merged_adapters = kept, every

    def _add_bias(self, adapter: str) -> None:
        """Adds an adapter's change of the bias to the base layer's."""
        if adapter not in self.neuron_select_bias:
            return
        bias: Tensor = self.get_base_layer().bias.data  # type: ignore[assignment,union-attr]
        rows, change = self.neuron_select_rows[adapter], self.neuron_select_bias[adapter]
        changed = added(bias.index_select(0, rows), change)
        if not bool(changed.isfinite().all()):
            raise NeuronSelectError("NaNs detected in the merged biases")
        bias.index_copy_(0, rows, changed)

    def _merge_parts(self, adapter: str) -> tuple[_Parts, _Parts]:
        """The adapter's columns, rows and biases as they are in the base layer, and as they would be merged."""
        weight = self._logical(self.get_base_weight())
        bias = getattr(self.get_base_layer(), "bias", None)
        columns, rows = self._columns(adapter), self._rows(adapter)
        change = _Parts(columns, rows, self.neuron_select_bias[adapter] if adapter in self.neuron_select_bias else None)
        original = _Parts(
            None if columns is None else weight.index_select(1, self.neuron_select_columns[adapter]),
            None if rows is None else weight.index_select(0, self.neuron_select_rows[adapter]),
            None if change.bias is None else bias.index_select(0, self.neuron_select_rows[adapter]),  # type: ignore
        )
        parts = zip(vars(original).values(), vars(change).values(), strict=True)
        return original, _Parts(*(None if old is None else added(old, delta) for old, delta in parts))

    def _write(self, adapter: str, parts: _Parts) -> None:
        """Overwrites the adapter's columns and rows of the base weight, and its biases."""
        weight = self.get_base_weight()
        logical = self._logical(weight)
        if parts.columns is not None:
            logical.index_copy_(1, self.neuron_select_columns[adapter], parts.columns.to(weight))
        if parts.rows is not None:
            logical.index_copy_(0, self.neuron_select_rows[adapter], parts.rows.to(weight))
        if parts.bias is not None:
            bias: Tensor = self.get_base_layer().bias.data  # type: ignore[assignment,union-attr]
            bias.index_copy_(0, self.neuron_select_rows[adapter], parts.bias.to(bias))

    def _logical(self, weight: Tensor) -> Tensor:
        """A view of the stored weight as [out, in]."""
        return weight.T if self.transposed else weight

    def __repr__(self) -> str:
        return "neuron_select." + super().__repr__()

    def extra_repr(self) -> str:
        """Names the quantisation backend, where there is one."""
        return quantization_extra_repr(self)


def added(weight: Tensor, delta: Tensor) -> Tensor:
    """weight + delta, added at least in float32, in the weight's dtype and on its device."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + delta.to(device=weight.device, dtype=wide)).to(weight.dtype)
