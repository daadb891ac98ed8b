"""scripts/upstream.py: the patch for PEFT's tree, applied to the installed PEFT and run without plnd."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from peft_plnd import NeuronSelectConfig
from plnd.errors import PLNDError
from programs import run_script, script

upstream = script("upstream")
INSTALLED = Path(peft.__file__).parent
TESTS = os.environ.get("PEFT_TESTS")


def checkout(folder: Path, whole: bool = False) -> Path:
    """The installed PEFT as it lies in its repository: all of it, or the files that are changed."""
    if whole:
        shutil.copytree(INSTALLED, folder / "src/peft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "tuners/__init__.py", "utils/peft_types.py"):
        (folder / "src/peft" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(INSTALLED / name, folder / "src/peft" / name)
    (folder / "tests").mkdir()
    (folder / "method_comparison/MetaMathQA/experiments").mkdir(parents=True)
    return folder


def imported(source: str) -> set[str]:
    """What a source imports: packages, and modules beside it with a dot before them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found.add(f".{node.module}" if node.level else str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return found


def test_the_method_stands_alone():
    """Its files import one another, PEFT and what PEFT needs or has as an extra, and do not speak of plnd."""
    files = {**upstream.tuner(), **upstream.WRITTEN}
    inside = {f".{name.removesuffix('.py')}" for name in files}
    known = sys.stdlib_module_names | {"peft", "torch", "transformers", "accelerate", "numpy", "bitsandbytes"}
    for name, source in files.items():
        assert imported(source) <= inside | known, name
        assert "plnd" not in source and "type: ignore" not in source and "RowColumn" not in source, name


def test_the_patch_is_for_this_peft(tmp_path):
    """Every line that something is put before is in the installed PEFT once; without docs there is no page."""
    run_script("upstream", checkout(tmp_path / "peft"), "--output", tmp_path / "out")
    names = ast.parse((tmp_path / "out/src/peft/__init__.py").read_text())
    assert {"NeuronSelectConfig", "NeuronSelectModel", "OFTConfig"} <= {
        node.value for node in ast.walk(names) if isinstance(node, ast.Constant)
    }
    assert 'NEURON_SELECT = "NEURON_SELECT"' in (tmp_path / "out/src/peft/utils/peft_types.py").read_text()
    assert (tmp_path / "out/tests/test_neuron_select.py").exists() and not (tmp_path / "out/docs").exists()
    settings = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("adapter_config.json")]
    assert [said["fraction"] for said in settings] and all("mask" not in said for said in settings)


@pytest.mark.parametrize("trouble", ["no checkout", "again", "output", "another PEFT"])
def test_what_cannot_be_patched_is_refused(trouble, tmp_path):
    """In one line, with nothing written."""
    folder = checkout(tmp_path / "peft")
    words = {"no checkout": "expected a checkout of PEFT", "again": "is there already", "output": "a new folder"}
    if trouble == "no checkout":
        shutil.rmtree(folder / "src")
    elif trouble == "again":
        (folder / upstream.METHOD).mkdir()
    elif trouble == "output":
        (tmp_path / "out").write_text("mine")
    else:
        (folder / "src/peft/utils/peft_types.py").write_text("class PeftType: ...\n")
    with pytest.raises(PLNDError, match=words.get(trouble, "'- OFT' is there 0 times, expected once: another PEFT")):
        upstream.write(folder, tmp_path / "out")
    assert trouble == "output" or not (tmp_path / "out").exists()


OTHER_PROGRAM = """
import sys, torch, peft
from torch import nn
from peft import NeuronSelectConfig, PeftModel, get_peft_model
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
tuned = get_peft_model(base, NeuronSelectConfig(neurons={"0": {"out": [1, 5], "in": [2]}}, init_weights=False))
tuned.save_pretrained(sys.argv[1])
torch.save(tuned.eval()(torch.ones(1, 6)), sys.argv[2])
loaded = PeftModel.from_pretrained(tuned.unload(), sys.argv[3])
torch.save(loaded.eval()(torch.ones(1, 6)), sys.argv[4])
assert not [name for name in sys.modules if name.startswith(("plnd", "peft_plnd"))], "plnd was imported"
"""


def model() -> nn.Module:
    """The base model of `OTHER_PROGRAM`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


@pytest.mark.slow
def test_peft_with_the_patch(tmp_path):
    """Applied by git to the installed PEFT: its tests pass without plnd, and adapters of either load in the other."""
    folder = checkout(tmp_path / "peft", whole=True)
    if TESTS:
        shutil.copytree(TESTS, folder / "tests", dirs_exist_ok=True)
    upstream.write(folder, tmp_path / "out")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "apply", tmp_path / "out/neuron_select.patch"], cwd=folder, check=True)
    (tmp_path / "other.py").write_text(OTHER_PROGRAM)
    ours = get_peft_model(model(), NeuronSelectConfig(neurons={"1": {"in": [0, 7]}}, init_weights=False)).eval()
    ours.save_pretrained(tmp_path / "ours")
    files = [tmp_path / name for name in ("theirs", "theirs.pt", "ours", "ours.pt")]
    settings = {"PYTHONPATH": str(folder / "src"), "PLND_BRIDGE": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pytest_here = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    runs = [[str(tmp_path / "other.py"), *map(str, files)], [*pytest_here, "tests/test_neuron_select.py"]]
    if TESTS:
        runs.append([*pytest_here, "tests/test_custom_models.py", "-k", "NeuronSelect and not Different"])
    for arguments in runs:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    theirs = PeftModel.from_pretrained(model(), tmp_path / "theirs").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.ones(1, 6)), torch.load(tmp_path / "theirs.pt").detach())
        torch.testing.assert_close(ours(torch.ones(1, 6)), torch.load(tmp_path / "ours.pt").detach())
