"""A base layer whose weight is packed: read as what it stands for, packed again, and put back as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn

from peft_plnd.tuner.errors import NeuronSelectError
from plnd.models.quantised import dequantised, packing, restore_order

_FOUR_BITS, _EIGHT_BITS, _TORCHAO, _HQQ = "bnb 4bit", "bnb 8bit", "torchao", "hqq"


@dataclass(frozen=True)
class Kept:
    """A packed layer as it was before something was merged into it.

    Attributes:
        base: the layer, which some kinds replace when they pack.
        weight: its packed parameter; None where it is not called `weight`.
        largest: the largest value of each row, of bitsandbytes' 8 bits.
        bias: a copy of its bias.
    """

    base: nn.Module
    weight: Any
    largest: Tensor | None
    bias: Tensor | None


def backend_of(base: nn.Module, config: Callable[[], Any] | None = None) -> QuantizationBackend | None:
    """PEFT's word for how a layer is quantised, None if it knows none.

    Args:
        base: the layer.
        config: what makes the configuration by which torchao packs again, of a model that was loaded with one.
    """
    return resolve_quantization_backend(base, get_apply_tensor_subclass=config or _unknown)


def _unknown() -> Any:
    raise NeuronSelectError("torchao packs again by the quantisation config that a model was loaded with")


def check_merge(base: nn.Module, backend: QuantizationBackend | None) -> None:
    """Refuses layers whose weight cannot be changed: packed in a way that is not known, sharded, or computed.

    Raises:
        NeuronSelectError: naming the kind.
    """
    reason = packing(base)
    if reason is None:
        return
    name = None if backend is None else backend.backend_name
    if name == _TORCHAO:
        config = getattr(backend, "get_apply_tensor_subclass", None)
        if config is _unknown:
            hint = "load the model with transformers' TorchAoConfig, which says how to pack it again"
            raise NeuronSelectError(f"{reason}: adapters train on it, but nothing can be merged into it; {hint}")
        if "FqnToConfig" not in type(config()).__name__:  # type: ignore[misc]
            return
        reason = f"{reason} by a config for each module"
    elif name in (_FOUR_BITS, _EIGHT_BITS, _HQQ):
        return
    raise NeuronSelectError(
        f"{reason}: adapters train on it, but nothing can be merged into it; merge into the dense model that it was"
        " made from"
    )


def keep(layer: Any) -> Kept:
    """The base layer of an adapter layer as it is now, for `put_back`; its next pass is what it would have been."""
    base = layer.get_base_layer()
    restore_order(base)
    weight: Any = getattr(base, "weight", None)
    largest: Tensor | None = None
    if layer.quantization_backend.backend_name == _EIGHT_BITS:
        largest = weight.SCB if weight.SCB is not None else base.state.SCB
    bias = getattr(base, "bias", None)
    return Kept(base, weight, largest, None if bias is None else bias.detach().clone())


def put_back(layer: Any, kept: Kept) -> None:
    """Makes the base layer what it was, bit for bit, on the device where it is now."""
    base, name = layer.get_base_layer(), layer.quantization_backend.backend_name
    if name == _HQQ:
        layer.base_layer = kept.base
    elif name == _EIGHT_BITS:
        _set_8_bits(base, kept.weight.data.to(base.weight.device), kept.largest)
    else:
        weight = base.weight
        base.weight = kept.weight if kept.weight.device == weight.device else kept.weight.to(weight.device)
    if kept.bias is not None:
        layer.get_base_layer().bias.data.copy_(kept.bias)


def write(layer: Any, weight: Tensor) -> None:
    """Packs `weight`, [out, in], into the base layer as its own weight was packed.

    Raises:
        NeuronSelectError: if what is packed is of another kind, or not finite; the layer is then to be put back.
    """
    base, backend = layer.get_base_layer(), layer.quantization_backend
    before = type(getattr(base, "weight", None))
    if backend.backend_name == _FOUR_BITS:
        _write_4_bits(base, weight)
    elif backend.backend_name == _EIGHT_BITS:
        _write_8_bits(base, weight)
    elif backend.backend_name == _TORCHAO:
        backend.set_base_weight(layer, nn.Parameter(weight.to(base.weight.dtype), requires_grad=False))
    else:
        backend.set_base_weight(layer, weight)
    if type(getattr(layer.get_base_layer(), "weight", None)) is not before:
        raise NeuronSelectError(f"a weight packed as {before.__name__} could not be packed so again")
    if not bool(dequantised(layer.get_base_layer()).isfinite().all()):
        raise NeuronSelectError("NaNs detected in the merged weights, or values too large to be packed again")


def _write_4_bits(base: Any, weight: Tensor) -> None:
    from bitsandbytes.nn import Params4bit

    old = base.weight
    packed: Any = Params4bit(
        weight.to(old.quant_state.dtype),
        requires_grad=False,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
        module=base,
    )
    base.weight = packed.to(old.device)


def _write_8_bits(base: Any, weight: Tensor) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant

    values, largest, _ = int8_vectorwise_quant(weight.to(torch.float16))
    _set_8_bits(base, values, largest)


def _set_8_bits(base: Any, values: Tensor, largest: Any) -> None:
    """As it is before its first pass, which moves the values and the largest of each row to the layer's state."""
    from bitsandbytes.nn import Int8Params

    base.weight = Int8Params(
        values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=largest.to(values.device)
    )
    base.state.reset_grads()
