"""What a model's name stands for: another model in the same folder is another one."""

from __future__ import annotations

import shutil

from plnd.demo_data import demo_model
from plnd.io.inputs import UNKNOWN
from plnd.models.source import source_digest, source_digests


def test_weights_tokenizer_and_configuration_count(tmp_path):
    """Each file that is loaded does, what stands beside does not; a folder that is gone is unknown."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model(), folder)
    found = source_digest(str(folder))
    assert source_digest(str(demo_model())) == found
    (folder / "README.md").write_text("other")
    assert source_digest(str(folder)) == found
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path, before = folder / name, (folder / name).read_bytes()
        path.write_bytes(before[:-1] + b" " + before[-1:])
        assert source_digest(str(folder)) != found
        path.write_bytes(before)
    assert source_digest(str(tmp_path / "absent")) == UNKNOWN


def test_all_that_is_loaded_by_name_counts():
    """An adapter and a tokenizer of their own beside the model; numbers and objects name nothing."""
    arguments = {"pretrained": "plnd:polyglot-9m", "peft": str(demo_model()), "tokenizer": object(), "dtype": "float32"}
    found = source_digests(arguments)
    assert found.keys() == {"pretrained", "peft"} and len(set(found.values())) == 1
