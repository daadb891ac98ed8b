"""What goes wrong with a config, or with neurons that do not fit the model."""

from __future__ import annotations

from plnd.errors import PLNDError


class NeuronSelectError(PLNDError, ValueError):
    """A config, or neurons, that do not fit the model; a `ValueError`, which is what PEFT's callers expect."""
