"""The arena: detectors compared on the same documents at the same number of neurons."""
