"""What detection costs: beside a plain forward pass, the paper's literal formulas, and one neuron at a time.

    python scripts/bench_detect.py                # the Llama shape, float32: minutes on two cores
    python scripts/bench_detect.py --tables first --model DIR --dtype bfloat16

Machines are noisy, so every figure of the first table is a ratio taken in one run: rounds of (forward, each setting) in
turn, and the median over rounds of each round's own ratio. Documents are random tokens of one length, in batches of
`--batch-size`. A forward pass is that of the model's body, without its head.

The second table is for one document of `--dense-tokens`, against the same detection in the same run. The dense forms
are the paper's equations 5 and 10 as they are printed, every tensor materialised, on random activations of block 0's
shapes; the sequential oracle deactivates one neuron at a time and runs the block again. All three are measured on a
sample and extrapolated in proportion to the number of neurons, sides and blocks.

Peak memory is that of a process of its own for each setting, less that of a process that only runs the forward pass;
what is below 1 MiB counts as 1 MiB where memories are divided.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from plnd import DetectConfig, detect, load_model
from plnd.addresses import split_address
from plnd.detection.oracle import sequential
from plnd.importance.softmax import engine
from plnd.models.layout import Layout

SETTINGS = {"FFN + V + O": "off", "with first_order Q, K": "first_order", "with exact Q, K": "exact"}
FFN_SAMPLE = 32
"""Neurons of one block that equation 5 is evaluated for."""
ORACLE_SAMPLE = 2
"""Neurons of each of block 0's projections that the oracle deactivates."""


def llama_shape(dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights: 8 blocks, hidden 1024, 16 heads on 4 key-value heads, FFN 2816."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def equation_5(inner: Tensor, down: Tensor, neurons: int) -> Tensor:
    """‖(h·Mask)·W_down‖ for the first `neurons` rows of Mask: [seq, neurons, width] and [seq, neurons, hidden].

    Args:
        inner: h, [seq, width].
        down: weight of `down_proj`, [hidden, width].
        neurons: how many.
    """
    mask = torch.eye(neurons, inner.shape[1], dtype=inner.dtype, device=inner.device)
    return torch.linalg.vector_norm((inner[:, None] * mask) @ down.T, dim=(0, 2))


def equation_10(query: Tensor, key: Tensor) -> Tensor:
    """‖softmax((QKᵀ - Δ)/√d) - softmax(QKᵀ/√d)‖ with Δ of eq. 9, causal: [heads, seq, seq, head_dim] several times.

    Args:
        query, key: [heads, seq, head_dim].
    """
    delta = query[:, :, None] * key[:, None]
    scores = (query @ key.mT)[..., None]
    later = torch.ones(scores.shape[1:3], dtype=torch.bool, device=query.device).triu(1)[..., None]
    before, after = (
        torch.softmax((x / query.shape[-1] ** 0.5).masked_fill(later, -torch.inf), dim=2)
        for x in (scores, scores - delta)
    )
    return torch.linalg.vector_norm(after - before, dim=(1, 2))


class Bench:
    """The model, and every setting as a function of no arguments that runs it once on given documents."""

    def __init__(self, args: argparse.Namespace) -> None:
        dtype = getattr(torch, args.dtype)
        if args.model:
            self.model = load_model(args.model, dtype=args.dtype, device=args.device)
        else:
            self.model = llama_shape(dtype).to(args.device)
        self.layout = Layout(self.model)
        self.vocabulary = self.model.config.get_text_config().vocab_size

    def documents(self, number: int, tokens: int) -> Tensor:
        """Random token ids, [number, tokens]."""
        return torch.randint(3, self.vocabulary, (number, tokens), generator=torch.Generator().manual_seed(0))

    def setting(self, name: str, documents: Tensor, batch_size: int) -> Callable[[], object]:
        """What to run for a row of the tables; the dense forms and the oracle only on their samples, in block 0."""
        if name in SETTINGS:
            length = documents.shape[1]
            config = DetectConfig(qk=SETTINGS[name], max_length=length, min_length=1, batch_size=batch_size)
            return lambda: detect(self.model, documents.tolist(), config)
        block = self.layout.blocks[0]
        down, tokens = self.layout.targets[f"{block.name}.down_proj"].weight(), documents.shape[1]
        head_dim = int(block.at(block.stack.head_dim))
        heads = self.layout.targets[f"{block.name}.q_proj"].width // head_dim
        inner = torch.randn(tokens, down.shape[1]).to(down)
        query, key = torch.randn(2, heads, tokens, head_dim).to(down)
        if name == "equation 5":
            return lambda: equation_5(inner, down, FFN_SAMPLE)
        if name == "equation 10":
            return lambda: equation_10(query, key)
        if name.startswith("oracle"):
            neurons = range(1 + ORACLE_SAMPLE if name == "oracle, sample" else 1)
            names = [name for name in self.layout.targets if split_address(name)[0] == block.name]
            ids = documents[0].to(self.model.device)
            return lambda: [sequential(self.model, ids, name, neurons=neurons) for name in names]
        return lambda: self._forward(documents, batch_size)

    @torch.no_grad()
    def _forward(self, documents: Tensor, batch_size: int) -> None:
        for batch in documents.to(self.model.device).split(batch_size):
            self.layout.forward(batch, torch.ones_like(batch))

    def seconds(self, run: Callable[[], object]) -> float:
        """How long one run takes."""
        start = time.perf_counter()
        with torch.no_grad():
            run()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def times(self, work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Every setting in turn, in rounds; one more round before warms up."""
        found: dict[str, list[float]] = {name: [] for name in work}
        for number in range(rounds + 1):
            for name, run in work.items():
                seconds = self.seconds(run)
                if number:
                    found[name].append(seconds)
        return found

    def peak(self, name: str, number: int, tokens: int, batch_size: int) -> int:
        """Bytes by which a run raises this process's memory, after a warm-up on a short document."""
        self.seconds(self.setting(name, self.documents(1, 40), 1))
        run = self.setting(name, self.documents(number, tokens), batch_size)
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.seconds(run)
            return torch.cuda.max_memory_allocated() - before
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")  # the high-water mark starts again from here
        before = _status("VmRSS")
        self.seconds(run)
        return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field))


def peak_of_child(name: str, number: int, tokens: int, batch_size: int) -> int:
    """The same in a process of its own, which returns freed memory at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, *sys.argv, "--peak", json.dumps([name, number, tokens, batch_size])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name; default: a random Llama of 8 blocks, hidden 1024")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dense-tokens", type=int, default=256)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tables", choices=("both", "first", "second"), default="both")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)  # what a child measures
    args = parser.parse_args()
    bench = Bench(args)
    if args.peak:
        print(bench.peak(*args.peak))
        return
    on = engine(getattr(torch, args.dtype), bench.model.device)
    print(
        f"{bench.model.config.model_type}, {len(bench.layout.blocks)} blocks, {args.dtype}, {args.device},"
        f" {torch.get_num_threads()} threads, exact on {on}"
    )
    if args.tables != "second":
        against_forward(bench, args)
    if args.tables != "first":
        against_others(bench, args)


def against_forward(bench: Bench, args: argparse.Namespace) -> None:
    """The first table."""
    names = ["forward", *SETTINGS]
    shape = (args.documents, args.tokens, args.batch_size)
    documents = bench.documents(*shape[:2])
    times = bench.times({name: bench.setting(name, documents, args.batch_size) for name in names}, args.rounds)
    peaks = {name: peak_of_child(name, *shape) for name in names}
    shape_in_words = f"{args.documents} documents of {args.tokens} tokens, {args.batch_size} in a batch"
    print(f"\n{shape_in_words}; ratio: median of {args.rounds} rounds (smallest, largest)")
    print(f"{'':<24}{'seconds':>9}{'ratio':>8}{'':>16}{'extra memory':>16}")
    for name, seconds in times.items():
        ratios = [mine / plain for mine, plain in zip(seconds, times["forward"], strict=True)]
        spread = f"({min(ratios):.2f}, {max(ratios):.2f})" if name != "forward" else ""
        extra = f"{(peaks[name] - peaks['forward']) / 2**20:.0f} MiB" if name != "forward" else ""
        print(f"{name:<24}{statistics.median(seconds):>9.2f}{statistics.median(ratios):>8.2f}{spread:>16}{extra:>16}")


def against_others(bench: Bench, args: argparse.Namespace) -> None:
    """The second table."""
    widths, blocks = bench.layout.widths, len(bench.layout.blocks)
    first = bench.layout.blocks[0].name
    documents = bench.documents(1, args.dense_tokens)
    names = ["forward", *SETTINGS, "equation 5", "equation 10", "oracle", "oracle, sample"]
    found = bench.times({name: bench.setting(name, documents, 1) for name in names}, args.rounds)
    seconds = {name: statistics.median(times) for name, times in found.items()}
    peaks = {name: peak_of_child(name, 1, args.dense_tokens, 1) for name in names[:-1]}
    extra = {name: max(peaks[name] - peaks["forward"], 0) for name in SETTINGS}
    width = widths[f"{first}.down_proj"]
    share = width / FFN_SAMPLE
    projections = sum(1 for name in widths if split_address(name)[0] == first)
    neuron = (seconds["oracle, sample"] - seconds["oracle"]) / ORACLE_SAMPLE / projections
    whole, scored = "with exact Q, K", "FFN + V + O"
    rows = [  # name, seconds, extra memory, what of ours does the same
        (scored, seconds[scored], extra[scored], None),
        (whole, seconds[whole], extra[whole], None),
        (
            "equation 5 (FFN)",
            seconds["forward"] + seconds["equation 5"] * share * blocks,
            peaks["equation 5"] * share,
            scored,
        ),
        ("equation 10 (Q, K)", seconds["forward"] + seconds["equation 10"] * 2 * blocks, peaks["equation 10"], whole),
        ("sequential oracle", neuron * sum(widths.values()), peaks["oracle"] - peaks["forward"], whole),
    ]
    print(
        f"\none document of {args.dense_tokens} tokens, forward pass included; measured and extrapolated: equation 5 on"
    )
    print(f"{FFN_SAMPLE} of {width} neurons of one block, equation 10 on one side, the oracle on {ORACLE_SAMPLE}")
    print(f"neurons of each projection of one block; there are {sum(widths.values())} in all")
    print(f"{'':<24}{'seconds':>12}{'extra memory':>16}{'slower than plnd':>20}{'more memory':>14}")
    for name, time_taken, memory, ours in rows:
        against = ""
        if ours:
            slower, more = time_taken / seconds[ours], max(memory, 0) / max(extra[ours], 2**20)
            against = f"{f'{slower:.0f} times':>20}{f'{more:.0f} times':>14}"
        print(f"{name:<24}{time_taken:>12.2f}{f'{memory / 2**20:.0f} MiB':>16}{against}")


if __name__ == "__main__":
    main()
