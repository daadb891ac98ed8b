"""Who changes or measures a model at the moment, and what compiled code knows of it.

Code that `torch.compile` made of a module is not told of hooks that come later, and goes on without them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock, Thread, _DummyThread, current_thread
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from plnd.errors import PLNDError

LOCK = RLock()
"""Held while it is written down who has a model."""


@dataclass
class _Lease:
    """Who has a model.

    Attributes:
        thread: the only one that may work on it.
        count: how often it has it.
        measured: whether it measures it.
        changes: how often neurons of the model were switched off, replaced or given back so far.
        replaced: how many contexts replace values of neurons at the moment.
    """

    thread: Thread
    count: int = 0
    measured: bool = False
    changes: int = 0
    replaced: int = 0


_LEASES: WeakKeyDictionary[nn.Module, _Lease] = WeakKeyDictionary()


@contextmanager
def editing() -> Iterator[None]:
    """One thread alone writes to models, and nothing that is collected meanwhile (a generator with an open context)
    does so in between.
    """
    with LOCK:
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def lease(model: nn.Module) -> Callable[[], None]:
    """Keeps a model for this thread, which may do so several times, until the returned function is called each time.

    Raises:
        PLNDError: if another thread, which is alive, keeps it; if another model is kept that shares modules or weights
            with it.
    """
    with LOCK:
        found = _LEASES.setdefault(model, _Lease(current_thread()))
        if not found.count:
            _check_alone(model)
        if not found.count or not found.thread.is_alive():
            found.thread = current_thread()
        if found.thread is not current_thread():
            raise PLNDError(_busy(found.thread))
        found.count += 1

    def release() -> None:
        with LOCK:
            found.count -= 1

    return release


def changed(model: nn.Module) -> None:
    """Writes down that a model computes something else from now on: neurons are off, replaced, or back."""
    with LOCK:
        _LEASES.setdefault(model, _Lease(current_thread())).changes += 1


def _busy(thread: Thread) -> str:
    return (
        f"another thread ({thread.name}) works on this model's neurons: wait until it has finished, or give each thread"
        " a model of its own"
    )


def _check_alone(model: nn.Module) -> None:
    """Refuses a model of which another one that is kept has a part."""
    others = [other for other, kept in _LEASES.items() if kept.count and other is not model]
    if others:
        parts = _parts(model)
        for other in others:
            if not parts.isdisjoint(_parts(other)):
                raise PLNDError(
                    f"{type(other).__name__}, on whose neurons thread {_LEASES[other].thread.name} works, shares"
                    f" modules or weights with this {type(model).__name__}: end that first, or copy the model"
                )


def _parts(model: nn.Module) -> set[tuple[str, int]]:
    """What a model may share with another: its modules, and the memory of its parameters."""
    found = {("module", id(module)) for module in model.modules()}
    for parameter in model.parameters():
        found.add(("parameter", id(parameter)))
        if type(parameter.data) is torch.Tensor and parameter.layout == torch.strided and not parameter.is_meta:
            found.add((str(parameter.device), parameter.untyped_storage().data_ptr()))
    return found


def forget_compiled() -> None:
    """Drops all code that `torch.compile` has made so far; what runs again is compiled again, hooks and all."""
    torch._dynamo.reset()


_eager = 0
_stance: Any = None


@contextmanager
def eagerly() -> Iterator[None]:
    """Compiled models run as if they were not, so that hooks which come and go with every batch are heeded.

    It holds for the whole process, as `torch.compiler.set_stance` does; several threads may be inside.
    """
    global _eager, _stance
    with LOCK:
        if not _eager:
            _stance = torch.compiler.set_stance("force_eager")
        _eager += 1
    try:
        yield
    finally:
        with LOCK:
            _eager -= 1
            if not _eager and _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None


@contextmanager
def hooked(model: nn.Module) -> Iterator[None]:
    """This thread alone hangs hooks on `model`, and they run, also where it has been compiled."""
    release = lease(model)
    try:
        with eagerly():
            yield
    finally:
        release()


@contextmanager
def replacing(model: nn.Module) -> Iterator[None]:
    """`hooked`, for hooks that have the model compute something else."""
    with hooked(model):
        kept = _LEASES[model]
        kept.changes, kept.replaced = kept.changes + 1, kept.replaced + 1
        try:
            yield
        finally:
            kept.changes, kept.replaced = kept.changes + 1, kept.replaced - 1


def replaces(model: nn.Module) -> bool:
    """Whether values of a model's neurons are replaced at the moment."""
    with LOCK:
        return model in _LEASES and _LEASES[model].replaced > 0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; on exit each of its modules is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def measured(model: nn.Module, blocks: Iterable[nn.Module], *, whole: bool = True) -> Iterator[Callable[[], None]]:
    """This thread alone reads numbers off `model`, in evaluation mode, while it stays what it is.

    Passes of another thread, and of copies that are made inside, are refused in one line, to them. On exit, and
    whenever the function that it gives is called, it is told if neurons were switched off or given back inside.

    Args:
        model: the model.
        blocks: modules of it of which every pass runs some.
        whole: whether to refuse a model of which values are replaced, because what comes of it would not say so.

    Raises:
        PLNDError: if another thread works on the model, it is being measured already, it shares parts or its
            configuration with a model that is, values of it are replaced, or it did not stay what it was.
    """
    with ExitStack() as stack:
        stack.enter_context(hooked(model))
        with LOCK:
            _check_not_measured(model)
            kept = _LEASES[model]
            if whole and kept.replaced:
                raise PLNDError("values of the model's neurons are replaced (plnd.intervened): measure it outside")
            kept.measured, before = True, kept.changes

        def done() -> None:
            kept.measured = False

        def check() -> None:
            if kept.changes != before:
                raise PLNDError(
                    "neurons of the model were switched off, replaced or given back while it was measured, so that the"
                    " numbers would be of neither state: open and close contexts before or after (a generator's, too)"
                )

        stack.callback(done)
        stack.enter_context(evaluating(model))
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(_OwnPasses(current_thread()), prepend=True).remove)
        yield check
        check()


def _check_not_measured(model: nn.Module) -> None:
    for other, kept in _LEASES.items():
        if kept.count and kept.measured and not _configurations(model).isdisjoint(_configurations(other)):
            what = "is being measured" if other is model else "shares its configuration with one that is being measured"
            raise PLNDError(f"{type(model).__name__} {what} (by thread {kept.thread.name}): wait until that has ended")


def _configurations(model: nn.Module) -> set[int]:
    """Of a model and its parts, as objects: what a measurement sets there holds for all who have them."""
    return {id(config) for module in model.modules() if (config := getattr(module, "config", None)) is not None}


class _OwnPasses:
    """A hook of a block that runs only in passes of one thread, or of torch's own threads (backward passes)."""

    def __init__(self, thread: Thread | None) -> None:
        self.thread = thread

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.thread is None:
            raise PLNDError("this model is a copy, made while the original was measured: copy it before or after")
        current = current_thread()
        if current is not self.thread and not isinstance(current, _DummyThread):
            raise PLNDError(_busy(self.thread))

    def __deepcopy__(self, memo: dict) -> _OwnPasses:
        return _OwnPasses(None)

    def __reduce__(self) -> tuple:
        return _OwnPasses, (None,)
