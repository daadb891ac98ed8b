"""The artifact format that scores, neurons and roles share: written byte-stably, read with every field checked.

All are safetensors with one metadata key, `plnd`, that holds JSON with sorted keys (docs/artifacts.md). It
handles tensors and metadata and knows no class: `NeuronSet`, `Scores` and `Roles` each build themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from safetensors.numpy import save as serialize

from plnd.addresses import PROJECTIONS, split_address
from plnd.errors import ArtifactError, PLNDError
from plnd.io import strict_json
from plnd.io.hub import local_file
from plnd.io.metadata import PART, Metadata, ScoresMetadata
from plnd.io.safetensors_layout import MAX_HEADER, Place, checked_header
from plnd.io.steady_file import SteadyFile
from plnd.model_description import ModelDescription

Kind = TypeVar("Kind", bound=Metadata)
Scored = TypeVar("Scored", bound=ScoresMetadata)

METADATA_KEY = "plnd"
CHECKSUM = "checksum"
"""The field of the metadata that holds the SHA-256 of the file as it would be with zeros for these 64 digits."""
MAX_BLOCKS = 2**16
MAX_WIDTH = 2**24
"""Neurons of one projection; all experts of the largest mixtures together have a sixteenth of that."""
MAX_DEPTH = 16
"""Of nested metadata; so that whatever was read can be written and printed again."""
_ZEROS = b"0" * 64
_DTYPES = {"U8": "u1", "I32": "<i4", "F32": "<f4", "I64": "<i8", "F64": "<f8"}


def encode(tensors: Mapping[str, np.ndarray], metadata: Metadata) -> bytes:
    """An artifact as bytes, the same for equal content on every machine."""
    return encoded(tensors, *header_text(metadata))


def encoded(tensors: Mapping[str, np.ndarray], text: str, place: bytes) -> bytes:
    """A file of one key of metadata, whose checksum belongs where `place` stands in `text`, if it is not empty."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data = serialize(ordered, metadata={METADATA_KEY: text})
    if not place:
        return data
    before, _, after = data.partition(place)
    return b"".join([before, hashlib.sha256(before + _ZEROS + after).hexdigest().encode(), after])


def header_text(metadata: Metadata) -> tuple[str, bytes]:
    """The metadata as JSON, and what stands in it where the checksum belongs, and nowhere else; empty: it has none."""
    return checked_text(metadata) if metadata.version >= metadata.checked_since else (to_json(metadata), b"")


def checked_text(said: Mapping[str, Any]) -> tuple[str, bytes]:
    """The same of whatever has a checksum."""
    place = hashlib.sha256(to_json(said).encode()).hexdigest()
    return to_json({**said, CHECKSUM: place}), place.encode()


def write_checksum(stream: BinaryIO, place: bytes) -> None:
    """Puts the checksum of an artifact that was written to `stream`, which can be read, where `place` stands."""
    stream.seek(0)
    at = stream.read(MAX_HEADER).index(place)
    stream.seek(at)
    stream.write(_ZEROS)
    stream.seek(0)
    digest = hashlib.sha256()
    while part := stream.read(2**20):
        digest.update(part)
    stream.seek(at)
    stream.write(digest.hexdigest().encode())


def to_json(value: Any) -> str:
    """JSON with sorted keys and nothing to choose, so that equal values give equal text."""
    options: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return json.dumps(value, sort_keys=True, default=dict, **options)


class Opened:
    """An artifact that is open: its metadata and its tensors are of one state of one file.

    Attributes:
        path: where it is, for errors; of one of the hub's, its name there.

    Raises:
        ValueError: if it is no whole safetensors file.
    """

    def __init__(self, path: Path, name: str | Path | None = None) -> None:
        self.path: str | Path = path if name is None else name
        self._file, self._lasts = SteadyFile(path), False
        try:
            self._header, self._texts, self._places = checked_header(self._file)
        except BaseException:
            self.close()
            raise

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """As plain JSON, with the checksum; what else it must hold is not checked yet (`check_metadata`).

        Raises:
            ArtifactError: if there is none, it is not plain, or its checksum is not that of the file.
        """
        text = self._texts.get(METADATA_KEY)
        if text is None:
            raise bad(self.path, "a safetensors file, but not one of plnd's: it has no 'plnd' metadata")
        try:
            metadata = strict_json.parse(text)
        except ValueError as error:
            raise bad(self.path, f"its 'plnd' metadata is not JSON ({error!s:.80}); the file is damaged") from None
        if not isinstance(metadata, dict):
            raise bad(self.path, "its 'plnd' metadata is not an object; the file is damaged")
        if problem := _not_plain(metadata):
            raise bad(self.path, f"metadata {problem}; the file is damaged")
        if CHECKSUM in metadata and metadata[CHECKSUM] != self._checksum(metadata[CHECKSUM]):
            raise bad(self.path, "its content is not that of its checksum; the file is damaged: copy or make it again")
        return metadata

    def _checksum(self, said: Any) -> str | None:
        digits = said.encode() if isinstance(said, str) else b""
        if len(digits) != len(_ZEROS) or self._header.count(digits) != 1:
            return None
        return self._hashed(self._header.replace(digits, _ZEROS))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return self._hashed(self._header)

    def _hashed(self, header: bytes) -> str:
        digest = hashlib.sha256(header)
        for part in self._file.parts(len(header), self._file.size):
            digest.update(part)
        return digest.hexdigest()

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._places)

    def get_slice(self, name: str) -> Place:
        """A tensor's dtype and shape, without reading it."""
        return self._places[name]

    def get_tensor(self, name: str) -> np.ndarray:
        """A tensor, read."""
        place = self._places[name]
        values = np.frombuffer(self._file.read(place.start, place.size), dtype=_DTYPES[place.dtype])
        return values.reshape(place.shape).astype(values.dtype.newbyteorder("="), copy=False)

    def get_rows(self, name: str) -> Rows:
        """A tensor of bytes, [rows, width], that stays in the file, which stays open until they are forgotten."""
        self._lasts = True
        return Rows(self._file, self._places[name])

    def close(self) -> None:
        """Closes the file, unless rows are still in it."""
        if not self._lasts:
            self._file.close()


class Rows:
    """Rows of bytes of an artifact, uint8 [rows, width], read when they are wanted.

    Reading raises ArtifactError if the file is no longer what it was when it was opened.
    """

    def __init__(self, file: SteadyFile, place: Place) -> None:
        self._file, self._start, self.shape = file, place.start, place.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int]) -> np.ndarray:
        """One row, [width], or some, [some, width]."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self._read(start, max(0, stop - start))
        numbers = np.arange(len(self))[rows]
        if numbers.ndim == 0:
            return self._read(int(numbers), 1)[0]
        return np.concatenate([np.empty((0, self.shape[1]), np.uint8), *(self._read(int(n), 1) for n in numbers)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def _read(self, start: int, count: int) -> np.ndarray:
        width = self.shape[1]
        found = self._file.read(self._start + start * width, count * width)
        return np.frombuffer(found, dtype=np.uint8).reshape(count, width)


@contextmanager
def opened(path: str | Path) -> Iterator[Opened]:
    """The artifact, open, of this machine or of the hub (`plnd.io.hub`); what is wrong becomes an `ArtifactError`."""
    here = local_file(path)
    if not os.path.isfile(here):
        raise bad(path, f"{'is a folder' if os.path.isdir(here) else 'no such file'}, expected a plnd artifact")
    try:
        found = Opened(here, path)
    except OSError as error:
        raise bad(path, f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise bad(path, f"not a whole safetensors file ({error!s:.120}); copy or make it again") from None
    try:
        yield found
    finally:
        found.close()


def read(stream: Opened, kind: type[Scored]) -> tuple[Scored, dict[str, np.ndarray]]:
    """Metadata, checked, and tensors (int32 and float32, not checked yet) of an artifact of one form.

    Nothing is read but what the metadata has a place for.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    path = stream.path
    metadata = check_metadata(path, stream.metadata, kind)
    check_scores(path, metadata)
    for name in stream.keys():
        place = stream.get_slice(name)
        if place.dtype not in ("I32", "F32"):
            raise bad(path, f"tensor {name!r:.60} is {place.dtype}, expected I32 or F32")
        address = name if name in metadata.model.widths else name.rpartition(".")[0]
        if address not in metadata.model.widths:
            raise bad(path, f"tensor {name!r:.60} is not expected")
        if math.prod(place.shape) > metadata.model.widths[address]:
            shape, width = list(place.shape), metadata.model.widths[address]
            raise bad(path, f"tensor {name!r:.60} is of shape {shape!s:.60}, of {width} neurons")
    return metadata, {name: stream.get_tensor(name) for name in stream.keys()}


def read_vectors(stream: Opened, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors of an artifact, by name: float32 vectors, finite, each of the length that is given for its name.

    Nothing is read before its dtype and shape are what they should be.

    Raises:
        ArtifactError: if one is another, or not expected.
    """
    path, found = stream.path, {}
    for name in stream.keys():
        if name not in lengths:
            raise bad(path, f"tensor {name!r:.60} is not expected")
        place = stream.get_slice(name)
        if place.dtype != "F32" or tuple(place.shape) != (lengths[name],):
            shape = f"{place.dtype} of shape {list(place.shape)!s:.60}"
            raise bad(path, f"{name} is {shape}, expected F32 of shape [{lengths[name]}]")
        found[name] = stream.get_tensor(name)
        check_logs(path, name, found[name], lengths[name])
    return found


def _not_plain(metadata: dict[str, Any]) -> str | None:
    """What in parsed JSON could not be written or printed again, in words."""
    level: list[Any] = [metadata]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, float) and not math.isfinite(value):
                return "holds a number that is not finite"
        level = inner
    return "is nested too deeply" if level else None


def check_metadata(path: str | Path, metadata: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """The metadata of an artifact of one form; refuses another form, another version, and fields of other types.

    Without the checksum, which is the file's.
    """
    if metadata.get("format") == PART and kind.form != PART:
        raise bad(path, f"a part of scores ({_shard_of(metadata)}); merge first: plnd merge PART… --output F")
    if metadata.get("format") != kind.form:
        raise bad(path, f"holds {metadata.get('format')!r:.60}, expected {kind.made_by}")
    version = metadata.get("version")
    if isinstance(version, int) and version > kind.newest:
        raise bad(path, f"format version {version}, but this plnd reads up to {kind.newest}: upgrade plnd")
    try:
        checked = kind.of({name: value for name, value in metadata.items() if name != CHECKSUM})
    except PLNDError as error:
        raise bad(path, f"metadata {error}") from None
    if checked.version < 1:
        raise bad(path, f"format version {version}, expected {'1' if kind.newest == 1 else f'1 to {kind.newest}'}")
    if checked.version >= kind.checked_since and CHECKSUM not in metadata:
        raise bad(path, f"metadata has no checksum, as version {version} has; the file is damaged")
    _check_model(path, checked.model)
    return checked


def _shard_of(metadata: Mapping[str, Any]) -> str:
    """Which shard a part says it is."""
    shard = metadata.get("shard")
    return f"shard {shard.get('number')}/{shard.get('count')}" if isinstance(shard, Mapping) else "of a shard"


def check_scores(path: str | Path, metadata: ScoresMetadata) -> None:
    """Refuses fields that contradict one another, or name what plnd does not know."""
    for reason, count in metadata.corpus.skipped_counts.items():
        if count < len(metadata.corpus.skipped.get(reason, ())):
            raise bad(path, f"metadata counts {count} skipped documents ({reason:.60}) and names more")
    for name in metadata.method.projections:
        if name not in PROJECTIONS:
            raise bad(path, f"metadata names a projection {name!r:.60}, expected some of {', '.join(PROJECTIONS)}")


def _check_model(path: str | Path, model: ModelDescription) -> None:
    """Refuses a description of a model that no model can have."""
    if not 0 < model.blocks <= MAX_BLOCKS or not model.widths:
        raise bad(path, f"metadata gives {model.blocks} blocks and {len(model.widths)} widths")
    for name, width in model.widths.items():
        block, projection = split_address(name)
        if projection not in PROJECTIONS or not _is_block(block, model.blocks):
            raise bad(path, f"metadata names {name!r:.60}, which a model of {model.blocks} blocks does not have")
        if not 0 < width <= MAX_WIDTH:
            raise bad(path, f"metadata gives {name} {width} neurons, expected 1 to {MAX_WIDTH}")
    for name, count in model.units.items():
        if not count or name not in model.widths or model.widths[name] % count:
            raise bad(path, f"metadata gives {name!r:.60} {count} units, of {model.widths.get(name, 'no')} neurons")


_NUMBER = "(0|[1-9][0-9]{0,7})"


def _is_block(name: str, blocks: int) -> bool:
    found = re.fullmatch(r"(?:(?:encoder\.|decoder\.)?N|N\.shared|decoder\.N\.cross)".replace("N", _NUMBER), name)
    return found is not None and int(next(filter(None, found.groups()))) < blocks


def check_names(path: str | Path, tensors: Mapping[str, Any], expected: set[str]) -> None:
    """Refuses a file with a tensor too few or too many."""
    for name in sorted(expected ^ tensors.keys()):
        raise bad(path, f"tensor {name!r:.60} is {'missing' if name in expected else 'not expected'}")


def check_indices(path: str | Path, name: str, values: np.ndarray, width: int) -> None:
    """Refuses a tensor that is no vector of int32 in range of a projection's width."""
    if values.dtype != np.int32 or values.ndim != 1:
        raise bad(path, f"{name} is {values.dtype} of {values.ndim} dimensions, expected a vector of int32")
    if len(values) and not (values.min() >= 0 and values.max() < width):
        worst = values.min() if values.min() < 0 else values.max()
        raise bad(path, f"{name} holds {worst}, out of range for {width} neurons")


def check_importance(path: str | Path, name: str, values: np.ndarray, length: int) -> None:
    """Refuses a tensor that is no float32 vector of this length, finite and not negative."""
    _check_vector(path, name, values, length)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise bad(path, f"{name} holds values that are negative or not finite")


def check_logs(path: str | Path, name: str, values: np.ndarray, length: int) -> None:
    """Refuses a tensor that is no float32 vector of this length, finite."""
    _check_vector(path, name, values, length)
    if not np.isfinite(values).all():
        raise bad(path, f"{name} holds values that are not finite")


def _check_vector(path: str | Path, name: str, values: np.ndarray, length: int) -> None:
    if values.dtype != np.float32 or values.shape != (length,):
        raise bad(path, f"{name} is {values.dtype} of shape {list(values.shape)}, expected float32 of shape [{length}]")


def bad(path: str | Path, problem: str) -> ArtifactError:
    """The error for a file, in one line."""
    return ArtifactError(f"{path}: {problem}")
