"""Where the Triton kernels are chosen; that they are right, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plnd.importance import softmax
from plnd.importance.softmax import engine


def test_a_gpu_has_triton_and_a_cpu_has_not(monkeypatch):
    """Float32 and half precision run on Triton on a GPU where it works, float64 and all else in PyTorch."""
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    for works, chosen in ((True, "triton"), (False, "torch")):
        monkeypatch.setattr(softmax, "triton_kernels", lambda device, works=works: works or None)
        assert engine(torch.bfloat16, gpu) == engine(torch.float32, gpu) == chosen
        assert engine(torch.float64, gpu) == "torch"
        assert engine(torch.float32, cpu) != "triton"


def test_triton_that_does_not_run_is_said_and_replaced(monkeypatch):
    """Where Triton does not compile, one warning says why, and PyTorch measures."""
    triton_kernels = pytest.importorskip("plnd.importance.triton_kernels", reason="Triton is not installed")

    def no_compiler(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_kernels, "try_out", no_compiler)
    softmax.triton_kernels.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not run on cuda:0 .Failed to find C compiler.., slower|PyTorch"):
        assert engine(torch.float32, torch.device("cuda:0")) == "torch"
    softmax.triton_kernels.cache_clear()


@pytest.mark.slow
def test_the_kernels_are_right():
    """All tests of `test_triton_kernels.py` pass in Triton's interpreter, and none is skipped."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels run nowhere")
    tests = Path(__file__).with_name("test_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "slow", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout
