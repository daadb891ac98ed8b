"""The matrix behind a module whose weight is packed, or not on any device at the moment.

One question decides in detection, deactivation, tuning and merging alike: is the stored tensor the dense matrix by
which the module multiplies (`packing`)? Where it is not, the tensor is never taken for numbers: it is unpacked in a way
that is known (`dequantised`), or refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from plnd.errors import FamilyError
from plnd.models.spread import local

DENSE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def dequantised(module: nn.Module, parameter: str = "weight") -> Tensor:
    """The weight by which a module multiplies: a linear layer's, [out, in] ([in, out] of a `Conv1D`), or a norm's.

    The stored tensor itself where it is dense and on a device (this process's part of one that is spread over
    processes); else a new tensor on the device where the module runs: unpacked from bitsandbytes' 8 or 4 bits,
    torchao's tensors or HQQ, or brought back from where accelerate offloaded it. The module stays as it is, and what is
    read is the same before and after its first pass.

    Args:
        module: a linear layer, a norm, or fused experts.
        parameter: the attribute that holds the weight.
    Raises:
        FamilyError: if the weight is packed in another way, or is nowhere.
    """
    from accelerate.utils import align_module_device

    with align_module_device(module):
        weight: Any = getattr(module, parameter, None)
        if isinstance(weight, Tensor) and weight.is_meta:
            raise FamilyError(
                f"{type(module).__name__}: its weight is on the meta device: load the model with its weights"
            )
        unpack = _unpacking(module, weight)
        if unpack is not None:
            return unpack(module, weight)
        if reason := packing(module, parameter):
            raise _refusal(reason)
        return local(weight.data)


def packing(module: nn.Module, parameter: str = "weight") -> str | None:
    """How a module keeps its weight, in words, where that is not as the dense matrix it multiplies by; None if it is.

    A linear layer of a kind of its own (one that packs or rounds its weight in the pass) is held to what it computes:
    its answer to one random token must be that of its weight and bias.

    Args:
        module: a linear layer, a norm, or fused experts; its weight is on a device.
        parameter: the attribute that holds the weight.
    """
    stored: Any = getattr(module, parameter, None)
    weight = local(stored)
    kind = type(module).__name__
    if not isinstance(weight, Tensor):
        return f"{kind}: no tensor {parameter!r}, so its weight is packed in a way of its own"
    if type(weight) not in (Tensor, nn.Parameter) or weight.dtype not in DENSE:
        return f"{kind}: a weight packed as {type(weight).__name__} of {weight.dtype}"
    if parameter not in module._parameters and parameter not in module._buffers:
        return f"{kind}: a weight that is computed anew in every pass (parametrised)"
    linear_layer = parameter == "weight" and (hasattr(module, "nf") or hasattr(module, "in_features"))
    if weight is not stored:  # transformers runs a plain layer on its part, in a `forward` around the layer's own
        known = not linear_layer or type(module).forward is nn.Linear.forward
        return None if known else f"{kind}: a weight that is spread over processes, in a layer of a kind of its own"
    if linear_layer and (weight.dim() != 2 or not (_is_plain(module) or _multiplies(module, weight))):
        return f"{kind}: a linear layer that does not multiply by its weight {list(weight.shape)} as it is stored"
    return None


def quantisation(model: nn.Module) -> str | None:
    """How a model's weights are packed, as its configuration says; None if they are not.

    For example `bitsandbytes 4bit` or `torchao Int8WeightOnlyConfig`.
    """
    config: Any = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    config = config if isinstance(config, dict) else config.to_dict()
    method = config.get("quant_method", "unknown")
    width = next((f" {bits}bit" for bits in (8, 4) if config.get(f"load_in_{bits}bit")), "")
    kind = config.get("quant_type")
    named = f" {kind['default']['_type']}" if isinstance(kind, dict) and "_type" in kind.get("default", ()) else ""
    return f"{getattr(method, 'value', method)}{width}{named}"


def restore_order(module: nn.Module) -> None:
    """Brings a 4-bit layer of bitsandbytes back from the layout that its kernel for CPUs packed it into.

    `state_dict` of such a layer does the same, but leaves the scales in the kernel's order (bitsandbytes 0.50), after
    which the layer computes something else. The next pass in evaluation mode packs anew.
    """
    weight: Any = getattr(module, "weight", None)
    if type(weight).__name__ == "Params4bit" and getattr(weight.quant_state, "packing_format_for_cpu", False):
        weight.data, weight.quant_state = _in_order(weight)


def guard_order(model: nn.Module) -> None:
    """Lets every 4-bit layer of bitsandbytes be saved, after a pass too, as what it computes (`restore_order`)."""
    for module in model.modules():
        if type(getattr(module, "weight", None)).__name__ == "Params4bit":
            hooks = module._state_dict_pre_hooks.values()
            if _before_saving not in hooks:
                module.register_state_dict_pre_hook(_before_saving)


def _before_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    restore_order(module)


def _refusal(reason: str) -> FamilyError:
    return FamilyError(
        f"{reason}, expected a dense one or one of bitsandbytes, torchao or HQQ: load the model unquantised"
    )


def _is_plain(module: Any) -> bool:
    """Whether the pass is that of `nn.Linear` or `Conv1D`, which multiply by what they store."""
    from transformers.pytorch_utils import Conv1D

    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")  # accelerate's only moves weights
    return not replaced and type(module).forward in (nn.Linear.forward, Conv1D.forward)


@torch.no_grad()
def _multiplies(module: Any, weight: Tensor) -> bool:
    """Whether a layer answers one random token as `weight` and its bias would, up to the rounding of the dtype."""
    matrix, bias = weight.T if hasattr(module, "nf") else weight, getattr(module, "bias", None)
    token = torch.randn(1, matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        found = module.forward(token)
    except Exception:  # a kernel that is not there, or not for this device: each has an error of its own
        return False
    expected = linear(token, matrix, None if bias is None else bias.to(weight))
    tolerance = max(2 * torch.finfo(weight.dtype).eps, 1e-5)
    same = isinstance(found, Tensor) and found.shape == expected.shape
    return same and bool((found - expected).norm() <= tolerance * expected.norm())


def _unpacking(module: nn.Module, weight: Any) -> Callable[[Any, Any], Tensor] | None:
    """The known way to unpack a module's weight; None if there is none."""
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        return _from_4_bits if type(weight).__name__ == "Params4bit" else _from_8_bits
    if isinstance(weight, Tensor) and type(weight).__module__.startswith("torchao."):
        return _from_torchao
    return _from_hqq if type(module).__name__ == "HQQLinear" else None


def _from_hqq(module: Any, weight: Any) -> Tensor:
    return module.dequantize()


def _from_torchao(module: nn.Module, weight: Any) -> Tensor:
    reason = f"{type(module).__name__}: a weight packed as torchao's {type(weight).__name__}"
    if getattr(weight, "act_pre_scale", None) is not None:
        raise _refusal(f"{reason} with scaled inputs")
    try:
        dense = weight.dequantize()
    except (NotImplementedError, RuntimeError):
        raise _refusal(f"{reason}, which does not unpack here") from None
    if type(dense) is not Tensor or dense.dtype not in DENSE:
        raise _refusal(f"{reason}, which unpacks to {type(dense).__name__} of {dense.dtype}")
    return dense


def _from_4_bits(module: Any, weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    if weight.quant_state is None:
        raise _refusal(f"{type(module).__name__}: a weight that is to be 4 bits and is not packed yet")
    if weight.device.type != "cpu":
        return dequantize_4bit(weight.data, weight.quant_state)
    data, state = _in_order(weight)
    scales = _scales(state)
    if getattr(module, "support_avx512bf16_for_cpu", False):  # the kernel rounds them so when it packs the weight anew
        scales = scales.bfloat16().float()
    state.absmax, state.nested, state.dtype = scales, False, torch.float32
    return dequantize_4bit(data, state)


def _in_order(weight: Any) -> tuple[Tensor, Any]:
    """The data and a copy of the state of 4-bit weights as they were quantised: not in a CPU kernel's own order.

    Some CPUs' kernels pack the weight anew in the first pass, and round its scales.
    """
    from bitsandbytes import functional

    state = copy.copy(weight.quant_state)
    if not getattr(state, "packing_format_for_cpu", False):
        if state.absmax.dim() > 1:
            raise FamilyError(
                "4-bit weights whose scales are out of order: bitsandbytes' state_dict() leaves them so after a pass on"
                " a CPU, and the model computes something else: load it again"
            )
        return weight.data, state
    scales = state.absmax.T.reshape(-1).float()  # [in / block, out] in the kernel
    state.original_nested = False  # else the scales are quantised, in whatever order they are
    data, state = functional._convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax, state.nested = scales, False
    return data, state


def _scales(state: Any) -> Tensor:
    """One float32 scale a block, [out * in / block]; doubly quantised ones are unpacked."""
    from bitsandbytes.functional import dequantize_blockwise

    if not state.nested:
        return state.absmax.float()
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()


def _from_8_bits(module: Any, weight: Any) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    if weight.dtype != torch.int8:
        raise _refusal(f"{type(module).__name__}: a weight that is to be 8 bits and is not packed yet")
    # a first pass moves the rows' largest values from the weight to the module
    largest = weight.SCB if weight.SCB is not None else module.state.SCB
    return int8_vectorwise_dequant(weight.data, largest)
