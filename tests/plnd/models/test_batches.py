"""Batches of documents of several lengths."""

from __future__ import annotations

import torch

from plnd.models.batches import padded


def test_documents_are_padded_on_the_right_with_their_own_token():
    """Each keeps its tokens in front; the mask says which those are."""
    ids, mask = padded([[5, 6, 7], (8,), [9, 4]])
    assert ids.tolist() == [[5, 6, 7], [8, 8, 8], [9, 4, 4]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64
