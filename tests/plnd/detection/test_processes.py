"""Two processes share the documents and write, bit for bit, what one writes; where one fails, both end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import two_processes
from plnd.commands.main import main
from plnd.demo_data import demo_model
from plnd.detection.part import merge
from plnd.detection.processes import Processes
from plnd.detection.run import detect, detect_shard
from plnd.errors import CorpusError, PLNDError
from plnd.neurons.scores import Scores
from two_processes import CONFIG, EPSILON, STOPPED_AT, documents, model, small_windows, stopped

SUPPORT = Path(two_processes.__file__).parent
ACCELERATE = (
    *("accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"),
    *("--main_process_port", "0"),  # one that is free
)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launch(*command: str | Path, folder: Path) -> subprocess.CompletedProcess:
    """A launcher and what it starts, each process with one thread."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SUPPORT}{os.pathsep}{SUPPORT.parents[1]}"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def one_thread():
    """Sums within a matrix product depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread):
    """What two processes left, after one process had left them a checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    with small_windows(), pytest.raises(CorpusError, match="enough"):
        detect(model(), stopped(CorpusError("enough")), CONFIG, checkpoint=folder / "left_by_one")
    (folder / "damaged").write_bytes(b"nonsense")
    done = launch(*ACCELERATE, SUPPORT / "two_processes.py", folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def alone(config=CONFIG, **options) -> Scores:
    """What one process finds."""
    with small_windows():
        return detect(model(), documents(), config, **options)


def both(folder: Path, name: str) -> set[bytes]:
    """What the two processes left under one name."""
    return {(folder / f"rank{rank}" / name).read_bytes() for rank in (0, 1)}


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, tmp_path):
    """The artifact is the same bit for bit, logs, skipped documents and all."""
    scores = alone()
    assert any(values.any() for values in scores.mean_log.values()) and scores.std_log.keys() == scores.mean.keys()
    assert scores.metadata["corpus"]["skipped_counts"] == {"shorter than 4 tokens": 1, "non-finite importance": 1}
    scores.save(tmp_path / "one")
    assert both(folder, "plain") == {(tmp_path / "one").read_bytes()}


@pytest.mark.slow
def test_numbers_are_sent_once(folder):
    """The other process sends its totals once, the first one the result, and both a line for each of five windows.

    It was the numbers of every neuron for every batch.
    """
    first, second = (int((folder / f"rank{rank}" / "sent").read_text()) for rank in (0, 1))
    scores = Scores.load(folder / "rank0" / "plain")
    neurons = sum(len(v) for a, v in scores.minimum.items() if not a.endswith(("gate_proj", "up_proj")))
    totals = 8 * 8 * neurons
    for sent in (first, second):
        assert totals < sent < totals + 4000


@pytest.mark.slow
def test_a_killed_worker_costs_the_work_since_the_last_checkpoint(tmp_path, one_thread):
    """`torchrun --max-restarts` starts both again, and what the checkpoint has is not measured again.

    One begins later, so that the other must wait for it, and not take the one that was there before for it.
    """
    options = (*TORCHRUN, "--max-restarts", "1")
    done = launch(*options, SUPPORT / "restarted.py", tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    alone().save(tmp_path / "one")
    scores = [(tmp_path / f"scores{rank}").read_bytes() for rank in (0, 1)]
    assert scores == [(tmp_path / "one").read_bytes()] * 2
    before_the_kill = 2 * 3  # batches, in whole windows
    assert sum(int((tmp_path / f"passes{rank}").read_text()) for rank in (0, 1)) == 12 - before_the_kill


def join(port: int, attempt: int) -> None:
    """Is the first of two processes in an attempt of `torchrun`, and waits for the other."""
    of_torchrun = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    of_torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": attempt}
    os.environ |= {name: str(value) for name, value in of_torchrun.items()}
    Processes.launched("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_each_attempt_has_addresses_of_its_own():
    """In the store that outlives them: so nobody takes the address of a process that was killed for its neighbour's."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.TCPStore("127.0.0.1", store.port, 1)  # the store counts those who come, under a key that all have
    found = [store.num_keys()]
    for attempt in (0, 1):
        process = multiprocessing.get_context("fork").Process(target=join, args=(store.port, attempt))
        process.start()
        end, wanted = time.monotonic() + 60, found[-1] + (1 if attempt == 0 else found[1] - found[0])
        while store.num_keys() < wanted and process.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.5 if attempt == 0 else 0)  # for what else it writes
        process.kill()
        process.join()
        found.append(store.num_keys())
    assert found[2] - found[1] >= found[1] - found[0] > 0


@pytest.mark.slow
def test_two_processes_share_a_shard(folder):
    """Both have the part, which goes with the parts of one process."""
    (part,) = both(folder, "shard")
    with small_windows():
        others = [detect_shard(model(), documents(), shard, CONFIG) for shard in ("1/3", "3/3")]
    assert part and merge([*others, folder / "rank0" / "shard"]).digest == alone().digest


@pytest.mark.slow
def test_known_rule_with_two_processes(folder, tmp_path):
    """What need not be measured again is the same for every number of processes."""
    alone(replace(CONFIG, epsilon=EPSILON)).save(tmp_path / "one")
    assert both(folder, "epsilon") == {(tmp_path / "one").read_bytes()}


@pytest.mark.slow
def test_one_process_resumed_by_two(folder, tmp_path):
    """A run of one process that ended early is taken up by two."""
    alone().save(tmp_path / "one")
    assert both(folder, "resumed") == {(tmp_path / "one").read_bytes()}


@pytest.mark.slow
def test_two_processes_resumed_by_one(folder, tmp_path):
    """A run of two processes that ended early is taken up by one, which reads again but does not score again."""
    shutil.copy(folder / "left_by_two", tmp_path / "checkpoint")
    passes, resuming = [], model()
    resuming.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    with small_windows():
        scores = detect(resuming, documents(), CONFIG, checkpoint=tmp_path / "checkpoint", resume=True)
    assert scores.digest == alone().digest
    scored_by_two = (STOPPED_AT - 1) // 6 * 3  # batches, in whole windows
    assert len(passes) == 12 - scored_by_two


@pytest.mark.parametrize(
    "name, first, second",
    [
        ("stopped", "CorpusError: enough", "CorpusError: enough"),
        ("one fails", "PLNDError: no more", "CorpusError: no more"),
        ("one is wrong", "PLNDError: process 1 failed: ZeroDivisionError: oh", "ZeroDivisionError: oh"),
        *(
            (name, *["PLNDError: the processes read different documents: give each the same corpus"] * 2)
            for name in ("other corpora", "fewer documents")
        ),
    ],
)
@pytest.mark.slow
def test_an_error_of_one_ends_both(folder, name, first, second):
    """No process goes on, or waits, when another has failed: each says why."""
    assert [(folder / f"rank{rank}" / name).read_text() for rank in (0, 1)] == [first, second]


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_both(folder):
    """The first process alone reads it, and both refuse it."""
    for text in both(folder, "damaged"):
        assert text.decode().startswith(f"PLNDError: {folder}/damaged: not a whole checkpoint (")


@pytest.mark.slow
def test_one_line_for_all(folder):
    """Of bad input the first process speaks, the others are silent."""
    lines = [(folder / f"rank{rank}" / "cli").read_text() for rank in (0, 1)]
    assert lines[0].startswith("plnd detect: none.txt: no such file") and lines[0].count("\n") == 1
    assert lines[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_command_line_under_a_launcher(tmp_path, monkeypatch, one_thread, capsys, launcher):
    """`-m plnd detect` under a launcher with two processes writes the file that `plnd detect` writes."""
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    lines = [" ".join(words[n % 5 : 4 + n % 9]) for n in range(23)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    arguments = ["detect", "--model", str(demo_model()), "--corpus", "corpus.txt", "--language", "en"]
    arguments += ["--min-length", "4", "--batch-size", "2", "--device", "cpu", "--output"]
    done = launch(*launcher, "-m", "plnd", *arguments, "two", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "one"]) == 0
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert done.stdout.replace("two:", "one:") == capsys.readouterr().out


# one process


def test_one_process_is_its_own_world():
    """Without a launcher there is nobody to talk to, and errors are what they were."""
    processes = Processes.launched()
    assert (processes.rank, processes.count, processes.device, processes.first) == (0, 1, None, True)
    assert processes.exchange("x") == ["x"]
    assert processes.broadcast(torch.ones(2), 0).tolist() == processes.collect(torch.ones(2), 0).tolist() == [1, 1]
    with pytest.raises(KeyError), processes.together():
        raise KeyError
    processes.close()


@pytest.mark.parametrize("device", ["auto", "cuda:1", "disk"])
def test_a_device_for_each(monkeypatch, device):
    """Several processes cannot share a device that was named for one, nor each spread over all of them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PLNDError, match=f"device '{device}': 2 processes take one device each; give cpu"):
        Processes.launched(device)
