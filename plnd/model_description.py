"""What an artifact says of its model (name, revision, type, blocks, widths), where it is, and whether two agree.

`Record` is what all parts of an artifact's metadata are; `plnd.io.metadata` has the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from plnd.errors import ModelMismatchError, PLNDError

Count = Annotated[int, Field(ge=0)]

TEXT_TWINS = {
    "glm4v_moe_text": "glm4_moe",
    "glm4v_text": "glm4",
    "glm_ocr_text": "glm4",
    "granite4_vision_text": "granite",
    "granite_docling_text": "granite",
    "hunyuan_vl_text": "hunyuan_v1_dense",
    "paddleocr_vl_text": "llama",
    "qwen2_5_omni_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""Types of language models inside those that also see or hear, and of the text-only models that compute the same."""

# What a field should have been, by pydantic's name of the mistake.
_EXPECTED = {
    "string_type": "str",
    "int_type": "int",
    "greater_than_equal": "int, 0 or more",
    "is_instance_of": "float",
    "bool_type": "bool",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


class Record(BaseModel, Mapping[str, Any]):
    """Fields of an artifact's metadata: typed, checked, and not to be changed.

    It is also a mapping, of those fields that are there, in the order in which they are written. A field that may be
    missing reads as its default, and is still missing when it is written; fields that plnd does not know are kept.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """This record from a mapping; itself, if it is one already.

        Raises:
            PLNDError: naming the first field that is missing or has another type.
        """
        if type(found) is cls:
            return found
        try:
            return cls.model_validate(dict(found))
        except ValidationError as error:
            raise PLNDError(_problem(error)) from None

    def replaced(self, **fields: Any) -> Self:
        """The same with other fields, checked again."""
        return self.of({**self, **fields})

    def _present(self) -> dict[str, Any]:
        return dict(sorted(pair for pair in super().__iter__() if pair[0] in self.model_fields_set))

    def __getitem__(self, name: str) -> Any:
        return self._present()[name]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # pydantic's gives pairs
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    __eq__ = Mapping.__eq__


class ModelDescription(Record):
    """What an artifact says of its base model.

    Attributes:
        name: folder or hub name.
        hub: whether that is the hub's; None if the artifact does not say.
        revision: commit on the hub.
        model_type: as in its configuration.
        blocks: how many it has.
        widths: number of neurons by address.
        units: by address, how many experts or heads its neurons lie in, one after the other and equally many in each;
            not of projections that have none, nor in artifacts of before.
        row: of a model outside the families table, the row that was probed: its name, digest, and what of it was exact.
    """

    name: str | None
    hub: bool | None = None
    revision: str | None
    model_type: str
    blocks: Count
    widths: dict[str, Count]
    units: dict[str, Count] = {}
    row: dict[str, Any] | None = None

    @property
    def text_type(self) -> str:
        """The type of the text-only model that computes the same."""
        return TEXT_TWINS.get(self.model_type, self.model_type)

    def __repr__(self) -> str:
        return f"ModelDescription({self}, revision={self.revision!r}, {sum(self.widths.values()):,} neurons)"

    def __str__(self) -> str:
        return f"{self.model_type} with {self.blocks} blocks ({self.name})"


def check_model(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Compares two model descriptions by family, number of blocks and widths.

    The language model inside one that also sees or hears and its text-only twin are of one family.

    Raises:
        ModelMismatchError: naming the first difference.
    """
    one, other = ModelDescription.of(found), ModelDescription.of(expected)
    advice = "detect again on this model, or use the model that they were made for"
    if (one.text_type, one.blocks) != (other.text_type, other.blocks):
        raise ModelMismatchError(f"{what}: made for {one}, but the model is {other}: {advice}")
    for name in sorted(one.widths.keys() | other.widths.keys()):
        a, b = one.widths.get(name), other.widths.get(name)
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


def _problem(error: ValidationError) -> str:
    """The first mistake in one line: which field, what was found, what was expected."""
    first = error.errors(include_url=False)[0]
    names = [name for name in first["loc"] if isinstance(name, str)]
    where = "".join(f".{name}" if name.isidentifier() else f"[{name!r:.40}]" for name in names).removeprefix(".")
    if first["type"] == "missing":
        return f"field {where} is missing"
    return f"field {where} is {first['input']!r:.60}, expected {_EXPECTED.get(first['type'], first['msg'])}"
