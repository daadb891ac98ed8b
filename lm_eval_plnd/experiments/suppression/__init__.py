"""The smallest set of neurons, or the mildest damping, that stops a model's answers in one language."""
