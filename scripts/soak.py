"""Many evaluations with changing masks on one loaded model: memory stays flat, and the last one's numbers are right.

    python scripts/soak.py                    # 200 evaluations; prints memory on the way, status 1 if something drifts
    python scripts/soak.py --evaluations 30

A tiny random Llama with the demo's tokenizer is loaded once; every evaluation is lm-eval's own, by `PLNDLM` with
another mask, mode, region or control (its `evaluate`; `simple_evaluate` lists installed packages each time, too). At
the end the weights are bit for bit what they were, and the last evaluation gives the same numbers in a process of its
own. Memory is what the process occupies, after a quarter and at the end; some megabytes come and go with the
allocator. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}

import lm_eval  # noqa: E402
import torch  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from lm_eval_plnd.model import PLNDLM  # noqa: E402
from lm_eval_plnd.task_folder import tasks_folder  # noqa: E402
from plnd.demo_data import demo_model, expand  # noqa: E402
from plnd.models.layout import Layout  # noqa: E402
from plnd.neurons.neuron_set import NeuronSet  # noqa: E402
from plnd.neurons.random_draw import draw  # noqa: E402

TASK = "plnd_text_zh"
MEGABYTES = 32
"""What memory may grow by after a quarter of the evaluations."""


def make_model(folder: Path) -> None:
    """A random Llama of four blocks with the demo's tokenizer, on disk."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    shape = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
    )
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    LlamaForCausalLM(LlamaConfig(**shape, **tokens, initializer_range=0.3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def neurons_of(model: LlamaForCausalLM, number: int) -> NeuronSet:
    """The mask of one evaluation: random neurons, other ones and other many each time."""
    description = Layout(model).description()
    widths = description["widths"]
    share = 0.05 + 0.4 * (number % 7) / 7
    indices = {name: draw(width, round(share * width), number, name).astype("int32") for name, width in widths.items()}
    importance = {name: 0 * values.astype("float32") for name, values in indices.items()}
    return NeuronSet(indices, importance, {"model": description, "language": f"x{number}"})


def options_of(number: int) -> dict[str, Any]:
    """How one evaluation switches its mask off."""
    modes = ("weights", "activations", "auto")
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"regions": "under+gen", "under": 1, "gen": 1},
        {"control": "random", "seed": number},
    )
    return {"mode": modes[number % 3], **choices[number % len(choices) if number % 2 else 0]}


def evaluate(model: LlamaForCausalLM, tokenizer: Any, manager: TaskManager, number: int) -> dict[str, float]:
    """The numbers of one evaluation of a loaded model."""
    common = {"batch_size": 2, "max_length": 64, "add_bos_token": False, "tokenizer": tokenizer}
    lm = PLNDLM(model, neurons_of(model, number), **common, **options_of(number))
    found = lm_eval.evaluate(lm, manager.load([TASK]), limit=1, bootstrap_iters=0, verbosity="ERROR")
    return {name: value for name, value in found["results"][TASK].items() if isinstance(value, float)}


def loaded(folder: Path) -> tuple[LlamaForCausalLM, Any, TaskManager]:
    """The model, its tokenizer and the tasks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    metadata = expand({"data_dir": "plnd:corpus/evaluate", "text_documents": "all"})
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    return model, AutoTokenizer.from_pretrained(folder), manager


def digest(model: LlamaForCausalLM) -> str:
    """SHA-256 of all weights."""
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


def occupied() -> float:
    """Megabytes that this process occupies."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Runs the evaluations, or one of them alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--alone", type=int, help="only this one, of --model")
    parser.add_argument("--model", type=Path, help="its folder")
    args = parser.parse_args()
    if args.alone is not None:
        print(json.dumps(evaluate(*loaded(args.model), args.alone)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        model, tokenizer, manager = loaded(folder)
        before, memory, numbers = digest(model), {}, {}
        last = args.evaluations - 1
        for number in range(args.evaluations):
            numbers = evaluate(model, tokenizer, manager, number)
            if number in (last // 4, last) or number % 25 == 0:
                memory[number] = occupied()
                print(f"{number + 1} evaluations: {memory[number]:.0f} MiB", flush=True)
        alone = [sys.executable, __file__, "--model", name, "--alone", str(last)]
        fresh = json.loads(subprocess.run(alone, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        problems = []
        if digest(model) != before:
            problems.append("the model is not what it was")
        if not numbers or fresh != numbers:
            problems.append(f"the last numbers are {numbers}, and {fresh} in a fresh process")
        if memory[last] - memory[last // 4] > MEGABYTES:
            problems.append(f"memory grew from {memory[last // 4]:.0f} to {memory[last]:.0f} MiB")
        print(
            "; ".join(problems) or f"flat, the weights as they were, and the last numbers a fresh process's: {numbers}"
        )
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
