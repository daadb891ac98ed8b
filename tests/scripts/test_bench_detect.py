"""scripts/bench_detect.py: what is timed is what the table says, and the ratios are those of the times."""

from __future__ import annotations

import re

import pytest
import torch

from plnd.importance.attention import Attention, attention_importance
from programs import run_script, script

bench_detect = script("bench_detect")


def test_equation_5_is_the_closed_form():
    """The dense form gives ‖h[:, k]‖·‖W[:, k]‖ for the first neurons: it is the same work that plnd does not do."""
    generator = torch.Generator().manual_seed(0)
    inner, down = (torch.randn(rows, 9, generator=generator, dtype=torch.float64) for rows in (5, 7))
    expected = inner.norm(dim=0) * down.norm(dim=0)
    torch.testing.assert_close(bench_detect.equation_5(inner, down, 4), expected[:4])


def test_equation_10_is_exact():
    """Summed over heads in squares, the dense form is what `exact` gives for rows of `q_proj`."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = bench_detect.equation_10(query, key)
    expected, _ = attention_importance(Attention(query, key, query, key, 0.5), "exact")
    torch.testing.assert_close(found.flatten(), expected)


def test_rounds_are_in_turn_and_the_first_is_not_counted(monkeypatch):
    """Each setting is timed once a round, in order, after one round of warming up."""
    order = []
    bench = object.__new__(bench_detect.Bench)  # without a model, which nothing here runs
    monkeypatch.setattr(bench, "seconds", lambda run: run() or len(order), raising=False)
    work = {name: lambda name=name: order.append(name) for name in ("forward", "exact")}
    assert bench.times(work, rounds=2) == {"forward": [3, 5], "exact": [4, 6]}
    assert order == ["forward", "exact"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("qk", ["both"])
def test_the_tables(small_model, capsys, qk):
    """Both tables have their rows; ratios are above 1 where more is done, and eq. 5 and 10 take longer than plnd."""
    sizes = ("--tokens", 48, "--dense-tokens", 48, "--documents", 2, "--batch-size", 1, "--rounds", 1)
    run_script("bench_detect", "--model", small_model, *sizes, "--tables", qk)
    out = capsys.readouterr().out
    first = re.findall(r"^(forward|FFN \+ V \+ O|with \S+ Q, K) +([\d.]+) +([\d.]+)", out, re.MULTILINE)
    assert [name for name, *_ in first][:4] == ["forward", *bench_detect.SETTINGS]
    assert float(first[0][2]) == 1 and all(float(ratio) > 0.5 for _, _, ratio in first[1:4])
    second = re.findall(r"^(equation 5|equation 10|sequential oracle).* (\d+) times +(\d+) times$", out, re.MULTILINE)
    assert [name for name, *_ in second] == ["equation 5", "equation 10", "sequential oracle"]
    assert int(second[2][1]) > 1, "one neuron at a time takes longer than all at once"
