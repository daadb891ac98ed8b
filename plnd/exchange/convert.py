"""Reads the neuron files of three papers' published code into the neurons artifact.

The files say which neurons, but not how important they are, nor in which model or by which texts they were found. So
every neuron's importance is 0 in the artifact, the corpus is empty, and the shape is that of the model that is named.
What is read is data: nothing in a file is evaluated, and nothing is trusted.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plnd.addresses import PROJECTIONS
from plnd.errors import ArtifactError, PLNDError
from plnd.io import strict_json
from plnd.io.files import read_bounded
from plnd.io.metadata import NeuronsMetadata
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton
from plnd.neurons.neuron_set import NeuronSet

Neurons = dict[str, dict[int, np.ndarray]]
"""Projection to block to indices (int64), as a file has them."""

OFFICIAL = ("up_proj", "down_proj", "q_proj", "k_proj", "v_proj")
"""The lines of a file of DAMO-NLP-SG/multilingual_analysis."""

ABSTRACT_THOUGHT = {
    "fwd_up": "up_proj",
    "fwd_down": "down_proj",
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_o": "o_proj",
}
"""The groups of a file of chenyuxin1999/Abstract_Thought."""

LAPE_LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")
"""The order of languages in the seven-language files of RUCAIBox/Language-Specific-Neurons, as its README gives it."""

MAX_BYTES = 2**24
"""Of an old file, unpacked; the published ones have less than a twentieth."""
MAX_LANGUAGES = 256

_NUMBER = r"(?:[0-9]{1,9}|np\.int64\([0-9]{1,9}\))"  # numpy 2 writes its integers so
_BLOCK = re.compile(rf"({_NUMBER}): ?(set\(\)|\{{)")
_ENTRY = re.compile(rf" ?{_NUMBER}")
_NEXT = re.compile(r", ?|$")
_DIGITS = re.compile(r"\b[0-9]+")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def convert(
    path: str | Path,
    model: str | Path | nn.Module,
    *,
    revision: str | None = None,
    language: str | None = None,
    index: int | None = None,
    trust_remote_code: bool = False,
) -> NeuronSet:
    """The neurons of an old file as a neurons artifact for `model`; their importance is unknown, and 0.

    The format is recognised by content:

    - text of five lines `{block: {index, …}, …}` (the PLND paper's code): up, down, query, key, value;
    - JSON with `fwd_up`, `fwd_down`, `attn_q`, `attn_k`, `attn_v`, `attn_o` (Abstract_Thought);
    - a list of languages of lists of blocks of index tensors, saved by torch (LAPE): rows of `gate_proj`, or of
      `up_proj` where the feed-forward has no gate, since a row that is switched off has the activation 0.

    The first two number key and value rows as the query rows that they serve. Here each goes to its own head's row.

    Args:
        path: the old file.
        model: what the neurons were found in: folder or hub name, or the model itself.
        revision: hub branch, tag or commit.
        language: recorded in the artifact; of a LAPE file of seven languages, also which one to take.
        index: which language of a LAPE file to take, counted from 0.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ArtifactError: one line that says what is wrong with the file.
        PLNDError: if the model cannot be loaded, or it is not said which language to take.
    """
    path = Path(path)
    data = read_bounded(path, MAX_BYTES)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    layout = Layout(model if isinstance(model, nn.Module) else load_skeleton(str(model), **source))
    rule: dict[str, Any] = {"name": "converted", "source": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    if data.startswith(b"PK"):
        languages = _read_lape(path, data, layout)
        rule["index"] = index = _choose(path, len(languages), language, index)
        if language is None and len(languages) == len(LAPE_LANGUAGES):
            language = LAPE_LANGUAGES[index]
        method, neurons = "lape", languages[index]
    elif index is not None:
        raise PLNDError(f"{path}: holds one language; --index is for LAPE's files")
    else:
        text = _text(path, data)
        as_json = re.match(r'\s*\{\s*"', text)
        method = "abstract-thought" if as_json else "plnd-official"
        neurons = _parse_json(path, text) if as_json else _parse_lines(path, text)
        neurons = _key_value_rows(path, neurons, layout)
    indices = _addressed(path, neurons, layout)
    metadata = {
        "model": layout.description(),
        "language": language,
        "method": {"name": method, "projections": sorted(neurons, key=PROJECTIONS.index)},
        "rule": rule,
    }
    importance = {name: np.zeros(len(v), np.float32) for name, v in indices.items()}
    return NeuronSet(indices, importance, NeuronsMetadata.completed(metadata))


def kv_rows(query_rows: np.ndarray, *, head_dim: int, group_size: int) -> np.ndarray:
    """Rows of `k_proj` and `v_proj` that serve rows of `q_proj` under grouped-query attention.

    Args:
        query_rows: rows of `q_proj`, int64.
        head_dim: channels of one head.
        group_size: query heads that share one key-value head.
    """
    head, channel = np.divmod(query_rows, head_dim)
    return head // group_size * head_dim + channel


# the three formats


def _parse_lines(path: Path, text: str) -> Neurons:
    """Five lines of `str(dict[int, set[int]])`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(OFFICIAL):
        raise _bad(path, f"has {len(lines)} lines, expected {len(OFFICIAL)}: up, down, query, key and value neurons")
    pairs = zip(OFFICIAL, lines, strict=True)
    return {name: _parse_line(path, number, line) for number, (name, line) in enumerate(pairs, 1)}


def _parse_line(path: Path, number: int, line: str) -> dict[int, np.ndarray]:
    if not (line.startswith("{") and line.endswith("}")):
        raise _bad(path, f"line {number} begins {line[:30]!r}, expected {{block: {{index, …}}, …}}")
    blocks: dict[int, np.ndarray] = {}
    position, end = 1, len(line) - 1
    while position < end:
        start = _BLOCK.match(line, position, end)
        entries, after = [], start.end() if start else 0
        if start and start[2] == "{":
            after = line.find("}", after, end) + 1
            entries = line[start.end() : after - 1].split(",") if after else [""]
        then = _NEXT.match(line, after, end)
        if start is None or then is None or not all(map(_ENTRY.fullmatch, entries)):
            found = line[position : position + 30]
            raise _bad(path, f"line {number}, column {position + 1}: {found!r}, expected block: {{index, …}}")
        (block,) = _DIGITS.findall(start[1])
        _add(path, blocks, int(block), (int(_DIGITS.search(entry)[0]) for entry in entries), f"line {number}")  # type: ignore[index]
        position = then.end()
    return blocks


def _parse_json(path: Path, text: str) -> Neurons:
    """An object of groups of blocks of lists."""

    try:
        groups = strict_json.parse(text)
    except ValueError as error:
        raise _bad(path, f"not whole JSON ({error})") from None
    for name in sorted(groups.keys() ^ ABSTRACT_THOUGHT.keys()):
        raise _bad(path, f"group {name!r:.60} is {'missing' if name in ABSTRACT_THOUGHT else 'not known'}")
    neurons: Neurons = {}
    for name, projection in ABSTRACT_THOUGHT.items():
        if not isinstance(groups[name], dict):
            raise _bad(path, f"{name} is {groups[name]!r:.60}, expected an object of blocks")
        blocks = neurons[projection] = {}
        for block, indices in groups[name].items():
            whole = isinstance(indices, list) and all(type(i) is int and 0 <= i < 10**9 for i in indices)
            if not _INDEX.fullmatch(block) or not whole:
                raise _bad(path, f"{name} has {block!r:.30}: {indices!r:.60}, expected a block and a list of indices")
            _add(path, blocks, int(block), indices, name)
    return neurons


def _read_lape(path: Path, data: bytes, layout: Layout) -> list[Neurons]:
    """A list of languages of lists of blocks of vectors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        languages = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if size <= MAX_BYTES else None
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _bad(path, f"torch cannot load it as plain data ({reason:.200})") from None
    if size > MAX_BYTES:
        raise _bad(path, f"holds {size:,} bytes unpacked, expected at most {MAX_BYTES:,}")
    if not isinstance(languages, list) or not languages or not all(isinstance(blocks, list) for blocks in languages):
        raise _bad(path, "expected a list of languages, each a list of blocks")
    if len(languages) > MAX_LANGUAGES or max(map(len, languages)) > len(layout.blocks):
        most = f"expected at most {MAX_LANGUAGES} languages of the model's {len(layout.blocks)} blocks"
        raise _bad(path, f"holds {len(languages)} languages of up to {max(map(len, languages))} blocks, {most}")
    projection = "gate_proj" if any(name.endswith(".gate_proj") for name in layout.widths) else "up_proj"
    neurons: list[Neurons] = []
    for number, blocks in enumerate(languages):
        neurons.append({projection: {}})
        for block, tensor in enumerate(blocks):
            where = f"language {number}, block {block}"
            if not _is_vector(tensor):
                raise _bad(path, f"{where}: {_describe(tensor)}, expected a vector of integers")
            if len(tensor) > layout.widths.get(f"{block}.{projection}", len(tensor)):  # an expanded one may be any size
                raise _bad(path, f"{where}: {len(tensor):,} indices, more than the model has")
            _add(path, neurons[-1][projection], block, tensor.tolist(), f"language {number}")
    return neurons


def _is_vector(tensor: Any) -> bool:
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return tensor.ndim == 1 and tensor.dtype in (torch.int16, torch.int32, torch.int64)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and {value.ndim} dimensions"
    return f"an object of type {type(value).__name__}"


def _choose(path: Path, languages: int, language: str | None, index: int | None) -> int:
    """Which language of a LAPE file is meant."""
    named = languages == len(LAPE_LANGUAGES)
    if index is None and named and language in LAPE_LANGUAGES:
        return LAPE_LANGUAGES.index(language)
    if index is not None and 0 <= index < languages:
        return index
    choices = f"give --index 0 to {languages - 1}"
    if named:
        choices += f", or --language {', '.join(LAPE_LANGUAGES)} for the published files' order"
    found = "" if index is None else f", not {index}"
    raise PLNDError(f"{path}: holds {languages} languages and does not name them{found}: {choices}")


# from the files' numbering to the model's


def _key_value_rows(path: Path, neurons: Neurons, layout: Layout) -> Neurons:
    """Key and value rows, numbered in a file as the query rows they serve, as rows of their own matrices."""
    shares = set()
    result = {name: dict(blocks) for name, blocks in neurons.items()}
    for block in layout.blocks:
        widths = [layout.widths.get(f"{block.name}.{name}", 0) for name in ("q_proj", "k_proj")]
        if not block.name.isdigit() or 0 in widths:
            continue
        if block.stack.latent:
            raise _bad(path, "is numbered by query rows, of which latent attention has others than keys: detect anew")
        queries, keys = widths
        head_dim = int(block.at(block.stack.head_dim))
        group_size = queries // keys  # query heads that share one key-value head
        rows = np.arange(queries)
        own = kv_rows(rows, head_dim=head_dim, group_size=group_size)
        for name in ("k_proj", "v_proj"):
            indices = result[name].get(int(block.name))
            if indices is not None:
                _check_range(path, f"{block.name}.{name}", indices, queries, "query rows")
                result[name][int(block.name)] = np.unique(own[indices])
        if group_size > 1:
            shares.add((group_size, queries, int(np.sum(rows // group_size == own))))
    for group_size, queries, right in sorted(shares):
        warnings.warn(
            f"{path}: its key and value neurons are numbered as query rows, and are mapped by head here; the published"
            f" code took index // {group_size}, the right row for {right} of {queries} indices ({right / queries:.1%}),"
            " so its results for keys and values are of other neurons",
            stacklevel=3,
        )
    return result


def _addressed(path: Path, neurons: Neurons, layout: Layout) -> dict[str, np.ndarray]:
    """Addresses to ascending int32 indices, each within the model."""
    names = {block.name for block in layout.blocks}
    indices = {}
    for projection, blocks in neurons.items():
        for block, values in blocks.items():
            address = f"{block}.{projection}"
            if address not in layout.widths:
                model = f"{layout.description()['model_type']}, {len(names)} blocks"
                raise _bad(path, f"has neurons of {address}, which the model ({model}) does not have")
            if layout.targets[address].experts is not None:
                raise _bad(path, f"has neurons of {address}, but the model has a mixture of experts there")
            _check_range(path, address, values, layout.widths[address], "neurons")
            indices[address] = np.sort(values).astype(np.int32)
    described = {str(block) for blocks in neurons.values() for block in blocks}
    if described != names:
        warnings.warn(
            f"{path}: describes {len(described)} blocks, but the model has {len(names)}; is it the right one?",
            stacklevel=3,
        )
    return indices


def _check_range(path: Path, address: str, indices: np.ndarray, width: int, what: str) -> None:
    if len(indices) and not (indices.min() >= 0 and indices.max() < width):
        worst = indices.min() if indices.min() < 0 else indices.max()
        raise _bad(path, f"{address} has {worst}, out of range for {width} {what}: is it the right model?")


# helpers


def _add(path: Path, blocks: dict[int, np.ndarray], block: int, indices: Iterable[int], where: str) -> None:
    if block in blocks:
        raise _bad(path, f"{where} has block {block} twice")
    values = np.fromiter(indices, dtype=np.int64)
    if len(np.unique(values)) < len(values):
        raise _bad(path, f"{where}, block {block}: holds an index twice")
    blocks[block] = values


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad(path, "neither text nor a file that torch saved") from None


def _bad(path: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{path}: {problem}")
