"""`plnd reference` and `plnd steered` from corpora to artifacts, an export, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from handmade import make_neurons
from plnd.commands.main import main
from plnd.io.corpus import read_documents
from plnd.models.layout import Layout
from plnd.models.loading import load_model, load_skeleton, load_tokenizer
from plnd.references.config import ReferenceConfig
from plnd.references.direction import Direction
from plnd.references.means import Means
from plnd.references.run import reference

TEXTS = {
    "de": ["Ein kurzer Satz \u00fcber das Wetter.", "Der zweite Satz ist l\u00e4nger als der erste."],
    "en": ["A short sentence about the weather.", "The second sentence is longer than the first."],
}


@pytest.fixture
def here(small_model, tmp_path, monkeypatch) -> Path:
    """A folder with a corpus of each language."""
    monkeypatch.chdir(tmp_path)
    for language, texts in TEXTS.items():
        lines = [json.dumps({"text": text}) for text in texts]
        Path(f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_commands_are_the_python_calls(here, small_model, capsys):
    """Artifacts of the same numbers; show and verify know them; the direction becomes lm-eval's file; an export."""
    options = ["--min-length", "4", "--dtype", "float32", "--device", "cpu"]
    command = [
        "reference",
        "--model",
        small_model,
        "--corpus",
        "de=de.jsonl",
        "en=en.jsonl",
        "--output",
        "out",
        *options,
    ]
    assert main(command) == 0
    model = load_model(small_model, dtype="float32", device="cpu")
    texts = {language: read_documents(f"{language}.jsonl") for language in TEXTS}
    found = reference(model, texts, ReferenceConfig(min_length=4), tokenizer=load_tokenizer(small_model))
    means, direction = Means.load("out/means.safetensors"), Direction.load("out/de.direction.safetensors")
    assert all(np.array_equal(values, means.neurons[name]) for name, values in found.means.neurons.items())
    assert all(np.array_equal(v, direction.blocks[name]) for name, v in found.direction("de").blocks.items())
    assert means.metadata.corpora["de"].source == "de.jsonl"
    capsys.readouterr()
    for file in ("means", "de.direction", "en.direction"):
        assert main(["verify", f"out/{file}.safetensors", "--model", small_model]) == 0
        assert main(["show", f"out/{file}.safetensors", "--json"]) == 0
        assert main(["show", f"out/{file}.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "direction en, less the mean of de" in said and "means     of the values of 480 neurons" in said
    assert (
        main(["steered", "out/de.direction.safetensors", "--strength", "2", "--blocks", "1", "--output", "de.pt"]) == 0
    )
    assert list(torch.load("de.pt", weights_only=True)) == ["layers.1"]
    make_neurons(
        {"0.down_proj": [3]}, {"0.down_proj": [1]}, model=Layout(load_skeleton(small_model)).description()
    ).save("zh.safetensors")
    export = ["export", "--model", small_model, "--mask", "zh.safetensors", "--output", "half", "--intervene"]
    capsys.readouterr()
    assert main([*export, "scale", "--factor", "0.5"]) == 0
    assert "half: scaled 1 of 480 neurons" in capsys.readouterr().out
    assert main([*export, "mean", "--means", "out/means.safetensors", "--overwrite"]) == 0
    assert "half: made constant 1 of 480 neurons" in capsys.readouterr().out
    assert main([*export, "mean", "--overwrite"]) == 2
    assert "--intervene mean needs --means, a means artifact from `plnd reference`" in capsys.readouterr().err
    assert main([*export, "scale", "--overwrite"]) == 2
    assert "--intervene scale needs --factor, such as 0.5" in capsys.readouterr().err
    assert main([*export, "mean", "--factor", "2", "--overwrite"]) == 2
    assert "--factor goes with --intervene scale, found --intervene mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reference --model M --corpus de.jsonl --output out", "expected LANGUAGE=FILE"),
        (
            "reference --model M --corpus a/b=de.jsonl --output out",
            "--corpus a/b=…: a file is named after the language",
        ),
        ("reference --model M --corpus de=de.jsonl --output de.jsonl", "--output"),
        ("reference --model M --corpus de=de.jsonl --output out --batch-size 0", "batch_size"),
        (
            "reference --model M --corpus de=de.jsonl --output out --min-length 400",
            "no document of 400 tokens",
        ),
        ("steered absent.safetensors --output de.pt", "no such file"),
        ("export --mask absent.safetensors --output out", "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(here, small_model, capsys, line, words):
    """And exit status 2."""
    assert main([small_model if word == "M" else word for word in line.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]
