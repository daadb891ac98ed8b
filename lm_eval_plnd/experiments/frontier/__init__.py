"""The frontier experiment: what each way to train a model gains in one language, and what it costs the others."""
