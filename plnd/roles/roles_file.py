"""The roles artifact: written and read example by example, so that it never has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plnd.addresses import block_order, split_address
from plnd.io import artifact
from plnd.io.files import whole_file
from plnd.io.metadata import RolesMetadata
from plnd.io.safetensors_layout import header_bytes
from plnd.roles.codes import ROLES, role_counts, role_table

MAX_PATTERNS = 2**29
"""Bytes: several thresholds of the deepest models in 16 languages."""
_EXAMPLES_AT_ONCE = 64


class RolesContent(NamedTuple):
    """What a roles artifact holds; see `plnd.roles.roles.Roles`."""

    packed: artifact.Rows
    patterns: np.ndarray
    prompts: np.ndarray
    metadata: RolesMetadata
    digest: str


def write_roles(
    path: str | Path, metadata: RolesMetadata, patterns: np.ndarray, prompts: np.ndarray, rows: Iterable[np.ndarray]
) -> None:
    """Writes a roles artifact in one step (a temporary file beside it, then a rename), example by example.

    Args:
        path: the file.
        metadata: as `plnd.roles.roles.Roles` has it.
        patterns: int64 [thresholds, blocks, 2^languages]; it is read after the last row was taken.
        prompts: int64 [examples, languages].
        rows: packed roles of consecutive examples, uint8 [some examples, bytes]; as many in all as `prompts` has.
    """
    width = packed_width(metadata.model.widths)
    tensors = {
        "patterns": ("I64", patterns.shape),
        "prompts": ("I64", prompts.shape),
        "roles": ("U8", (len(prompts), width)),
    }
    text, place = artifact.header_text(metadata)
    header = header_bytes(tensors, {artifact.METADATA_KEY: text})
    with whole_file(path) as stream:
        stream.write(header)
        stream.write(bytes(patterns.nbytes) + prompts.astype("<i8").tobytes())
        for some in rows:
            assert some.dtype == np.uint8 and some.shape[1] == width
            stream.write(some.tobytes())
        assert stream.tell() == len(header) + patterns.nbytes + prompts.nbytes + len(prompts) * width
        stream.seek(len(header))
        stream.write(patterns.astype("<i8").tobytes())
        artifact.write_checksum(stream, place)


def read_roles(stream: artifact.Opened) -> RolesContent:
    """The content of a file that is open; an example's roles are read from it when they are wanted.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do.
    """
    path = stream.path
    metadata = artifact.check_metadata(path, stream.metadata, RolesMetadata)
    languages, documents = metadata.languages, metadata.documents
    for name in ("tasks", "documents"):
        rows = documents if name == "documents" else [metadata.tasks or languages]
        if any(len(row) != len(languages) for row in rows):
            raise artifact.bad(path, f"metadata names {len(languages)} languages, and other numbers of {name}")
    if not 2 <= len(languages) <= 16 or not documents or len(set(languages)) < len(languages):
        raise artifact.bad(path, f"metadata names {len(languages)} languages and {len(documents)} examples")
    if metadata.corpus.documents != len(documents):
        raise artifact.bad(path, f"metadata names {len(documents)} examples, and counts {metadata.corpus.documents}")
    widths, thresholds = role_widths(metadata.model.widths), metadata.method.thresholds
    if not widths or not thresholds or len(set(thresholds)) < len(thresholds):
        raise artifact.bad(path, "metadata names no feed-forward, or no threshold, or one twice")
    expected = {
        "patterns": ("I64", [len(thresholds), len(widths), 2 ** len(languages)]),
        "prompts": ("I64", [len(documents), len(languages)]),
        "roles": ("U8", [len(documents), packed_width(metadata.model.widths)]),
    }
    slices = {name: stream.get_slice(name) for name in stream.keys()}
    artifact.check_names(path, slices, set(expected))
    for name, (dtype, shape) in expected.items():
        found = (slices[name].get_dtype(), slices[name].get_shape())
        if found != (dtype, shape):
            raise artifact.bad(
                path, f"tensor {name} is {found[0]} of shape {found[1]}, expected {dtype} of shape {shape}"
            )
    if slices["patterns"].size > MAX_PATTERNS:
        raise artifact.bad(path, f"patterns of {slices['patterns'].size} bytes, expected at most {MAX_PATTERNS}")
    content = RolesContent(
        stream.get_rows("roles"), stream.get_tensor("patterns"), stream.get_tensor("prompts"), metadata, stream.digest
    )
    _check_counts(path, content, np.array(list(widths.values())))
    return content


def _check_counts(path: str | Path, content: RolesContent, widths: np.ndarray) -> None:
    """Refuses patterns that do not count every neuron once, or other neurons of a role than the examples have."""
    patterns, neurons = content.patterns, widths * len(content.packed)
    outside = (patterns < 0) | (patterns > neurons[:, None])  # before sums, which could leave int64
    if outside.any() or (patterns.sum(-1) != neurons).any():
        raise artifact.bad(path, "patterns do not count every neuron of every example once; the file is damaged")
    table = role_table(len(content.metadata.languages))
    counted = np.stack([patterns[0][:, table == code].sum(1) for code in range(len(ROLES))], axis=1)
    found = np.zeros_like(counted)
    for start in range(0, len(content.packed), _EXAMPLES_AT_ONCE):
        found += role_counts(content.packed[start : start + _EXAMPLES_AT_ONCE], widths)
    if (counted != found).any():
        block = list(role_widths(content.metadata.model.widths))[int(np.argwhere(counted != found)[0][0])]
        raise artifact.bad(path, f"block {block} has other roles than its patterns say; the file is damaged")


def role_widths(widths: Mapping[str, int]) -> dict[str, int]:
    """Number of feed-forward neurons by block, in the order of blocks, from the widths of projections."""
    blocks = {split_address(name)[0]: width for name, width in widths.items() if split_address(name)[1] == "down_proj"}
    return {name: blocks[name] for name in sorted(blocks, key=block_order)}


def packed_width(widths: Mapping[str, int]) -> int:
    """Bytes of one example's roles: two bits a neuron, the blocks one after the other."""
    return -(-sum(role_widths(widths).values()) // 4)
