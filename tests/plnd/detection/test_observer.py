"""What a pass that is observed makes the host wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import plnd
from plnd.importance import softmax
from plnd.models.batches import padded
from plnd.models.layout import Layout
from tiny import tiny_model

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "masked_select")
"""Operations whose result, or its shape, the host has to know before it goes on; `bool` and `item` are the first."""
COPIES = ("cpu", "tolist", "numpy")
"""Methods that bring a tensor to the host. On a CPU they do nothing that a dispatch mode would see."""


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name.startswith(("index", "_index_put")) and len(args) > 1 else ()
        by_mask = isinstance(masks, (list, tuple)) and any(x is not None and x.dtype == torch.bool for x in masks)
        if name in WAITS or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in COPIES:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def waits(run: Callable[[], object]) -> Counter[str]:
    """What in a run would wait for a device, by name."""
    found: Counter[str] = Counter()
    with _Methods(found), _Operations(found):
        run()
    return found


def test_waits_are_seen():
    """The probe counts what waits, and nothing else."""
    x = torch.ones(3)

    def run() -> None:
        bool(x.sum() > 1), x.sum().item(), x[x > 0], x.tolist(), x.cpu(), x.nonzero()
        x[torch.tensor([0, 1])], x * 2, x.sum()

    assert waits(run) == {"_local_scalar_dense": 2, "index": 1, "tolist": 1, "cpu": 1, "nonzero": 1}


@pytest.mark.parametrize("qk", ["off", "first_order"])
@pytest.mark.parametrize(("family", "masks"), [("llama", 1), pytest.param("gemma3_text", 2, marks=pytest.mark.slow)])
def test_a_batch_waits_for_nothing_but_its_masks_and_its_end(family, masks, qk, monkeypatch):
    """A batch of padded documents waits for which keys each of its masks shows, once for all blocks, and for its end.

    Beyond what the model's own forward pass waits for, and what a run waits for once.
    """
    monkeypatch.setattr(softmax, "compiled_kernels", lambda: None)  # a GPU has other kernels than a CPU
    model = tiny_model(family, torch.float32)
    layout, config = Layout(model), plnd.DetectConfig(qk=qk, min_length=1, max_length=32, batch_size=3)

    def beyond_the_model(batches: int) -> int:
        lengths = range(7 + 3 * batches, 7, -1)  # all different, in the order in which they are measured
        documents = [[3 + (7 * length + place) % 90 for place in range(length)] for length in lengths]
        own = 0
        for first in range(0, len(documents), 3):
            own += waits(lambda first=first: layout.forward(*padded(documents[first : first + 3]))).total()
        return waits(lambda: plnd.detect(model, documents, config)).total() - own

    few, more = (beyond_the_model(batches) for batches in (2, 5))
    assert (more - few) / 3 <= (1 if qk == "off" else 1 + masks)
