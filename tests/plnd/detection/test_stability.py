"""Stability of the selected set: each step is detection on the documents so far; the suggestion, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from handmade import make_neurons
from plnd import DetectConfig, detect
from plnd.detection.stability import Stability, measure_stability
from plnd.errors import CorpusError, PLNDError
from tiny import tiny_model

CONFIG = DetectConfig(min_length=4, max_length=12, batch_size=1)


def documents(count: int = 11) -> list[list[int]]:
    """Random tokens; the third document is too short."""
    generator = np.random.default_rng(0)
    found = [generator.integers(3, 97, generator.integers(5, 14)).tolist() for _ in range(count)]
    return [*found[:2], [5, 6], *found[2:]]


@pytest.mark.parametrize("rule", [{"top_k": 9}, {"fraction": 0.2}, {"epsilon": 0.5, "projections": ["down_proj"]}])
def test_each_step_is_detection_on_the_documents_so_far(rule):
    """Bit for bit, where documents come one by one; the short one is no document; the last step has what is left."""
    model = tiny_model("llama")
    found = measure_stability(model, (ids for ids in documents()), CONFIG, every=4, **rule)
    assert found.documents.tolist() == [4, 8, 11]
    for count, neurons in zip(found.documents, found.sets, strict=True):
        whole = DetectConfig(min_length=4, max_length=12, batch_size=1, max_documents=int(count))
        assert neurons == detect(model, documents(), whole).select(**rule)
    assert len(found.sets[0]) and (found.neurons == [len(neurons) for neurons in found.sets]).all()


def test_batches_do_not_matter():
    """With documents padded together the sets are the same too."""
    model = tiny_model("gemma3_text", torch.float32)
    alone = measure_stability(model, documents(), CONFIG, every=3, top_k=9)
    config = DetectConfig(min_length=4, max_length=12, batch_size=5)
    assert measure_stability(model, documents(), config, every=3, top_k=9).sets == alone.sets


def test_it_costs_one_pass():
    """Every document goes through the blocks once, whatever the number of steps, and none beyond the limit is read."""
    model, passes = tiny_model("gpt2"), []
    handle = register_module_forward_hook(lambda module, *_: passes.append(1) if module is model.base_model else None)
    stream = iter(documents())
    config = DetectConfig(min_length=4, max_length=12, batch_size=1, max_documents=7)
    try:
        found = measure_stability(model, stream, config, every=2, top_k=9)
    finally:
        handle.remove()
    assert found.documents.tolist() == [2, 4, 6, 7] and len(passes) == 7
    assert next(stream) == documents()[8]


def test_the_end_of_the_corpus():
    """Short documents at the end are left out; a corpus that breaks off, or has no document, is an error."""
    model = tiny_model("llama")
    found = measure_stability(model, [*documents(4), [1, 2], [3]], CONFIG, every=4, top_k=9)
    assert found.documents.tolist() == [4]

    def broken():
        yield from documents(4)
        raise CorpusError("line 6: not JSON")

    with pytest.raises(CorpusError, match="^line 6: not JSON$"):
        measure_stability(model, broken(), CONFIG, every=4, top_k=9)
    with pytest.raises(CorpusError, match="no document to score among 2"):
        measure_stability(model, [[1, 2], [3]], CONFIG, top_k=9)


def steps(*sets: dict) -> Stability:
    """Stability of hand-made sets, ten documents a step."""
    return Stability(10 * np.arange(1, len(sets) + 1), tuple(map(make_neurons, sets)))


def test_jaccard_and_suggestion():
    """|both| / |either| against the final set, and the first step from which it stays at 0.9, by hand."""
    ten = {"0.gate_proj": range(8), "1.q_proj": [0, 1]}
    nine = {"0.gate_proj": range(8), "1.q_proj": [0]}
    other = {"0.gate_proj": range(8), "1.q_proj": [2, 3]}
    found = steps(nine, other, nine, ten, ten)
    assert found.jaccard == pytest.approx([0.9, 8 / 12, 0.9, 1, 1])
    assert found.neurons.tolist() == [9, 10, 9, 10, 10]
    assert found.enough() == 30 and found.enough(0.95) == 40 and found.enough(0.5) == 10
    assert steps(other, ten).enough() is None and steps(ten).enough() is None
    assert steps({}, ten, {}, {}).jaccard.tolist() == [1, 0, 1, 1]


def test_wrong_input():
    """One line for each."""
    model = tiny_model("llama")
    with pytest.raises(PLNDError, match="^every=0: expected 1 or more$"):
        measure_stability(model, documents(), CONFIG, every=0, top_k=9)
    with pytest.raises(PLNDError, match="pass plnd.read_documents"):
        measure_stability(model, "text", CONFIG, top_k=9)
    with pytest.raises(PLNDError, match="expected exactly one of epsilon, epsilon_for, top_k, fraction, found none"):
        measure_stability(model, documents(), CONFIG)
