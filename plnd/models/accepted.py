"""Rows outside the families table, and the models they hold for: those whose twin was held to brute force.

What is here was put here in this process, after the proof (`plnd.accept_family`); nothing is taken on a file's word.
"""

from __future__ import annotations

from typing import Any

from plnd.model_description import TEXT_TWINS
from plnd.models.families import FAMILIES, Family
from plnd.models.twin import fingerprint

_ACCEPTED: dict[str, Family] = {}


def accept(config: Any, family: Family) -> None:
    """Has models of a configuration that differs from this one in sizes alone be bound by `family`, until the end."""
    _ACCEPTED[fingerprint(config)] = family


def accepted(config: Any) -> Family | None:
    """The row that holds for models of this configuration, if one was accepted."""
    return _ACCEPTED.get(fingerprint(config)) if _ACCEPTED else None


def forget() -> None:
    """No row is accepted any more."""
    _ACCEPTED.clear()


def fills_in(config: Any) -> bool:
    """Whether a model of this configuration fills in masked tokens, and predicts no next ones."""
    return any(row.masked for row in listed(config.model_type)) and not getattr(config, "is_decoder", False)


def listed(model_type: str) -> list[Family]:
    """The table's rows for a model type; a language model inside what sees or hears has those of its text-only twin."""
    model_type = TEXT_TWINS.get(model_type, model_type)
    return [family for family in FAMILIES.values() if model_type in family.model_types]
