"""Who changes a model at the moment, and what compiled code knows of it.

Code that `torch.compile` made of a module is not told of hooks that come later, and goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, Thread, current_thread
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from plnd.errors import PLNDError

LOCK = RLock()
"""Held while a model is being changed, and put back."""


@dataclass
class _Lease:
    thread: Thread
    count: int = 0


_LEASES: WeakKeyDictionary[nn.Module, _Lease] = WeakKeyDictionary()


def lease(model: nn.Module) -> Callable[[], None]:
    """Keeps a model for this thread, which may do so several times, until the returned function is called each time.

    Raises:
        PLNDError: if another thread, which is alive, keeps it.
    """
    with LOCK:
        found = _LEASES.setdefault(model, _Lease(current_thread()))
        if not found.count or not found.thread.is_alive():
            found.thread = current_thread()
        if found.thread is not current_thread():
            raise PLNDError(
                f"another thread ({found.thread.name}) works on this model's neurons: wait until it has finished, or"
                " give each thread a model of its own"
            )
        found.count += 1

    def release() -> None:
        with LOCK:
            found.count -= 1

    return release


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
