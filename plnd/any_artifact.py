"""Reading an artifact of whichever kind; the only module that knows all kinds."""

from __future__ import annotations

from pathlib import Path

from plnd.io.artifact import opened
from plnd.io.metadata import DIRECTION, MEANS, NEURONS, ROLES, ROUTING, SCORES
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from plnd.references.direction import Direction
from plnd.references.means import Means
from plnd.references.routing import Routing
from plnd.roles.roles import Roles

Artifact = Scores | NeuronSet | Roles | Means | Direction | Routing

_KINDS: dict[str, type[Artifact]] = {
    SCORES: Scores,
    NEURONS: NeuronSet,
    ROLES: Roles,
    MEANS: Means,
    DIRECTION: Direction,
    ROUTING: Routing,
}


def load(path: str | Path) -> Artifact:
    """Reads any artifact, whichever the file says it is: `plnd.load("zh.safetensors")`.

    Args:
        path: a file, or one of the hub's, `hf://user/repo/zh.safetensors@revision`.

    Returns:
        `Scores` of `plnd detect`, a `NeuronSet` of `plnd select`, `combine` or `convert`, `Roles` of `plnd roles`,
        `Means` or a `Direction` of `plnd reference`, or `Routing` of `plnd routing`.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do; also of a part of scores, which
            `plnd merge` makes scores of.
    """
    with opened(path) as stream:
        form = stream.metadata.get("format")
        return (_KINDS[form] if isinstance(form, str) and form in _KINDS else NeuronSet).of_file(stream)
