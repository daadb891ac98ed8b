"""The method's member of PEFT's `PeftType` enum.

PEFT finds a method by a member of that enum, and `register_peft_method` refuses every name that is not one. Python
offers no way to extend an enum, and a bare string does not do: transformers and PEFT read `peft_type.value`. So
`add_peft_type` adds a real member, the way the enum machinery itself would have.
"""

from __future__ import annotations

from peft.utils import PeftType

NAME = "NEURON_SELECT"


def add_peft_type(name: str) -> PeftType:
    """The member `name` of `PeftType`, which is added if it is not there; its value is its name, as PEFT has it."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    type.__setattr__(PeftType, name, member)  # before the tables: from then on EnumType refuses it
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member
