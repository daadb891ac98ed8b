"""scripts/bench_gpu.py: the program that waits for a card runs from end to end on a CPU, and writes what it says."""

from __future__ import annotations

import json

import pytest

from programs import run_script, script


@pytest.mark.slow
def test_the_whole_program_runs_on_a_cpu(tmp_path):
    """Small shapes: every section gives rows, nothing fails, and the JSON is what the docstring says."""
    bench_gpu = script("bench_gpu")
    run_script("bench_gpu", "--tiny", "--device", "cpu", "--rounds", 1, "--json", tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["schema"] == 1 and found["left_out"] == []
    assert {row["section"] for row in found["rows"]} == set(bench_gpu.SECTIONS)
    for row in found["rows"]:
        assert all(f"{name} " in bench_gpu.__doc__ or f"{name}," in bench_gpu.__doc__ for name in row), row
        assert row["measured"] is not None and row["said"] is None
        if row["section"] == "correct":
            assert row["measured"] < 1e-3, row


def test_floors_are_of_operations_and_bytes():
    """A layer's forward pass is two operations for each weight and token, and its floor that over the card's peak."""
    bench_gpu = script("bench_gpu")
    shape = bench_gpu.Shape(4096, 14336, 32, 8, 1)
    assert shape.weights == 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
    work = bench_gpu.forward_work(shape, 1, 512, 1)
    assert work.bfloat16 == 512 * (2 * shape.weights + 2 * 512 * 4096)
    seconds, bound = work.floor()
    assert (seconds, bound) == (work.bfloat16 / 989e12, "bfloat16")
    few = bench_gpu.forward_work(shape, 1, 8, 1)  # too few tokens to be worth reading the weights for
    assert few.floor() == (2 * shape.weights / 3.35e12, "bytes")
