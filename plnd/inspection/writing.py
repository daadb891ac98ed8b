"""The tokens that a neuron writes: its direction in the residual stream through the final norm and the unembedding.

A final norm multiplies by a gain, by a number that depends on the whole residual stream, and may take away a mean and
add a bias. Of one direction only its odd part counts, (f(v) - f(-v)) / 2 with f the norm and the unembedding: the gain,
the centring and the matrix, without biases; the number that is left is that of the direction alone, whose sign is never
in doubt. A norm after the sub-layer (Gemma, OLMo 2) multiplies the direction by its gain first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plnd.addresses import split_address
from plnd.inspection.choice import FEED_FORWARD
from plnd.inspection.profiles import Writing, WrittenToken
from plnd.inspection.text import token_text
from plnd.logit_lens.lens import LOGITS_AT_ONCE, Unembedding
from plnd.models.layout import Block, Layout


class Writer:
    """Decodes what neurons of a model write.

    Args:
        layout: the model.
        tokenizer: of the model.
        unembed: its final norm and unembedding.
        vocabulary: number of its logits (`Unembedding.prove`).
        count: tokens named of either sign.
    """

    def __init__(self, layout: Layout, tokenizer: Any, unembed: Unembedding, vocabulary: int, count: int) -> None:
        self.layout, self.tokenizer, self.unembed = layout, tokenizer, unembed
        self.vocabulary, self.count = vocabulary, min(count, vocabulary)
        self._blocks = {block.name: block for block in layout.blocks}

    def writings(self, address: str, indices: list[int]) -> list[Writing]:
        """What some neurons of one projection write, in their order.

        Raises:
            FamilyError: if the projection's weight is packed in a way that is not known.
        """
        block, projection = split_address(address)
        if block.startswith("encoder."):
            return [Writing("nothing: an encoder's output goes through the decoder's cross-attention")] * len(indices)
        if projection in ("q_proj", "k_proj"):
            return [Writing("nothing: queries and keys decide where a head looks, not what it writes")] * len(indices)
        directions, how = self._directions(self._blocks[block], projection, torch.tensor(indices))
        size = max(1, LOGITS_AT_ONCE // self.vocabulary)
        return [one for piece in directions.split(size) for one in self._decoded(piece, how)]

    @torch.no_grad()
    def _directions(self, block: Block, projection: str, indices: Tensor) -> tuple[Tensor, str]:
        """What is added to the residual stream where the values are 1, [neurons, hidden], and how it was found."""
        feed_forward = projection in FEED_FORWARD
        name = "down_proj" if feed_forward else "o_proj"
        weight = self.layout.targets[f"{block.name}.{name}"].weight()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        how = f"column of {name}"
        if projection == "v_proj":
            columns = self._columns_of_value(block, indices)
            found = weight[:, columns.to(weight.device)].sum(-1)
            heads = columns.shape[1]
            several = f"columns of {name} of its {heads} query heads, summed as if all attended alike"
            how = several if heads > 1 else f"column of {name} of its head"
        else:
            found = weight[:, indices.to(weight.device)]
        norm = block.stack.feed_forward_norm if feed_forward else block.stack.attention_norm
        if norm is not None:
            found = found * block.gain(norm).to(found)[:, None]
            how += ", times the gain of the norm after it"
        found = found * block.factor("feed_forward" if feed_forward else "attention")
        return found.T, f"{how}, through the final norm's gain and the unembedding"

    def _columns_of_value(self, block: Block, rows: Tensor) -> Tensor:
        """The columns of `o_proj` that rows of `v_proj` feed, one for each query head of their group, [rows, heads]."""
        head_dim = int(block.at(block.stack.head_dim))
        queries, values = (self.layout.widths[f"{block.name}.{name}"] for name in ("o_proj", "v_proj"))
        heads = queries // values
        first = rows // head_dim * heads
        return (first[:, None] + torch.arange(heads)) * head_dim + (rows % head_dim)[:, None]

    @torch.no_grad()
    def _decoded(self, directions: Tensor, how: str) -> list[Writing]:
        size = directions.square().mean(-1, keepdim=True).sqrt()
        alone = (directions / size.clamp_min(torch.finfo(size.dtype).tiny)).to(self.layout.model.dtype)
        alone = alone.to(self.layout.input_device)
        logits = ((self.unembed(alone) - self.unembed(-alone)) / 2).double().cpu()
        silent = "nothing: its direction is zero"
        return [
            Writing(how, self._tokens(one, True), self._tokens(one, False)) if float(length) else Writing(silent)
            for one, length in zip(logits, size, strict=True)
        ]

    def _tokens(self, logits: Tensor, largest: bool) -> tuple[WrittenToken, ...]:
        """The tokens of largest or smallest logit, of [vocabulary]."""
        found = logits.topk(self.count, largest=largest)
        return tuple(
            WrittenToken(token, token_text(self.tokenizer, token), logit)
            for logit, token in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        )
