"""Registers the method with PEFT."""

from __future__ import annotations

import importlib.metadata

from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.model import NeuronSelectModel
from peft_plnd.peft_type import NAME, add_peft_type

MINIMUM_PEFT = "0.21"


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
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type(NAME)) is not NeuronSelectConfig:
        register_peft_method(
            name=NAME.lower(),
            config_cls=NeuronSelectConfig,
            model_cls=NeuronSelectModel,
            prefix=NeuronSelectModel.prefix,
        )
