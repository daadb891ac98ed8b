"""The oracle of a probe: one neuron off at a time, and what that changes, without trust in the row.

Where `plnd.detection.oracle` takes a row's word for what a sub-layer adds to the residual stream, the change is
measured here at the block's own output, with the other sub-layer held at what it gave before: whatever stands between a
projection and the residual stream, known or not, is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plnd.deactivation import zeroed
from plnd.models.layout import Layout, Target, locate


class BlockRuns:
    """Runs one block again and again on what it received when the document went through the model.

    Args:
        layout: of the model, loaded with `attn_implementation="eager"`.
        block: the block.
        input_ids: of the document, [seq].
    """

    def __init__(self, layout: Layout, block: nn.Module, input_ids: Tensor) -> None:
        self.block = block
        self.args, self.kwargs = _received(layout, block, input_ids)

    def run(self) -> Any:
        """The block's output."""
        return self.block(*map(_copied, self.args), **{name: _copied(value) for name, value in self.kwargs.items()})

    def changes(self, target: Target, neurons: Sequence[int], frozen: str | None) -> Tensor:
        """How far the block's output moves without each neuron, [len(neurons)], Frobenius norms.

        Args:
            target: the projection.
            neurons: of it.
            frozen: path of the module that goes on giving what it gives with all neurons; None: no module.
        """
        if frozen is None:
            return self._changes(target, neurons, lambda: _hidden(self.run()))
        with _held(locate(self.block, frozen), self.run):
            return self._changes(target, neurons, lambda: _hidden(self.run()))

    def attention_changes(self, target: Target, neurons: Sequence[int], attention: str) -> Tensor:
        """How far the attention probabilities move without each neuron, [len(neurons)] (eq. 10).

        Raises:
            LookupError: if the attention module does not give them.
        """
        return self._changes(target, neurons, lambda: self._probabilities(attention))

    def _changes(self, target: Target, neurons: Sequence[int], measured: Callable[[], Tensor]) -> Tensor:
        before, found = measured(), []
        for neuron in neurons:
            with zeroed(target, [neuron]):
                found.append(torch.linalg.vector_norm(measured() - before))
        return torch.stack(found)

    def _probabilities(self, attention: str) -> Tensor:
        seen: list[Any] = []
        handle = locate(self.block, attention).register_forward_hook(lambda m, args, output: seen.append(output))
        try:
            self.run()
        finally:
            handle.remove()
        found = [x for x in seen[-1] if isinstance(x, Tensor)] if seen and isinstance(seen[-1], tuple) else []
        square = [x for x in found if x.dim() == 4 and x.shape[-1] >= x.shape[-2] > 1]
        if not square:
            raise LookupError("attention does not return its probabilities")
        return square[-1].clone()


def _received(layout: Layout, block: nn.Module, input_ids: Tensor) -> tuple[tuple, dict[str, Any]]:
    seen: list[tuple[tuple, dict[str, Any]]] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}))

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        layout.forward(input_ids[None], torch.ones_like(input_ids[None]))
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _held(module: nn.Module, run: Callable[[], Any]) -> Iterator[None]:
    """A module gives inside what it gives in a run before."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda m, args, output: seen.append(_copied(output)))
    try:
        run()
    finally:
        handle.remove()
    handle = module.register_forward_hook(lambda m, args, output: _copied(seen[0]))
    try:
        yield
    finally:
        handle.remove()


def _copied(value: Any) -> Any:
    """What may be changed in place without a trace."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(_copied, value))
    return dict(value) if type(value) is dict else value


def _hidden(output: Any) -> Tensor:
    return (output[0] if isinstance(output, tuple) else output).clone()
