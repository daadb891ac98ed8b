"""Passwords and tokens, which belong into no file: found in what people hand over, and left out of what is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAMES = (
    "token",
    "hf_token",
    "hub_token",
    "auth_token",
    "access_token",
    "use_auth_token",
    "api_key",
    "password",
    "secret",
)
"""Fields whose value is a secret."""

_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # name and password of an address
    re.compile(rf"\b(?:{'|'.join(NAMES)})=[^&,;'\"\s]+"),
)


def without_secrets(text: str) -> str:
    """The text with `***` for each secret that can be told by its form."""
    for secret in _SECRETS:
        text = secret.sub("***", text)
    return text


def secret_in(value: Any, name: str = "") -> str | None:
    """The dotted name of the first secret in nested fields; None if there is none."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            where = f"{name}.{key}".removeprefix(".")
            if str(key) in NAMES and isinstance(inner, str) and inner:
                return where
            if (found := secret_in(inner, where)) is not None:
                return found
        return None
    if isinstance(value, list | tuple):
        return next((found for inner in value if (found := secret_in(inner, name)) is not None), None)
    return name if isinstance(value, str) and without_secrets(value) != value else None
