"""Files, whole or not at all: writing in one step, digests, tables as CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from plnd.errors import PLNDError


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def check_writable(path: str | Path) -> None:
    """Refuses, before any long work, a target that could not be written after it.

    Raises:
        PLNDError: naming the folder and the reason.
    """
    with _temporary(Path(path)):
        pass


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table as CSV in one step."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    write_bytes(stream.getvalue().encode(), path)


def write_bytes(data: bytes, path: str | Path) -> str:
    """Writes a whole file or nothing: a temporary file beside the target, then a rename; returns its SHA-256.

    Raises:
        PLNDError: if the folder does not exist or cannot be written.
    """
    with whole_file(path) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at `path` when the context ends well, and is gone otherwise.

    Raises:
        PLNDError: if the folder does not exist or cannot be written.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, gone afterwards unless it was renamed."""
    if os.path.isdir(path):
        raise PLNDError(f"{path}: is a folder, expected the name of a file to write")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise PLNDError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder that exists and is yours"
        ) from None
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        os.close(handle)
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
