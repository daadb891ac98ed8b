"""From a corpus to scores: one forward pass, five numbers per neuron."""
