"""JSON of files that nobody vouches for: of a bounded size, each key once, and only what JSON has."""

from __future__ import annotations

import json
from typing import Any

MAX_ITEMS = 2**22
"""Values in one text: as objects in memory they take some hundred MB at most."""


def parse(text: str | bytes, *, items: int = MAX_ITEMS) -> Any:
    """What the text says.

    Raises:
        ValueError: if it is no JSON, nested too deeply for Python, has a key twice in one object, a number that JSON
            lacks or Python does not read, or more than `items` values.
    """
    text = text.decode() if isinstance(text, bytes) else text
    if sum(map(text.count, ",[{")) > items:
        raise ValueError(f"more than {items} values")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_unknown)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.60} is there twice")
    return found


def _unknown(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
