"""Seven shards, each in a process of its own, some of which are killed: what a test of merging starts."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from detecting import BAD, CONFIG, some_documents  # noqa: E402
from plnd.detection import run  # noqa: E402
from plnd.detection.run import detect, detect_shard  # noqa: E402
from tiny import tiny_model  # noqa: E402

SHARDS = 7
KILLED = {2: 30, 5: 61, 6: 22}
"""Shard to the document before which its process is killed once: behind a window of nine, and as many read ahead."""
TWO_THREADS = 3
DOCUMENTS = some_documents([4 + n % 9 for n in range(90)], seed=3)
DOCUMENTS[3], DOCUMENTS[10][1] = [5], BAD


def documents(killed_before: int | None = None) -> Iterator[list[int]]:
    """All of them, or those before the process is killed."""
    for number, document in enumerate(DOCUMENTS):
        if number == killed_before:
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


def child(action: Callable[[], object]) -> int:
    """What became of a process that does this: its exit status, or the signal that ended it, negative."""
    number = os.fork()
    if not number:
        torch.set_num_threads(1)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def shard(folder: Path, number: int, killed_before: int | None = None) -> None:
    """One shard, from its checkpoint if there is one."""
    if number == TWO_THREADS:
        torch.set_num_threads(2)
    checkpoint = folder / f"{number}.checkpoint"
    texts, name = documents(killed_before), f"{number}/{SHARDS}"
    detect_shard(model(), texts, name, CONFIG, checkpoint=checkpoint, resume=True).save(folder / f"{number}.part")


def model() -> torch.nn.Module:
    """A tiny Llama in float32, with a token that has no finite embedding."""
    made = tiny_model("llama", torch.float32)
    with torch.no_grad():
        made.get_input_embeddings().weight[BAD] = torch.inf
    return made


def main(folder: Path) -> None:
    """All shards, and the run without."""
    run.WINDOW, run.CHECKPOINT_SECONDS = 3, 0
    order = list(range(1, SHARDS + 1))
    random.Random(0).shuffle(order)
    said: dict[str, list[int]] = {"killed": [], "resumed": []}
    for number in order:
        if number in KILLED:
            assert child(lambda n=number: shard(folder, n, KILLED[n])) == -signal.SIGKILL
            assert not (folder / f"{number}.part").exists()
            said["killed"].append(number)
            if (folder / f"{number}.checkpoint").exists():
                said["resumed"].append(number)
        assert child(lambda n=number: shard(folder, n)) == 0
    assert child(lambda: detect(model(), documents(), CONFIG).save(folder / "one")) == 0
    (folder / "killed.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
