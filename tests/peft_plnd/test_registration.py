"""The one file that touches PEFT's tables, on the installed PEFT."""

from __future__ import annotations

import copy
import importlib.metadata
import pickle

import peft
import pytest
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from peft_plnd import NeuronSelectConfig, NeuronSelectModel, register, registration


def test_the_installed_peft_is_a_supported_one():
    """The tests below speak of PEFT 0.21 and newer."""
    assert Version(importlib.metadata.version("peft")) >= Version(registration.MINIMUM_PEFT)


def test_the_member_is_like_every_other():
    """By name, value, attribute, call, iteration, membership, equality with its string, hash, copy and pickle."""
    member, other = PeftType.NEURON_SELECT, PeftType.LORA
    assert type(member) is type(other) and isinstance(member, str)
    assert member is PeftType["NEURON_SELECT"] is PeftType("NEURON_SELECT")
    assert (member.name, member.value) == ("NEURON_SELECT", "NEURON_SELECT") and member == "NEURON_SELECT"
    assert member in PeftType and member in list(PeftType) and member != other
    assert len(list(PeftType)) == len(PeftType.__members__) == len({*PeftType})
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert repr(member) == "<PeftType.NEURON_SELECT: 'NEURON_SELECT'>" and str(member) == "PeftType.NEURON_SELECT"
    assert {member: 1}[PeftType("NEURON_SELECT")] == 1


def test_other_members_are_untouched():
    """PEFT's own members are found as before, and no further name is."""
    assert PeftType("LORA") is PeftType.LORA and PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is peft.LoraConfig
    with pytest.raises(ValueError):
        PeftType("NEURON_SELECT_TOO")


def test_peft_has_the_config_the_tuner_and_the_prefix():
    """In the tables that `from_pretrained` and `load_adapter` read."""
    member = PeftType.NEURON_SELECT
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is NeuronSelectConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is NeuronSelectModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == NeuronSelectModel.prefix == "neuron_select_"


def test_registering_twice_is_registering_once():
    """A second call changes nothing."""
    before = dict(PEFT_TYPE_TO_CONFIG_MAPPING), list(PeftType)
    register()
    assert (dict(PEFT_TYPE_TO_CONFIG_MAPPING), list(PeftType)) == before


def test_an_older_peft_is_refused(monkeypatch):
    """With both versions and what to do."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.20.0")
    with pytest.raises(
        ImportError, match=r"peft 0\.20\.0 is installed, but peft_plnd needs 0\.21 or newer: pip install"
    ):
        register()
