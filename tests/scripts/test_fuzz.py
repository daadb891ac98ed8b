"""scripts/fuzz.py: a short campaign finds nothing, and what it looks for it would find."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fuzzing.workshop import Workshop
from fuzzing.writers import Writer, digests
from plnd import any_artifact
from plnd.io import files
from programs import run_script, script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, limits of resources and /proc"),
]
BY_HAND = ("--parts", "loads", "--kinds", "scores", "neurons", "corpora", "settings")


def campaign(capsys, *arguments: object) -> tuple[int, dict[str, str], str]:
    """Its status, its counts by part, and all that it prints."""
    with pytest.raises(SystemExit) as stop:
        run_script("fuzz", "--minutes", 5, *arguments)
    said = capsys.readouterr().out
    counts = dict(line.split(": ", 1) for line in said.splitlines() if line.startswith(script("fuzz").PARTS))
    return int(stop.value.code or 0), counts, said


def test_files_that_are_mutated_are_refused_or_are_what_they_were(capsys):
    """Two hundred, without a traceback, a hang, more memory than 512 MiB or a wrong load; most are refused."""
    status, counts, said = campaign(capsys, *BY_HAND, "--loads", 200)
    assert status == 0 and counts["loads"].startswith("200 ("), said
    assert int(counts["loads"].split(" refused")[0].rpartition(" ")[2]) > 100


def test_commands_that_are_killed_or_without_room_lose_nothing(capsys):
    """Kills and full disks of commands that write a file, one of them from shards, and of one that writes a folder."""
    arguments = ("--parts", "kills", "disks", "--commands", "combine", "merge", "overwrite", "--kills", 3, "--disks", 3)
    status, counts, said = campaign(capsys, *arguments)
    assert status == 0 and counts["kills"].startswith("3 (") and counts["disks"].startswith("3 ("), said


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (lambda path: {}[path], "traceback"),
        (lambda path: bytearray(2**30), "limit"),
    ],
)
def test_a_reader_that_fails_is_a_finding(capsys, monkeypatch, fault, finding):
    """An error that is no refusal, and more memory than there may be: status 1, and the finding by its name."""
    read = any_artifact.load
    monkeypatch.setattr(
        any_artifact, "load", lambda path: fault(path) if Path(path).name.startswith("case") else read(path)
    )
    status, counts, said = campaign(capsys, "--parts", "loads", "--kinds", "neurons", "--loads", 20)
    assert status == 1 and finding in counts["loads"], said


def test_a_file_that_is_not_written_whole_is_a_finding(tmp_path):
    """What differs from both the earlier file and the whole one is told, whatever the command."""
    writer = Writer("combine", "", Workshop(tmp_path))
    files.write_bytes(b"whole", tmp_path / "combined")
    writer.whole = digests(tmp_path)
    assert writer.problem(tmp_path, ended=True) == writer.problem(tmp_path, ended=False) == ""
    files.write_bytes(b"who", tmp_path / "combined")
    assert "combined" in writer.problem(tmp_path, ended=True)
    assert writer.problem(tmp_path, ended=False) == "combined is not whole"
