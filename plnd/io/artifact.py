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
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as serialize

from plnd.addresses import PROJECTIONS, split_address
from plnd.errors import ArtifactError, PLNDError

SCORES, NEURONS, ROLES = "plnd.scores", "plnd.neurons", "plnd.roles"
VERSION = 1
METADATA_KEY = "plnd"

# What metadata must look like: a type, a tuple of alternatives (None: may be null), [x] a list of x, {str: x} a mapping
# to x, and a dictionary of names a record with at least these fields (but those with a question mark may be missing).
_MODEL = {
    "name": (str, None),
    "hub?": bool,
    "revision": (str, None),
    "model_type": str,
    "blocks": int,
    "widths": {str: int},
}
_COMMON = {
    "format": str,
    "version": int,
    "plnd": str,
    "model": _MODEL,
    "language": (str, None),
    "corpus": {
        "source": (str, None),
        "sha256": str,
        "documents": int,
        "tokens": int,
        "max_length": int,
        "skipped": {str: [int]},
        "skipped_counts?": {str: int},
    },
    "method": {"name": str, "projections": [str], "epsilon?": (float, None)},
    "dtype": str,
}
_OPERAND = {"operation": str, "language?": (str, None), "neurons?": int, "sha256?": str}
_SCHEMA: dict[str, dict[str, Any]] = {
    SCORES: _COMMON,
    NEURONS: {**_COMMON, "rule": {"name": str}, "scores_sha256": str, "operands?": [_OPERAND]},
    ROLES: {
        "format": str,
        "version": int,
        "plnd": str,
        "model": _MODEL,
        "languages": [str],
        "tasks": ([str], None),
        "documents": [[int]],
        "corpus": {"source": (str, None), "sha256": str, "documents": int, "tokens": int, "fewshot": int},
        "method": {"name": str, "tokens": str, "thresholds": [float]},
        "dtype": str,
    },
}
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
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read(path: Path, form: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata, checked, and tensors (int32 and float32, not checked yet) of an artifact of one form.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    metadata = read_metadata(path)
    check_form(path, metadata, form)
    check_metadata(path, metadata, form)
    with opened(path) as stream:
        names = stream.keys()
        for name in names:
            dtype = stream.get_slice(name).get_dtype()
            if dtype not in ("I32", "F32"):  # not every other one can be read as numpy
                raise bad(path, f"tensor {name!r:.60} is {dtype}, expected I32 or F32")
        return metadata, {name: stream.get_tensor(name) for name in names}


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of any artifact, as plain JSON; what it must hold is not checked yet (`check_metadata`)."""
    with opened(path) as stream:
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


def check_form(path: Path, metadata: dict[str, Any], form: str) -> None:
    """Refuses an artifact of another form."""
    wanted = {
        SCORES: "scores (from `plnd detect`)",
        NEURONS: "neurons (from `plnd select` or `plnd combine`)",
        ROLES: "roles (from `plnd roles`)",
    }
    if metadata.get("format") != form:
        raise bad(path, f"holds {metadata.get('format')!r:.60}, expected {wanted[form]}")


def check_version(path: Path, metadata: dict[str, Any], form: str) -> None:
    """Refuses an artifact of another version, or whose metadata has not the form's fields."""
    version = metadata.get("version")
    if isinstance(version, int) and version > VERSION:
        raise bad(path, f"format version {version}, but this plnd reads up to {VERSION}: upgrade plnd")
    problem = _mismatch(metadata, _SCHEMA[form], "")
    if problem:
        raise bad(path, f"metadata {problem}")
    if version != VERSION:
        raise bad(path, f"format version {version}, expected {VERSION}")


def check_metadata(path: Path, metadata: dict[str, Any], form: str) -> None:
    """Refuses metadata that lack a field, or whose fields contradict one another."""
    check_version(path, metadata, form)
    corpus = metadata["corpus"]
    for reason, count in corpus.get("skipped_counts", {}).items():
        if count < len(corpus["skipped"].get(reason, ())):
            raise bad(path, f"metadata counts {count} skipped documents ({reason:.60}) and names more")
    for name in metadata["method"]["projections"]:
        if name not in PROJECTIONS:
            raise bad(path, f"metadata names a projection {name!r:.60}, expected some of {', '.join(PROJECTIONS)}")
    check_model_form(path, metadata["model"])


def check_model_form(path: Path, model: dict[str, Any]) -> None:
    """Refuses a description of a model that no model can have."""
    if not 0 < model["blocks"] <= MAX_BLOCKS or not model["widths"]:
        raise bad(path, f"metadata gives {model['blocks']} blocks and {len(model['widths'])} widths")
    for name, width in model["widths"].items():
        block, projection = split_address(name)
        if projection not in PROJECTIONS or not _is_block(block, model["blocks"]):
            raise bad(path, f"metadata names {name!r:.60}, which a model of {model['blocks']} blocks does not have")
        if not 0 < width < 2**31:
            raise bad(path, f"metadata gives {name} {width} neurons")


def _is_block(name: str, blocks: int) -> bool:
    found = re.fullmatch(r"(?:encoder\.|decoder\.)?(0|[1-9][0-9]{0,7})|decoder\.(0|[1-9][0-9]{0,7})\.cross", name)
    return found is not None and int(found[1] or found[2]) < blocks


def _mismatch(value: Any, schema: Any, where: str) -> str | None:
    """What in `value` does not fit the schema, in words."""
    here = where or "as a whole"
    if isinstance(schema, tuple):
        return None if any(_mismatch(value, s, where) is None for s in schema) else f"field {here} is {value!r:.60}"
    if schema is None:
        return None if value is None else f"field {here} is {value!r:.60}"
    if isinstance(schema, type):
        fits = type(value) is schema and not (isinstance(value, int) and value < 0)
        return None if fits else f"field {here} is {value!r:.60}, expected {schema.__name__}"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"field {here} is {value!r:.60}, expected a list"
        return next((p for item in value if (p := _mismatch(item, schema[0], where))), None)
    if not isinstance(value, dict):
        return f"field {here} is {value!r:.60}, expected an object"
    if str in schema:
        return next(
            (p for key, item in value.items() if (p := _mismatch(item, schema[str], f"{where}[{key!r:.40}]"))), None
        )
    for key, inner in schema.items():
        name = key.removesuffix("?")
        full = f"{where}.{name}" if where else name
        if name in value:
            problem = _mismatch(value[name], inner, full)
            if problem:
                return problem
        elif name == key:
            return f"field {full} is missing"
    return None


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
    if values.dtype != np.float32 or values.shape != (length,):
        raise bad(path, f"{name} is {values.dtype} of shape {list(values.shape)}, expected float32 of shape [{length}]")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise bad(path, f"{name} holds values that are negative or not finite")


def bad(path: Path, problem: str) -> ArtifactError:
    """The error for a file, in one line."""
    return ArtifactError(f"{path}: {problem}")
