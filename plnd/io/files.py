"""Files and folders, whole or not at all: writing in one step, digests, tables as CSV.

A link is followed, and its target written. What is no plain file (a device, a pipe) is written to, not replaced.
"""

from __future__ import annotations

import csv
import ctypes
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


def read_bounded(path: str | Path, most: int) -> bytes:
    """All of a file that nobody vouches for.

    Raises:
        PLNDError: if it cannot be read, or has more than `most` bytes.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise PLNDError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > most:
        raise PLNDError(f"{path}: is larger than {most:,} bytes, expected at most that")
    return data


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


@contextmanager
def whole_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder that takes the place of `path` when the context ends well, and is gone otherwise.

    All that is in it is on the disk before it has its name. With `overwrite`, a folder that is there already changes
    places with it, where the system can do that in one step; elsewhere it is moved away first, and if the process is
    killed in between, whoever writes there next puts it back (`remove_left_over`).

    Raises:
        PLNDError: if the folder around does not exist or cannot be written, or what is there is not to be replaced.
    """
    path = Path(os.path.realpath(path))
    remove_left_over(path)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise PLNDError(
            f"{path}: cannot be written ({error.strerror or error}); choose a place that exists and is yours"
        ) from None
    whole, earlier = temporary / _WHOLE, temporary / _EARLIER
    try:
        with _held(temporary):
            whole.mkdir()
            yield whole
            _sync_tree(whole)
            if not overwrite or not path.exists():
                os.rename(whole, path)
            elif not exchange(whole, path):
                _replace(whole, path, earlier)
            _sync_folder(path.parent)
    except OSError as error:
        raise PLNDError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if path.exists() or not earlier.exists():  # else the next run puts it back
            shutil.rmtree(temporary, ignore_errors=True)


_WHOLE, _EARLIER = "whole", "earlier"
"""Within the temporary folder: the new one, and the one that was there, while neither has its name."""


def _replace(whole: Path, path: Path, earlier: Path) -> None:
    """A folder in the place of another, which is moved to `earlier`, or put back after whatever went wrong."""
    os.rename(path, earlier)
    try:
        os.rename(whole, path)
    finally:
        if not path.exists():
            os.rename(earlier, path)


def exchange(path: Path, other: Path) -> bool:
    """Two names change places in one step (Linux); False, and nothing done, where one is missing or it cannot be."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    here, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(path), here, os.fsencode(other), exchanged) == 0


def _sync_tree(folder: Path) -> None:
    """Every file and every name in a folder is on the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(os.path.join(place, name), "rb") as stream:
                os.fsync(stream.fileno())
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Its names are on the disk too; where a folder cannot be opened (Windows), that is the system's to do."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a folder, by which others see that its process lives."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, gone afterwards unless it was renamed; what killed processes left there goes first."""
    if os.path.isdir(path):
        raise PLNDError(f"{path}: is a folder, expected the name of a file to write")
    remove_left_over(path)
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


def remove_left_over(path: Path) -> None:
    """Removes temporary files and folders of `path` whose process has ended: the system gave their locks back.

    A folder that was moved away to make room, and whose place is empty, is put back.
    """
    for name in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):
            handle = os.open(name, os.O_RDONLY)
            try:
                if not _is_abandoned(name, handle):
                    continue
                if (name / _EARLIER).exists() and not path.exists():
                    os.rename(name / _EARLIER, path)
                shutil.rmtree(name) if name.is_dir() else name.unlink()
            finally:
                os.close(handle)


def _is_abandoned(name: Path, handle: int) -> bool:
    """Whether nobody has its lock any more: a folder is locked before anything is in it, a file soon after."""
    locked_once = name.is_dir() and any(name.iterdir())
    fresh = time.time() - os.fstat(handle).st_mtime < FRESH_SECONDS
    return (locked_once or not fresh) and _lock(handle)


def _lock(handle: int) -> bool:
    """Takes a file's lock, which ends with the process, if nobody has it; without such locks (Windows) never."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
