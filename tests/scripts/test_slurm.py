"""The job scripts of `scripts/slurm`: what Slurm would run, run here, with its variables set."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plnd.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "scripts" / "slurm"
SCRIPTS = sorted(SLURM.iterdir())


def program(folder: Path, name: str, text: str) -> None:
    """A shell script on the path of what `run` starts."""
    folder.joinpath(name).write_text(f"#!/bin/bash\n{text}\n")
    folder.joinpath(name).chmod(0o755)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a job, with programs of `folder` before others, and plnd as this Python has it."""
    here = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PLND": f"{sys.executable} -m plnd",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | here | more


def task(number: int, count: int = 2) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    return {
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_parse_them(script):
    """`bash -n`; what has options for Slurm has them before its first command, where alone Slurm reads them."""
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert bool(options) == (script.suffix == ".sbatch") and max(options, default=0) < commands[0]


def test_submitted(tmp_path):
    """An array of so many tasks, and the merge, which waits until all are done."""
    program(tmp_path, "sbatch", f'echo "$@" >> {tmp_path}/submitted; echo 77')
    command = ["bash", SLURM / "submit.sh", "3", "zh.scores", "--model", "m", "--corpus", "c.txt", "--language", "zh"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == "array 77, merge 77\n"
    assert (tmp_path / "submitted").read_text().splitlines() == [
        f"--parsable --array=1-3 {SLURM}/detect.sbatch zh.scores --model m --corpus c.txt --language zh",
        f"--parsable --dependency=afterok:77 {SLURM}/merge.sbatch zh.scores 3",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("detect.sbatch zh.scores --model m", "detect --model m --shard 2/2 --output zh.scores.2-of-2.part --resume"),
        ("experiment.sbatch demo folder --limit 3", "experiment demo --output folder --limit 3"),
    ],
)
def test_queued_again_when_time_is_nearly_up(tmp_path, arguments, expected):
    """At Slurm's warning the task ends what it runs, asks to be queued again, and does not count as failed."""
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked')
    program(tmp_path, "slow", f'echo "$@" > {tmp_path}/started; exec sleep 60')
    name, *options = arguments.split()
    command = ["bash", SLURM / name, *options]
    running = subprocess.Popen(
        command, env=environment(tmp_path, PLND="slow", **task(2)), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        time.sleep(0.01)
    running.send_signal(signal.SIGUSR1)
    said, _ = running.communicate(timeout=50)
    assert running.returncode == 0 and "queued again" in said
    assert (tmp_path / "asked").read_text() == "requeue 77_2\n"
    assert (tmp_path / "started").read_text() == f"{expected}\n"


@pytest.mark.parametrize("arguments", ["detect.sbatch zh.scores --model m", "experiment.sbatch demo folder"])
def test_a_warning_in_the_moment_of_the_start(tmp_path, arguments):
    """Between the start and the next line, which bash's DEBUG trap says: it is heeded as any other."""
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked')
    program(tmp_path, "slow", "exec sleep 20")
    early = tmp_path / "early.bash"
    early.write_text("trap 'case $BASH_COMMAND in process=*) kill -USR1 $$;; esac' DEBUG\n")
    name, *options = arguments.split()
    variables = environment(tmp_path, PLND="slow", BASH_ENV=str(early), **task(2))
    done = subprocess.run(
        ["bash", SLURM / name, *options], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0 and "queued again" in done.stdout
    assert (tmp_path / "asked").read_text() == "requeue 77_2\n"


def test_a_task_that_fails(tmp_path):
    """Its status is Slurm's, so that the merge does not begin."""
    program(tmp_path, "failing", "exit 2")
    command = ["bash", SLURM / "detect.sbatch", "zh.scores", "--model", "m"]
    assert subprocess.run(command, env=environment(tmp_path, PLND="failing", **task(1)), cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_an_array_and_its_merge(tmp_path, small_model, monkeypatch, capsys):
    """Two tasks, and the merge: the file that one run writes; a task that is started again finds its part there."""
    lines = [" ".join("one two three four five six seven".split()[n % 3 :]) * (1 + n % 4) for n in range(40)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    options = ["--model", small_model, "--corpus", "corpus.txt", "--language", "en", "--min-length", "4"]
    options += ["--batch-size", "2", "--device", "cpu"]
    for number in (2, 1, 1):
        command = ["bash", SLURM / "detect.sbatch", "en.scores", *options]
        done = subprocess.run(
            command, env=environment(tmp_path, **task(number)), cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "en.scores.1-of-2.part is there\n"
    command = ["bash", SLURM / "merge.sbatch", "en.scores", "2"]
    done = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["detect", *options, "--output", "one"]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "en.scores").read_bytes()
    assert re.sub("^one", "en.scores", capsys.readouterr().out) == done.stdout
    assert not list(tmp_path.glob("*.part"))
