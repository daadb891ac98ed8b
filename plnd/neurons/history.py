"""How a set of neurons came about, in words: the rule, what it was compared with, and the set algebra after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plnd.io.metadata import NeuronsMetadata

_NUMBERS = ("unit", "pool", "top_k", "count", "share", "error_rate", "top_rate", "fraction")


def rule_in_words(metadata: NeuronsMetadata) -> str:
    """The rule of a neurons artifact and the set algebra after it, in words; numbers to six digits."""
    rule = metadata.rule
    numbers = {name: rule.get(name) for name in _NUMBERS}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    words = [_words([rule.name, rule.get("value"), *([numbers] if numbers else [])])]
    for name in ("with", "against"):
        languages = [other["language"] for other in _records(rule.get(name)) if other.get("language")]
        words += [f"{name} {_words(languages, ', ')}"] if languages else []
    words += [f"of {_words(rule['projections'], ', ')}"] if rule.get("projections") else []
    for operand in metadata.operands:
        details = [operand.get(name) for name in ("language", "regions", "projections")]
        words.append(_words([operand.operation.replace("_", " "), *details]))
    if metadata.control:
        words.append(_words(metadata.control))
    return ", ".join(words)


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [record for record in value if isinstance(record, Mapping)] if isinstance(value, list) else []


def _words(value: Any, between: str = " ") -> str:
    """A value of an artifact's metadata, whatever it is, without quotes and brackets."""
    if isinstance(value, list):
        return between.join(_words(inner) for inner in value if inner not in (None, [], ""))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_words(inner, '+')}" for key, inner in value.items() if inner is not None)
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def plain(value: Any) -> str:
    """A value as text: strings as they are, all others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
