"""plnd: find, switch off and tune the neurons of a language model that serve one language.

The public names below are loaded when they are first used, so that importing `plnd` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DetectConfig": "detection",
    "detect": "detection",
    "Scores": "scores",
    "NeuronSet": "neurons",
    "Processes": "processes",
    "Regions": "regions",
    "deactivate": "deactivation",
    "deactivated": "deactivation",
    "export": "checkpoint",
    "convert": "legacy",
    "Parallel": "parallel",
    "Roles": "roles",
    "deactivated_rows": "by_example",
    "find_roles": "roles",
    "read_parallel": "parallel",
    "lape": "entropy",
    "lens": "logit_lens",
    "overlap": "analysis",
    "read_documents": "corpus",
    "load_model": "models",
    "PLNDError": "errors",
}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from plnd.analysis import overlap as overlap
    from plnd.by_example import deactivated_rows as deactivated_rows
    from plnd.checkpoint import export as export
    from plnd.corpus import read_documents as read_documents
    from plnd.deactivation import deactivate as deactivate
    from plnd.deactivation import deactivated as deactivated
    from plnd.detection import DetectConfig as DetectConfig
    from plnd.detection import detect as detect
    from plnd.entropy import lape as lape
    from plnd.errors import PLNDError as PLNDError
    from plnd.legacy import convert as convert
    from plnd.logit_lens import lens as lens
    from plnd.models import load_model as load_model
    from plnd.neurons import NeuronSet as NeuronSet
    from plnd.parallel import Parallel as Parallel
    from plnd.parallel import read_parallel as read_parallel
    from plnd.processes import Processes as Processes
    from plnd.regions import Regions as Regions
    from plnd.roles import Roles as Roles
    from plnd.roles import find_roles as find_roles
    from plnd.scores import Scores as Scores


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plnd' has no attribute {name!r}")
    return getattr(import_module(f"plnd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
