"""--blockwise on the command line: the same files, and what does not go with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plnd.commands.main import main

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "une phrase plus courte",
    "and one that is about as long as both",
]


@pytest.fixture
def corpus(tmp_path) -> str:
    """Three documents."""
    path = tmp_path / "xx.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return str(path)


@pytest.mark.slow
def test_the_same_files(small_model, corpus, tmp_path, capsys):
    """`plnd detect` and `plnd lens` write, blockwise, byte for byte what they write of the whole model."""
    common = ["--model", small_model, "--corpus", corpus, "--language", "xx", "--device", "cpu", "--batch-size", "2"]
    written = []
    for flags in ([], ["--blockwise"]):
        scores, table = tmp_path / f"{len(flags)}.scores", tmp_path / f"{len(flags)}.csv"
        assert main(["detect", *common, "--min-length", "4", "--output", str(scores), *flags]) == 0
        assert main(["lens", *common, "--identifier", "script", "--csv", str(table), *flags]) == 0
        written.append((scores.read_bytes(), table.read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize("flags", [["--quantize", "8bit"], ["--offload"], ["--method", "relevance"]])
def test_what_does_not_go_with_it(flags, small_model, corpus, tmp_path, capsys):
    """One line, status 2, and no file."""
    output = tmp_path / "out.scores"
    common = ["--model", small_model, "--corpus", corpus, "--language", "xx", "--device", "cpu"]
    assert main(["detect", *common, "--output", str(output), "--blockwise", *flags]) == 2
    assert "blockwise" in capsys.readouterr().err.splitlines()[-1]
    assert not Path(output).exists()
