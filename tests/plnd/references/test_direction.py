"""The direction artifact, the blocks it has, and the file that lm-eval's own steered model reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plnd.errors import ArtifactError, PLNDError
from plnd.io import artifact
from plnd.references.direction import Direction, named_blocks

MODEL = {
    "name": "m",
    "revision": None,
    "model_type": "llama",
    "blocks": 2,
    "widths": {"0.up_proj": 3, "1.up_proj": 3},
}
CORPUS = {"source": None, "sha256": "", "documents": 2, "tokens": 9, "max_length": 5, "skipped": {}}
SAID = {
    "format": "plnd.direction",
    "version": 1,
    "plnd": "0",
    "model": MODEL,
    "corpora": {"de": CORPUS, "en": CORPUS},
    "dtype": "float32",
    "language": "de",
    "against": ["en"],
    "hidden": 4,
    "modules": {"0": "layers.0", "1": "layers.1"},
}


def some(**changes) -> Direction:
    """Of a model of two blocks."""
    blocks = {"0": np.arange(4, dtype=np.float32), "1": np.ones(4, np.float32)}
    return Direction(blocks, {"0.up_proj": np.array([1, -2, 0.5], np.float32)}, {**SAID, **changes})


def test_round_trip(tmp_path):
    """Numbers and metadata."""
    digest = some().save(tmp_path / "de.safetensors")
    again = Direction.load(tmp_path / "de.safetensors")
    assert (again.metadata, again.digest, again.language) == (some().metadata, digest, "de")
    assert all(np.array_equal(vector, again.blocks[name]) for name, vector in some().blocks.items())
    assert np.array_equal(again.neurons["0.up_proj"], some().neurons["0.up_proj"])


@pytest.mark.parametrize(
    ("said", "tensors", "wording"),
    [
        ({"hidden": 0}, {}, "metadata gives hidden states 0 channels"),
        ({"hidden": 5}, {}, r"0 is F32 of shape \[4\], expected F32 of shape \[5\]"),
        ({"modules": {"0": "a", "1": "b", "2": "c"}}, {}, "a module of '2', which the model does not have"),
        ({"modules": {"0": "layers.0"}}, {}, "tensor '1' is not expected"),
        ({}, {"1": np.array([1, 2, 3, np.inf], np.float32)}, "1 holds values that are not finite"),
        ({"language": 3}, {}, "field language is 3, expected str"),
        ({"version": 9}, {}, "format version 9, but this plnd reads up to 1: upgrade plnd"),
    ],
)
def test_wrong_files(tmp_path, said, tensors, wording):
    """One line each."""
    path, right = tmp_path / "de.safetensors", some()
    metadata = right.metadata.model_construct(**{**dict(right.metadata), **said})
    path.write_bytes(artifact.encode({**right.blocks, **right.neurons, **tensors}, metadata))
    with pytest.raises(ArtifactError, match=wording) as caught:
        Direction.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_blocks_by_name():
    """Ranges and lists; what is none, and blocks that the direction has not, are refused."""
    assert named_blocks("8-10+3") == ["8", "9", "10", "3"] and named_blocks("decoder.1, encoder.0")[0] == "decoder.1"
    assert list(some().chosen(["1", 0])) == ["0", "1"]
    for text in ("", "+", "5-3", "0-99999999"):
        with pytest.raises(PLNDError, match="blocks"):
            named_blocks(text)
    with pytest.raises(PLNDError, match="no block '2': the direction has 0, 1"):
        some().chosen(["2"])


def test_the_file_for_the_steered_model(tmp_path):
    """Hookpoints by the names of modules, in the form that lm-eval documents; it reads two endings only."""
    some().save_steered(tmp_path / "de.pt", strength=2.5, blocks=["1"])
    found = torch.load(tmp_path / "de.pt", weights_only=True)
    vector = found["layers.1"].pop("steering_vector")
    others = {"steering_coefficient": 2.5, "action": "add", "bias": None, "head_index": None}
    assert found == {"layers.1": others} and torch.equal(vector, torch.ones(4))
    with pytest.raises(PLNDError, match="whose names end in .pt"):
        some().save_steered(tmp_path / "de.bin")
