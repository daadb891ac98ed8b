"""How a safetensors file lies on disk, for what its library does not do: editing in place, writing row by row.

Eight bytes, little-endian, say how long the header is; the header is JSON; the tensors follow, one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_METADATA = "__metadata__"
_ALIGNMENT = 8
_BYTES = {"U8": 1, "I64": 8}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its dtype in safetensors' words, its shape, and its first byte, counted in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def read_header(path: str | Path) -> dict[str, Place]:
    """Where each tensor of a file lies. The header is taken as it is: let the library check the file first."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        name: Place(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != _METADATA
    }


def header_bytes(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file whose tensors, (dtype, shape) by name, follow in this order.

    Keys are sorted, so that equal headers are equal bytes.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
