"""What belongs into no file that others read: passwords and tokens, and where things lie on somebody's machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
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


def portable(value: Any) -> Any:
    """A file or folder of this machine by its last name; anything else, such as a hub name, as it is."""
    local = isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
    return Path(value).name or value if local else value


def published(source: str) -> str:
    """Where documents come from, `zh.jsonl, user/corpus`, without secrets and without folders of this machine."""
    return ", ".join(portable(part) for part in without_secrets(source).split(", "))


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
