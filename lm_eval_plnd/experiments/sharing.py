"""Several processes that fill one folder: each writes the files that no other one is writing."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plnd.errors import PLNDError

LOCKS = ".locks"
"""Folder of the locks, which the system releases when a process ends, however it ends."""


def unwritten(paths: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Those of some files in `folder` that are not there, one by one, for the caller to write before it asks for more.

    Files that another process is writing come last, once it has ended without having written them.
    """
    paths = list(paths)
    for wait in (False, True):
        for path in paths:
            if not path.exists():
                with claimed(path, folder, wait) as mine:
                    if mine and not path.exists():
                        yield path


@contextmanager
def claimed(path: Path, folder: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the right to write one file in `folder`, if no other process has it or after waiting for it.

    What a process that was killed left half-written of this file is deleted.

    Raises:
        PLNDError: if the folder has no room or no right for locks.
    """
    lock = FileLock(folder / LOCKS / f"{'-'.join(path.relative_to(folder).parts)}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise PLNDError(f"{lock.lock_file}: cannot be written ({error.strerror}); choose another --output") from None
    try:
        for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            partial.unlink(missing_ok=True)
        yield True
    finally:
        lock.release()
