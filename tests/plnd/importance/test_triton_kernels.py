"""The Triton kernels, in Triton's interpreter on a CPU, against float64 and the sequential oracle.

The interpreter has to be asked for before Triton is imported, so these tests run in a process of their own, which
`test_triton.py` starts: `TRITON_INTERPRET=1 python -m pytest -m slow -n 0 FILE`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest
import torch

from attention_cases import CASES, HEAD_DIM, error, single, trace
from interpreted import quick_interpreter  # noqa: F401
from plnd.addresses import split_address
from plnd.detection.measures.traces import AttentionTraces
from plnd.detection.observer import Observer, forward_pass
from plnd.detection.oracle import sequential
from plnd.importance import memory
from plnd.importance.attention import Attention, attention_importance
from plnd.importance.softmax import engine
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model

SMALL = dict(heads=2, groups=1, queries=9)
STRUCTURES = ["llama", "gemma2", "qwen3", "olmo2", "phi3", "bloom", "t5"]
"""One family for each kind of attention: biases, soft-cap and window, head norms, a norm of all heads, few channels
that turn, biases of positions, and cross-attention."""

pytest.importorskip("triton", reason="Triton is not installed: its kernels run nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_interpreter"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py, TRITON_INTERPRET=1"),
]


def rounding(t: Attention) -> float:
    """What float32 loses of the largest logits, times some."""
    return 3e-6 * max(4.0, float((t.query_rotated @ t.key_rotated[:1].mT).abs().max()) * t.scaling)


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_the_kernels_are_chosen_and_agree(algorithm):
    """With rotation, head norms and a soft-cap, what `engine` chooses is Triton, and its float32 is float64's."""
    assert engine(torch.bfloat16, torch.device("cpu")) == engine(torch.float32, torch.device("cpu")) == "triton"
    assert engine(torch.float64, torch.device("cpu")) == "torch"
    t = trace(heads=1, groups=1, queries=5, norm=True, softcap=3.0)
    assert error(attention_importance(single(t), algorithm), attention_importance(t, algorithm)) < rounding(t)


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_attention_agrees(name, algorithm):
    """In float32 the kernels are eq. 10, or its Jacobian, to float32 rounding, of large logits too."""
    t = trace(**{**SMALL, **CASES[name], **({"keys": 13} if "keys" in CASES[name] else {}), "groups": 1})
    limit = rounding(t) if "shared" not in name or algorithm == "exact" else 2e-2  # all float32 forms, see there
    assert error(attention_importance(single(t), algorithm), attention_importance(t, algorithm)) < limit


def test_small_changes_are_exact():
    """Changes of a few thousandths keep float32's relative precision: nothing of order one cancels."""
    t = trace(**SMALL, size=1e-3)
    assert error(attention_importance(single(t), "exact"), attention_importance(t, "exact")) < 1e-5


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_half_precision_is_measured_in_float32(algorithm):
    """For bfloat16 queries and keys the result is that of the same numbers held in float32."""
    t = trace(**SMALL, pairs=None)
    half = {name: getattr(t, name).bfloat16() for name in ("query", "key", "query_rotated", "key_rotated")}
    full = {name: x.float() for name, x in half.items()}
    found = attention_importance(replace(t, **half), algorithm)
    assert all(x.dtype == torch.float32 for x in found)
    assert error(found, attention_importance(replace(t, **full), algorithm)) == 0


def test_rows_that_are_not_wanted_are_skipped():
    """With `alive` the wanted rows are what they are without it, bit for bit, and the others 0."""
    t = single(trace(**SMALL))
    alive = (torch.arange(2 * HEAD_DIM) % 3 == 0, torch.arange(HEAD_DIM) % 2 == 1)
    for found, whole, wanted in zip(
        attention_importance(t, "exact", alive), attention_importance(t, "exact"), alive, strict=True
    ):
        assert torch.equal(found[wanted], whole[wanted]) and not found[~wanted].any()


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_chunks_of_rows_change_nothing(algorithm, monkeypatch):
    """The memory budget cuts the rows into pieces; the sums stay the same."""
    t = trace(**SMALL, softcap=3.0, norm=True)
    monkeypatch.setattr(memory, "ROWS_BUDGET", 2 * 5 * 9)
    assert error(attention_importance(single(t), algorithm), attention_importance(t, algorithm)) < rounding(t)


class OfTraces:
    """Measures each block's attention twice: by the kernels, and in float64."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.reference: dict[str, torch.Tensor] = {}

    run = staticmethod(forward_pass)

    def hooks(self, blocks):
        """See `plnd.detection.observer.Measure`."""
        for block in blocks:
            yield from AttentionTraces(block, partial(self.measure, block)).hooks()

    def measure(self, block, t: Attention) -> tuple[torch.Tensor, torch.Tensor]:
        """In float32; what float64 gives is kept."""
        names = (f"{block.name}.q_proj", f"{block.name}.k_proj")
        self.reference.update(zip(names, attention_importance(t, self.algorithm), strict=True))
        return attention_importance(single(t), self.algorithm)


@pytest.mark.parametrize("family", STRUCTURES)
def test_families_agree_with_the_oracle(family):
    """On attention of every structure `exact` is eq. 10 by brute force, and `first_order` the Jacobian."""
    model = tiny_model(family, attention="eager")
    ids = torch.randint(3, 97, (7,), generator=torch.Generator().manual_seed(1))
    layout, found = Layout(model), {}
    for algorithm in ("exact", "first_order"):
        measure = OfTraces(algorithm)

        def sink(block, site, importance, algorithm=algorithm):
            found[f"{block}.{site[0]}_proj", algorithm] = importance[0]

        with torch.no_grad(), KeepFloat64(), Observer(layout, measure, sink, [(0, 7)]).attached():
            layout.forward(ids[None], torch.ones_like(ids[None]))
        for address, reference in measure.reference.items():
            assert float((found[address, algorithm] - reference).abs().max() / reference.abs().max()) < 3e-4, address
    with KeepFloat64():
        last = [address for address in layout.targets if split_address(address)[1] in ("q_proj", "k_proj")][-2:]
        for address in last:
            expected = sequential(model, ids, address, at="attention")
            assert float((found[address, "exact"] - expected).abs().max() / expected.abs().max()) < 1e-5, address
