"""The artifact format that scores, neurons and roles share: written byte-stably, read with every field checked.

All are safetensors with one metadata key, `plnd`, that holds JSON with sorted keys (README, «Artifact format»). It
handles tensors and metadata and knows no class: `NeuronSet`, `Scores` and `Roles` each build themselves.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as serialize

from plnd.addresses import PROJECTIONS, split_address
from plnd.errors import ArtifactError, PLNDError
from plnd.io.metadata import PART, Metadata, ScoresMetadata
from plnd.model_description import ModelDescription

Kind = TypeVar("Kind", bound=Metadata)
Scored = TypeVar("Scored", bound=ScoresMetadata)

METADATA_KEY = "plnd"
MAX_BLOCKS = 2**16
MAX_DEPTH = 16
"""Of nested metadata; so that whatever was read can be written and printed again."""


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """An artifact as bytes, the same for equal content on every machine."""
    text = to_json(metadata)
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    return serialize(ordered, metadata={METADATA_KEY: text})


def to_json(value: Any) -> str:
    """JSON with sorted keys and nothing to choose, so that equal values give equal text."""
    options: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return json.dumps(value, sort_keys=True, default=dict, **options)


def read(path: Path, kind: type[Scored]) -> tuple[Scored, dict[str, np.ndarray]]:
    """Metadata, checked, and tensors (int32 and float32, not checked yet) of an artifact of one form.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    with opened(path) as stream:  # once: another process may put another file in its place at any time
        metadata = check_metadata(path, metadata_of(path, stream), kind)
        check_scores(path, metadata)
        names = stream.keys()
        for name in names:
            dtype = stream.get_slice(name).get_dtype()
            if dtype not in ("I32", "F32"):  # not every other one can be read as numpy
                raise bad(path, f"tensor {name!r:.60} is {dtype}, expected I32 or F32")
        return metadata, {name: stream.get_tensor(name) for name in names}


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of any artifact, as plain JSON; what it must hold is not checked yet (`check_metadata`)."""
    with opened(path) as stream:
        return metadata_of(path, stream)


def metadata_of(path: Path, stream: Any) -> dict[str, Any]:
    """The same of the file that is open."""
    text = (stream.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise bad(path, "a safetensors file, but not one of plnd's: it has no 'plnd' metadata")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise bad(path, "its 'plnd' metadata is not JSON; the file is damaged") from None
    if not isinstance(metadata, dict):
        raise bad(path, "its 'plnd' metadata is not an object; the file is damaged")
    problem = _not_plain(metadata)
    if problem:
        raise bad(path, f"metadata {problem}; the file is damaged")
    return metadata


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
            elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                return "holds half a surrogate pair"
        level = inner
    return "is nested too deeply" if level else None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file, open; whatever is wrong with it becomes an `ArtifactError`."""
    if not os.path.isfile(path):
        raise bad(path, f"{'is a folder' if os.path.isdir(path) else 'no such file'}, expected a plnd artifact")
    try:
        with safe_open(path, framework="np") as stream:
            yield stream
    except PLNDError:
        raise
    except OSError as error:
        raise bad(path, f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the library's own errors differ by version, and a damaged file may raise any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad(path, f"not a whole safetensors file ({reason}); copy or make it again") from None


def check_metadata(path: Path, metadata: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """The metadata of an artifact of one form; refuses another form, another version, and fields of other types."""
    if metadata.get("format") == PART and kind.form != PART:
        raise bad(path, f"a part of scores ({_shard_of(metadata)}); merge first: plnd merge PART… --output F")
    if metadata.get("format") != kind.form:
        raise bad(path, f"holds {metadata.get('format')!r:.60}, expected {kind.made_by}")
    version = metadata.get("version")
    if isinstance(version, int) and version > kind.newest:
        raise bad(path, f"format version {version}, but this plnd reads up to {kind.newest}: upgrade plnd")
    try:
        checked = kind.of(metadata)
    except PLNDError as error:
        raise bad(path, f"metadata {error}") from None
    if checked.version < 1:
        raise bad(path, f"format version {version}, expected {'1' if kind.newest == 1 else f'1 to {kind.newest}'}")
    _check_model(path, checked.model)
    return checked


def _shard_of(metadata: Mapping[str, Any]) -> str:
    """Which shard a part says it is."""
    shard = metadata.get("shard")
    return f"shard {shard.get('number')}/{shard.get('count')}" if isinstance(shard, Mapping) else "of a shard"


def check_scores(path: Path, metadata: ScoresMetadata) -> None:
    """Refuses fields that contradict one another, or name what plnd does not know."""
    for reason, count in metadata.corpus.skipped_counts.items():
        if count < len(metadata.corpus.skipped.get(reason, ())):
            raise bad(path, f"metadata counts {count} skipped documents ({reason:.60}) and names more")
    for name in metadata.method.projections:
        if name not in PROJECTIONS:
            raise bad(path, f"metadata names a projection {name!r:.60}, expected some of {', '.join(PROJECTIONS)}")


def _check_model(path: Path, model: ModelDescription) -> None:
    """Refuses a description of a model that no model can have."""
    if not 0 < model.blocks <= MAX_BLOCKS or not model.widths:
        raise bad(path, f"metadata gives {model.blocks} blocks and {len(model.widths)} widths")
    for name, width in model.widths.items():
        block, projection = split_address(name)
        if projection not in PROJECTIONS or not _is_block(block, model.blocks):
            raise bad(path, f"metadata names {name!r:.60}, which a model of {model.blocks} blocks does not have")
        if not 0 < width < 2**31:
            raise bad(path, f"metadata gives {name} {width} neurons")


def _is_block(name: str, blocks: int) -> bool:
    found = re.fullmatch(r"(?:encoder\.|decoder\.)?(0|[1-9][0-9]{0,7})|decoder\.(0|[1-9][0-9]{0,7})\.cross", name)
    return found is not None and int(found[1] or found[2]) < blocks


def check_names(path: Path, tensors: Mapping[str, np.ndarray], expected: set[str]) -> None:
    """Refuses a file with a tensor too few or too many."""
    for name in sorted(expected ^ tensors.keys()):
        raise bad(path, f"tensor {name!r:.60} is {'missing' if name in expected else 'not expected'}")


def check_indices(path: Path, name: str, values: np.ndarray, width: int) -> None:
    """Refuses a tensor that is no vector of int32 in range of a projection's width."""
    if values.dtype != np.int32 or values.ndim != 1:
        raise bad(path, f"{name} is {values.dtype} of {values.ndim} dimensions, expected a vector of int32")
    if len(values) and not (values.min() >= 0 and values.max() < width):
        worst = values.min() if values.min() < 0 else values.max()
        raise bad(path, f"{name} holds {worst}, out of range for {width} neurons")


def check_importance(path: Path, name: str, values: np.ndarray, length: int) -> None:
    """Refuses a tensor that is no float32 vector of this length, finite and not negative."""
    _check_vector(path, name, values, length)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise bad(path, f"{name} holds values that are negative or not finite")


def check_logs(path: Path, name: str, values: np.ndarray, length: int) -> None:
    """Refuses a tensor that is no float32 vector of this length, finite."""
    _check_vector(path, name, values, length)
    if not np.isfinite(values).all():
        raise bad(path, f"{name} holds values that are not finite")


def _check_vector(path: Path, name: str, values: np.ndarray, length: int) -> None:
    if values.dtype != np.float32 or values.shape != (length,):
        raise bad(path, f"{name} is {values.dtype} of shape {list(values.shape)}, expected float32 of shape [{length}]")


def bad(path: Path, problem: str) -> ArtifactError:
    """The error for a file, in one line."""
    return ArtifactError(f"{path}: {problem}")
