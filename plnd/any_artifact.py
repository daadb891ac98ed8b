"""Reading an artifact of whichever kind; the only module that knows all kinds."""

from __future__ import annotations

from pathlib import Path

from plnd.io.artifact import opened
from plnd.io.metadata import NEURONS, ROLES, SCORES
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from plnd.roles.roles import Roles

_KINDS: dict[str, type[Scores] | type[NeuronSet] | type[Roles]] = {
    SCORES: Scores,
    NEURONS: NeuronSet,
    ROLES: Roles,
}


def load(path: str | Path) -> Scores | NeuronSet | Roles:
    """Reads any artifact, whichever the file says it is: `plnd.load("zh.safetensors")`.

    Returns:
        `Scores` of `plnd detect`, a `NeuronSet` of `plnd select`, `combine` or `convert`, or `Roles` of `plnd roles`.

    Raises:
        ArtifactError: one line that says what is wrong with the file, and what to do; also of a part of scores, which
            `plnd merge` makes scores of.
    """
    with opened(Path(path)) as stream:
        form = stream.metadata.get("format")
        return (_KINDS[form] if isinstance(form, str) and form in _KINDS else NeuronSet).of_file(stream)
