"""What an artifact says of its model (name, revision, type, blocks, widths), and whether two say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plnd.errors import ModelMismatchError


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
