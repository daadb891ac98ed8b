"""scripts/bench_gpu.py: the program that waits for a card runs from end to end on a CPU, and writes what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from programs import SCRIPTS, script

DOCS = Path(__file__).resolve().parents[2] / "docs" / "accelerators.md"
NOT_NEEDED = ("lm_eval", "lm_eval_plnd", "datasets", "evaluate", "matplotlib", "pandas", "numba", "bitsandbytes")
ALONE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED}))  # whoever imports one of these is told that it is not there
sys.path.insert(0, {str(SCRIPTS)!r})
runpy.run_path({str(SCRIPTS / "bench_gpu.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_the_whole_program_runs_on_a_cpu_without_what_it_does_not_need(tmp_path):
    """Small shapes: every section gives rows, nothing fails, and the JSON is what the docstring says."""
    bench_gpu = script("bench_gpu")
    arguments = ["--tiny", "--device", "cpu", "--rounds", "1", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["schema"] == 1 and found["left_out"] == []
    assert found.keys() == {"schema", "device", "torch", "triton", "settings", "seconds", "left_out", "rows"}
    assert {row["section"] for row in found["rows"]} == set(bench_gpu.SECTIONS)
    for row in found["rows"]:
        assert all(f"{name} " in bench_gpu.__doc__ or f"{name}," in bench_gpu.__doc__ for name in row), row
        assert row["measured"] is not None and row["said"] is None
        if row["section"] == "correct":
            assert row["measured"] < 1e-3, row


def test_the_floors_of_the_docs_are_the_script_s():
    """Both tables of docs/accelerators.md are what `--floors` prints."""
    bench_gpu = script("bench_gpu")
    told = DOCS.read_text(encoding="utf-8")
    for line in bench_gpu.floors(bench_gpu.Bench("cpu", False, 4, 1, 0.0)):
        assert line in told


def test_floors_are_of_operations_and_bytes():
    """A layer's forward pass is two operations for each weight and token, and its floor that over the card's peak."""
    bench_gpu = script("bench_gpu")
    shape = bench_gpu.Shape(4096, 14336, 32, 8, 1)
    assert shape.weights == 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
    work = bench_gpu.forward_work(shape, 1, 512, 1)
    assert work.bfloat16 == 512 * (2 * shape.weights + 2 * 512 * 4096)
    seconds, bound = work.floor()
    assert (seconds, bound) == (work.bfloat16 / 989e12, "bfloat16")
    generated = bench_gpu.generation_work(shape, 512, 2)  # of two new tokens the second reads all weights once more
    once = bench_gpu.forward_work(shape, 1, 512, 1) + bench_gpu.head_work(shape, 1)
    assert generated.bytes - once.bytes == pytest.approx(2 * (shape.weights + 4096 * 32000) + 4 * 1024 * 513)
    assert bench_gpu.dense_work(shape, 512)["equation 5"].bfloat16 == 14336 * 2 * 512 * 14336 * 4096
    few = bench_gpu.forward_work(shape, 1, 8, 1)  # too few tokens to be worth reading the weights for
    assert few.floor() == (2 * shape.weights / 3.35e12, "bytes")
