"""How many tokens a pass may have where `batch_size` is `auto`: from what memory is free, fewer if it was too many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from plnd.detection.config import DetectConfig
from plnd.detection.documents import Document
from plnd.errors import PLNDError
from plnd.models.free_memory import free_memory, gibibytes
from plnd.models.layout import Layout

MOST = {"cpu": 8_192}
"""Tokens of a pass, by kind of device, beyond which more of them do not compute faster."""
MOST_ELSEWHERE = 65_536
SHARE = 0.5
"""Of what is free: what a pass takes is estimated, and others may want some."""


class TokenBudget:
    """What one pass may have.

    Attributes:
        tokens: so many, padding counted.
        document: as many tokens does a document take beside its own, for one number of each neuron.
        why: where the number of tokens comes from, for people.
    """

    def __init__(self, tokens: int, document: float = 0.0, why: str = "") -> None:
        self.tokens, self.document, self.why = tokens, document, why

    @classmethod
    def of(cls, layout: Layout, config: DetectConfig) -> TokenBudget:
        """For a model, from what is free where its parameters are and where tokens go in (of one that is offloaded).

        A pass of so many tokens takes, to a rough upper bound and in float32 or wider, all activations of the widest
        block twice (once as they are, once squared or cast), eight times the residual stream, and two rows of
        attention probabilities of all heads; relevance keeps those of all blocks, and three times the logits.
        """
        text, size = layout.model.config.get_text_config(), max(4, layout.model.dtype.itemsize)
        widths: dict[str, int] = {}
        for address, target in layout.targets.items():
            block = address.rpartition(".")[0]
            experts = target.experts or 1
            busy = min(experts, getattr(text, "num_experts_per_tok", None) or experts)
            widths[block] = widths.get(block, 0) + target.width * busy // experts
        values = 2 * max(widths.values()) + 8 * text.hidden_size + 2 * text.num_attention_heads * config.max_length
        if config.method == "relevance":
            values = values * len(widths) + 3 * text.vocab_size
        neurons = sum(layout.widths.values())
        devices = {x.device for x in layout.model.parameters() if not x.is_meta} | {layout.input_device}
        free = [each for each in map(_free, devices) if each is not None]
        kinds = {device.type for device in devices}
        most = min(MOST.get(kind, MOST_ELSEWHERE) for kind in kinds)
        fitting = int(SHARE * min(free) / (values * size)) if free else most
        tokens = max(1, min(most, fitting))
        why = f"{gibibytes(min(free))} free" if free else "free memory is not known"
        return cls(tokens, 2 * neurons / values, why)

    def batches(self, documents: Sequence[Document]) -> Iterator[list[Document]]:
        """Batches of one document or of as many as fit, in order; the longest one of each comes first."""
        start = 0
        while start < len(documents):
            count = max(1, int(self.tokens / (len(documents[start].ids) + self.document)))
            yield list(documents[start : start + count])
            start += count

    def halve(self, batch: Sequence[Document]) -> None:
        """Takes half of what a batch has that did not fit.

        Raises:
            PLNDError: if that is one document.
        """
        longest = len(batch[0].ids)
        if len(batch) == 1:
            raise PLNDError(
                f"out of memory with one document of {longest} tokens: give a smaller --max-length or --dtype, or"
                " --blockwise"
            )
        self.tokens = math.ceil(len(batch) // 2 * (longest + self.document))


def _free(device: torch.device) -> int | None:
    """What is free on a device, and what PyTorch keeps there for itself without using it."""
    free = free_memory(device)
    if free is not None and device.type == "cuda":
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free
