"""scripts/bench_blockwise.py: its programs on a small shape, and its table."""

from __future__ import annotations

import json
import math

import pytest

from plnd import NeuronSet
from programs import run_script, script

bench_blockwise = script("bench_blockwise")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a checkpoint of two blocks, in place of six."""
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    monkeypatch.setitem(bench_blockwise.SHAPES, "small", shape)
    written = bench_blockwise.write_checkpoint("small", tmp_path / "model")
    files = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert written == files - headers(tmp_path)
    return tmp_path


def headers(folder) -> int:
    """Bytes of the checkpoint's files that are no weights."""
    starts = [path.open("rb").read(8) for path in (folder / "model").glob("*.safetensors")]
    return sum(8 + int.from_bytes(start, "little") for start in starts)


@pytest.mark.parametrize("documents, windows", [(16, 1), (17, 2)])
def test_the_weights_are_read_once_a_window(folder, capsys, documents, windows):
    """Detection says how often it read the blocks' weights, and leaves a set; so many windows are so many readings."""
    mask = folder / "xx.safetensors"
    flags = [f"--documents={documents}", "--tokens=4", f"--folder={folder / 'model'}", f"--mask={mask}"]
    bench_blockwise.main(["--program", "detect", *flags])
    found = json.loads(capsys.readouterr().out)
    assert found["windows"] == windows and found["readings"] == windows and found["seconds"] > 0
    assert len(NeuronSet.load(mask))
    bench_blockwise.main(["--program", "forward", *flags])
    found = json.loads(capsys.readouterr().out)
    assert math.isfinite(found["seconds"]) and found["reading"] > 0


@pytest.mark.slow
def test_the_table(tmp_path, capsys):
    """Every line is printed, and nothing is left."""
    run_script("bench_blockwise", "--documents", 2, "--tokens", 8, "--within", tmp_path)
    out = capsys.readouterr().out
    for line in ("detect --blockwise", "plain forward of the same blocks", "plnd export", "plnd verify"):
        assert line in out
    assert "1 windows, weights read 1.000 times" in out and not list(tmp_path.iterdir())
