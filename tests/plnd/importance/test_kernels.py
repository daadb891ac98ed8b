"""The compiled `exact`, PyTorch's, and `first_order` against the formulas written out in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from attention_cases import CASES, HEAD_DIM, QUERIES, error, single, trace
from plnd.importance import attention, memory, softmax
from plnd.importance.attention import Attention, HeadNorm, attention_importance
from plnd.importance.softmax import engine


def written_out(t: Attention, algorithm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 10 channel by channel: zero it before norm and rotation, compute all logits again."""

    def logits(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        entered = attention.rotated(query, t.query_norm, t.rotary), attention.rotated(key, t.key_norm, t.rotary)
        key = entered[1].repeat_interleave(len(query) // len(key), 0)
        s = entered[0] @ key.mT * t.scaling
        return s if t.softcap is None else t.softcap * torch.tanh(s / t.softcap)

    def zeroed(x: torch.Tensor, norm: HeadNorm | None, head: int, channel: int) -> torch.Tensor:
        x = x.clone()
        x[head, :, channel] = 0
        return x

    before = logits(t.query, t.key)
    mask = t.mask if t.mask is not None else torch.ones(before.shape[1:], dtype=torch.bool).tril()[None]
    bias = torch.zeros_like(before).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    p = torch.softmax(before + bias, -1)
    results = []
    for side, (x, norm) in enumerate(((t.query, t.query_norm), (t.key, t.key_norm))):
        changes = []
        for head in range(len(x)):
            for channel in range(HEAD_DIM):
                changed = zeroed(x, norm, head, channel)
                if algorithm == "exact":
                    after = logits(changed, t.key) if side == 0 else logits(t.query, changed)
                    changes.append(torch.linalg.vector_norm(torch.softmax(after + bias, -1) - p))
                else:  # the Jacobian of the soft-cap and the softmax at the unchanged logits
                    plain = replace(t, softcap=None)
                    after = [changed, t.key] if side == 0 else [t.query, changed]
                    delta = _uncapped(plain, *after) - _uncapped(plain, t.query, t.key)
                    if t.softcap is not None:
                        delta = delta * (1 - (before / t.softcap).square())
                    changes.append(torch.linalg.vector_norm(p * (delta - (p * delta).sum(-1, keepdim=True))))
        results.append(torch.stack(changes))
    return results[0], results[1]


def _uncapped(t: Attention, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    query, key = attention.rotated(query, t.query_norm, t.rotary), attention.rotated(key, t.key_norm, t.rotary)
    return query @ key.repeat_interleave(len(query) // len(key), 0).mT * t.scaling


@pytest.fixture(params=CASES)
def case(request) -> Attention:
    """Attention of every kind that the terms of a change can have."""
    return trace(**CASES[request.param])


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_float64_equals_the_formula_written_out(case, algorithm):
    """PyTorch's path in float64 is eq. 10, or its Jacobian, to rounding: the reference of the tests below."""
    assert engine(torch.float64, torch.device("cpu")) == "torch"
    for found, expected in zip(attention_importance(case, algorithm), written_out(case, algorithm), strict=True):
        assert (found - expected).abs().max() < 1e-8 * expected.abs().max()


def test_the_compiled_kernel_agrees(case):
    """In float32 the compiled `exact` is eq. 10 to float32 rounding, of the logits too where these are large."""
    pytest.importorskip("numba")
    assert engine(torch.float32, torch.device("cpu")) == "numba"
    rounding = 1e-6 * max(4.0, float((case.query_rotated @ case.key_rotated[:1].mT).abs().max()) * case.scaling)
    assert error(attention_importance(single(case), "exact"), attention_importance(case, "exact")) < rounding


def test_the_kernel_takes_small_changes_exactly():
    """Changes of a few thousandths keep float32's relative precision: nothing of order one cancels."""
    pytest.importorskip("numba")
    t = trace(size=1e-3)
    assert error(attention_importance(single(t), "exact"), attention_importance(t, "exact")) < 1e-5


def test_pytorch_in_float32_agrees(case, monkeypatch):
    """Without the kernel, `exact` in float32 is eq. 10 to float32 rounding too."""
    monkeypatch.setattr(softmax, "compiled_kernels", lambda: None)
    assert engine(torch.float32, torch.device("cpu")) == "torch"
    rounding = 1e-6 * max(10.0, float((case.query_rotated @ case.key_rotated[:1].mT).abs().max()) * case.scaling)
    assert error(attention_importance(single(case), "exact"), attention_importance(case, "exact")) < rounding


@pytest.mark.parametrize("compiled", [True, False])
def test_first_order_in_float32_agrees(case, compiled, monkeypatch):
    """With and without the kernel, `first_order` in float32 is the Jacobian to float32 rounding."""
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(softmax, "compiled_kernels", lambda: None)
    rounding = 3e-6 * max(4.0, float((case.query_rotated @ case.key_rotated[:1].mT).abs().max()) * case.scaling)
    found, expected = attention_importance(single(case), "first_order"), attention_importance(case, "first_order")
    assert error(found, expected) < rounding


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
def test_half_precision_queries_are_measured_in_float32(algorithm):
    """For bfloat16 queries and keys the result is that of the same numbers held in float32."""
    t = trace(pairs=None)
    half = {name: getattr(t, name).bfloat16() for name in ("query", "key", "query_rotated", "key_rotated")}
    full = {name: x.float() for name, x in half.items()}
    found, expected = (attention_importance(replace(t, **x), algorithm) for x in (half, full))
    assert found[0].dtype == torch.float32
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", [True, False])
def test_threads_do_not_change_the_result(norm):
    """The compiled kernel gives the same bits on one thread and on three."""
    pytest.importorskip("numba")
    t, before, results = single(trace(norm=norm)), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(attention_importance(t, "exact"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("algorithm", ["exact", "first_order"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_wanted_are_zero_and_change_nothing(algorithm, dtype):
    """With `alive`, the rows that are wanted keep their importance, and the others get 0."""
    t = trace(mask="bias", pairs="neighbours")
    t = t if dtype == torch.float64 else single(t)
    everything = attention_importance(t, algorithm)
    generator = torch.Generator().manual_seed(1)
    alive = tuple(torch.rand(len(x), generator=generator) < 0.3 for x in everything)
    alive[0][: 2 * HEAD_DIM] = alive[1][:HEAD_DIM] = False  # a whole group
    for found, full, wanted in zip(attention_importance(t, algorithm, alive), everything, alive, strict=True):
        assert wanted.any() and torch.count_nonzero(found[~wanted]) == 0
        assert (found - full)[wanted].abs().max() < 1e-6 * full.max()
    nothing = tuple(torch.zeros_like(x) for x in alive)
    assert all(torch.count_nonzero(x) == 0 for x in attention_importance(t, algorithm, nothing))


class MultipliedMatrices(TorchFunctionMode):
    """Remembers of how many matrices, groups or heads, each product of stacks is."""

    def __init__(self):
        super().__init__()
        self.counts: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D102
        if func in (torch.bmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and args[0].dim() > 2:
            self.counts.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted, groups", [(slice(-1, None), {1}), (slice(None), {2})])
def test_dead_heads_cost_nothing(wanted, groups):
    """A group without a row that is wanted is not even multiplied."""
    t, watch = single(trace()), MultipliedMatrices()
    alive = torch.zeros(4 * HEAD_DIM, dtype=torch.bool), torch.zeros(2 * HEAD_DIM, dtype=torch.bool)
    alive[1][wanted] = True
    with watch:
        attention_importance(t, "exact", alive)
    assert set(watch.counts) == groups


def test_nothing_of_the_size_of_all_channels_is_kept(monkeypatch):
    """Budgets of a few rows and cells give the same result, compiled and in PyTorch."""
    for t, bound in ((trace(norm=True), 1e-12), (single(trace(norm=True)), 1e-6)):
        for algorithm in ("exact", "first_order"):
            whole = attention_importance(t, algorithm)
            with monkeypatch.context() as context:
                context.setattr(memory, "ROWS_BUDGET", 5 * 4 * QUERIES)
                context.setattr(memory, "CELLS_BUDGET", 200)
                assert error(attention_importance(t, algorithm), whole) < bound


PROBE = """
import sys
if {blocked}:
    sys.modules["numba"] = None  # what importing a missing module meets
import torch
from plnd.importance.attention import Attention, attention_importance
from plnd.importance.softmax import engine
generator = torch.Generator().manual_seed(0)
query, key = (torch.randn(2, 9, 4, generator=generator) for _ in range(2))
print(engine(torch.float32, torch.device("cpu")), "numba" in sys.modules and sys.modules["numba"] is not None)
print(*attention_importance(Attention(query, key, query, key, 0.5), "exact")[0].tolist())
"""


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.slow
def test_without_numba_pytorch_does_it(blocked):
    """Where Numba cannot be imported, `exact` runs in PyTorch, says so, and gives the same numbers."""
    if not blocked:
        pytest.importorskip("numba")
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(blocked=blocked)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == ("torch False" if blocked else "numba True")
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 9, 4, generator=generator).double() for _ in range(2))
    expected = attention_importance(Attention(query, key, query, key, 0.5), "exact")[0]
    assert torch.allclose(torch.tensor([float(x) for x in second.split()]).double(), expected, rtol=1e-5)


@pytest.mark.slow
def test_importing_the_module_loads_no_numba():
    """`plnd.importance.attention` imports Numba at the first `exact` on a CPU, not before."""
    code = "import sys, plnd.importance.attention; print('numba' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
