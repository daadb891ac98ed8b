"""Two measures that detectors before and beside PLND use: how often and how strongly a feed-forward neuron is active.

An activation is the output of the feed-forward's non-linearity, act(gate_proj(x)), or act(up_proj(x)) where there is no
gate. Neuron k of it stands for row k of `gate_proj` and `up_proj` and column k of `down_proj`, which share its number:
zeroing any one of the three switches it off. In a mixture of experts a token that is not routed to an expert does not
activate its neurons. Attention is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from plnd.detection.observer import Handle, ObservedBlock, forward_pass
from plnd.importance.memory import accumulation_dtype


def size(activation: Tensor) -> Tensor:
    """|act|; Wang et al. weigh neurons by its mean («Sharing Matters»)."""
    return activation.abs()


def active(activation: Tensor) -> Tensor:
    """1 where act > 0, else 0; its mean is the activation probability of Tang et al. (arXiv:2402.16438)."""
    return (activation > 0).to(accumulation_dtype(activation.dtype))


@dataclass(frozen=True)
class MeanActivation:
    """The mean of a value of the activation over each document's tokens (site `ffn`).

    Attributes:
        value: of every activation, [..., width] to the same shape: `size` or `active`.
    """

    value: Callable[[Tensor], Tensor]

    run = staticmethod(forward_pass)

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `Measure`."""
        for block in blocks:
            if block.stack.activation:
                yield BlockActivations(block, self.value).hook()


class BlockActivations:
    """The same of one block."""

    def __init__(self, block: ObservedBlock, value: Callable[[Tensor], Tensor]) -> None:
        self.block, self.value, self.activation = block, value, block.activation
        self.gate = block.target("gate_proj" if "gate_proj" in block.projections else "up_proj")

    def hook(self) -> Handle:
        """Puts it in place."""
        if self.block.stack.experts:
            return self.block.sum_over_experts(("ffn",), self._of_expert, self._mean)
        return self.block.after(self.gate.projection.name, self._measure)

    def _measure(self, _: Tensor, output: Tensor) -> None:
        dtype = accumulation_dtype(output.dtype)
        documents = self.block.documents(self._values(output))
        self.block.emit("ffn", [values.mean(0, dtype=dtype) for (values,) in documents])

    def _of_expert(self, fused: Tensor, *_: Tensor) -> Tensor:
        return self._values(fused).to(accumulation_dtype(fused.dtype))

    def _mean(self, sums: Tensor) -> Tensor:
        return sums / sums.new_tensor([[stop - start] for start, stop in self.block.spans])

    def _values(self, output: Tensor) -> Tensor:
        return self.value(self.activation(self.gate.select(output)))
