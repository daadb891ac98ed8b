"""What `tests/plnd/detection/test_processes.py` lets two processes do; each leaves files in a folder."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from plnd.commands import main as cli
from plnd.detection import run as detection
from plnd.detection.config import DetectConfig
from plnd.detection.processes import Processes
from plnd.detection.run import detect, detect_shard
from plnd.errors import CorpusError
from tiny import tiny_model

CONFIG = DetectConfig(language="xx", min_length=4, batch_size=2, qk="exact")
EPSILON = 0.05
STOPPED_AT = 17


def documents() -> list[list[int]]:
    """Random token ids; document 2 is too short and document 5 has a token that `model` gives no finite embedding."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(3, 96, 4 + n % 7).tolist() for n in range(25)]
    texts[2], texts[5][1] = [5], 96
    return texts


def model() -> torch.nn.Module:
    """A tiny Llama in float32, computing with one thread."""
    torch.set_num_threads(1)
    made = tiny_model("llama", torch.float32)
    with torch.no_grad():
        made.get_input_embeddings().weight[96] = torch.inf
    return made


def stopped(error: Exception) -> Iterator[list[int]]:
    """The documents, with an error before number `STOPPED_AT`."""
    yield from documents()[:STOPPED_AT]
    raise error


@contextlib.contextmanager
def small_windows() -> Iterator[None]:
    """A checkpoint after every three batches."""
    before = detection.CHECKPOINT_SECONDS, detection.WINDOW
    detection.CHECKPOINT_SECONDS, detection.WINDOW = 0, 3
    try:
        yield
    finally:
        detection.CHECKPOINT_SECONDS, detection.WINDOW = before


class Counted(Processes):
    """Processes that know how many bytes each has given to others so far, those to several counted for each."""

    sent = 0

    def exchange(self, value: object = None) -> list:  # noqa: D102
        self.sent += len(pickle.dumps(value)) * (self.count - 1)
        return super().exchange(value)

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:  # noqa: D102
        self.sent += tensor.nbytes * (self.count - 1) * (self.rank == source)
        return super().broadcast(tensor, source)

    def collect(self, tensor: torch.Tensor, source: int) -> torch.Tensor:  # noqa: D102
        self.sent += tensor.nbytes * (self.rank == source != 0)
        return super().collect(tensor, source)


def main(folder: Path) -> None:
    """All that is done with two processes, one thing after the other."""
    processes: Processes = Counted.launched("cpu")
    assert processes.count == 2
    own = folder / f"rank{processes.rank}"

    def run(name: str, texts=None, config: DetectConfig = CONFIG, **options) -> None:
        scores = detect(model(), texts or documents(), config, processes=processes, **options)
        scores.save(own / name)

    def fail(name: str, action: Callable[[], object]) -> None:
        """Keeps what is raised; the processes are new to each other afterwards, as in another run."""
        nonlocal processes
        try:
            action()
        except Exception as error:
            (own / name).write_text(f"{type(error).__name__}: {error}")
        processes = Processes(processes.rank, processes.count, processes.device)

    own.mkdir()
    run("plain")
    (own / "sent").write_text(str(processes.sent))
    detect_shard(model(), documents(), "2/3", CONFIG, processes=processes).save(own / "shard")
    run("epsilon", config=replace(CONFIG, epsilon=EPSILON))
    run("resumed", checkpoint=folder / "left_by_one", resume=True)
    fail("stopped", lambda: run("no", stopped(CorpusError("enough")), checkpoint=folder / "left_by_two"))
    first = processes.first
    fail("one fails", lambda: run("no", documents() if first else stopped(CorpusError("no more"))))
    fail("one is wrong", lambda: run("no", documents() if first else stopped(ZeroDivisionError("oh"))))
    fail("other corpora", lambda: run("no", documents()[not first :]))
    fail("fewer documents", lambda: run("no", documents()[: None if first else -3]))
    fail("damaged", lambda: run("no", checkpoint=folder / "damaged", resume=True))
    with (
        open(own / "cli", "w") as stream,
        contextlib.redirect_stderr(stream),
        contextlib.suppress(SystemExit),
    ):
        cli.main(["detect", "--model", "m", "--corpus", "none.txt", "--language", "xx", "--output", "x",
                       "--device", "cpu"])  # fmt: skip


if __name__ == "__main__":
    with small_windows():
        main(Path(sys.argv[1]))
