"""Files are written whole or not at all; what else is said of writing is held in `test_artifact`, on artifacts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from plnd.errors import PLNDError
from plnd.io import files, strict_json
from plnd.io.files import (
    check_outputs,
    check_writable,
    exchange,
    remove_left_over,
    whole_file,
    whole_folder,
    write_bytes,
    write_csv,
)


def test_all_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    """A machine that loses its power leaves the old file or the new one, never a new name on half of the bytes."""
    path, forced, fsync = tmp_path / "file", [], os.fsync
    path.write_bytes(b"old")

    def recorded(handle):
        forced.append((os.fstat(handle).st_size, path.read_bytes()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_bytes(b"renewed", path)
    assert forced[0] == (len(b"renewed"), b"old") and path.read_bytes() == b"renewed"
    assert len(forced) == 2 and forced[1][1] == b"renewed"  # then the folder, which holds the name


def test_files_of_strangers_are_read_up_to_a_size(tmp_path):
    """As many bytes as there may be, and no more; what cannot be read is one line."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_bounded(path, 5) == b"12345"
    with pytest.raises(PLNDError) as caught:
        files.read_bounded(path, 4)
    assert str(caught.value) == f"{path}: is larger than 4 bytes, expected at most that"
    for unreadable in (tmp_path, tmp_path / "absent", "a\0b"):
        with pytest.raises(PLNDError, match="cannot be read"):
            files.read_bounded(unreadable, 4)


def test_json_of_strangers_is_one_object(tmp_path):
    """With or without a byte order mark; everything else is one line with the file's name."""
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert strict_json.read(path) == {"a": "\U0001f600"}
    for data in (b'{"a": [1]}', b'\xef\xbb\xbf{"a": [1]}'):
        path.write_bytes(data)
        assert strict_json.read(path) == {"a": [1]}
    for data in (
        b'{"a": 1, "a": 1}',
        b"[1]",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'["\\ud800"]',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000,
    ):
        path.write_bytes(data)
        with pytest.raises(PLNDError) as caught:
            strict_json.read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(PLNDError, match="larger than 3 bytes"):
        strict_json.read(path, most=3)


def test_a_link_is_followed(tmp_path):
    """Its target is written, be it there or not, and the link stays one."""
    (tmp_path / "far").mkdir()
    for name in ("far/there", "far/not yet"):
        target, link = tmp_path / name, tmp_path / f"to {name[4:]}"
        link.symlink_to(target)
        if name == "far/there":
            target.write_bytes(b"old")
        check_writable(link)
        write_bytes(b"new", link)
        assert link.is_symlink() and target.read_bytes() == b"new"
    assert sorted(x.name for x in (tmp_path / "far").iterdir()) == ["not yet", "there"]


def test_devices_and_pipes_are_written_to(tmp_path):
    """They stay what they are; a pipe gets the whole content, and nothing of a context that fails."""
    check_writable(os.devnull)
    write_bytes(b"gone", os.devnull)
    assert os.path.exists(os.devnull) and not os.path.isfile(os.devnull)
    pipe, seen = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_bytes(b"all of it", pipe)
    reader.join(10)
    assert seen == [b"all of it"] and [x.name for x in tmp_path.iterdir()] == ["pipe"] and pipe.is_fifo()


def test_a_full_device_is_one_line():
    """A device that takes nothing says so."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(PLNDError, match="/dev/full: cannot be written"):
        write_bytes(b"x" * 10**6, "/dev/full")


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_what_a_living_process_writes_stays(tmp_path):
    """However old it looks, a file or a folder in the making has its process's lock, and nobody takes it away."""
    with whole_file(tmp_path / "x") as stream:
        (partial,) = tmp_path.glob(".x.*.partial")
        os.utime(partial, (0, 0))
        remove_left_over(tmp_path / "x")
        stream.write(b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    with whole_folder(tmp_path / "y") as folder:
        (folder / "z").write_bytes(b"2")
        os.utime(folder.parent, (0, 0))
        remove_left_over(tmp_path / "y")
    assert (tmp_path / "y" / "z").read_bytes() == b"2"


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    """Its temporary file is removed once it is old; that of a process which still writes is left alone."""
    path = tmp_path / "file"
    code = (
        "import sys, time; from plnd.io.files import whole_file\n"
        "with whole_file(sys.argv[1]) as stream: stream.write(b'x'); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (partial,) = tmp_path.glob(".file.*.partial")
        hour_ago = time.time() - 3600
        os.utime(partial, (hour_ago, hour_ago))
        write_bytes(b"first", path)
        assert partial.exists()
        process.kill()
    assert partial.exists()
    os.utime(partial, None)
    write_bytes(b"second", path)
    assert partial.exists()  # it may be of a process that begins
    os.utime(partial, (hour_ago, hour_ago))
    write_bytes(b"third", path)
    assert [x.name for x in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"third"


def test_what_is_read_is_not_written(tmp_path):
    """By whatever name; what is written twice neither. A device may be both."""
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"")
    link.symlink_to(path)
    for output in (path, link, tmp_path / "." / "a"):
        with pytest.raises(PLNDError, match=f"--output {output}: is read as well .scores., and would be lost"):
            check_outputs({str(path): "scores"}, {"--output": str(output)})
    with pytest.raises(PLNDError, match=f"--csv {link}: is the file of --output, too"):
        check_outputs({}, {"--output": str(path), "--csv": str(link)})
    check_outputs({os.devnull: "corpus", str(path): "scores"}, {"--output": os.devnull, "--csv": str(tmp_path / "c")})


def test_cells_that_a_spreadsheet_would_compute(tmp_path):
    """Texts get an apostrophe in front; numbers, written as text too, stay what they are."""
    write_csv(tmp_path / "t.csv", ["=1+1", "a"], [["@x", -1.5], ["-0.25", "+1e-3"], ["-x", "a=b"]])
    assert (tmp_path / "t.csv").read_text() == "'=1+1,a\n'@x,-1.5\n-0.25,+1e-3\n'-x,a=b\n"


# folders


def replace(path, content: str) -> None:
    """A folder with one file takes the place of what is at `path`."""
    with whole_folder(path, overwrite=True) as folder:
        (folder / "file").write_text(content)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    """New, in place of an empty one, or of another one if told so; after an error the earlier one is there, alone."""
    path = tmp_path / "folder"
    with whole_folder(path) as folder:
        (folder / "file").write_text("first")
    replace(path, "second")
    with pytest.raises(PLNDError, match="folder: cannot be written .Directory not empty"), whole_folder(path):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(path, overwrite=True):
        raise ZeroDivisionError
    assert (path / "file").read_text() == "second" and [x.name for x in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="one step on Linux, two elsewhere")
def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    """There is no moment at which neither the earlier folder nor the new one is there: no rename takes part."""
    path = tmp_path / "folder"
    replace(path, "first")
    monkeypatch.setattr(os, "rename", lambda *names: pytest.fail(f"renamed {names}"))
    replace(path, "second")
    assert (path / "file").read_text() == "second" and [x.name for x in tmp_path.iterdir()] == ["folder"]
    assert not exchange(path, tmp_path / "nowhere")


@pytest.mark.parametrize("error", [OSError(16, "Device or resource busy"), KeyboardInterrupt()])
def test_a_folder_that_cannot_take_its_place_puts_the_earlier_one_back(tmp_path, monkeypatch, error):
    """Where it takes two steps and the second fails or is interrupted, the earlier folder is where it was."""
    path, rename = tmp_path / "folder", os.rename
    replace(path, "first")
    monkeypatch.setattr(files, "exchange", lambda *names: False)

    def fail_at_the_last(old, new):
        if old.name == "whole":
            raise error
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail_at_the_last)
        with pytest.raises((PLNDError, KeyboardInterrupt), match="Device or resource busy|^$"):
            replace(path, "second")
    assert (path / "file").read_text() == "first" and [x.name for x in tmp_path.iterdir()] == ["folder"]
    replace(path, "second")
    assert (path / "file").read_text() == "second" and [x.name for x in tmp_path.iterdir()] == ["folder"]


DIES = """
import os, signal, sys
from plnd.io import files, strict_json
files.exchange = lambda *names: False
rename = os.rename
def rename_and_die(old, new):
    rename(old, new)
    os.kill(os.getpid(), signal.SIGKILL)
with files.whole_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "file").write_text("second")
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename = rename_and_die
"""


@pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")
@pytest.mark.parametrize("moment", ["before", "between"])
def test_what_a_killed_process_left_of_a_folder_goes_with_the_next_one(tmp_path, moment):
    """Half of a new folder is removed, and an earlier one that was moved away to make room is put back first."""
    path = tmp_path / "folder"
    replace(path, "first")
    done = subprocess.run([sys.executable, "-c", DIES, str(path), moment])
    assert done.returncode == -9 and path.exists() == (moment == "before") and len(list(tmp_path.glob(".*"))) == 1
    with pytest.raises(ZeroDivisionError), whole_folder(path, overwrite=True):
        raise ZeroDivisionError
    assert (path / "file").read_text() == "first" and [x.name for x in tmp_path.iterdir()] == ["folder"]
