"""One page that tells of an experiment."""
