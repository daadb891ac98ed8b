"""The three file formats, scores, neurons and roles: written byte-stably, read with every field checked.

All are safetensors with one metadata key, `plnd`, that holds JSON with sorted keys (README, «Artifact format»). This
is the only module that knows how they look on disk.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as serialize

from plnd.errors import ArtifactError, PLNDError
from plnd.families import PROJECTIONS, block_order, split_address
from plnd.neurons import NeuronSet

if TYPE_CHECKING:
    from plnd.roles import Roles
    from plnd.scores import Scores

SCORES, NEURONS, ROLES = "plnd.scores", "plnd.neurons", "plnd.roles"
VERSION = 1
METADATA_KEY = "plnd"
METADATA_KEY_OF_FORMAT = "__metadata__"

# What metadata must look like: a type, a tuple of alternatives (None: may be null), [x] a list of x, {str: x} a mapping
# to x, and a dictionary of names a record with at least these fields (but those with a question mark may be missing).
_MODEL = {
    "name": (str, None),
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


def save_scores(scores: Scores, path: str | Path) -> str:
    """Writes a scores artifact in one step (a temporary file beside it, then a rename); returns its SHA-256."""
    return _write(scores_bytes(scores), path)


def save_neurons(neurons: NeuronSet, path: str | Path) -> str:
    """Writes a neurons artifact in one step (a temporary file beside it, then a rename); returns its SHA-256."""
    return _write(neurons_bytes(neurons), path)


def scores_bytes(scores: Scores) -> bytes:
    """The scores artifact as bytes, the same for equal scores on every machine."""
    parts = {"min": scores.minimum, "mean": scores.mean, "worst_rank": scores.worst_rank}
    return _serialize(
        {f"{name}.{part}": values for part, vectors in parts.items() for name, values in vectors.items()},
        scores.metadata,
    )


def neurons_bytes(neurons: NeuronSet) -> bytes:
    """The neurons artifact as bytes, the same for equal sets on every machine."""
    tensors = dict(neurons.indices) | {f"{name}.importance": values for name, values in neurons.importance.items()}
    return _serialize(tensors, {**neurons.metadata, "format": NEURONS, "version": VERSION})


def load_scores(path: str | Path) -> Scores:
    """Reads a scores artifact.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    from plnd.scores import Scores

    path = Path(path)
    metadata, tensors = _read(path, SCORES)
    widths, projections = metadata["model"]["widths"], metadata["method"]["projections"]
    addresses = [name for name in widths if split_address(name)[1] in projections]
    if not addresses:
        raise _bad(path, "metadata says that no projection was scored")
    _check_names(path, tensors, {f"{name}.{part}" for name in addresses for part in ("min", "mean", "worst_rank")})
    for name in addresses:
        for part in ("min", "mean"):
            _check_importance(path, f"{name}.{part}", tensors[f"{name}.{part}"], widths[name])
        _check_indices(path, f"{name}.worst_rank", tensors[f"{name}.worst_rank"], widths[name])
        if len(tensors[f"{name}.worst_rank"]) != widths[name]:
            raise _bad(
                path, f"{name}.worst_rank has {len(tensors[f'{name}.worst_rank'])} entries, expected {widths[name]}"
            )
    minimum, mean, worst_rank = ({n: tensors[f"{n}.{p}"] for n in addresses} for p in ("min", "mean", "worst_rank"))
    return Scores(minimum, mean, worst_rank, metadata)


def load_neurons(path: str | Path) -> NeuronSet:
    """Reads a neurons artifact.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    path = Path(path)
    metadata, tensors = _read(path, NEURONS)
    widths = metadata["model"]["widths"]
    indices, importance = {}, {}
    addresses = {key.removesuffix(".importance") for key in tensors} & widths.keys()
    _check_names(path, tensors, addresses | {f"{name}.importance" for name in addresses})
    for name in sorted(addresses):
        indices[name], importance[name] = tensors[name], tensors[f"{name}.importance"]
        _check_indices(path, name, indices[name], widths[name])
        if (np.diff(indices[name]) <= 0).any():
            raise _bad(path, f"the indices of {name} are not ascending")
        _check_importance(path, f"{name}.importance", importance[name], len(indices[name]))
    return NeuronSet(indices, importance, metadata)


def write_roles(
    path: str | Path, metadata: Mapping[str, Any], patterns: np.ndarray, prompts: np.ndarray, rows: Iterable[np.ndarray]
) -> None:
    """Writes a roles artifact in one step (a temporary file beside it, then a rename), example by example.

    Args:
        path: the file.
        metadata: as `plnd.roles.Roles` has it.
        patterns: int64 [thresholds, blocks, 2^languages]; it is read after the last row was taken.
        prompts: int64 [examples, languages].
        rows: packed roles of consecutive examples, uint8 [some examples, bytes]; as many in all as `prompts` has.
    """
    path = Path(path)
    width = packed_width(metadata["model"]["widths"])
    shapes = {"patterns": ("I64", patterns.shape), "prompts": ("I64", prompts.shape)}
    header: dict[str, Any] = {METADATA_KEY_OF_FORMAT: {METADATA_KEY: _json(metadata)}}
    end = 0
    for name, (dtype, shape) in {**shapes, "roles": ("U8", (len(prompts), width))}.items():
        start, end = end, end + math.prod(shape) * (1 if dtype == "U8" else 8)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)
    with _temporary(path) as temporary:
        try:
            with open(temporary, "wb") as stream:
                stream.write(len(text).to_bytes(8, "little") + text)
                stream.write(bytes(patterns.nbytes) + prompts.astype("<i8").tobytes())
                for some in rows:
                    assert some.dtype == np.uint8 and some.shape[1] == width
                    stream.write(some.tobytes())
                assert stream.tell() == 8 + len(text) + end
                stream.seek(8 + len(text))
                stream.write(patterns.astype("<i8").tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None


def load_roles(path: str | Path) -> Roles:
    """Opens a roles artifact; an example's roles are read from the file when they are wanted.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    from plnd.roles import Roles

    path = Path(path)
    metadata = _metadata(path)
    _check_form(path, metadata, ROLES)
    _check_version(path, metadata, ROLES)
    _check_model(path, metadata["model"])
    languages, documents = metadata["languages"], metadata["documents"]
    for name in ("tasks", "documents"):
        rows = documents if name == "documents" else [metadata["tasks"] or languages]
        if any(len(row) != len(languages) for row in rows):
            raise _bad(path, f"metadata names {len(languages)} languages, and other numbers of {name}")
    if not 2 <= len(languages) <= 16 or not documents or len(set(languages)) < len(languages):
        raise _bad(path, f"metadata names {len(languages)} languages and {len(documents)} examples")
    widths, thresholds = role_widths(metadata["model"]["widths"]), metadata["method"]["thresholds"]
    if not widths or not thresholds:
        raise _bad(path, "metadata names no feed-forward, or no threshold")
    expected = {
        "patterns": ("I64", [len(thresholds), len(widths), 2 ** len(languages)]),
        "prompts": ("I64", [len(documents), len(languages)]),
        "roles": ("U8", [len(documents), packed_width(metadata["model"]["widths"])]),
    }
    with _safetensors(path) as stream:
        slices = {name: stream.get_slice(name) for name in stream.keys()}
        _check_names(path, slices, set(expected))
        for name, (dtype, shape) in expected.items():
            found = (slices[name].get_dtype(), list(slices[name].get_shape()))
            if found != (dtype, shape):
                raise _bad(path, f"tensor {name} is {found[0]} of shape {found[1]}, expected {dtype} of shape {shape}")
        patterns, prompts = stream.get_tensor("patterns"), stream.get_tensor("prompts")
    neurons = np.array(list(widths.values())) * len(documents)
    if (patterns < 0).any() or (patterns.sum(-1) != neurons).any():
        raise _bad(path, "patterns do not count every neuron of every example once; the file is damaged")
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        start = 8 + length + json.loads(raw.read(length))["roles"]["data_offsets"][0]
    packed = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=tuple(expected["roles"][1]))
    return Roles(packed, patterns, prompts, metadata)


def role_widths(widths: Mapping[str, int]) -> dict[str, int]:
    """Number of feed-forward neurons by block, in the order of blocks, from the widths of projections."""
    blocks = {split_address(name)[0]: width for name, width in widths.items() if split_address(name)[1] == "down_proj"}
    return {name: blocks[name] for name in sorted(blocks, key=block_order)}


def packed_width(widths: Mapping[str, int]) -> int:
    """Bytes of one example's roles: two bits a neuron, the blocks one after the other."""
    return -(-sum(role_widths(widths).values()) // 4)


def load(path: str | Path) -> Scores | NeuronSet | Roles:
    """Reads any artifact, whichever the file says it is."""
    form = _metadata(Path(path)).get("format")
    return load_scores(path) if form == SCORES else load_roles(path) if form == ROLES else load_neurons(path)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def check_writable(path: str | Path) -> None:
    """Refuses, before any long work, a target that could not be written after it.

    Raises:
        PLNDError: naming the folder and the reason.
    """
    with _temporary(Path(path)):
        pass


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table as CSV in one step."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    write_bytes(stream.getvalue().encode(), path)


def write_bytes(data: bytes, path: str | Path) -> None:
    """Writes a whole file or nothing: a temporary file beside the target, then a rename.

    Raises:
        PLNDError: if the folder does not exist or cannot be written.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, gone afterwards unless it was renamed."""
    if os.path.isdir(path):
        raise PLNDError(f"{path}: is a folder, expected the name of a file to write")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise PLNDError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder that exists and is yours"
        ) from None
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        os.close(handle)
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _write(data: bytes, path: str | Path) -> str:
    write_bytes(data, path)
    return hashlib.sha256(data).hexdigest()


def _serialize(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    text = _json(metadata)
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    return serialize(ordered, metadata={METADATA_KEY: text})


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _read(path: Path, form: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    metadata = _metadata(path)
    _check_form(path, metadata, form)
    _check_metadata(path, metadata, form)
    with _safetensors(path) as stream:
        names = stream.keys()
        for name in names:
            dtype = stream.get_slice(name).get_dtype()
            if dtype not in ("I32", "F32"):  # not every other one can be read as numpy
                raise _bad(path, f"tensor {name!r:.60} is {dtype}, expected I32 or F32")
        return metadata, {name: stream.get_tensor(name) for name in names}


def _metadata(path: Path) -> dict[str, Any]:
    with _safetensors(path) as stream:
        text = (stream.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise _bad(path, "a safetensors file, but not one of plnd's: it has no 'plnd' metadata")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(path, "its 'plnd' metadata is not JSON; the file is damaged") from None
    if not isinstance(metadata, dict):
        raise _bad(path, "its 'plnd' metadata is not an object; the file is damaged")
    problem = _not_plain(metadata)
    if problem:
        raise _bad(path, f"metadata {problem}; the file is damaged")
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
def _safetensors(path: Path) -> Iterator[Any]:
    if not os.path.isfile(path):
        raise _bad(path, f"{'is a folder' if os.path.isdir(path) else 'no such file'}, expected a plnd artifact")
    try:
        with safe_open(path, framework="np") as stream:
            yield stream
    except PLNDError:
        raise
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the library's own errors differ by version, and a damaged file may raise any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _bad(path, f"not a whole safetensors file ({reason}); copy or make it again") from None


def _check_form(path: Path, metadata: dict[str, Any], form: str) -> None:
    wanted = {
        SCORES: "scores (from `plnd detect`)",
        NEURONS: "neurons (from `plnd select` or `plnd combine`)",
        ROLES: "roles (from `plnd roles`)",
    }
    if metadata.get("format") != form:
        raise _bad(path, f"holds {metadata.get('format')!r:.60}, expected {wanted[form]}")


def _check_version(path: Path, metadata: dict[str, Any], form: str) -> None:
    version = metadata.get("version")
    if isinstance(version, int) and version > VERSION:
        raise _bad(path, f"format version {version}, but this plnd reads up to {VERSION}: upgrade plnd")
    problem = _mismatch(metadata, _SCHEMA[form], "")
    if problem:
        raise _bad(path, f"metadata {problem}")
    if version != VERSION:
        raise _bad(path, f"format version {version}, expected {VERSION}")


def _check_metadata(path: Path, metadata: dict[str, Any], form: str) -> None:
    _check_version(path, metadata, form)
    corpus = metadata["corpus"]
    for reason, count in corpus.get("skipped_counts", {}).items():
        if count < len(corpus["skipped"].get(reason, ())):
            raise _bad(path, f"metadata counts {count} skipped documents ({reason:.60}) and names more")
    for name in metadata["method"]["projections"]:
        if name not in PROJECTIONS:
            raise _bad(path, f"metadata names a projection {name!r:.60}, expected some of {', '.join(PROJECTIONS)}")
    _check_model(path, metadata["model"])


def _check_model(path: Path, model: dict[str, Any]) -> None:
    if not 0 < model["blocks"] <= MAX_BLOCKS or not model["widths"]:
        raise _bad(path, f"metadata gives {model['blocks']} blocks and {len(model['widths'])} widths")
    for name, width in model["widths"].items():
        block, projection = split_address(name)
        if projection not in PROJECTIONS or not _is_block(block, model["blocks"]):
            raise _bad(path, f"metadata names {name!r:.60}, which a model of {model['blocks']} blocks does not have")
        if not 0 < width < 2**31:
            raise _bad(path, f"metadata gives {name} {width} neurons")


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


def _check_names(path: Path, tensors: Mapping[str, np.ndarray], expected: set[str]) -> None:
    for name in sorted(expected ^ tensors.keys()):
        raise _bad(path, f"tensor {name!r:.60} is {'missing' if name in expected else 'not expected'}")


def _check_indices(path: Path, name: str, values: np.ndarray, width: int) -> None:
    if values.dtype != np.int32 or values.ndim != 1:
        raise _bad(path, f"{name} is {values.dtype} of {values.ndim} dimensions, expected a vector of int32")
    if len(values) and not (values.min() >= 0 and values.max() < width):
        worst = values.min() if values.min() < 0 else values.max()
        raise _bad(path, f"{name} holds {worst}, out of range for {width} neurons")


def _check_importance(path: Path, name: str, values: np.ndarray, length: int) -> None:
    if values.dtype != np.float32 or values.shape != (length,):
        raise _bad(
            path, f"{name} is {values.dtype} of shape {list(values.shape)}, expected float32 of shape [{length}]"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise _bad(path, f"{name} holds values that are negative or not finite")


def _bad(path: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{path}: {problem}")


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()
