"""What the numbers in a folder depend on, by content, written down: a run that goes on with other things is refused."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.files import file_digest, write_bytes

INPUTS = "inputs.json"
"""Name of the file, in the folders that have no other one for it."""
UNKNOWN = "unknown"
"""The content of what is not there, or does not say."""
CHECKSUM = "sha256"


def check_inputs(path: Path, found: Mapping[str, Any], what: str, *, begun: bool = False) -> None:
    """Writes down what the numbers beside a file depend on; where it is written down already, refuses what differs.

    Args:
        path: the file.
        found: what the numbers depend on, which JSON can say; what is `UNKNOWN` now, or was, is not compared.
        what: the folder holds, for people: `experiment`.
        begun: whether there are numbers already: of what, an earlier plnd did not write down, and that is told.

    Raises:
        PLNDError: if something differs, naming it; if the file is damaged.
    """
    found = json.loads(json.dumps(found))
    if path.exists():
        here = strict_json.read(path)
        for name in sorted(here.keys() | found.keys()):
            before, now = here.get(name), found.get(name)
            if before != now and UNKNOWN not in (before, now):
                known = name if name in found or name.isidentifier() else f"{name!r:.60}"  # a file may say anything
                raise PLNDError(
                    f"{path.parent}: holds another {what}, whose {known} is {before!r:.60} and not {now!r:.60}; choose"
                    " another folder with --output"
                )
        found = {name: here[name] if value == UNKNOWN else value for name, value in found.items()}
    elif begun:
        names = ", ".join(found)
        warnings.warn(f"{path.parent}: begun by an earlier plnd, so that changes of {names} go unseen", stacklevel=3)
    write_bytes((json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode(), path)


def digest_of(value: Any) -> str:
    """SHA-256 of what JSON says of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def path_digest(path: str | Path, endings: Iterable[str] | None = None) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder; `UNKNOWN` if neither is there.

    Args:
        path: file or folder.
        endings: of the files directly in the folder that count; by default all below it do.
    """
    path = Path(path)
    if not path.is_dir():
        return file_digest(path) if path.exists() else UNKNOWN
    files = path.rglob("*") if endings is None else (file for file in path.iterdir() if file.name.endswith((*endings,)))
    return digest_of(sorted((os.fspath(file.relative_to(path)), file_digest(file)) for file in files if file.is_file()))


def sealed(value: Mapping[str, Any]) -> str:
    """One line of JSON with a checksum, which `unsealed` checks."""
    return json.dumps({**value, CHECKSUM: digest_of(value)}, ensure_ascii=False) + "\n"


def unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """What `sealed` was given; what has no checksum, of an earlier plnd, as it is.

    Raises:
        ValueError: if the checksum is of something else.
    """
    value = {name: each for name, each in found.items() if name != CHECKSUM}
    if CHECKSUM in found and found[CHECKSUM] != digest_of(value):
        raise ValueError("the checksum is of something else")
    return value
