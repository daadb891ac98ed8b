"""Exact conversion of a neuron-select adapter to LoRA, which vLLM and most other servers load."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.model import NeuronSelectModel
from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.experts import NeuronSelectExperts
from peft_plnd.tuner.layer import NeuronSelectLayer
from plnd.io.files import write_bytes

_PREFIX = "base_model.model."


@torch.no_grad()
def to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """A LoRA adapter that changes the weights by exactly as much, entry for entry.

    The change of a layer with rows R and columns C is B·A with `|R| + |C|` ranks: A stacks the rows' deltas over
    one-hot rows that pick the columns, B puts one-hot columns beside the columns' deltas. The scale is 1 in every
    layer, so loaders that do not read rank patterns agree. Trained biases become `lora_bias`.

    Args:
        model: a PEFT model, or a transformers model with adapters, that has the adapter.
        adapter_name: the adapter.

    Returns:
        config and state dictionary, as PEFT's own `convert_to_lora` returns them.

    Raises:
        NeuronSelectError: if it is no model, or has no such neuron-select adapter, or it trains biases in place.
    """
    if not isinstance(model, nn.Module):
        raise NeuronSelectError(
            f"the model is of type {type(model).__name__}, expected a torch module: save_as_lora(folder, model)"
        )
    layers = {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, NeuronSelectLayer) and adapter_name in module._get_available_adapters()
    }
    if not layers:
        raise NeuronSelectError(f"the model has no neuron-select adapter {adapter_name!r}")
    config: NeuronSelectConfig = model.peft_config[adapter_name]  # type: ignore[assignment,index]
    if config.bias not in ("none", "selected"):
        raise NeuronSelectError(f"bias={config.bias!r} trains biases outside the adapter, which LoRA cannot take over")
    if fused := [name for name, layer in layers.items() if isinstance(layer, NeuronSelectExperts)]:
        raise NeuronSelectError(
            f"{fused[0]}: neurons of fused experts are not converted, since LoRA has one rank for all experts: leave"
            " them out with projections=, or merge the adapter"
        )
    biased = any(adapter_name in layer.neuron_select_bias for layer in layers.values())
    state, ranks = {}, {}
    for name, layer in layers.items():
        down, up, bias = _factors(layer, adapter_name)
        ranks[name] = len(down)
        state[f"{_PREFIX}{name}.lora_A.weight"] = down
        state[f"{_PREFIX}{name}.lora_B.weight"] = up
        if biased:
            state[f"{_PREFIX}{name}.lora_B.bias"] = bias
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name)
    state |= {key: value for key, value in saved.items() if f".{NeuronSelectModel.prefix}" not in key}
    largest = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != largest}
    return (
        LoraConfig(
            r=largest,
            lora_alpha=largest,
            rank_pattern=others,
            alpha_pattern=dict(others),
            target_modules=list(layers),
            fan_in_fan_out=all(layer.transposed for layer in layers.values()),
            lora_bias=biased,
            modules_to_save=config.modules_to_save,
            task_type=config.task_type,
            base_model_name_or_path=config.base_model_name_or_path,
            revision=config.revision,
            inference_mode=True,
        ),
        state,
    )


def save_as_lora(path: str | os.PathLike[str], model: nn.Module, adapter_name: str = "default") -> None:
    """Writes what `to_lora` returns as an adapter folder.

    Raises:
        NeuronSelectError: if the model has no such neuron-select adapter.
    """
    config, state = to_lora(model, adapter_name)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_bytes(save(tensors, metadata={"format": "pt"}), folder / SAFETENSORS_WEIGHTS_NAME)
    config.save_pretrained(str(folder))


def _factors(layer: NeuronSelectLayer, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
    """A [rank, in], B [out, rank] and the bias [out] of one layer."""
    rows, columns = layer._rows(adapter), layer._columns(adapter)
    like = next(part for part in (rows, columns) if part is not None)
    down, up, bias = [], [], like.new_zeros(layer.out_features)
    if rows is not None:
        index = layer.neuron_select_rows[adapter]
        down.append(rows)
        up.append(_one_hot(index, layer.out_features, like).T)
        if adapter in layer.neuron_select_bias:
            bias[index] = layer.neuron_select_bias[adapter]
    if columns is not None:
        down.append(_one_hot(layer.neuron_select_columns[adapter], layer.in_features, like))
        up.append(columns)
    return torch.cat(down).detach(), torch.cat(up, dim=1).detach(), bias


def _one_hot(index: Tensor, width: int, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index, width).to(like)
