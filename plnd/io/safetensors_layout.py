"""How a safetensors file lies on disk, for what its library does not do: reading without a map of the file, which ends
the process if the file becomes shorter meanwhile; editing in place; writing row by row.

Eight bytes, little-endian, say how long the header is; the header is JSON; the tensors follow, one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plnd.io import strict_json
from plnd.io.steady_file import SteadyFile

_METADATA = "__metadata__"
_ALIGNMENT = 8
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
MAX_HEADER = 2**25
"""Bytes of a header that is read here: a hundred times what an artifact of the largest models has."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its dtype in safetensors' words, its shape, and its first byte, counted in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    def get_dtype(self) -> str:
        """As safetensors' own slices have it."""
        return self.dtype

    def get_shape(self) -> list[int]:
        """As safetensors' own slices have it."""
        return list(self.shape)


def checked_header(file: SteadyFile) -> tuple[bytes, dict[str, str], dict[str, Place]]:
    """The header of a file that nobody vouches for: its first bytes, its metadata, and where each tensor lies.

    Raises:
        ValueError: if the file is not what the format says, or its header is larger than `MAX_HEADER`.
    """
    length = int.from_bytes(file.read(0, min(8, file.size)), "little")
    if length > min(file.size - 8, MAX_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {file.size}")
    start = 8 + length
    raw = bytes(file.read(0, start))
    header = strict_json.parse(raw[8:])
    metadata = header.pop(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not an object, or its metadata no text")
    places = {name: _place(name, entry, start) for name, entry in header.items()}
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != start:
            raise ValueError(f"tensor {name!r:.60} begins at {place.start}, expected {start}")
        start += place.size
    if start != file.size:
        raise ValueError(f"{file.size} bytes, expected {start}")
    return raw, metadata, places


def _place(name: str, entry: Any, start: int) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r:.60} has not dtype, shape and data_offsets")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(shape, list) or len(shape) > 64 or not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"tensor {name!r:.60} is {dtype!r:.40} of shape {shape!r:.40}")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r:.60} lies at {offsets!r:.40}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *offsets)):
        raise ValueError(f"tensor {name!r:.60} has a shape or place that is no number")
    place = Place(dtype, tuple(shape), start + offsets[0])
    if place.size != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r:.60} of shape {shape!r:.60} takes {offsets[1] - offsets[0]} bytes")
    return place


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
