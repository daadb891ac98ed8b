"""What plnd costs on a GPU, and whether it is right there: one command, at most eight minutes on one card.

    python scripts/bench_gpu.py --json gpu.json            # an H100 or alike; random weights, no network
    python scripts/bench_gpu.py --tiny --device cpu        # the same program on small shapes; times say nothing

Needs torch, transformers, accelerate, peft, safetensors, triton and what plnd's core imports; no lm-eval. Sections, in
order; what the time does not suffice for is left out, and named:

- `correct`: importances of queries and keys by what a GPU runs and by PyTorch there, against float64 on the CPU.
- `detect`: detection over forward in the Llama 8B shape (hidden 4096, FFN 14336, 32 heads on 8) with `--blocks` blocks,
  bfloat16, documents of 512 and of 2,048 tokens.
- `dense`: the paper's equations 5 and 10 as they are printed, on samples of one block, extrapolated to a document.
- `masked`: forward pass and generation with 0.1 % of the neurons off, in both modes, against plain; switching them off
  and back is in the time.
- `tune`: a training step of the Llama 1B shape, bfloat16: neuron-select, LoRA, masked full training.
- `blockwise`: detection in a shape that is larger than the stated memory limit.

Floors are predictions for an H100 SXM (989 TFLOP/s in bfloat16, 495 in TF32, 67 in float32, 3.35 TB/s, `Card`): the
operations and bytes that a line cannot do without, each at the card's peak, the larger counting; no launch, no wait. A
floor is below what any program can reach. What is measured on another card is not held against it.

JSON: `{"schema": 1, "device", "torch", "triton", "settings", "seconds", "left_out": [section, ...], "rows": [...]}`;
each row has

    section, name   what it is
    unit            "seconds", "ratio" (over a forward pass in the same rounds), "error" (relative to the largest)
    measured        the median of the rounds, in that unit; null if it failed
    smallest, largest   of the rounds; null where there was one
    floor           the prediction for an H100, in that unit; null where there is none
    bound           what the floor comes from: "bfloat16", "tf32", "float32" or "bytes"
    share           of the card's bfloat16 peak that the row's operations come to; null off an H100
    memory          peak bytes on the device above what the row began with; null on a CPU
    documents_per_second   where documents are read
    said            why it failed, or null
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from bench_detect import FFN_SAMPLE, equation_5, equation_10
from bench_tuner import LORA, MASKED, SELECT, SHARES, trainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import plnd
from plnd.importance.attention import Attention, HeadNorm, Rotary, attention_importance, rotated
from plnd.importance.softmax import Engine, engine
from plnd.models.layout import Layout

QK = {"FFN, V, O": "off", "and first_order": "first_order", "and exact": "exact"}
TF32 = "and first_order, TF32 products"
"""PyTorch's float32 products on tensor cores, which round what they multiply to 11 bits: the user's choice."""


@dataclass(frozen=True)
class Card:
    """Peaks of a card: operations a second, lanes' instructions a second, bytes a second."""

    bfloat16: float = 989e12
    tf32: float = 495e12
    float32: float = 67e12
    lanes: float = 132 * 128 * 1.98e9
    bytes: float = 3.35e12


H100 = Card()


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes as its configuration has them."""

    hidden: int
    ffn: int
    heads: int
    groups: int
    blocks: int
    vocabulary: int = 32000

    def model(self, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
        """With random weights."""
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            max_position_embeddings=4096,
            dtype=dtype,
        )
        torch.manual_seed(0)
        with torch.device(device):
            return LlamaForCausalLM(config).to(dtype).eval()

    @property
    def weights(self) -> int:
        """Of a block."""
        head_dim = self.hidden // self.heads
        return self.hidden * (2 * self.hidden + 2 * self.groups * head_dim + 3 * self.ffn)


@dataclass(frozen=True)
class Work:
    """What cannot be done without: operations in bfloat16, TF32 and float32, lanes' instructions, bytes."""

    bfloat16: float = 0.0
    tf32: float = 0.0
    float32: float = 0.0
    lanes: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def floor(self, card: Card = H100) -> tuple[float, str]:
        """Seconds, each kind after the other but for bytes, which may move meanwhile; and what weighs most."""
        computing = {"bfloat16": self.bfloat16 / card.bfloat16, "tf32": self.tf32 / card.tf32}
        computing["float32"] = self.float32 / card.float32 + self.lanes / card.lanes
        moving = self.bytes / card.bytes
        if moving > sum(computing.values()):
            return moving, "bytes"
        return sum(computing.values()), max(computing, key=lambda name: computing[name])


def forward_work(shape: Shape, documents: int, tokens: int, batches: int) -> Work:
    """Of the blocks: two operations for each weight and token, and causal attention; weights are read once a batch."""
    each = shape.blocks * documents * tokens
    attention = 2 * tokens * shape.hidden  # queries times keys and probabilities times values, half of each
    return Work(bfloat16=each * (2 * shape.weights + attention), bytes=2 * batches * shape.blocks * shape.weights)


def head_work(shape: Shape, tokens: int) -> Work:
    """Of the unembedding."""
    each = shape.hidden * shape.vocabulary
    return Work(bfloat16=2 * tokens * each, bytes=2 * each)


def generation_work(shape: Shape, tokens: int, new: int) -> Work:
    """A prompt, and then all weights and the keys and values so far read anew for every token but the last one."""
    work = forward_work(shape, 1, tokens, 1) + head_work(shape, 1)
    cached = 2 * shape.blocks * 2 * shape.groups * (shape.hidden // shape.heads)  # bytes a token
    weights = 2 * (shape.blocks * shape.weights + shape.hidden * shape.vocabulary)
    steps = new - 1
    return work + Work(bytes=steps * (weights + cached * (tokens + new / 2)))


def dense_work(shape: Shape, tokens: int) -> dict[str, Work]:
    """The paper's forms for all neurons: equation 5 multiplies by all weights for each neuron, equation 10 writes and
    reads [tokens, tokens] twelve times for each channel of each head, queries' and keys'.
    """
    neurons, channels = shape.blocks * shape.ffn, 2 * shape.blocks * shape.hidden
    return {
        "equation 5": Work(bfloat16=neurons * 2 * tokens * shape.ffn * shape.hidden),
        "equation 10": Work(bytes=channels * 12 * 2 * tokens**2),
    }


def tuning_work(shape: Shape, tokens: int, trained: int | None) -> Work:
    """A step: three forward passes and the optimiser's state where all weights have gradients (`trained` of them, in
    float32: gradient, two moments and weight, read or written), else two forward passes.
    """
    once = forward_work(shape, 1, tokens, 1) + head_work(shape, tokens)
    if trained is None:
        return once + once
    return once + once + once + Work(bytes=7 * 4 * trained)


def measure_work(shape: Shape, documents: int, tokens: int, qk: str) -> Work:
    """Beyond the forward pass.

    `off` reads what enters `down_proj` and `o_proj` again. Q and K take the logits once more, in float32, of each pair
    of a query and a key that it sees; `first_order` seven more products of that size, and eight readings or writings
    of a float32; `exact` 22 instructions for each channel and side (as compiled: 18 in floating point, 4 others).
    """
    each = shape.blocks * documents * tokens
    work = Work(bytes=each * 2 * (shape.ffn + shape.hidden))
    pairs = each * (tokens + 1) / 2 * shape.hidden  # times channels, all heads
    passes = 4 * each * (tokens + 1) / 2 * shape.heads
    if qk == "first_order":
        work += Work(float32=8 * 2 * pairs, bytes=8 * passes)
    elif qk == TF32:
        work += Work(tf32=8 * 2 * pairs, bytes=8 * passes)
    elif qk == "exact":
        work += Work(float32=2 * pairs, lanes=2 * 22 * pairs, bytes=5 * passes)
    return work


@dataclass
class Row:
    """A line; see the module's words on JSON."""

    section: str
    name: str
    unit: str
    measured: float | None = None
    smallest: float | None = None
    largest: float | None = None
    floor: float | None = None
    bound: str | None = None
    share: float | None = None
    memory: int | None = None
    documents_per_second: float | None = None
    said: str | None = None


@dataclass
class Bench:
    """What all sections have.

    Attributes:
        device: of the models.
        tiny: small shapes.
        blocks: of the 8B shape.
        rounds: that are timed.
        until: `time.monotonic()` at which to end.
    """

    device: str
    tiny: bool
    blocks: int
    rounds: int
    until: float
    rows: list[Row] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Of the models."""
        return torch.bfloat16

    @property
    def cuda(self) -> bool:
        """Whether there is a card to wait for."""
        return torch.device(self.device).type == "cuda"

    def shape(self) -> Shape:
        """Llama 8B's, or a small one."""
        if self.tiny:
            return Shape(64, 96, 4, 2, 2, 512)
        return Shape(4096, 14336, 32, 8, self.blocks)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """How long one run takes."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def peak(self, run: Callable[[], object]) -> int | None:
        """Bytes on the device beyond what is there before; a run that also warms up."""
        if not self.cuda:
            run()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def times(self, work: dict[str, Callable[[], object]]) -> tuple[dict[str, list[float]], dict[str, int | None]]:
        """Seconds of rounds of all in turn, and peak memory of the run before the first round."""
        memory = {name: self.peak(run) for name, run in work.items()}
        found: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(self.rounds):
            for name, run in work.items():
                found[name].append(self.seconds(run))
            if time.monotonic() > self.until:
                break
        return found, memory

    def share(self, work: Work, seconds: float) -> float | None:
        """Of the H100's bfloat16 peak; None on anything else."""
        if not self.cuda or "H100" not in torch.cuda.get_device_name():
            return None
        return (work.bfloat16 + work.tf32 + work.float32) / seconds / H100.bfloat16

    def add(self, row: Row) -> None:
        """Prints a line, and keeps it."""
        self.rows.append(row)
        words = [f"{row.section:<10}{row.name:<56}"]
        words.append(f"{'failed' if row.measured is None else f'{row.measured:.4g}':>10}")
        words.append(f"{'' if row.floor is None else f'{row.floor:.4g}':>10}{row.bound or '':>10}  {row.unit}")
        words.append(f"{'' if row.memory is None else f'{row.memory / 2**20:,.0f} MiB':>12}")
        words.append("" if row.share is None else f"{row.share:.0%} of peak")
        print(" ".join(words), row.said or "", flush=True)


# sections


def correct(bench: Bench) -> None:
    """Every kind of attention, both algorithms, in both dtypes, against float64 on the CPU."""
    kinds: dict[str, dict[str, Any]] = {
        "rotary": {},
        "head norms, soft-cap": dict(norm=True, softcap=5.0),
        "window": dict(window=24),
        "large logits": dict(size=6.0),
    }
    on: list[Engine] = sorted({engine(torch.float32, torch.device(bench.device)), "torch"})  # type: ignore[type-var]
    for kind, values in kinds.items():
        for dtype in (torch.float32, torch.bfloat16):
            trace = attention(dtype, 40 if bench.tiny else 300, **values)
            wide, there = moved(trace, torch.float64, "cpu"), moved(trace, dtype, bench.device)
            for algorithm in ("exact", "first_order"):
                expected = attention_importance(wide, algorithm)  # type: ignore[arg-type]
                for each in on:
                    found = attention_importance(there, algorithm, on=each)  # type: ignore[arg-type]
                    error = max(
                        float((f.cpu().double() - e).abs().max() / e.abs().max())
                        for f, e in zip(found, expected, strict=True)
                    )
                    name = f"{algorithm} on {each}, {kind}, {str(dtype).removeprefix('torch.')}"
                    bench.add(Row("correct", name, "error", error))


def attention(
    dtype: torch.dtype,
    tokens: int,
    *,
    norm: bool = False,
    softcap: float | None = None,
    window: int | None = None,
    size: float = 1.0,
) -> Attention:
    """Random attention of 4 heads on 2, 64 channels each, whose numbers `dtype` holds, in float64."""
    generator, head_dim = torch.Generator().manual_seed(0), 64
    query, key = (
        (torch.randn(heads, tokens, head_dim, generator=generator) * factor).to(dtype).double()
        for heads, factor in ((4, size), (2, 1.0))
    )
    angle = torch.arange(tokens)[:, None] * 10000 ** (-torch.arange(head_dim // 2) / (head_dim // 2))
    angle = torch.cat((angle, angle), -1).double()
    rotary = Rotary.of(angle.cos().to(dtype).double(), angle.sin().to(dtype).double(), head_dim, "halves")
    norms = [HeadNorm(torch.ones(head_dim, dtype=torch.float64), 1e-6) if norm else None for _ in range(2)]
    # what enters the scalar product is rounded too, as in a model; both sides of the comparison get the same numbers
    entered = [rotated(x, n, rotary).to(dtype).double() for x, n in zip((query, key), norms, strict=True)]
    places = torch.arange(tokens)
    mask = None
    if window is not None:
        mask = ((places[:, None] >= places) & (places[:, None] - places < window))[None]
    return Attention(query, key, *entered, head_dim**-0.5, rotary, *norms, mask=mask, softcap=softcap)


def moved(trace: Attention, dtype: torch.dtype, device: str) -> Attention:
    """The same on a device; the dtype holds its numbers."""

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(device, dtype if x.is_floating_point() else x.dtype)
        if isinstance(x, (HeadNorm, Rotary)):
            return type(x)(**{name: move(value) for name, value in vars(x).items()})
        return x

    return Attention(**{name: move(value) for name, value in vars(trace).items()})


def detect(bench: Bench) -> None:
    """Detection over forward."""
    shape = bench.shape()
    model = shape.model(bench.dtype, bench.device)
    layout = Layout(model)
    for tokens, number, batch in ((24, 4, 2),) if bench.tiny else ((512, 32, 16), (2048, 8, 4)):
        ids = torch.randint(3, shape.vocabulary, (number, tokens), generator=torch.Generator().manual_seed(0))
        documents = ids.tolist()

        def forward(ids: Tensor = ids, batch: int = batch) -> None:
            with torch.no_grad():
                for part in ids.to(bench.device).split(batch):
                    layout.forward(part, torch.ones_like(part))

        def run(qk: str, documents: list = documents, tokens: int = tokens, batch: int = batch) -> None:
            config = plnd.DetectConfig(qk=qk, max_length=tokens, min_length=1, batch_size=batch)  # type: ignore[arg-type]
            plnd.detect(model, documents, config)

        def quick() -> None:
            torch.set_float32_matmul_precision("high")
            try:
                run("first_order")
            finally:
                torch.set_float32_matmul_precision("highest")

        work: dict[str, Callable[[], object]] = {"forward": forward}
        for name, qk in QK.items():
            work[name] = lambda qk=qk, run=run: run(qk)
        if bench.cuda:
            work[TF32] = quick
        times, memory = bench.times(work)
        plain = forward_work(shape, number, tokens, -(-number // batch))
        for name, seconds in times.items():
            needed = plain if name == "forward" else plain + measure_work(shape, number, tokens, QK.get(name, name))
            floor, bound = needed.floor()
            middle = statistics.median(seconds)
            row = Row("detect", f"{name}, {tokens} tokens", "seconds", middle, min(seconds), max(seconds), floor, bound)
            row.memory, row.documents_per_second = memory[name], number / middle
            row.share = bench.share(needed, middle)
            bench.add(row)
            if name == "forward":
                continue
            ratios = [mine / one for mine, one in zip(seconds, times["forward"], strict=True)]
            row = Row(
                "detect", f"{name}, {tokens} tokens", "ratio", statistics.median(ratios), min(ratios), max(ratios)
            )
            row.floor = floor / plain.floor()[0]
            bench.add(row)


def dense(bench: Bench) -> None:
    """The paper's forms as they are printed, one document, extrapolated to all neurons of all blocks."""
    shape, tokens = bench.shape(), 24 if bench.tiny else 512
    head_dim = shape.hidden // shape.heads
    sample, heads = min(FFN_SAMPLE, shape.ffn), min(2, shape.heads)
    make = dict(device=bench.device, dtype=bench.dtype)
    inner, down = torch.randn(tokens, shape.ffn, **make), torch.randn(shape.hidden, shape.ffn, **make)  # type: ignore[arg-type]
    query, key = torch.randn(2, heads, tokens, head_dim, **make)  # type: ignore[arg-type]
    times, memory = bench.times(
        {"equation 5": lambda: equation_5(inner, down, sample), "equation 10": lambda: equation_10(query, key)}
    )
    shares = {"equation 5": shape.ffn / sample * shape.blocks, "equation 10": 2 * shape.heads / heads * shape.blocks}
    for name, seconds in times.items():
        row = Row("dense", f"{name}, one document of {tokens} tokens", "seconds")
        row.measured = statistics.median(seconds) * shares[name]
        row.memory = memory[name]
        row.floor, row.bound = dense_work(shape, tokens)[name].floor()
        bench.add(row)


def masked(bench: Bench) -> None:
    """A forward pass, and generation, with neurons off."""
    shape, tokens, new = bench.shape(), 24 if bench.tiny else 512, 4 if bench.tiny else 64
    model = shape.model(bench.dtype, bench.device)
    config = plnd.DetectConfig(qk="off", max_length=tokens, min_length=1)
    ids = torch.randint(3, shape.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    neurons = plnd.detect(model, ids.tolist(), config).select(fraction=0.01 if bench.tiny else 0.001)
    ids = ids.to(bench.device)

    @torch.no_grad()
    def forward() -> None:
        model(input_ids=ids, use_cache=False)

    @torch.no_grad()
    def generate() -> None:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)

    work_of_forward = forward_work(shape, 1, tokens, 1) + head_work(shape, tokens)
    floors_of = {"forward": work_of_forward, f"{new} new tokens": generation_work(shape, tokens, new)}
    for name, run in zip(floors_of, (forward, generate), strict=True):

        def off(mode: str, run: Callable[[], None] = run) -> None:
            with plnd.deactivated(model, neurons, mode=mode):  # type: ignore[arg-type]
                run()

        work = {
            "plain": run,
            "weights": lambda off=off: off("weights"),
            "activations": lambda off=off: off("activations"),
        }
        times, memory = bench.times(work)
        for mode, seconds in times.items():
            ratios = [mine / one for mine, one in zip(seconds, times["plain"], strict=True)]
            unit, values = ("seconds", seconds) if mode == "plain" else ("ratio", ratios)
            row = Row("masked", f"{name}, {mode}", unit, statistics.median(values), min(values), max(values))
            row.memory = memory[mode]
            if mode == "plain":
                row.floor, row.bound = floors_of[name].floor()
            else:
                row.floor = 1.0
            bench.add(row)


def tune(bench: Bench) -> None:
    """A training step: forward and backward pass cost three forward passes, two where weights get no gradient."""
    shape = Shape(64, 96, 4, 2, 2, 512) if bench.tiny else Shape(2048, 8192, 32, 8, 16)
    tokens = 24 if bench.tiny else 512
    ids = torch.randint(3, shape.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(bench.device)
    for method in (LORA, SELECT.format(SHARES[1 if bench.tiny else 0]), MASKED):
        weights = torch.float32 if method == MASKED else bench.dtype
        model = shape.model(weights, bench.device).train()
        step, trained = trainer(method, model, ids, 1, bench.dtype)
        memory = bench.peak(step)
        seconds = [bench.seconds(step) for _ in range(bench.rounds)]
        whole = tuning_work(shape, tokens, trained if method == MASKED else None)
        floor, bound = whole.floor()
        row = Row(
            "tune", f"{method}, {tokens} tokens", "seconds", statistics.median(seconds), min(seconds), max(seconds)
        )
        row.floor, row.bound, row.memory = floor, bound, memory
        row.share = bench.share(whole, row.measured or 1.0)
        bench.add(row)
        del model, step


def blockwise(bench: Bench) -> None:
    """A model whose weights are twice the memory that it may have, read block by block, and the same whole."""
    shape = Shape(64, 96, 4, 2, 4, 512) if bench.tiny else Shape(4096, 14336, 32, 8, 8)
    tokens, number = (24, 4) if bench.tiny else (512, 64)
    ids = torch.randint(3, shape.vocabulary, (number, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    config = plnd.DetectConfig(qk="off", max_length=tokens, min_length=1, batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        model = shape.model(bench.dtype, bench.device)
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(folder)
        whole = bench.seconds(partial(plnd.detect, model, ids, config))
        del model
        limit = size * (2 if bench.tiny else 1) // 2
        if bench.cuda:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, limit / torch.cuda.get_device_properties(0).total_memory)
            )
        try:
            parts = plnd.blockwise_model(folder, device=bench.device)
            memory = bench.peak(lambda: plnd.detect(parts, ids[:4], config))
            seconds = bench.seconds(lambda: plnd.detect(parts, ids, config))
        finally:
            if bench.cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)
    work = forward_work(shape, number, tokens, 1) + measure_work(shape, number, tokens, "off")
    name = f"{size / 2**30:.3g} GiB of weights, {limit / 2**30:.3g} GiB of memory"
    row = Row("blockwise", name, "seconds", seconds, memory=memory, documents_per_second=number / seconds)
    row.floor, row.bound = work.floor()
    bench.add(row)
    bench.add(Row("blockwise", "over the same model whole", "ratio", seconds / whole))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "correct": correct,
    "detect": detect,
    "masked": masked,
    "tune": tune,
    "blockwise": blockwise,
    "dense": dense,
}


def floors(bench: Bench) -> Iterator[str]:
    """What an H100 cannot do without for each line that has a floor, without measuring: two tables in Markdown."""
    shape = Shape(4096, 14336, 32, 8, bench.blocks)
    yield "| what is scored | tokens | milliseconds a document and block | over a forward pass | bound by |"
    yield "|---|---|---|---|---|"
    for tokens, number, batch in ((512, 32, 16), (2048, 8, 4)):
        plain = forward_work(shape, number, tokens, number // batch)
        for name, qk in {"forward pass": None, **QK, TF32: TF32}.items():
            work = plain if qk is None else plain + measure_work(shape, number, tokens, qk)
            seconds, bound = work.floor()
            ratio = seconds / plain.floor()[0]
            yield f"| {name} | {tokens:,} | {seconds * 1000 / number / shape.blocks:.3f} | {ratio:.2f} | {bound} |"
    yield ""
    yield "| line | milliseconds | bound by |"
    yield "|---|---|---|"
    for name, work in further_floors(shape).items():
        seconds, bound = work.floor()
        yield f"| {name} | {seconds * 1000:,.2f} | {bound} |"


def further_floors(shape: Shape) -> dict[str, Work]:
    """Lines of the other sections to what they cannot do without, as they are run on a card."""
    small, eight = Shape(2048, 8192, 32, 8, 16), Shape(4096, 14336, 32, 8, 8)
    trained = small.blocks * small.weights + 2 * small.hidden * small.vocabulary
    found = {
        f"masked: forward, {shape.blocks} blocks, 512 tokens": forward_work(shape, 1, 512, 1) + head_work(shape, 512),
        f"masked: 64 new tokens after 512, {shape.blocks} blocks": generation_work(shape, 512, 64),
        "tune: LoRA or neuron-select, 1B shape, 512 tokens": tuning_work(small, 512, None),
        "tune: masked full training, 1B shape, 512 tokens": tuning_work(small, 512, trained),
        "blockwise: 64 documents of 512 tokens, 8 blocks": forward_work(eight, 64, 512, 1)
        + measure_work(eight, 64, 512, "off"),
    }
    dense = {f"dense: {name}, {shape.blocks} blocks, 512 tokens": work for name, work in dense_work(shape, 512).items()}
    return found | dense


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--blocks", type=int, default=4, help="of the 8B shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins after three quarters of them")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--floors", action="store_true", help="only print the predicted floors")
    args = parser.parse_args()
    start = time.monotonic()
    bench = Bench(args.device, args.tiny, args.blocks, args.rounds, start + args.minutes * 60 * 0.75)
    if args.floors:
        print("\n".join(floors(bench)))
        return
    if bench.cuda and not torch.cuda.is_available():
        sys.exit("no CUDA device: expected one; --tiny --device cpu runs the program without")
    transformers.logging.set_verbosity_error()
    card = torch.cuda.get_device_name() if bench.cuda else "cpu"
    print(f"{card}, torch {torch.__version__}, queries and keys on {engine(bench.dtype, torch.device(args.device))}")
    print(f"{'section':<10}{'':<56} {'measured':>10} {'floor':>10}{'bound':>10}  unit")
    left_out = []
    for name in args.sections:
        if time.monotonic() > bench.until:
            left_out.append(name)
            continue
        try:
            SECTIONS[name](bench)
        except Exception as error:  # the other sections say something still
            bench.add(Row(name, "section", "seconds", said=f"{type(error).__name__}: {error}".splitlines()[0]))
        if bench.cuda:
            torch.cuda.empty_cache()
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} seconds" + (f"; no time left for {', '.join(left_out)}" if left_out else ""))
    if args.json is not None:
        said = {"schema": 1, "device": card, "torch": torch.__version__, "triton": version_of_triton()}
        said |= {"settings": {k: str(v) for k, v in vars(args).items()}, "seconds": seconds, "left_out": left_out}
        args.json.write_text(json.dumps(said | {"rows": [asdict(row) for row in bench.rows]}, indent=1) + "\n")
    if any(row.measured is None for row in bench.rows):
        sys.exit(1)


def version_of_triton() -> str | None:
    """None where it is not installed."""
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


if __name__ == "__main__":
    main()
