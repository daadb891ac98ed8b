"""Warm starts: training that goes on, with more neurons, from what an adapter has learnt."""

from __future__ import annotations

from peft import PeftModel

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.model import NeuronSelectModel
from peft_plnd.tuner.errors import NeuronSelectError

_FURTHER = "further"


def warm_start(model: PeftModel, config: NeuronSelectConfig, start: str = "default", name: str = "warm") -> None:
    """Adds an adapter that has the neurons of another one and further ones, and starts at what that one changes.

    The model answers as it did with the adapter `start`; training goes on from there. That one can be a smaller set of
    the same language, or another language's: whatever it changes is kept, and trained further. The new adapter is the
    active one, and the only one that is trained; `start` stays as it was.

    Args:
        model: a PEFT model that has the adapter, trained here or loaded (`PeftModel.from_pretrained`).
        config: the further neurons, as for `get_peft_model`; those that `start` has too are there once.
        start: the adapter to go on from.
        name: of the new adapter.

    Raises:
        PLNDError: if there is no neuron-select adapter `start`, there is one called `name`, one of the two trains
            modules in full or biases in place, which no sum of adapters can take over, or the neurons do not fit the
            model; the model is then as it was.
    """
    before = model.peft_config.get(start)
    if not isinstance(before, NeuronSelectConfig):
        raise NeuronSelectError(f"the model has no neuron-select adapter {start!r} to start from")
    if taken := [one for one in (name, _FURTHER) if one in model.peft_config]:
        raise NeuronSelectError(f"the model has an adapter {taken[0]!r} already: give name= another one")
    for one in (before, config):
        if one.modules_to_save or one.bias not in ("none", "selected"):
            raise NeuronSelectError(
                "a warm start adds rows, columns and their biases: no modules_to_save=, no bias='all'"
            )
    model.add_adapter(_FURTHER, config)
    try:
        tuner: NeuronSelectModel = model.base_model  # type: ignore[assignment]
        tuner.add_weighted_adapter([start, _FURTHER], [1.0, 1.0], name)
    finally:
        model.delete_adapter(_FURTHER)
    model.set_adapter(name)
