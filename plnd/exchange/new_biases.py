"""Biases that a checkpoint has not and its model may have: a switch of the configuration gives every layer one.

Constants of neurons need a place (`plnd.exchange.export`). The new biases lie in a weight file of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plnd.addresses import split_address
from plnd.io.files import write_bytes
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton
from plnd.models.stored import DTYPES, INDEX, SINGLE, Stored

SWITCHES = {
    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}
"""Fields of configurations that say whether these projections have biases."""


@dataclass(frozen=True)
class NewBiases:
    """What is added to a checkpoint.

    Attributes:
        switches: fields of the configuration that become true.
        stored: name to where each bias will lie; none, if nothing is added.
        names: of the weight files, as they are and as they are to be called.
    """

    switches: tuple[str, ...] = ()
    stored: Mapping[str, Stored] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path, stored: Mapping[str, Stored], values: Mapping[str, Tensor]) -> None:
        """Writes them into a folder that has all else: their file, the index, the switches.

        Args:
            folder: the new checkpoint.
            stored: every tensor of the old one.
            values: name to a bias, float64; those that are left out are 0.
        """
        if not self.stored:
            return
        tensors = {}
        for key, place in self.stored.items():
            value = values.get(key, torch.zeros(place.shape))
            tensors[key] = value.to(getattr(torch, DTYPES[place.dtype])).contiguous()
        (file,) = {place.file for place in self.stored.values()}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map = {key: self.names[place.file] for key, place in stored.items()} | dict.fromkeys(tensors, file)
        every = {**stored, **self.stored}.values()
        size = sum(torch.Size(place.shape).numel() * _itemsize(place) for place in every)
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
        config = json.loads((folder / "config.json").read_bytes())
        inner = config.get("text_config", config)
        inner.update(dict.fromkeys(self.switches, True))
        _write_json(folder / "config.json", config)


def add_biases(
    source: Path, layout: Layout, addresses: Iterable[str], stored: Mapping[str, Stored], files: list[str], trust: bool
) -> tuple[Layout, NewBiases]:
    """The model with biases where projections have none yet and may have one; as it is, where none may.

    Args:
        source: folder of its checkpoint.
        layout: of its skeleton.
        addresses: projections that need biases.
        stored: its tensors.
        files: its weight files.
        trust: run the Python code that comes with it.
    """
    config = layout.model.config.get_text_config()
    targets = [layout.targets[name] for name in addresses]
    lacking = {
        split_address(t.name)[1] for t in targets if t.experts is None and getattr(t.plain, "bias", None) is None
    }
    switches = tuple(
        switch
        for switch, projections in SWITCHES.items()
        if lacking & {*projections} and getattr(config, switch, None) is False
    )
    nothing = NewBiases(names={file: file for file in files})
    if not switches:
        return layout, nothing
    changes = dict.fromkeys(switches, True)
    changed = Layout(load_skeleton(str(source), trust_remote_code=trust, changes=changes))
    before, after = (dict(each.model.named_parameters(remove_duplicate=False)) for each in (layout, changed))
    new = [name for name in after if name not in before]
    if not before.keys() <= after.keys() or not all(name.endswith(".bias") for name in new):
        return layout, nothing
    names = {file: file for file in files}
    own = "model-biases.safetensors"
    if files == [SINGLE]:
        names, own = {SINGLE: "model-00001-of-00002.safetensors"}, "model-00002-of-00002.safetensors"
    places = {}
    for name in new:
        weight = _key(stored, name.removesuffix("bias") + "weight", layout.model.base_model_prefix)
        if weight is None:
            return layout, nothing
        places[weight.removesuffix("weight") + "bias"] = Stored(own, stored[weight].dtype, tuple(after[name].shape), 0)
    return changed, NewBiases(switches, places, names)


def _key(stored: Mapping[str, Stored], name: str, prefix: str) -> str | None:
    """What a parameter is called in the files: the body's prefix may be missing there."""
    return next((key for key in (name, name.removeprefix(f"{prefix}.")) if key in stored), None)


def _itemsize(place: Stored) -> int:
    return getattr(torch, DTYPES[place.dtype]).itemsize


def _write_json(path: Path, value: Any) -> None:
    write_bytes(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n", path)
