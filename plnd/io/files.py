"""Files, whole or not at all: writing in one step, digests, tables as CSV.

A link is followed, and its target written. What is no plain file (a device, a pipe) is written to, not replaced.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from plnd.errors import PLNDError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\w[\w@+-]{0,63}")
_RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)[0-9¹²³]")
FRESH_SECONDS = 60
"""A temporary file younger than this is left alone: its process may not have locked it yet."""


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
    if not is_special(path):
        with _temporary(_target(path)):
            return
    if not os.access(path, os.W_OK):
        raise PLNDError(f"{path}: cannot be written (Permission denied); choose another name")


def check_outputs(read: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Refuses to write what is read, and to write two things into one file.

    Args:
        read: path of what is read to the name of the argument that says so.
        written: name of the argument to path of what is written.
    Raises:
        PLNDError: naming both arguments.
    """
    places = {name: path for name, path in written.items() if not is_special(path)}
    for name, path in places.items():
        for source, other in read.items():
            if _same(path, source):
                raise PLNDError(f"{name} {path}: is read as well ({other}), and would be lost; choose another name")
    seen: dict[str, str] = {}
    for name, path in places.items():
        earlier = seen.setdefault(os.path.realpath(path), name)
        if earlier != name:
            raise PLNDError(f"{name} {path}: is the file of {earlier}, too; choose another name")


def check_name(name: str, what: str) -> None:
    """Refuses what cannot be, or begin, the name of a file on every system: a path, nothing, a name that Windows keeps.

    Args:
        name: of a language, say.
        what: names it in the error.
    """
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise PLNDError(
            f"{what}: {name!r:.60} cannot be part of a file's name; expected at most 64 letters, digits, _, -, + and @,"
            " such as zh or zh-Hant"
        )


def is_special(path: str | Path) -> bool:
    """Whether something is there that is neither a plain file nor a folder: a device, a pipe, a socket."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _same(path: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one of them is not there, or is no path
        return False


def _target(path: str | Path) -> Path:
    """Where a link leads, which may not exist yet; other paths as they are."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table as CSV in one step; a text that a spreadsheet would compute gets an apostrophe in front."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([_cell(value) for value in row] for row in [header, *rows])
    write_bytes(stream.getvalue().encode(), path)


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


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

    It can be read again. A device or a pipe gets the content in the end, and stays what it is.

    Raises:
        PLNDError: if the folder does not exist or cannot be written.
    """
    if is_special(path):
        with tempfile.TemporaryFile() as content:
            yield content
            content.seek(0)
            try:
                with open(path, "wb") as stream:
                    shutil.copyfileobj(content, stream)
            except OSError as error:
                raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None
        return
    target = _target(path)
    with _temporary(target) as temporary:
        try:
            with open(temporary, "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too; where a folder cannot be opened (Windows), that is the system's to do."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, gone afterwards unless it was renamed; what killed processes left there goes first."""
    if os.path.isdir(path):
        raise PLNDError(f"{path}: is a folder, expected the name of a file to write")
    _remove_left_over(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise PLNDError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder that exists and is yours"
        ) from None
    try:
        _lock(handle)
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        yield Path(name)
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            os.unlink(name)


def _remove_left_over(path: Path) -> None:
    """Removes temporary files of `path` whose process has ended: the system gave their locks back."""
    for name in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), open(name, "rb") as stream:
            fresh = time.time() - os.fstat(stream.fileno()).st_mtime < FRESH_SECONDS
            if not fresh and _lock(stream.fileno()):
                name.unlink()


def _lock(handle: int) -> bool:
    """Takes a file's lock, which ends with the process, if nobody has it; without such locks (Windows) never."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
