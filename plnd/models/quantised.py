"""The matrix behind a module whose weight is packed, or not on any device at the moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plnd.errors import FamilyError

_ROWS = 512


def dequantised(module: nn.Module, parameter: str = "weight") -> Tensor:
    """The weight by which a module multiplies: a linear layer's, [out, in] ([in, out] of a `Conv1D`), or a norm's.

    The stored tensor itself where it is dense and on a device; else a new tensor on the device where the module runs:
    unpacked from bitsandbytes' 8 or 4 bits, or brought back from where accelerate offloaded it.

    Args:
        module: a linear layer, a norm, or fused experts.
        parameter: the attribute that holds the weight.
    Raises:
        FamilyError: if the weight is packed in another way, or is nowhere.
    """
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return _dense(module, getattr(module, parameter))


def quantisation(model: nn.Module) -> str | None:
    """How a model's weights are packed, as its configuration says (`bitsandbytes 4bit`); None if they are not."""
    config: Any = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    config = config if isinstance(config, dict) else config.to_dict()
    method = config.get("quant_method", "unknown")
    width = next((f" {bits}bit" for bits in (8, 4) if config.get(f"load_in_{bits}bit")), "")
    return f"{getattr(method, 'value', method)}{width}"


def _dense(module: nn.Module, weight: Any) -> Tensor:
    kind = type(weight).__name__
    if weight.is_meta:
        raise FamilyError(f"{type(module).__name__}: its weight is on the meta device: load the model with its weights")
    if kind == "Params4bit":
        return _from_4_bits(module)
    if kind == "Int8Params":
        return _from_8_bits(module)
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise FamilyError(
            f"{type(module).__name__}: a weight packed as {kind} of {weight.dtype}, expected a dense one or"
            " bitsandbytes' 8 or 4 bits"
        )
    return weight.data


def _from_4_bits(module: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    if weight.device.type != "cpu":
        return dequantize_4bit(weight.data, weight.quant_state)
    # some CPUs' kernels pack the weight anew and round its scales in the first pass: ask the module itself
    rows = torch.eye(module.in_features).split(_ROWS)
    columns = torch.cat([module.forward(x) for x in rows])
    return (columns if module.bias is None else columns - module.bias).T.contiguous()


def _from_8_bits(module: Any) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    # a first pass moves the rows' largest values from the weight to the module
    largest = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return int8_vectorwise_dequant(module.weight.data, largest)
