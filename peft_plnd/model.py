"""The tuner with plnd's words: masks, projections and regions of the models in the families table."""

from __future__ import annotations

from torch import nn

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.selection import find_layout, from_fraction, from_mask
from peft_plnd.tuner.model import RowColumnModel
from peft_plnd.tuner.selection import Indices


class NeuronSelectModel(RowColumnModel):
    """A model of which only some rows and columns of its projections are trained.

    Made by `get_peft_model(model, NeuronSelectConfig(…))`. The config that the model keeps, `model.peft_config[name]`,
    says in `indices` what was chosen.

    Args:
        model: the model to adapt.
        config: what to tune.
        adapter_name: by default `default`.

    Raises:
        PLNDError: if the neurons do not fit the model; the model is then as it was.
    """

    def _chosen(self, config: NeuronSelectConfig, model: nn.Module) -> Indices:  # type: ignore[override]
        if config.mask is None:
            return super()._chosen(config, model)
        indices, config.source = from_mask(config, model)
        return indices

    def _drawn(self, config: NeuronSelectConfig, model: nn.Module) -> Indices:  # type: ignore[override]
        """Rows or columns, whichever a projection has, of all projections of the families table, or of the targets."""
        known = config.target_modules is None and find_layout(model) is not None
        return from_fraction(config, model, None if known else self._matched(config, model))
