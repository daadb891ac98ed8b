"""New biases: which layers get some, and what is written where nothing is added."""

from __future__ import annotations

import pytest
import torch

from plnd.exchange.new_biases import add_biases
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton
from plnd.models.stored import stored_tensors
from tiny import tiny_model


@pytest.mark.parametrize(
    ("name", "address", "switches", "biases"),
    [
        ("granite", "0.down_proj", ("mlp_bias",), 6),
        ("granite", "1.q_proj", ("attention_bias",), 8),
        ("qwen3", "0.down_proj", (), 0),
        ("llama", "0.down_proj", (), 0),
    ],
)
def test_all_layers_of_a_switch_get_one(name, address, switches, biases, tmp_path):
    """In both blocks, in the weight's dtype; none where the family has no switch, or the layers have biases already."""
    tiny_model(name, torch.bfloat16).save_pretrained(tmp_path)
    files = ["model.safetensors"]
    stored, layout = stored_tensors(tmp_path, files), Layout(load_skeleton(str(tmp_path)))
    changed, new = add_biases(tmp_path, layout, [address], stored, files, False)
    assert new.switches == switches and len(new.stored) == biases and (changed is layout) == (not switches)
    assert {place.dtype for place in new.stored.values()} <= {"BF16"}
    assert new.names == {"model.safetensors": "model-00001-of-00002.safetensors" if switches else "model.safetensors"}
