"""The means artifact is what was saved, and is refused where it is anything else."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plnd.errors import ArtifactError
from plnd.io import artifact
from plnd.references.means import Means

MODEL = {"name": "m", "revision": None, "model_type": "llama", "blocks": 1, "widths": {"0.up_proj": 3, "0.q_proj": 2}}
CORPUS = {"source": "de.jsonl", "sha256": "", "documents": 2, "tokens": 9, "max_length": 5, "skipped": {}}
SAID = {
    "format": "plnd.means",
    "version": 1,
    "plnd": "0",
    "model": MODEL,
    "corpora": {"de": CORPUS},
    "dtype": "float32",
}


def some(**changes: np.ndarray) -> Means:
    """Means of a model of two projections."""
    values = {"0.up_proj": np.array([1, -2, 0.5], np.float32), "0.q_proj": np.array([0, 3], np.float32)}
    return Means(values | changes, SAID)


def test_round_trip(tmp_path):
    """Numbers and metadata; its name is its content's."""
    digest = some().save(tmp_path / "m.safetensors")
    again = Means.load(tmp_path / "m.safetensors")
    assert again.metadata == some().metadata and again.digest == digest == some().digest
    assert all(np.array_equal(values, again.neurons[name]) for name, values in some().neurons.items())
    assert digest != some(**{"0.q_proj": np.ones(2, np.float32)}).digest


@pytest.mark.parametrize(
    ("tensors", "wording"),
    [
        ({"0.k_proj": np.ones(2, np.float32)}, "tensor '0.k_proj' is not expected"),
        ({"0.q_proj": np.ones(3, np.float32)}, r"0.q_proj is F32 of shape \[3\], expected F32 of shape \[2\]"),
        ({"0.q_proj": np.ones(2, np.int32)}, "0.q_proj is I32"),
        ({"0.q_proj": np.array([1, np.nan], np.float32)}, "0.q_proj holds values that are not finite"),
    ],
)
def test_wrong_tensors(tmp_path, tensors, wording):
    """One line each."""
    (tmp_path / "m.safetensors").write_bytes(artifact.encode({**some().neurons, **tensors}, some().metadata))
    with pytest.raises(ArtifactError, match=wording) as caught:
        Means.load(tmp_path / "m.safetensors")
    assert len(str(caught.value).splitlines()) == 1


def test_damage_is_refused(tmp_path):
    """Other numbers under the same metadata do not have its checksum."""
    path = tmp_path / "m.safetensors"
    some().save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="its content is not that of its checksum"):
        Means.load(path)
    save_file(load_file(path), path)
    with pytest.raises(ArtifactError, match="no 'plnd' metadata"):
        Means.load(path)
