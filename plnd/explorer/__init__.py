"""A whole model's neurons as one page to explore: a map of blocks and projections, and every neuron's importance."""
