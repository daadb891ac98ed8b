"""A model larger than memory: its weights stay in their files, and each block has them only while something passes.

Everything outside the blocks (embeddings, norms, rotations) is loaded as usual; the unembedding when it is first used.
What passes through a block reads that block's weights. Passes that are made `in_step` wait for each other at the door
of each block, so that its weights are read once for all of them, while the next block's are read ahead. Each pass is
the model's own forward in a coroutine of its own: masks, positions and encoder states stay where the model put them,
and no family needs to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plnd.errors import PLNDError
from plnd.models.deferred import Deferred, deferred, evaluated
from plnd.models.free_memory import check_fits
from plnd.models.layout import Layout
from plnd.models.loading import DTYPES, default_device, load_config, load_from, load_skeleton
from plnd.models.quantised import quantisation
from plnd.models.stored import DTYPES as STORED_DTYPES
from plnd.models.stored import Stored, checkpoint_folder, read_tensor, stored_tensors, weight_files

Result = TypeVar("Result")


def blockwise_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A language model in evaluation mode whose blocks' weights stay in the checkpoint's files, for one that is larger
    than memory; what it computes is bit for bit what `load_model`'s computes.

    Memory holds what lies outside the blocks, and at most two blocks at a time, each with what it is put together from.
    Gradients are not to be had. Call it as any other model, for one reading of its weights a pass; `plnd.detect` reads
    them once for many batches.

    Args:
        name: folder or hub name of a checkpoint in safetensors, not quantised.
        revision: hub branch, tag or commit.
        dtype: one of `plnd.models.loading.DTYPES`; `auto` is the checkpoint's own.
        device: one of them: `cpu`, `cuda`, `cuda:1`; by default the first accelerator, else the CPU.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        FamilyError: if the model's family is unknown.
        PLNDError: if there is no such model, its checkpoint is quantised or not in safetensors, or one block is larger
            than memory.
    """
    if dtype not in DTYPES:
        raise PLNDError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if device == "auto":
        raise PLNDError(
            "device 'auto' spreads a model over devices; blockwise has one block at a time, on one: name it"
        )
    place = _device(default_device() if device is None else device)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    skeleton = load_skeleton(name, **source)
    if packed := quantisation(skeleton):
        raise PLNDError(f"{name}: quantised ({packed}), which blockwise cannot read: load it whole")
    folder = checkpoint_folder(name, revision)
    stored = stored_tensors(folder, weight_files(folder))
    wrong = next((tensor for tensor in stored.values() if tensor.dtype not in STORED_DTYPES), None)
    if wrong is not None:
        raise PLNDError(f"{folder / wrong.file}: tensors stored as {wrong.dtype}, which blockwise cannot read")
    counter = Counter()
    state = {
        key: deferred(tensor.shape, getattr(torch, STORED_DTYPES[tensor.dtype]), partial(counter.read, folder, tensor))
        for key, tensor in stored.items()
    }
    config = load_config(name, **source)
    model = load_from(type(skeleton), name, config, state, dtype if dtype == "auto" else getattr(torch, dtype))
    weights = BlockWeights(model, place, counter)
    check_fits(name, weights.largest, str(place), "two blocks and what lies outside blocks", blockwise=False)
    weights.settle()
    model._plnd_weights = weights
    return model.eval()


class Counter:
    """Reads, and counts the bytes that it read, from several threads one after the other."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, folder: Path, stored: Stored) -> Tensor:
        """One stored tensor."""
        tensor = read_tensor(folder, stored)
        self.bytes += tensor.nbytes
        return tensor


class BlockWeights:
    """Where a model's weights come from, and the doors of its blocks.

    Args:
        model: whose parameters are `Deferred`.
        device: where it runs.
        counter: what reads them.

    Attributes:
        blocks: its blocks, in the order in which a pass comes to them.
    """

    def __init__(self, model: nn.Module, device: torch.device, counter: Counter) -> None:
        self.model, self.device, self.counter = model, device, counter
        self.blocks: list[nn.Module] = list(dict.fromkeys(block.module for block in Layout(model).blocks))
        self.parts = {module: _deferred(module) for module in model.modules()}
        self.present: set[nn.Module] = set()
        self.step: _Step | None = None  # that is being made

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from the files so far."""
        return self.counter.bytes

    @property
    def largest(self) -> int:
        """Bytes of the two largest neighbouring blocks, and of all that lies outside blocks but the unembedding."""
        sizes = [sum(weight.nbytes for _, _, weight in self._within(block)) for block in self.blocks]
        inside = {id(weight) for block in self.blocks for _, _, weight in self._within(block)}
        outside = {id(w): w.nbytes for _, _, w in self._outside() if id(w) not in inside}
        return max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)) + sum(outside.values())

    def settle(self) -> None:
        """Loads what lies outside blocks; everything else goes to the meta device, with a hook that brings it back."""
        outside = list(self._outside())
        loaded: dict[int, nn.Parameter | Tensor] = {}
        for (module, name, weight), value in zip(outside, evaluated(w for _, _, w in outside), strict=True):
            if id(weight) not in loaded:
                loaded[id(weight)] = _as(weight, value.to(self.device))
            _put(module, name, loaded[id(weight)])
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, Deferred):
                    module._buffers[name] = buffer.to(self.device)
            for parameter in module._parameters.values():  # the checkpoint has none: drawn at random
                if parameter is not None and not isinstance(parameter, Deferred):
                    parameter.data = parameter.data.to(self.device)
        for block in self.blocks:
            self.release(block)
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave, always_call=True)
        head = self._head()
        if head is not None:
            self.release(head)
            head.register_forward_pre_hook(lambda module, args: self.load(module))

    def load(self, module: nn.Module) -> None:
        """Reads the weights of a block, or of the unembedding."""
        if module in self.present:
            return
        self.present.add(module)
        parts = list(self._within(module))
        for (owner, name, weight), value in zip(parts, evaluated(w for _, _, w in parts), strict=True):
            _put(owner, name, _as(weight, value.to(self.device)))

    def release(self, module: nn.Module) -> None:
        """Lets them go."""
        self.present.discard(module)
        for owner, name, weight in self._within(module):
            _put(owner, name, _as(weight, torch.empty(weight.shape, dtype=weight.dtype, device="meta")))

    def read(self, module: nn.Module, name: str) -> Tensor:
        """One parameter of a module as it is when it is there, on the CPU, read for this once."""
        return next(evaluated([next(w for key, w in self.parts[module] if key == name)]))

    def _within(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, Deferred]]:
        return ((inner, name, weight) for inner in module.modules() for name, weight in self.parts[inner])

    def _outside(self) -> Iterator[tuple[nn.Module, str, Deferred]]:
        apart = {inner for block in self.blocks for inner in block.modules()}
        if (head := self._head()) is not None:
            apart.add(head)
        return ((m, name, w) for m, parts in self.parts.items() if m not in apart for name, w in parts)

    def _head(self) -> nn.Module | None:
        """The unembedding, unless it shares its weights with something else."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Module):
            return None
        own = {id(weight) for _, weight in self.parts[head]}
        others = {id(w) for module, parts in self.parts.items() if module is not head for _, w in parts}
        return None if own & others else head

    def _enter(self, module: nn.Module, args: tuple) -> None:
        if self.step is None or not self.step.waits(module):
            self.load(module)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.step is None or not self.step.inside():
            self.release(module)


def weights_of(model: nn.Module) -> BlockWeights | None:
    """Where the weights of a model of `blockwise_model` come from; None of any other model."""
    return getattr(model, "_plnd_weights", None)


def in_step(
    model: nn.Module, passes: Sequence[Callable[[], Result]], turn: Callable[[int], None]
) -> Iterator[tuple[int, Result]]:
    """Runs functions, each of which passes through the model; gives the number and the result of each, in order.

    Of an ordinary model one after the other, each when its result is asked for. Of a blockwise one all wait for each
    other at the door of every block, and all results come at the end.

    Args:
        model: the model.
        passes: the functions.
        turn: is told the number of the pass that is about to begin, or to go on.
    """
    weights = weights_of(model)
    if weights is None:
        for number, run in enumerate(passes):
            turn(number)
            yield number, run()
        return
    yield from enumerate(_Step(weights, passes, turn).run())


class _Step:
    """Passes that are made in step, in the thread that makes them."""

    def __init__(self, weights: BlockWeights, passes: Sequence[Callable[[], Any]], turn: Callable[[int], None]) -> None:
        from greenlet import getcurrent, greenlet

        self.weights, self.turn, self.current = weights, turn, getcurrent
        self.coroutines = [greenlet(run) for run in passes]
        self.at: list[Any] = [None] * len(passes)  # the block that each waits at; in the end its result
        for coroutine in self.coroutines:
            coroutine.gr_context = copy_context()

    def inside(self) -> bool:
        """Whether it is one of these passes that runs."""
        return self.current() in self.coroutines

    def waits(self, module: nn.Module) -> bool:
        """Waits, if it is one of these passes that has come to a block, until its weights are there."""
        if self.inside():
            self.current().parent.switch(module)
            return True
        return False

    def run(self) -> list[Any]:
        """The results."""
        weights = self.weights
        assert weights.step is None, "one step at a time"
        weights.step = self
        with closing(self), ThreadPoolExecutor(1) as reader:
            ahead: Future[None] | None = None
            coming: nn.Module | None = None
            self._go_on(range(len(self.coroutines)))
            while waiting := [number for number, each in enumerate(self.coroutines) if not each.dead]:
                block = min((self.at[number] for number in waiting), key=weights.blocks.index)
                if ahead is not None:
                    ahead.result()
                if coming is not None and coming is not block:
                    weights.release(coming)
                weights.load(block)
                index = weights.blocks.index(block) + 1
                coming = weights.blocks[index] if index < len(weights.blocks) else None
                ahead = None if coming is None else reader.submit(weights.load, coming)
                self._go_on([number for number in waiting if self.at[number] is block])
                weights.release(block)
        return self.at

    def _go_on(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.turn(number)
            self.at[number] = self.coroutines[number].switch()

    def close(self) -> None:
        """Ends what an error has left waiting, and lets go of all weights."""
        for coroutine in self.coroutines:
            if not coroutine.dead:
                coroutine.throw()
        self.weights.step = None
        for block in self.weights.blocks:
            self.weights.release(block)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such kind, or none of it here
        raise PLNDError(f"device {name!r}: {str(error).splitlines()[0]}") from None


def _deferred(module: nn.Module) -> list[tuple[str, Deferred]]:
    """A module's own parameters and buffers that are still in the files."""
    own = {**module._parameters, **module._buffers}
    return [(name, weight) for name, weight in own.items() if isinstance(weight, Deferred)]


def _as(weight: Deferred, value: Tensor) -> nn.Parameter | Tensor:
    """A value as what it stands for: a buffer, or a parameter as a loaded model has it.

    Without gradients, too, `torch.matmul` multiplies in another order, and rounds otherwise, where an operand asks for
    them.
    """
    if not isinstance(weight, nn.Parameter):
        return value
    asks = value.is_floating_point() and not torch.is_grad_enabled()  # else a graph would keep all blocks
    return nn.Parameter(value, requires_grad=asks)


def _put(module: nn.Module, name: str, value: nn.Parameter | Tensor) -> None:
    (module._parameters if name in module._parameters else module._buffers)[name] = value  # type: ignore[assignment]
