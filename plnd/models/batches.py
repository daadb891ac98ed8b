"""Documents of several lengths as one batch of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded(documents: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, padded on the right, where no token of a causal model looks.

    Each document is padded with its own last token: no other token's embedding can spoil it. A causal model is given a
    mask of ones instead: padding that sees nothing (behind a sliding window) may be no number, and spoils the rest.

    Args:
        documents: token ids of each, at least one each.

    Returns:
        ids and mask, both [documents, longest] int64; the mask is 1 for tokens and 0 for padding.
    """
    lengths = torch.tensor([len(ids) for ids in documents])
    longest = int(lengths.max())
    ids = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in documents])
    return ids, (torch.arange(longest) < lengths[:, None]).long()
