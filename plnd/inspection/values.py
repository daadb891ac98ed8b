"""The values of single neurons at every token, read off a model while it runs.

A neuron's value is what leaves its row (`q_proj`, `k_proj`, `v_proj`, before rotation and norms) or what enters its
column (`o_proj`, `down_proj`). Rows of `gate_proj` and `up_proj` are read at the column of `down_proj` of their number:
the three are one feed-forward neuron. A neuron of an expert is 0 at tokens that are routed to other experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plnd.addresses import split_address
from plnd.detection.interfaces import observed_experts
from plnd.errors import PLNDError
from plnd.models.batches import padded
from plnd.models.experts import check_dense, put_watch
from plnd.models.layout import Layout, Target
from plnd.models.running import hooked


class ValueWatch:
    """Reads the values of some neurons, between `attached()` and its exit.

    Args:
        layout: the model.
        neurons: address (of `q_proj`, `k_proj`, `v_proj`, `o_proj` or `down_proj`) to indices, int64 [neurons].
    """

    def __init__(self, layout: Layout, neurons: Mapping[str, Tensor]) -> None:
        self.layout, self.neurons = layout, neurons
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place and gradients off; on exit the model is as it was.

        Raises:
            FamilyError: if neurons are in experts that are packed.
            PLNDError: if another thread works on the model.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(hooked(self.layout.model))
            for address, indices in self.neurons.items():
                target = self.layout.targets[address]
                if target.experts is None:
                    stack.callback(self._hook(address, target, indices).remove)
            if any(self.layout.targets[address].experts is not None for address in self.neurons):
                for watch in self._expert_watches():
                    stack.callback(watch.remove)
                stack.enter_context(observed_experts(self.layout))
            yield

    def read(self, batch: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """One forward pass over some documents.

        Args:
            batch: token ids of each, at least one each.

        Returns:
            Address to values, [documents, longest, neurons], float32 or float64; behind a document's last
            token they mean nothing.

        Raises:
            PLNDError: if a projection did not run.
        """
        self._seen = {}
        ids, mask = padded(batch)
        self.layout.forward(ids.to(self.layout.input_device), mask.to(self.layout.input_device))
        missing = next((address for address in self.neurons if address not in self._seen), None)
        if missing is not None:
            raise PLNDError(f"{missing} did not run in the model's pass, so its neurons cannot be watched")
        return {address: self._by_token(values, ids) for address, values in self._seen.items()}

    @staticmethod
    def _by_token(values: Tensor, ids: Tensor) -> np.ndarray:
        """[documents, seq, neurons] of what some models flatten."""
        values = values.cpu().reshape(*ids.shape, values.shape[-1])
        return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()

    def _hook(self, address: str, target: Target, indices: Tensor) -> Any:
        if target.projection.axis == "row":
            rows = target.storage(indices)

            def keep_output(module: nn.Module, args: tuple, output: Tensor) -> None:
                self._seen[address] = output.index_select(-1, rows.to(output.device))

            return target.module.register_forward_hook(keep_output)

        def keep_input(module: nn.Module, args: tuple) -> None:
            self._seen[address] = args[0].index_select(-1, indices.to(args[0].device))

        return target.module.register_forward_pre_hook(keep_input)

    def _expert_watches(self) -> Iterator[Any]:
        """A watch at every mixture, as `observed_experts` calls each; those without neurons of ours keep nothing."""
        for block in self.layout.blocks:
            if block.stack.experts is None:
                continue
            address = f"{block.name}.down_proj"
            for name in ("gate_proj", "down_proj"):
                check_dense(self.layout.targets[f"{block.name}.{name}"])
            yield put_watch(block.experts, self._expert_watch(address))

    def _expert_watch(self, address: str) -> Callable[[int], _Routed]:
        target = self.layout.targets[address]
        indices = self.neurons.get(address, torch.empty(0, dtype=torch.long))
        assert target.experts is not None
        each = target.width // target.experts

        def emit(values: Tensor) -> None:
            if address in self.neurons:
                self._seen[address] = values

        def start(tokens: int) -> _Routed:
            return _Routed(indices // each, indices % each, tokens, emit)

        return start


class _Routed:
    """The values of experts' neurons at each token, during one pass through the experts.

    Args:
        expert, index: of each neuron, its expert and its number there, int64 [neurons].
        tokens: of the batch, padding included.
        emit: receives the values, [tokens, neurons], at the end.
    """

    def __init__(self, expert: Tensor, index: Tensor, tokens: int, emit: Callable[[Tensor], None]) -> None:
        self.expert, self.index, self.emit = expert, index, emit
        self.values = torch.zeros(tokens, len(expert))

    def add(self, expert: int, routed: Tensor, fused: Tensor, arrived: Tensor, inner: Tensor, share: Tensor) -> None:
        """Takes in one expert's tokens `routed` and what enters its columns, `inner` [tokens, width]."""
        ours = (self.expert == expert).nonzero().flatten()
        if len(ours):
            found = inner.index_select(1, self.index[ours].to(inner.device)).cpu()
            self.values = self.values.to(torch.promote_types(self.values.dtype, found.dtype))
            self.values[routed.cpu()[:, None], ours] = found.to(self.values.dtype)

    def done(self) -> None:
        """The pass is over."""
        self.emit(self.values)


def reads_shifted(layout: Layout, address: str) -> bool:
    """Whether a neuron sees the document as a decoder with an encoder reads it: its start token, then the document.

    Keys and values of cross-attention are of the encoder's tokens.
    """
    block, projection = split_address(address)
    crossing = block.endswith(".cross") and projection in ("k_proj", "v_proj")
    encoder_decoder = bool(getattr(layout.model.config, "is_encoder_decoder", False))
    return encoder_decoder and block.startswith("decoder.") and not crossing
