"""The Triton kernels, in Triton's interpreter on a CPU, against float64 and the sequential oracle.

The interpreter has to be asked for before Triton is imported, so these tests run in a process of their own, which
`test_triton.py` starts: `TRITON_INTERPRET=1 python -m pytest -m slow -n 0 FILE`.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from attention_cases import CASES, FURTHER_CASES, HEAD_DIM, error, single, trace
from interpreted import quick_interpreter  # noqa: F401
from plnd.importance import memory
from plnd.importance.attention import Attention, attention_importance, measurement
from plnd.importance.softmax import engine
from programs import script
from tiny import TINY, VARIANTS

SMALL = dict(heads=2, groups=1, queries=9)

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
@pytest.mark.parametrize("name", [*CASES, *FURTHER_CASES])
def test_every_kind_of_attention_agrees(name, algorithm):
    """In float32 the kernels are eq. 10, or its Jacobian, to float32 rounding, of large logits too."""
    case = (CASES | FURTHER_CASES)[name]
    t = trace(**{**SMALL, **case, **({"keys": 13} if "keys" in case else {}), "groups": 1})
    assert measurement(algorithm, t, "triton").__name__.startswith("Triton")
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


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_what_is_no_number_stays_none(size, algorithm):
    """A query, or a key, that is no number makes all channels that it meets none: such a document is left out."""
    t = single(trace(**SMALL, size=size))
    for name, head in (("query", 1), ("key", 0)):
        spoilt = {x: getattr(t, x).clone() for x in (name, f"{name}_rotated")}
        for x in spoilt.values():
            x[head, 4] = torch.nan
        queries, keys = attention_importance(replace(t, **spoilt), algorithm)
        assert queries[head * HEAD_DIM :].isnan().all() and keys.isnan().all(), name
        assert name == "key" or queries[:HEAD_DIM].isfinite().all()


def test_what_is_not_contiguous_is_measured_as_what_is():
    """Queries and keys that are views of a larger tensor, as a model's are, give the same bits as copies of them."""
    t = single(trace(**SMALL, mask="window"))
    names = ("query", "key", "query_rotated", "key_rotated")
    views = {name: getattr(t, name).transpose(0, 1).contiguous().transpose(0, 1) for name in names}
    views |= {name: torch.stack((x, x), -1)[..., 1] for name, x in views.items()}
    assert not any(x.is_contiguous() for x in views.values())
    for algorithm in ("exact", "first_order"):
        for found, expected in zip(
            attention_importance(replace(t, **views), algorithm), attention_importance(t, algorithm), strict=True
        ):
            assert torch.equal(found, expected)


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current device: around each launch it is that of the tensors, on several cards."""
    entered: list[torch.device] = []

    class Noted(torch.cuda.device_of):
        def __init__(self, tensor: torch.Tensor) -> None:
            entered.append(tensor.device)
            super().__init__(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", Noted)
    t = single(trace(**SMALL))
    attention_importance(t, "exact")
    attention_importance(t, "first_order")
    assert entered == [torch.device("cpu")] * 4  # two sides, then `weights` and `spreads`


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


@pytest.mark.parametrize("name", [*TINY, *VARIANTS])
def test_every_family_has_kernels_that_agree_with_the_oracle(name):
    """`exact` is eq. 10 by brute force and `first_order` the Jacobian, as near as PyTorch's float32; none falls back.

    In every row of the families table and every further tiny model, all blocks.
    """
    exactness = script("exactness")
    default = torch.float64 if name == "xglm" else torch.float32
    torch.set_default_dtype(default)
    try:
        errors, measured_by = exactness.float32_errors(name, torch.tensor([5, 17, 40, 8, 96]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(kind.startswith("Triton") for kind in measured_by) and len(measured_by) == 2
    for (algorithm, on), found in errors.items():
        assert found < (5e-6 if algorithm == "exact" else 2e-3), (algorithm, on)
        assert found < (4 if algorithm == "exact" else 20) * errors[algorithm, "torch"] + 1e-6, (algorithm, on)
