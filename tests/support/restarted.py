"""What a test of `torchrun --max-restarts` lets two processes do: one of them is killed, the first time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from plnd.detection.checkpoint import Checkpoint
from plnd.detection.processes import Processes
from plnd.detection.run import detect
from two_processes import CONFIG, documents, model, small_windows

DOCUMENTS = 3 * CONFIG.documents_together
"""Of a window: `small_windows` has three batches."""


def killed(checkpoint: Path) -> Iterator[list[int]]:
    """The documents; before the first that is read in the third window the process ends, after the second was saved."""
    yield from documents()[: 3 * DOCUMENTS]  # those of two windows, and as many that are read ahead
    while not checkpoint.exists() or Checkpoint.load(checkpoint).windows < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    """One run; each process leaves the scores, and how many batches it measured since it was started."""
    again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if again and os.environ["RANK"] == "0":
        time.sleep(5)  # the other one must not find the address of the one that was ended
    processes, checkpoint = Processes.launched("cpu"), folder / "checkpoint"
    dies = not processes.first and not again
    passes, measured = [], model()
    measured.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    texts = killed(checkpoint) if dies else documents()
    scores = detect(measured, texts, CONFIG, checkpoint=checkpoint, resume=True, processes=processes)
    assert again
    scores.save(folder / f"scores{processes.rank}")
    (folder / f"passes{processes.rank}").write_text(str(len(passes)))


if __name__ == "__main__":
    with small_windows():
        main(Path(sys.argv[1]))
