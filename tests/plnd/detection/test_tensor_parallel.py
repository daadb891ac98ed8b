"""Models that transformers has spread over processes: what is measured and switched off in them, against whole ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from lm_eval_plnd.model import PLNDLM
from plnd import Scores
from plnd.commands.main import main
from plnd.demo_data import demo_model
from plnd.errors import FamilyError
from plnd.models.families import FAMILIES
from plnd.models.plan import distribution
from tensor_parallel import DETECT, TEXTS
from tiny import MASKED, SCALED, TINY, tiny_model

PROGRAM = Path(__file__).parents[2] / "support" / "tensor_parallel.py"

PLANNED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3", "cohere", "phi3",
    "mixtral", "qwen3_moe", "gpt_neox",
)  # fmt: skip
"""Rows of the families table that have a plan in transformers."""
LATER = (
    "olmo", "cohere2", "ernie4_5", "exaone4", "nemotron", "apertus", "starcoder2", "phi", "glm", "glm4", "olmoe",
    "granitemoe", "granitemoeshared", "deepseek_v3", "mistral4", "ministral3", "hunyuan_v1_moe", "qwen2_moe",
    "ernie4_5_moe", "glm4_moe", "jamba", "granitemoehybrid", "vaultgemma", "hyperclovax", "cohere2_moe", "eurobert",
    "exaone_moe", "gemma4_text", "lfm2_moe",
)  # fmt: skip
"""Rows of later models that have one, too: by two processes."""
REFUSED = {
    "deepseek_v2": "the plan cuts latent attention",
    "qwen3_5_text": "the plan cuts the gates of heads",
    "qwen3_next": "the plan cuts the gates of heads",
}
"""Rows whose plan cuts what no closed form can be had of in parts, and what is said of them."""
BY_TWO = (
    *(name for name in (*PLANNED, *LATER) if name != "llama"), "llama:methods", "gpt_neox_sequential", "mixtral:experts"
)  # fmt: skip
BY_FOUR = (*(f"{name}:heads" for name in PLANNED), "gemma3_text", "qwen3_moe:experts")
"""Tiny models as they are have two key-value heads, which four processes cannot share."""
CASES = [(2, case) for case in BY_TWO] + [(4, case) for case in BY_FOUR]

pytestmark = pytest.mark.slow


def torchrun(count: int, *command: str | Path, folder: Path) -> None:
    """Some processes that run a program, in a folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROGRAM.parent}{os.pathsep}{PROGRAM.parents[2]}"}
    done = subprocess.run([*launcher, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """What every process says of every case."""
    results = {}
    for count, cases in ((2, (*BY_TWO, *REFUSED)), (4, BY_FOUR)):
        folder = tmp_path_factory.mktemp("spread")
        torchrun(count, PROGRAM, folder, *cases, folder=folder)
        for case in cases:
            files = [folder / f"{case.replace(':', '-')}.{rank}.json" for rank in range(count)]
            results[count, case] = [json.loads(file.read_text()) for file in files]
    return results


def test_every_row_with_a_plan_is_tried(monkeypatch):
    """A row of the table whose model can be spread is compared, or refused for a reason, below."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    planned = set()
    for name in FAMILIES.keys() & (TINY | MASKED | SCALED).keys():
        with suppress(FamilyError):  # no plan
            distribution(tiny_model(name))
            planned.add(name)
    assert planned == {*PLANNED, *LATER, *REFUSED}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_exact_on_parts_is_refused(found, family):
    """By every process, before anything is measured."""
    for result in found[2, family]:
        assert REFUSED[family] in result["refused"]


@pytest.mark.parametrize(("count", "case"), CASES)
def test_importances_are_those_of_the_whole_model(found, count, case):
    """Every neuron's minimum and mean to 1e-9 in float64, ranks and metadata equal, in every process."""
    for result in found[count, case]:
        assert result["parts"] == count, "the model is spread"
        assert result["plain"] < 1e-9, "transformers computes the same on parts"
        assert result["importance"] < 1e-9
        assert result["ranks"] and result["metadata"]


@pytest.mark.parametrize(("count", "case"), CASES)
def test_masked_logits_are_those_of_the_whole_model(found, count, case):
    """In both modes, and weights come back bit for bit; experts have only one."""
    for result in found[count, case]:
        assert result["moved"] > 0.1 > 1e-9 > max(result["masked"].values())
        assert set(result["masked"]) == {"weights", *({"activations"} if not result["experts"] else ())}
        assert result["restored"]


@pytest.mark.parametrize(("count", "case"), CASES)
def test_a_pass_has_the_models_own_collectives(found, count, case):
    """None more, but one for each document and block where each process has all heads, or of GLM 4 all of the
    feed-forward, and a norm over the whole width follows."""
    family = case.partition(":")[0]
    for result in found[count, case]:
        own, first, second = (result["collectives"][name] for name in ("plain", "first", "second"))
        everywhere = family in ("olmo2", "glm4") or result["gathered"]
        behind_norm = family in FAMILIES and FAMILIES[family].stacks[0].attention_norm is not None
        assert own > 0
        assert first == second == own + (2 * result["blocks"] if everywhere and behind_norm else 0)
        assert result["collectives"]["meeting"] <= second + 5, "between two passes"


def test_every_method_measures_parts(found):
    """First order, epsilon, the published code's scoring, activations, LAPE, and relevance with its backward pass."""
    for result in found[2, "llama:methods"]:
        assert len(result["methods"]) == 6
        assert max(result["methods"].values()) < 1e-9, result["methods"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder, and what two processes say of command lines, refusals and interrupted runs there."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(demo_model(), folder / "model")
    (folder / "corpus.txt").write_text("\n".join(f"{text} {text} {text}" for text in TEXTS))
    assert main([*DETECT, "--model", str(folder / "model"), "--corpus", str(folder / "corpus.txt"),
                 "--output", str(folder / "whole")]) == 0  # fmt: skip
    Scores.load(folder / "whole").select(fraction=0.05).save(folder / "mask.safetensors")
    torchrun(2, PROGRAM, folder, folder=folder)
    return folder, [json.loads((folder / f"commands.{rank}.json").read_text()) for rank in range(2)]


def test_detect_writes_what_one_process_writes(commands):
    """`plnd detect --tensor-parallel` under torchrun: the artifact of `plnd detect`, norms being rounded to float32."""
    folder, _ = commands
    whole, spread = Scores.load(folder / "whole"), Scores.load(folder / "spread")
    assert whole.metadata == spread.metadata
    assert not (folder / "spread.checkpoint").exists()
    for name, minimum in whole.minimum.items():
        assert np.abs(minimum - spread.minimum[name]).max() < 1e-6 * minimum.max()


def test_lm_eval_masks_what_one_process_masks(commands):
    """`--model plnd --model_args mask=…,tp_plan=auto`: log-likelihoods of texts without the mask's neurons."""
    folder, results = commands
    lm = PLNDLM(str(folder / "model"), mask=folder / "mask.safetensors", dtype="float32", batch_size=1)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    masked = lm.loglikelihood_rolling(requests)
    for result in results:
        np.testing.assert_allclose(result["nats"], masked, rtol=1e-5)


def test_a_killed_run_is_resumed(commands):
    """From the first process's checkpoint, to the result of an uninterrupted run bit for bit."""
    for result in commands[1]:
        assert result["left"]
        assert result["resumed"] == [0.0, True]


def test_shards_are_merged_to_the_whole_run(commands):
    """`--shard` with `--tensor-parallel`: each process has the parts, which make the run without shards bit for bit."""
    for result in commands[1]:
        same, documents = result["shards"]
        assert same and sum(documents) == 5 and min(documents) > 0


@pytest.mark.parametrize(
    ("use", "line"),
    [
        ("other corpora", "the processes of a tensor-parallel model read different documents"),
        ("one refuses", "block 0: its output is not its input plus the outputs of attention and feed-forward"),
        ("lens", "is tensor-parallel over 2 processes; detection and deactivation take it so"),
        ("tuning", "is tensor-parallel over 2 processes; detection and deactivation take it so"),
        ("quantised", "quantize=4bit: a model is spread over processes with dense weights only"),
        ("no experts", "model family 'llama' has no experts to share among processes"),
    ],
)
def test_all_processes_refuse(commands, use, line):
    """In one line, also what only one of them has seen."""
    for result in commands[1]:
        assert line in result[use] and len(result[use].splitlines()) == 1
