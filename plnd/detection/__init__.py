"""From a corpus to scores: one forward pass, three numbers per neuron."""
