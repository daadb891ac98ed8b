"""What is made of items while those before are used: tokens of the next documents, while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(
    items: Iterable[Item], make: Callable[[Item], Made], room: Callable[[], int]
) -> Generator[Made, None, None]:
    """What `make` makes of each item, in order; one thread is some items ahead of what is taken.

    Items are read in the caller's thread, which may use the model that is being measured, or anything else that belongs
    to one thread. What reading or making an item raises is raised in its place; an interruption at once. When the last
    one is made, or the generator is closed, the thread ends.

    Args:
        items: read as far ahead as there is room.
        make: runs in the thread.
        room: how many may be read that are not taken yet, asked before each is read; with less than one the reading
            ends when all that were read are taken.
    """
    pending: deque[Future[Made]] = deque()
    source, failure = iter(items), None
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        while failure is None:
            while pending and len(pending) >= room():
                yield pending.popleft().result()
            if room() < 1:
                return
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # after what was read before it
                failure = error
            else:
                pending.append(pool.submit(make, item))
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
