"""The one place that touches PEFT's tables.

PEFT finds a method by a member of its `PeftType` enum, and `register_peft_method` refuses every name that is not one.
Python offers no way to extend an enum, and a bare string does not do: transformers and PEFT read `peft_type.value`. So
`register` adds a real member, the way the enum machinery itself would have, and leaves the rest to PEFT.
"""

from __future__ import annotations

import importlib.metadata

from packaging.version import Version
from peft.utils import PeftType, register_peft_method

NAME = "NEURON_SELECT"
MINIMUM_PEFT = "0.21"


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


def register() -> None:
    """Makes PEFT know the method: its config, its tuner and its prefix. Does nothing the second time.

    Raises:
        ImportError: if the installed PEFT is older than `MINIMUM_PEFT`.
    """
    installed = importlib.metadata.version("peft")
    if Version(installed) < Version(MINIMUM_PEFT):
        raise ImportError(
            f"peft {installed} is installed, but peft_plnd needs {MINIMUM_PEFT} or newer: pip install -U peft"
        )
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from peft_plnd.config import NeuronSelectConfig
    from peft_plnd.model import NeuronSelectModel

    if PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type(NAME)) is not NeuronSelectConfig:
        register_peft_method(
            name=NAME.lower(),
            config_cls=NeuronSelectConfig,
            model_cls=NeuronSelectModel,
            prefix=NeuronSelectModel.prefix,
        )
