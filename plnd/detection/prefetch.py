"""Items that a thread makes while those before are used: tokens of the next documents, while the device computes."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE = 2.0
"""Seconds that are waited for a thread whose items are no longer wanted; one that reads a silent pipe never ends."""


def prefetched(items: Generator[Item, None, None], size: int) -> Generator[Item, None, None]:
    """The same items in the same order, made by one thread that is at most `size` of them ahead.

    What making one raises, an interruption too, is raised in its place. The thread ends, and `items` is closed in it,
    when all are made, or when the generator that this returns is closed.

    Args:
        items: a generator; it runs in the thread, with the caller's context variables, from the first item on that is
            asked for.
        size: one or more.
    """
    made: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    room, unwanted = threading.Semaphore(size), threading.Event()

    def make() -> None:
        try:
            with closing(items):
                room.acquire()
                for item in items:
                    made.put((item,))
                    room.acquire()
                    if unwanted.is_set():
                        return
            made.put(None)
        except BaseException as error:  # whoever takes the items is told
            made.put(error)

    thread = threading.Thread(target=copy_context().run, args=(make,), name="prefetch", daemon=True)
    thread.start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            room.release()
            yield found[0]
    finally:
        unwanted.set()
        room.release()
        thread.join(PATIENCE)
