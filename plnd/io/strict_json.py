"""JSON of files that nobody vouches for: of a bounded size, each key once, and only what JSON has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from plnd.errors import PLNDError
from plnd.io.files import read_bounded

MAX_BYTES = 2**26
"""Of a file."""
MAX_ITEMS = 2**22
"""Values in one text: as objects in memory they take some hundred MB at most."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: str | Path, *, most: int = MAX_BYTES, finite: bool = True) -> dict[str, Any]:
    """What a file says that holds one object.

    Raises:
        PLNDError: if it cannot be read, has more than `most` bytes, or holds something else.
    """
    try:
        found = parse(read_bounded(path, most).removeprefix(b"\xef\xbb\xbf"), finite=finite)
    except ValueError as error:
        raise PLNDError(f"{path}: not JSON ({error!s:.80}); the file is damaged") from None
    if not isinstance(found, dict):
        raise PLNDError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def parse(text: str | bytes, *, finite: bool = True) -> Any:
    """What the text says.

    Args:
        text: UTF-8, where it is bytes.
        finite: whether to refuse NaN and Infinity, which JSON lacks and Python writes.

    Raises:
        ValueError: if it is no JSON, nested too deeply for Python, has a key twice in one object, a number that Python
            does not read, half a surrogate pair, or more than `MAX_ITEMS` values.
    """
    text = text.decode() if isinstance(text, bytes) else text
    if too_many(text):
        raise ValueError(f"more than {MAX_ITEMS} values")
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_unknown if finite else float)
        if _SURROGATE.search(text):  # as an escape, of which two may be a letter
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no text") from None
    return found


def too_many(text: str) -> bool:
    """Whether JSON may hold more than `MAX_ITEMS` values."""
    return len(text) > MAX_ITEMS and sum(map(text.count, ",[{")) > MAX_ITEMS


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.60} is there twice")
    return found


def _unknown(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
