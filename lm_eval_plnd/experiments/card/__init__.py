"""A model card of one setting of an experiment."""
