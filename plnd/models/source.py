"""What a model's name stands for at the moment: another model may have been put into the same folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io.inputs import UNKNOWN, path_digest
from plnd.models.loading import load_config

ENDINGS = (".json", ".safetensors", ".bin", ".pt", ".gguf", ".model", ".txt", ".tiktoken", ".jinja", ".py")
"""Of the files that models, adapters and tokenizers are loaded from."""
NAMED = ("pretrained", "peft", "delta", "tokenizer")
"""Arguments of lm-eval's `hf` that name something to load."""


def source_digest(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> str:
    """SHA-256 of the files of a folder, at about a second for each gigabyte; of a hub name the commit.

    `UNKNOWN` if there is no such model, or the hub does not say.
    """
    if os.path.exists(name):
        return path_digest(name, ENDINGS)
    try:
        config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    except PLNDError:
        return UNKNOWN
    return config._commit_hash or UNKNOWN


def source_digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The same of all that arguments of lm-eval's `hf` name, by what they are: `pretrained` and, say, `peft`."""
    trust, revision = arguments.get("trust_remote_code", False), arguments.get("revision")
    return {
        name: source_digest(str(expand(arguments[name])), revision, trust_remote_code=trust)
        for name in NAMED
        if isinstance(arguments.get(name), str)
    }
