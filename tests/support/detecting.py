"""What the tests of detection share: documents, settings, what is selected, runs that are interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.neurons.scores import Scores

BAD = 96
"""A token whose embedding some tests make infinite."""


LENGTHS = (9, 4, 12, 7, 9, 5, 10)


CONFIG = DetectConfig(language="xx", min_length=4, batch_size=3, qk="exact")


def some_documents(lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    """Random token ids from 3 to 95: neither special tokens nor the last one, `BAD`, are among them."""
    generator = np.random.default_rng(seed)
    return [generator.integers(3, BAD, length).tolist() for length in lengths]


def selected(scores: Scores) -> list:
    """What several rules select."""
    rules = [{"top_k": 3}, {"fraction": 0.2}, {"epsilon": float(np.median(scores.minimum["0.up_proj"]))}]
    return [scores.select(**rule) for rule in rules]


MANY = some_documents([4 + n % 7 for n in range(10)], seed=1)


SMALL = replace(CONFIG, batch_size=1, qk="off")


class Stopped(Exception):
    """What ends a run in the middle."""


def interrupted(documents, after: int) -> Iterator:
    """The documents, which end in an error before number `after`."""
    yield from documents[:after]
    raise Stopped


def leave_a_checkpoint(model, path, documents=MANY, after: int = 9, config=SMALL) -> None:
    """Detection that is interrupted."""
    with pytest.raises(Stopped):
        detect(model, interrupted(documents, after), config, checkpoint=path)
