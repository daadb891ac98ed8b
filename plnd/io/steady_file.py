"""A file that is read while others may write: one opening, one state, never mapped into memory.

What another process puts in its place does not touch it; what is written into it is noticed. A mapped file that becomes
shorter ends the process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from weakref import finalize

from plnd.errors import ArtifactError

_AT_ONCE = 2**20


class SteadyFile:
    """A plain file, open until it is closed or forgotten.

    Attributes:
        path: its name, for errors.
        size: its bytes.

    Raises:
        OSError: if it cannot be opened.
        ArtifactError: if it is no plain file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._turn = path, Lock()
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would wait
        self._handle = os.open(path, flags)
        self._forgotten = finalize(self, os.close, self._handle)
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise ArtifactError(f"{path}: is no plain file")
        self.size, self._written = found.st_size, found.st_mtime_ns

    def close(self) -> None:
        """Nothing is read from it any more. An interruption within what the collector does would be lost to the caller,
        so it is done here wherever the last reader is known."""
        self._forgotten()
        self._handle = -1

    def read(self, start: int, length: int) -> bytearray:
        """`length` bytes from `start` on.

        Raises:
            ArtifactError: if they cannot be read, or the file is not what it was when it was opened.
        """
        found = bytearray()
        try:
            with self._turn:
                os.lseek(self._handle, start, os.SEEK_SET)
                while len(found) < length and (part := os.read(self._handle, min(length - len(found), 2**28))):
                    found += part
            now = os.fstat(self._handle)
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        if len(found) < length or (now.st_size, now.st_mtime_ns) != (self.size, self._written):
            raise ArtifactError(f"{self.path}: was written to while it was read; copy or make it again")
        return found

    def parts(self, start: int, end: int) -> Iterator[bytearray]:
        """The bytes from `start` to `end`, a MiB at a time."""
        for place in range(start, end, _AT_ONCE):
            yield self.read(place, min(_AT_ONCE, end - place))
