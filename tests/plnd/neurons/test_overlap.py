"""Overlap and layer counts, against Python sets and counting."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import MODEL, make_neurons
from plnd.errors import ModelMismatchError, PLNDError
from plnd.neurons.overlap import STRUCTURES, layers, overlap

SETS = {
    "en": make_neurons({"0.q_proj": [0, 1, 2], "1.down_proj": [1, 2]}),
    "zh": make_neurons({"0.q_proj": [2, 3], "1.up_proj": [1, 2]}),
    "none": make_neurons({}),
}


def test_overlap_is_eq_11():
    """overlap(x, y) = |x and y| / |y|, worked out by hand; x down, y across; nan where y is empty."""
    expected = {
        "all": [[1, 1 / 4, np.nan], [1 / 5, 1, np.nan], [0, 0, np.nan]],
        "attention": [[1, 1 / 2, np.nan], [1 / 3, 1, np.nan], [0, 0, np.nan]],
        "feed_forward": [[1, 0, np.nan], [0, 1, np.nan], [0, 0, np.nan]],
    }
    assert tuple(expected) == STRUCTURES
    for structure, matrix in expected.items():
        np.testing.assert_array_equal(overlap(SETS, structure), matrix)


def test_overlap_refuses_other_models_and_structures():
    """Sets of two models have no overlap, and a misspelt structure is no structure."""
    other = make_neurons({}, model={**MODEL, "blocks": 3})
    with pytest.raises(ModelMismatchError, match="^ru: made for llama with 3 blocks"):
        overlap({**SETS, "ru": other})
    with pytest.raises(PLNDError, match="unknown structure 'ffn': expected one of all, attention, feed_forward"):
        overlap(SETS, "ffn")


def test_layers_counts_every_block():
    """Neurons of each projection in each block, zeros included, in the usual order of projections."""
    counts = layers(SETS["zh"])
    assert list(counts) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert {name: values.tolist() for name, values in counts.items() if values.any()} == {
        "q_proj": [2, 0],
        "up_proj": [0, 2],
    }
    assert sum(int(values.sum()) for values in counts.values()) == len(SETS["zh"])
