"""What an artifact says of its model (name, revision, type, blocks, widths), where it is, and whether two agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from plnd.errors import ModelMismatchError, PLNDError


def check_model(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Compares two model descriptions by family, number of blocks and widths.

    Raises:
        ModelMismatchError: naming the first difference.
    """

    def short(model: Mapping[str, Any]) -> str:
        return f"{model['model_type']} with {model['blocks']} blocks ({model['name']})"

    advice = "detect again on this model, or use the model that they were made for"
    if (found["model_type"], found["blocks"]) != (expected["model_type"], expected["blocks"]):
        raise ModelMismatchError(f"{what}: made for {short(found)}, but the model is {short(expected)}: {advice}")
    for name in sorted(found["widths"].keys() | expected["widths"].keys()):
        a, b = found["widths"].get(name), expected["widths"].get(name)
        if a != b:
            found_here = f"whose {name} has {a or 'no'} neurons, but this one's has {b or 'no'}"
            raise ModelMismatchError(f"{what}: made for a model {found_here}: {advice}")


def base_model(description: Mapping[str, Any], what: str, remedy: str) -> tuple[str, str | None]:
    """Name and revision under which to load the model that an artifact was made for.

    A folder's name is never taken for a hub name, nor a hub name for that of a folder that happens to lie here:
    artifacts mark the hub's (`hub`). In those of before, a revision tells them.

    Args:
        description: the artifact's `model`.
        what: names the artifact in errors.
        remedy: what to do where the model cannot be had, such as "give --model".

    Raises:
        PLNDError: if the artifact names no model, or a folder that is not here.
    """
    name, revision = description["name"], description["revision"]
    if name is None:
        raise PLNDError(f"{what}: does not name the model that it was made for: {remedy}")
    here = os.path.isdir(name)
    if description.get("hub", revision is not None):
        if here:
            raise PLNDError(
                f"{what}: made for the hub's model {name}, but there is a folder of that name here, which would be"
                f" loaded instead: {remedy}"
            )
    elif not here:
        seen = "" if os.path.isabs(name) else f" (seen from {os.getcwd()})"
        raise PLNDError(f"{what}: made for the model in the folder {name}, which is not there{seen}: {remedy}")
    return name, revision


def is_hub_name(name: str) -> bool:
    """Whether a model's name can only be the hub's: no folder is there, and none is meant."""
    path = os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    return not path and not os.path.isdir(name)
