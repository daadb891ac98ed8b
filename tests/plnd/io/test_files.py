"""Files are written whole or not at all; what else is said of writing is held in `test_artifact`, on artifacts."""

from __future__ import annotations

import os

from plnd.io.files import write_bytes


def test_all_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    """A machine that loses its power leaves the old file or the new one, never a new name on half of the bytes."""
    path, forced, fsync = tmp_path / "file", [], os.fsync
    path.write_bytes(b"old")

    def recorded(handle):
        forced.append((os.fstat(handle).st_size, path.read_bytes()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_bytes(b"renewed", path)
    assert forced == [(len(b"renewed"), b"old")] and path.read_bytes() == b"renewed"
