"""Several processes on one folder: every file is written once, also when one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_eval_plnd.experiments.sharing import LOCKS, claimed, unwritten
from plnd.errors import PLNDError

FILES = 12
WORKER = f"""
import os, sys, time
from pathlib import Path
from lm_eval_plnd.experiments.sharing import unwritten

folder = Path(sys.argv[1])
for path in unwritten([folder / f"{{number}}.json" for number in range({FILES})], folder):
    with open(folder / "log", "a") as log:
        log.write(f"{{path.name}} {{os.getpid()}}\\n")
    time.sleep(float(sys.argv[2]))
    path.write_text("written")
"""


def start(folder: Path, seconds: float) -> subprocess.Popen:
    """A process that takes so long for each file."""
    (folder / LOCKS).mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(seconds)])


def log(folder: Path) -> list[list[str]]:
    """Name and process of each file that was begun."""
    path = folder / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_each_file_is_written_by_one_process(tmp_path):
    """Three at once share the files, and each ends when all are there."""
    workers = [start(tmp_path, 0.1) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    begun = log(tmp_path)
    assert sorted(name for name, _ in begun) == sorted(f"{number}.json" for number in range(FILES))
    assert len({process for _, process in begun}) > 1


def test_what_a_killed_process_had_begun_is_written_by_another(tmp_path):
    """It is waited for, and taken over once its process is gone."""
    first = start(tmp_path, 600)
    while not log(tmp_path):
        time.sleep(0.01)
    second = start(tmp_path, 0)
    while len(log(tmp_path)) < FILES:  # the first file and the other eleven
        time.sleep(0.01)
    time.sleep(0.3)
    assert second.poll() is None and not (tmp_path / "0.json").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.wait(60) == 0 and len(list(tmp_path.glob("*.json"))) == FILES
    assert log(tmp_path)[-1] == ["0.json", str(second.pid)]


def test_half_written_files_of_the_claimed_name_are_deleted(tmp_path):
    """Those of another name may be another process's."""
    mine, other = tmp_path / ".[a].json.x1.partial", tmp_path / ".[a].b.json.x2.partial"
    mine.touch()
    other.touch()
    with claimed(tmp_path / "[a].json", tmp_path) as claim:
        assert claim and not mine.exists() and other.exists()


def test_a_claim_that_does_not_wait(tmp_path):
    """It is refused while somebody has the file, and given afterwards."""
    path = tmp_path / "a.json"
    with claimed(path, tmp_path) as first:
        with claimed(path, tmp_path, wait=False) as second:
            assert (first, second) == (True, False)
    path.touch()
    assert list(unwritten([path], tmp_path)) == []


def test_a_folder_that_takes_no_locks(tmp_path):
    """One line that names it."""
    (tmp_path / LOCKS).write_text("a file")
    with pytest.raises(PLNDError, match=r"\.locks/a\.json\.lock: cannot be written \(.+\); choose another --output"):
        with claimed(tmp_path / "a.json", tmp_path):
            pass
