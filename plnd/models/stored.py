"""The safetensors files of a checkpoint: which there are, where each tensor lies in them, and reading one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.safetensors_layout import read_header

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".tflite", ".ot")
"""Endings of weights in other formats."""
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
"""What safetensors and torch call the dtypes of unquantised checkpoints."""


@dataclass(frozen=True)
class Stored:
    """Where one tensor of a checkpoint lies: its file, and there its dtype, shape and first byte."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def checkpoint_folder(model: str, revision: str | None) -> Path:
    """The folder of a checkpoint, downloaded where `model` is a hub name; without weights in other formats.

    Raises:
        PLNDError: if there is none.
    """
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    unneeded = ["consolidated*", "original/*", *(f"*{end}" for end in OTHER_WEIGHTS)]
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=unneeded))
    except Exception as error:  # the hub raises its own, and httpx's
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PLNDError(f"{model}: neither a folder nor to be had from the hub ({reason.strip()})") from None


def weight_files(source: Path) -> list[str]:
    """Names of the weight files, those that transformers would load, in order.

    Raises:
        PLNDError: if they are not a whole checkpoint in safetensors, or that of an adapter.
    """
    if (source / "adapter_config.json").is_file():
        raise PLNDError(f"{source}: holds an adapter; merge it into its base model first (merge_and_unload)")
    if (source / SINGLE).is_file():
        return [SINGLE]
    if not (source / INDEX).is_file():
        others = sorted(path.name for path in source.iterdir() if path.name.endswith(OTHER_WEIGHTS))
        found = f"only {others[0]}: load it with transformers and save it again" if others else "expected a checkpoint"
        raise PLNDError(f"{source}: has neither {SINGLE} nor {INDEX}, {found}")
    try:
        files = sorted(set(_places(source).values()))
        good = bool(files) and all(Path(name).name == name and name.endswith(".safetensors") for name in files)
    except (PLNDError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise PLNDError(f"{source / INDEX}: not an index of safetensors files; copy or download it again")
    for file in files:
        if not (source / file).is_file():
            raise PLNDError(f"{source / file}: no such file, but {INDEX} names it; copy or download it again")
    return files


def stored_tensors(source: Path, files: Sequence[str]) -> dict[str, Stored]:
    """Every tensor of the files by name.

    Raises:
        PLNDError: if a file is damaged, or they are not what the index says.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        for key, tensor in _read_header(source / file).items():
            if key in stored:
                raise PLNDError(f"{source}: {key} is in {stored[key].file} and again in {file}")
            stored[key] = tensor
    if list(files) != [SINGLE]:
        for key, file in _places(source).items():
            if key not in stored or stored[key].file != file:
                raise PLNDError(f"{source / file}: lacks {key}, which {INDEX} places there; copy or download it again")
    return stored


def _places(source: Path) -> dict[str, str]:
    """Tensor to file, as the index says."""
    return strict_json.read(source / INDEX)["weight_map"]


def _read_header(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="np"):  # checks the file as a whole
            pass
        header = read_header(path)
    except Exception as error:  # the library's own errors differ by version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PLNDError(f"{path}: not a whole safetensors file ({reason}); copy or download it again") from None
    return {key: Stored(path.name, place.dtype, place.shape, place.start) for key, place in header.items()}


def read_tensor(source: Path, stored: Stored) -> Tensor:
    """One tensor, read from its file into memory of its own: nothing of the file stays mapped.

    Raises:
        PLNDError: if the file has become shorter.
    """
    import torch

    tensor = torch.empty(stored.shape, dtype=getattr(torch, DTYPES[stored.dtype]))
    space = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    with open(source / stored.file, "rb", buffering=0) as stream:
        stream.seek(stored.offset)
        while len(space):
            count = stream.readinto(space)
            if not count:
                raise PLNDError(f"{source / stored.file}: ends before its tensors do; copy or download it again")
            space = space[count:]
    return tensor
