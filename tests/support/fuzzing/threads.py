"""Files written and read, and one model used, by several threads at once."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fuzzing.readers import content
from handmade import make_neurons


def in_threads(*actions: Callable[[], None]) -> int:
    """Runs actions side by side; the status is 1, and their errors are shown, if one raised."""
    failed: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    started = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for error in failed:
        print(f"Traceback: {type(error).__name__}: {error}")
    return int(bool(failed))


def files_in_threads(out: Path) -> int:
    """Two artifacts take turns at one path; whoever reads finds one of them."""
    from plnd.any_artifact import load

    sets = [make_neurons({"0.up_proj": list(range(n, 8))}, language=f"{n}") for n in range(2)]
    path = out / "set"
    sets[0].save(path)
    expected = []
    for one in sets:
        one.save(out / "other")
        expected.append(content(load(out / "other")))
    end = time.monotonic() + 2

    def write(number: int) -> None:
        while time.monotonic() < end:
            sets[number].save(path)

    def read() -> None:
        while time.monotonic() < end:
            assert content(load(path)) in expected, "a mixture"

    return in_threads(lambda: write(0), lambda: write(1), read, read)


def model_in_threads(w: Path) -> int:
    """Detections and deactivations of one model: each right or refused, and the model afterwards as it was."""
    import torch

    import plnd

    model = plnd.load_model(str(w / "model"), dtype="float32", device="cpu")
    neurons = plnd.NeuronSet.load(w / "made/select/zh.neurons")
    documents = [list(range(3 + n, 40 + n)) for n in range(4)]
    config = plnd.DetectConfig(language="zh", min_length=8, max_length=32)
    ids = torch.tensor([documents[0]])

    def digest() -> str:
        state = [value.numpy().tobytes() for value in model.state_dict().values()]
        return hashlib.sha256(b"".join(state) + str(model.config._attn_implementation).encode()).hexdigest()

    expected, before = content(plnd.detect(model, documents, config)), digest()
    with torch.no_grad(), plnd.deactivated(model, neurons):
        masked = model(ids).logits

    def detect() -> None:
        with suppress(plnd.PLNDError):
            assert content(plnd.detect(model, documents, config)) == expected, "other scores"

    def deactivate() -> None:
        for _ in range(5):
            with suppress(plnd.PLNDError), torch.no_grad(), plnd.deactivated(model, neurons):
                assert torch.equal(model(ids).logits, masked), "other logits"

    return in_threads(detect, detect, deactivate) or int(digest() != before)
