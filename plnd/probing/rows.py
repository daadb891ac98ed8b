"""Rows outside the families table: as text to paste, as a file, and accepted for a model whose twin passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plnd.errors import FamilyError, PLNDError
from plnd.io.files import write_bytes
from plnd.io.strict_json import parse
from plnd.models.accepted import accept, listed
from plnd.models.families import Family, like_llama
from plnd.models.loading import load_config
from plnd.models.twin import text_config
from plnd.probing.probe import hold
from plnd.probing.twins import build_twin

_MOST = 2**20
"""Bytes of a row's file."""


def accept_family(
    family: Family | str | Path, model: Any, *, revision: str | None = None, trust_remote_code: bool = False
) -> Family:
    """Has plnd use a row that is not in its table for a model, in this process, if the model's own twin passes.

    The proof is run here: a tiny random twin of the model's configuration is held to brute force under the row. Where
    queries or keys are not exact, the row is accepted without them, and measuring them is refused. Artifacts say that
    the row was probed (`model.row`).

    Args:
        family: the row, or the file that `plnd probe --output` wrote.
        model: folder or hub name, of which the configuration alone is read; a configuration; or a loaded model.
        revision: hub branch, tag or commit.
        trust_remote_code: run the Python code that comes with the model. Nothing but this argument ever allows it.
    Returns:
        The row as it is used, with what of it is `exact`.

    Raises:
        FamilyError: if the table has a row for the model, no twin can be built, or the twin does not pass.
        PLNDError: if there is no such file or model, or the file is not a row.
    """
    row = family if isinstance(family, Family) else read_row(family)
    if isinstance(model, (str, Path)):
        config = load_config(str(model), revision=revision, trust_remote_code=trust_remote_code)
    else:
        config = getattr(model, "config", model)
    config = text_config(config)
    if config.model_type not in row.model_types:
        raise FamilyError(
            f"the row {row.name!r} is for model_type {' or '.join(row.model_types)}, but this model's is"
            f" {config.model_type!r}: run plnd probe on this one"
        )
    if listed(config.model_type):
        raise FamilyError(f"the families table has a row for {config.model_type!r} already: leave the probed one out")
    exact, problem = hold(build_twin(config, trust_remote_code=trust_remote_code), row)
    if problem:
        raise FamilyError(
            f"the row {row.name!r} does not pass on the twin of this {config.model_type!r} model: {problem}"
        )
    row = replace(row, exact=exact)
    accept(config, row)
    return row


def write_row(family: Family, path: str | Path) -> None:
    """Writes a row as JSON, for `accept_family` and `--family`."""
    write_bytes(family.as_json().encode() + b"\n", path)


def read_row(path: str | Path) -> Family:
    """A row that `write_row` wrote, every field checked.

    Raises:
        PLNDError: if there is no such file, or it is not a row.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST + 1)
    except OSError as error:
        raise PLNDError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if len(text) > _MOST:
            raise ValueError(f"more than {_MOST} bytes")
        found = parse(text)
        if not isinstance(found, dict) or "exact" in found:
            raise ValueError("not an object of a row's fields")
        family = TypeAdapter(Family).validate_python(found)
        if unknown := _unknown(found, family):
            raise ValueError(f"unknown field {unknown}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PLNDError(f"{path}: not a row of the families table ({where}: {first['msg']})") from None
    except ValueError as error:
        raise PLNDError(f"{path}: not a row of the families table ({error}): plnd probe --output writes one") from None
    return family


def _unknown(found: Any, value: Any) -> str | None:
    """The first key of the JSON that is no field of what was made of it."""
    if is_dataclass(value) and isinstance(found, Mapping):
        known = {field.name for field in fields(value)}
        for name, inner in found.items():
            if name not in known:
                return str(name)
            if deeper := _unknown(inner, getattr(value, name)):
                return deeper
    if isinstance(value, tuple) and isinstance(found, list):
        return next(filter(None, map(_unknown, found, value)), None)
    return None


def as_code(family: Family) -> str:
    """The row as one would paste it into `plnd/models/families.py`."""
    if len(family.stacks) == 1:
        llama_row = like_llama(family.name)
        stack, llama = family.stacks[0], llama_row.stacks[0]
        changed = _differences(stack, llama)
        if "blocks" not in changed and "attention" not in changed:
            row = f'like_llama("{family.name}"{_arguments(changed)})'
            about = _differences(family, replace(llama_row, stacks=family.stacks))
            return f"replace({row}{_arguments(about)})," if about else f"{row},"
    return f"{_code(family)},"


def _arguments(values: Mapping[str, str]) -> str:
    return "".join(f", {name}={text}" for name, text in values.items())


def _differences(one: Any, other: Any) -> dict[str, str]:
    """Fields in which two values of one type differ, as code."""
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return {name: _code(a) for name, a, b in pairs if a != b}


def _code(value: Any) -> str:
    """A value of the table as an expression, without fields that have their defaults."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))}{',' if len(value) == 1 else ''})"
    if not is_dataclass(value):
        return _quoted(value)
    shown = []
    for field in fields(value):
        own = getattr(value, field.name)
        if own != field.default and not (field.name == "requires" and not own):
            shown.append(f"{field.name}={_code(own)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _quoted(value: Any) -> str:
    return '"' + value + '"' if isinstance(value, str) else repr(value)
