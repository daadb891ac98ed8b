"""scripts/fuzz.py: a short campaign finds nothing, and what it looks for it would find."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import pytest

from fuzzing.readers import ARTIFACTS, OTHERS
from fuzzing.workshop import NOT_KILLED, WRITERS, Workshop
from fuzzing.writers import Writer, digests
from plnd import any_artifact
from plnd.commands.main import INPUTS, OUTPUTS, find_commands, make_parser
from plnd.io import files
from programs import run_script, script

slow = pytest.mark.slow
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, limits of resources and /proc")
READ = {
    "parts": "parts",
    "scores": "scores",
    "against": "scores",
    "neurons": "neurons",
    "operations": "neurons",
    "mask": "neurons",
    "files": "scores neurons profiles",
    "file": "scores neurons roles means directions routings",
    "means": "means",
    "steer": "directions",
    "direction": "directions",
    "family": "rows",
    "corpus": "corpora",
    "corpora": "corpora",
    "parallel": "corpora",
    "text": "corpora",
    "questions_dir": "corpora",
    "settings": "settings runs",
    "results": "results",
    "folder": "results",
    "evaluation": "evaluations",
    "old": "old",
    "model": "folders",
}
"""Argument to the kinds of files that it names."""
NOT_READ = {"include_path": "folders of lm-eval's tasks, which run Python: trusted"}
"""Arguments that name files which are not mutated, and why."""
NO_FILES = set(
    "revision text_field shard language dtype device projections regions neuron languages detectors ablations curve"
    " blocks repository tasks model_args batch_size gen_kwargs metadata setting name base_model license set answers"
    " align thresholds attribution keep".split()
)
"""Arguments that are words, numbers or names of the hub, whatever the command."""
BY_HAND = ("--parts", "loads", "--kinds", "scores", "neurons", "corpora", "settings")


def arguments() -> dict[str, set[str]]:
    """Command to its arguments that are text; those that share a list by the list's name."""
    parser = make_parser(find_commands())
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {
        name: {
            action.dest
            for action in command._actions
            if action.type in (None, str) and action.nargs != 0 and not action.choices
        }
        for name, command in commands.choices.items()
    }


def test_every_command_is_killed_or_need_not_be():
    """A new command has to be put among those that are killed, or among those that need not be, with the reason."""
    killed = {argv.split()[0] for argv in WRITERS.values()}
    assert killed.isdisjoint(NOT_KILLED) and killed | NOT_KILLED.keys() == arguments().keys()


def test_every_argument_is_known_for_what_it_is():
    """A new one has to be put among those whose files are mutated, or among those that name none; what is read is what
    no command writes."""
    found = set().union(*arguments().values()) - {"minus", "minus_shared", "union", "intersect"} | {"operations"}
    read = READ.keys() | NOT_READ.keys()
    assert found - NO_FILES - set(OUTPUTS) == read and read == set(INPUTS)


def test_every_kind_of_artifact_is_mutated():
    """All that `plnd.load` reads; and the arguments above name kinds that there are."""
    assert sorted(ARTIFACTS.values()) == sorted(kind.__name__ for kind in get_args(any_artifact.Artifact))
    assert {kind for kinds in READ.values() for kind in kinds.split()} <= {*ARTIFACTS, *OTHERS}


def campaign(capsys, *arguments: object) -> tuple[int, dict[str, str], str]:
    """Its status, its counts by part, and all that it prints."""
    with pytest.raises(SystemExit) as stop:
        run_script("fuzz", "--minutes", 5, *arguments)
    said = capsys.readouterr().out
    counts = dict(line.split(": ", 1) for line in said.splitlines() if line.startswith(script("fuzz").PARTS))
    return int(stop.value.code or 0), counts, said


@slow
def test_files_that_are_mutated_are_refused_or_are_what_they_were(capsys):
    """Two hundred, without a traceback, a hang, more memory than 512 MiB or a wrong load; most are refused."""
    status, counts, said = campaign(capsys, *BY_HAND, "--loads", 200)
    assert status == 0 and counts["loads"].startswith("200 ("), said
    assert int(counts["loads"].split(" refused")[0].rpartition(" ")[2]) > 100


@slow
def test_commands_that_are_killed_or_without_room_lose_nothing(capsys):
    """Kills and full disks of commands that write a file, one of them from shards, and of one that writes a folder."""
    arguments = ("--parts", "kills", "disks", "--commands", "combine", "merge", "overwrite", "--kills", 3, "--disks", 3)
    status, counts, said = campaign(capsys, *arguments)
    assert status == 0 and counts["kills"].startswith("3 (") and counts["disks"].startswith("3 ("), said


@slow
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
