"""Two measures that detectors before and beside PLND use: how often and how strongly a feed-forward neuron is active.

An activation is the output of the feed-forward's non-linearity, act(gate_proj(x)), or act(up_proj(x)) where there is no
gate. Neuron k of it stands for row k of `gate_proj` and `up_proj` and column k of `down_proj`, which share its number:
zeroing any one of the three switches it off. In a mixture of experts a token that is not routed to an expert does not
activate its neurons. Attention is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from plnd.detection.observer import BlockWatch
from plnd.importance.memory import accumulation_dtype


class ActivationWatch(BlockWatch):
    """The hook of one block that measures activations: the mean of a `value` of them over each document's tokens."""

    value: Callable[[Tensor], Tensor]

    def _prepare(self) -> None:
        if self.stack.activation:
            self.activation = self.at(self.stack.activation)

    @property
    def _watched(self) -> str:
        gated = any(projection.name == "gate_proj" for projection in self.stack.projections)
        return "gate_proj" if gated else "up_proj"

    def _attention_hooks(self) -> Any:
        return ()

    def _proof_hooks(self) -> Any:
        return ()

    def _feed_forward(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        values = self.value(self.activation(self._target(self._watched).select(output)))
        self._emit("ffn", [x.mean(0, dtype=accumulation_dtype(output.dtype)) for (x,) in self._documents(values)])

    def _experts(self, tokens: int) -> Any:
        lengths = [[stop - start] for start, stop in self.observer.spans]

        def term(fused: Tensor, *_: Tensor) -> Tensor:
            return self.value(self.activation(self._target("gate_proj").select(fused))).to(
                accumulation_dtype(fused.dtype)
            )

        return self._sum_routed("ffn", tokens, term, lambda total: total / total.new_tensor(lengths))


class MeanActivation(ActivationWatch):
    """Mean size of the activation, |act| (as Wang et al. weigh neurons in «Sharing Matters»)."""

    @staticmethod
    def value(activation: Tensor) -> Tensor:
        """|act|."""
        return activation.abs()


class ActivationProbability(ActivationWatch):
    """Share of tokens with act > 0: the activation probability of Tang et al. (arXiv:2402.16438)."""

    @staticmethod
    def value(activation: Tensor) -> Tensor:
        """1 where act > 0, else 0."""
        return (activation > 0).to(accumulation_dtype(activation.dtype))
