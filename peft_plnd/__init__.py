"""Neuron-select tuning: train only the detected rows and columns of a model, as a PEFT method.

`import peft_plnd` registers the method; after that every part of PEFT, transformers and lm-evaluation-harness that
loads adapters loads these too.
"""

from peft_plnd.config import NeuronSelectConfig
from peft_plnd.conversion import save_as_lora, to_lora
from peft_plnd.model import NeuronSelectModel
from peft_plnd.rates import importance_rates, scale_rates
from peft_plnd.registration import register
from peft_plnd.tuner.layer import NeuronSelectLinear
from peft_plnd.warm_start import warm_start

__all__ = [
    "NeuronSelectConfig",
    "NeuronSelectLinear",
    "NeuronSelectModel",
    "importance_rates",
    "register",
    "save_as_lora",
    "scale_rates",
    "to_lora",
    "warm_start",
]

register()
