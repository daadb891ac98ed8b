"""YAML of settings: each key once, nothing that JSON lacks, and no more of it than people write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plnd.errors import PLNDError

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""With those that aliases repeat."""
MAX_DEPTH = 32


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says.

    Raises:
        PLNDError: if it cannot be read, is larger than `MAX_BYTES`, or `parse_yaml` refuses it.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise PLNDError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MAX_BYTES:
        raise PLNDError(f"larger than {MAX_BYTES:,} bytes, expected settings")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PLNDError(f"not YAML ({error})") from None


def read_fields(path: str | Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
        path: the file.
        changes: values to put in, by their dotted names: `{"model.pretrained": "folder"}`.

    Raises:
        PLNDError: as `read_yaml`; if it holds no fields, or a change goes into what has none.
    """
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise PLNDError(f"{'empty' if found is None else f'found {found!r:.60}'}, expected fields with values")
    for name, value in (changes or {}).items():
        _put(found, name, value)
    return found


def parse_change(text: str) -> tuple[str, Any]:
    """The name and the value of `--set NAME=VALUE`.

    Raises:
        PLNDError: if it is no such pair, or the value is not YAML.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise PLNDError(f"--set {text}: expected NAME=VALUE, the value as in YAML")
    try:
        return name.strip(), parse_yaml(value)
    except PLNDError as error:
        raise PLNDError(f"--set {name}: {error}; expected NAME=VALUE, the value as in YAML") from None


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value in at its dotted name; a task that is a mere name becomes a mapping where need be."""
    *path, last = name.split(".")
    for depth, key in enumerate(path):
        inner = found.setdefault(key, {})
        if path[0] == "tasks" and depth == 1 and isinstance(inner, str):
            inner = found[key] = {"task": inner}
        if not isinstance(inner, dict):
            raise PLNDError(f"{name}: {'.'.join(path[: depth + 1])} is {inner!r:.60}, which has no fields")
        found = inner
    found[last] = value


def parse_yaml(text: str) -> Any:
    """What YAML says: text, whole and finite numbers, true, false, null, lists and fields.

    Raises:
        PLNDError: if it is not YAML, says anything else (a date, say), has a key twice, more than `MAX_VALUES` values,
            or more than `MAX_DEPTH` of them inside one another.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        found = loader.construct_document(node)
    except RecursionError:
        raise PLNDError(f"values inside one another, more than {MAX_DEPTH} deep; expected settings") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # of dates and numbers that are none
        reason = " ".join(str(error).split())
        raise PLNDError(f"not YAML ({reason:.300})") from None
    _check_plain(found, "")
    return found


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node has, aliases repeated."""
    if depth > MAX_DEPTH:
        raise PLNDError(f"values inside one another, more than {MAX_DEPTH} deep; expected settings")
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # inside itself
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise PLNDError(f"line {key.start_mark.line + 1}: {key.value!r:.60} is there twice")
                seen.add(key.value)
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in inner)
    if known[id(node)] > MAX_VALUES:
        raise PLNDError(f"more than {MAX_VALUES:,} values, aliases repeated; expected settings")
    return known[id(node)]


def _check_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, name)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise PLNDError(f"{name}: a number of {len(str(abs(value)))} digits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise PLNDError(f"{name}: found {value}, expected a finite number")
    elif value is not None and not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise PLNDError(f"{name}: found {value!s:.60}, which YAML reads as {kind}; put it in quotation marks")
