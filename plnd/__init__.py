"""plnd: find, deactivate (ablate) and tune the neurons of a language model that serve one language.

The public names below are loaded when they are first used, so that importing `plnd` costs nothing. No module or room
directly in `plnd` may bear the name of one of them: importing it would put the module in the name's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plnd.version import __version__ as __version__

_HOMES = {
    "DetectConfig": "detection.config",
    "detect": "detection.run",
    "detect_shard": "detection.run",
    "merge": "detection.part",
    "Scores": "neurons.scores",
    "NeuronSet": "neurons.neuron_set",
    "Processes": "detection.processes",
    "Regions": "neurons.regions",
    "arena": "comparison.run",
    "ArenaConfig": "comparison.config",
    "intervened": "interventions",
    "steered": "interventions",
    "reference": "references.run",
    "ReferenceConfig": "references.config",
    "Routing": "references.routing",
    "routing": "references.routing_run",
    "Means": "references.means",
    "Direction": "references.direction",
    "deactivate": "deactivation",
    "deactivated": "deactivation",
    "export": "exchange.export",
    "contrast": "neurons.contrast",
    "stability": "neurons.stability",
    "select_units": "neurons.unit_selection",
    "convert": "exchange.convert",
    "Parallel": "roles.parallel",
    "Roles": "roles.roles",
    "deactivated_rows": "roles.deactivation",
    "find_roles": "roles.roles",
    "inspect_neurons": "inspection.run",
    "InspectConfig": "inspection.config",
    "read_parallel": "roles.parallel",
    "lape": "neurons.lape",
    "lens": "logit_lens.lens",
    "load": "any_artifact",
    "overlap": "neurons.overlap",
    "read_documents": "io.corpus",
    "blockwise_model": "models.blockwise",
    "load_model": "models.loading",
    "probe": "probing.probe",
    "accept_family": "probing.rows",
    "push": "exchange.push",
    "PLNDError": "errors",
}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from plnd.any_artifact import load as load
    from plnd.comparison.config import ArenaConfig as ArenaConfig
    from plnd.comparison.run import arena as arena
    from plnd.deactivation import deactivate as deactivate
    from plnd.deactivation import deactivated as deactivated
    from plnd.detection.config import DetectConfig as DetectConfig
    from plnd.detection.part import merge as merge
    from plnd.detection.processes import Processes as Processes
    from plnd.detection.run import detect as detect
    from plnd.detection.run import detect_shard as detect_shard
    from plnd.errors import PLNDError as PLNDError
    from plnd.exchange.convert import convert as convert
    from plnd.exchange.export import export as export
    from plnd.exchange.push import push as push
    from plnd.inspection.config import InspectConfig as InspectConfig
    from plnd.inspection.run import inspect_neurons as inspect_neurons
    from plnd.interventions import intervened as intervened
    from plnd.interventions import steered as steered
    from plnd.io.corpus import read_documents as read_documents
    from plnd.logit_lens.lens import lens as lens
    from plnd.models.blockwise import blockwise_model as blockwise_model
    from plnd.models.loading import load_model as load_model
    from plnd.neurons.contrast import contrast as contrast
    from plnd.neurons.lape import lape as lape
    from plnd.neurons.neuron_set import NeuronSet as NeuronSet
    from plnd.neurons.overlap import overlap as overlap
    from plnd.neurons.regions import Regions as Regions
    from plnd.neurons.scores import Scores as Scores
    from plnd.neurons.stability import stability as stability
    from plnd.neurons.unit_selection import select_units as select_units
    from plnd.probing.probe import probe as probe
    from plnd.probing.rows import accept_family as accept_family
    from plnd.references.config import ReferenceConfig as ReferenceConfig
    from plnd.references.direction import Direction as Direction
    from plnd.references.means import Means as Means
    from plnd.references.routing import Routing as Routing
    from plnd.references.routing_run import routing as routing
    from plnd.references.run import reference as reference
    from plnd.roles.deactivation import deactivated_rows as deactivated_rows
    from plnd.roles.parallel import Parallel as Parallel
    from plnd.roles.parallel import read_parallel as read_parallel
    from plnd.roles.roles import Roles as Roles
    from plnd.roles.roles import find_roles as find_roles


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plnd' has no attribute {name!r}")
    return getattr(import_module(f"plnd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
