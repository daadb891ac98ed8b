"""How much memory is free, and what is said of a model that is larger."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from plnd.commands.shared import error_line
from plnd.errors import PLNDError
from plnd.models.free_memory import check_fits, free_memory, left_by_groups
from plnd.models.loading import check_not_on_disk, load_model
from tiny import tiny_model


def write(folder: Path, **files: str) -> None:
    """Files of a control group; `_` stands for the dot in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_control_groups_of_version_2(tmp_path):
    """Each group on the way up limits, what files' pages hold does not count, and `max` is no limit."""
    write(tmp_path / "a", memory__max="1000\n", memory__current="700\n", memory__stat="anon 1\ninactive_file 300\n")
    write(tmp_path / "a/b", memory__max="max\n", memory__current="600\n", memory__stat="inactive_file 0\n")
    (tmp_path / "membership").write_text("0::/a/b\n")
    assert list(left_by_groups(tmp_path / "membership", tmp_path)) == [600]


def test_control_groups_of_version_1(tmp_path):
    """The same by its older names; in a container the group's path leads nowhere, and its root counts."""
    files = {
        "memory__limit_in_bytes": "1000",
        "memory__usage_in_bytes": "1200",
        "memory__stat": "total_inactive_file 5",
    }
    write(tmp_path / "memory", **files)
    (tmp_path / "membership").write_text("3:cpu:/x\n4:memory:/docker/x\n")
    assert list(left_by_groups(tmp_path / "membership", tmp_path)) == [0]
    assert list(left_by_groups(tmp_path / "nothing", tmp_path)) == []


@pytest.mark.slow
def test_what_the_process_may_have_limits():
    """`ulimit -v` is heeded."""
    code = (
        "import resource, torch; from plnd.models.free_memory import free_memory;"
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.RLIM_INFINITY));"
        "before = free_memory(torch.device('cpu')); import psutil;"
        "used = psutil.Process().memory_info().vms;"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, resource.RLIM_INFINITY));"
        "after = free_memory(torch.device('cpu'));"
        "assert after <= 2**21 < before, (before, after)"
    )
    assert hasattr(resource, "RLIMIT_AS")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_model_larger_than_memory_is_an_instruction(tmp_path):
    """Said from the configuration, before anything is loaded: there are no weights here."""
    config = tiny_model("llama").config.to_dict()
    wide = {"hidden_size": 2**16, "num_attention_heads": 512, "head_dim": 128, "intermediate_size": 2**18}
    (tmp_path / "config.json").write_text(json.dumps({**config, **wide, "num_hidden_layers": 8, "dtype": "float32"}))
    for device in ("cpu", "auto"):
        with pytest.raises(
            PLNDError, match=r"its weights take 1,\d+\.\d GiB, and .* free on cpu: plnd detect --blockwise"
        ):
            load_model(str(tmp_path), device=device)
    with pytest.raises(PLNDError, match="free on cpu: give a smaller --dtype"):
        check_fits("m", 2**60, "cpu", blockwise=False)
    check_fits("m", 2**20, "cpu")
    assert 0 < free_memory(torch.device("cpu")) < 2**50


def test_nothing_is_left_on_disk_unasked(tmp_path):
    """A model of which transformers left a block on disk is refused by a line that says how else to do it."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    places = {part: "disk" if part == "model.layers.1" else "cpu" for part in parts}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with pytest.raises(PLNDError, match="1 of its 6 parts fit on no device and would be read from disk in every pass"):
        check_not_on_disk("m", model)
    check_not_on_disk("m", load_model(str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_is_an_instruction(error):
    """On a card as on the CPU, one line names blockwise; any other error is not explained away."""
    assert "--blockwise" in error_line(error)
    assert error_line(RuntimeError("shapes do not match")) is None
