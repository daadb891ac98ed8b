"""What a training step costs: neuron-select beside LoRA, SHiRA and full training with masked gradients.

    python scripts/bench_tuner.py                       # float32: about three minutes on two cores
    python scripts/bench_tuner.py --dtype bfloat16

A Llama shape of 110 M parameters with random weights, one document of 512 random tokens, AdamW, no weight decay. All
adapters are on all seven projections of every block. Masked full training is what the papers' code does: the gradient
of every parameter, clipped, then zeroed outside the neurons, and optimizer state for all of them. With --dtype bfloat16
it has float32 weights under autocast, as Trainer's bf16 and scripts/finetune.py do it, since most weights do not move
when bfloat16 is all they have; that is measured beside it. Nothing trained: the gradient flows from the loss to the
embeddings and is dropped, which is the least that training any block can cost.

Machines are noisy, so every figure is a ratio taken in one run: rounds of one step of each method in turn, and the
median over rounds of each round's own ratio. Memory is the peak of a process of its own per method, above what the
process held when it had the base model; freed blocks go back to the system at once while it is measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peft_plnd import NeuronSelectConfig
from plnd.addresses import PROJECTIONS

SELECT = "neuron-select {:.1%}"
LORA, MASKED, NOTHING = "LoRA r=8", "masked full", "nothing trained"
NARROW = "masked, narrow weights"
"""Masked full training of weights that have no float32 copy."""
SHARES = (0.001, 0.01)


def llama_shape(dtype: torch.dtype, blocks: int = 12) -> LlamaForCausalLM:
    """Random weights: 12 blocks, hidden 768, 12 heads, FFN 2048, tied embeddings of 32,000 tokens: 110 M parameters."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=blocks,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).train()


def shira_rank(share: float) -> int:
    """The rank at which SHiRA trains the number of parameters nearest to neuron-select at this share."""
    model = llama_shape(torch.bfloat16)
    wanted = trainable(get_peft_model(model, NeuronSelectConfig(fraction=share)))
    modules = [m for n, m in llama_shape(torch.bfloat16).named_modules() if n.rpartition(".")[2] in PROJECTIONS]
    each = sum(m.in_features + m.out_features for m in modules)  # type: ignore[operator]
    return max(1, round(wanted / each))


def trainable(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def masked(model: LlamaForCausalLM, share: float) -> tuple[nn.Module, Callable[[], None]]:
    """The model with every parameter trained, and what to do with the gradients before a step."""
    chosen = get_peft_model(model, NeuronSelectConfig(fraction=share))
    indices = chosen.peft_config["default"].indices
    model = chosen.unload()
    model.requires_grad_(True)
    kept = {}
    for name, axes in indices.items():
        dim, axis = (0, "out") if "out" in axes else (1, "in")
        weight = model.get_submodule(name).weight
        kept[weight] = dim, torch.tensor(axes[axis], device=weight.device)

    def mask() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameter in model.parameters():
            if parameter not in kept:
                parameter.grad.zero_()
                continue
            dim, index = kept[parameter]
            rows = parameter.grad.index_select(dim, index)
            parameter.grad.zero_().index_copy_(dim, index, rows)

    return model, mask


def build(method: str, model: LlamaForCausalLM, rank: int) -> tuple[nn.Module, Callable[[], None]]:
    """The model ready to train by `method`, and what to do between its backward pass and its step."""
    targets = list(PROJECTIONS)
    if method in (MASKED, NARROW):
        return masked(model, SHARES[0])
    if method == NOTHING:
        model.requires_grad_(False).enable_input_require_grads()
        return model, lambda: None
    if method == LORA:
        config = LoraConfig(r=8, target_modules=targets)
    elif method.startswith("SHiRA"):
        config = ShiraConfig(r=rank, target_modules=targets, random_seed=0)
    else:
        share = next(share for share in SHARES if SELECT.format(share) == method)
        config = NeuronSelectConfig(fraction=share)
    tuned = get_peft_model(model, config)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    return tuned, lambda: nn.utils.clip_grad_norm_(parameters, 1.0) and None


def weights(method: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the base model's weights."""
    return torch.float32 if method == MASKED else dtype


def trainer(
    method: str, model: LlamaForCausalLM, tokens: Tensor, rank: int, dtype: torch.dtype
) -> tuple[Callable[[], None], int]:
    """One training step as a function, and the number of trained parameters."""
    mixed = model.dtype != dtype
    tuned, between = build(method, model, rank)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0) if parameters else None

    def step() -> None:
        with torch.autocast(tokens.device.type, dtype, enabled=mixed):
            loss = tuned(input_ids=tokens, labels=tokens).loss
        loss.backward()
        between()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, trainable(tuned)


def memory_now(field: str) -> int:
    """Bytes of this process's resident memory: `VmRSS` now, `VmHWM` at its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(method: str, dtype: torch.dtype, length: int, rank: int) -> int:
    """Bytes above the base model over three steps.

    A step on a model of one block comes first: what libraries load and compile for it is no cost of the method.
    """
    tokens = torch.randint(3, 32000, (1, length))
    trainer(method, llama_shape(weights(method, dtype), blocks=1), tokens, rank, dtype)[0]()
    gc.collect()
    model = llama_shape(weights(method, dtype))
    before = memory_now("VmRSS")
    step, _ = trainer(method, model, tokens, rank, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is resident now
    for _ in range(3):
        step()
    return memory_now("VmHWM") - before


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rank", type=int, help="SHiRA's; by default matched to neuron-select at 1 %%")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    rank = args.rank or shira_rank(SHARES[1])
    if args.peak:
        print(peak(args.peak, dtype, args.tokens, rank))
        return
    rivals = {LORA: "/LoRA", MASKED: "/masked"} | ({} if dtype == torch.float32 else {NARROW: "/narrow"})
    methods = [*map(SELECT.format, SHARES), f"SHiRA r={rank}", *rivals, NOTHING]
    tokens = torch.randint(3, 32000, (1, args.tokens))
    steps = {method: trainer(method, llama_shape(weights(method, dtype)), tokens, rank, dtype) for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(args.rounds + 1):
        for method, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first is for warming up
                times[method].append(time.perf_counter() - start)
    counts = {method: count for method, (_, count) in steps.items()}
    del steps
    memory = {method: measured_peak(method, args.dtype, args.tokens, rank) for method in methods}
    print(f"{args.dtype}, {args.tokens} tokens, {torch.get_num_threads()} threads, {args.rounds} rounds")
    over = "".join(f"{name:>8}" for name in rivals.values())
    print(f"{'':24}{'trained':>12}{'s/step':>8}{over}{'MiB':>7}{over}")
    for method in methods:
        seconds = "".join(f"{ratio(times[method], times[rival]):8.2f}" for rival in rivals)
        bytes_ = "".join(f"{memory[method] / memory[rival]:8.2f}" for rival in rivals)
        print(
            f"{method:24}{counts[method]:12,}{statistics.median(times[method]):8.3f}{seconds}"
            f"{memory[method] / 2**20:7.0f}{bytes_}"
        )


def ratio(times: list[float], others: list[float]) -> float:
    """Median over rounds of each round's ratio."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def measured_peak(method: str, dtype: str, length: int, rank: int) -> int:
    """`peak` in a process of its own, in which every freed block of 64 KiB and more goes back to the system."""
    options = ["--dtype", dtype, "--tokens", str(length), "--rank", str(rank), "--peak", method]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *options]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
