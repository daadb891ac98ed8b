"""What a model larger than memory costs: its weights read once a window, its memory, its time beside a plain forward.

    python scripts/bench_blockwise.py                    # a small Llama shape: under a minute on two cores
    python scripts/bench_blockwise.py --shape 7b         # 13 GB of random bfloat16 weights are written, and removed

Every line of the table is a program of its own that may have no more than `--limit` GiB of memory of its own (the
system's limit on data: what it allocates, not what lies in files), with the most that it had resident: blockwise
detection, the plain forward of the same blocks on the same batches (each block's weights in memory, no reading timed,
no other thread), `plnd export` and `plnd verify`. With `--group FOLDER` they run in a control group, which limits the
pages of files too; make it and set its limit before.

Weights are random and written file by file, one block in memory at a time; documents are random tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import plnd
from plnd.detection import run as detection
from plnd.models.batches import padded
from plnd.models.blockwise import weights_of
from plnd.models.layout import Layout

SHAPES = {
    "small": dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
}
GIB = 2**30


def write_checkpoint(shape: str, folder: Path) -> int:
    """Random bfloat16 weights in the shape, a file for each block; returns their bytes."""
    folder.mkdir()
    config = LlamaConfig(vocab_size=32000, **SHAPES[shape], dtype=torch.bfloat16)  # type: ignore[arg-type]
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        parameters = dict(LlamaForCausalLM(config).named_parameters())
    files: dict[str, list[str]] = {}
    for name in parameters:
        block = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{block}.safetensors", []).append(name)
    generator, total = np.random.Generator(np.random.SFC64(0)), 0
    for file, names in files.items():
        tensors = {name: random_weight(parameters[name], generator) for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def random_weight(like: Tensor, generator: np.random.Generator) -> Tensor:
    """Ones for the gain of a norm, else random numbers, about as large as keeps the residual stream's size.

    Sign, seven bits of mantissa and one of the exponent are random: bytes, as fast as they come.
    """
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=torch.bfloat16)
    bits = np.frombuffer(generator.bytes(2 * like.numel()), dtype="<i2") & np.int16(-0x7F01)
    exponent = 2 * round((127 - 3.5 - math.log2(like.shape[1]) / 2) / 2)
    bits |= np.int16(exponent << 7)
    return torch.from_numpy(bits).view(torch.bfloat16).view(like.shape)


def random_documents(args: argparse.Namespace) -> list[list[int]]:
    """Token ids of one length."""
    return np.random.default_rng(0).integers(3, 32000, (args.documents, args.tokens)).tolist()


# the measured programs


def detect(args: argparse.Namespace) -> dict[str, Any]:
    """Blockwise detection; leaves a set of neurons for the programs below."""
    model = plnd.blockwise_model(args.folder, device="cpu")
    weights = weights_of(model)
    assert weights is not None
    before, start = weights.bytes_read, time.perf_counter()
    config = plnd.DetectConfig(language="xx", min_length=1, max_length=args.tokens, batch_size=args.batch_size)
    scores = plnd.detect(model, random_documents(args), config)
    seconds = time.perf_counter() - start
    scores.select(fraction=0.01).save(args.mask)
    windows = -(-args.documents // (args.batch_size * detection.WINDOW))
    block_bytes = sum(p.nbytes for block in weights.blocks for p in block.parameters())
    return {"seconds": seconds, "readings": (weights.bytes_read - before) / block_bytes, "windows": windows}


def forward(args: argparse.Namespace) -> dict[str, Any]:
    """The plain forward of the same blocks on the same batches, and beside it how long reading alone takes."""
    model = plnd.blockwise_model(args.folder, device="cpu")
    weights, layout = weights_of(model), Layout(model)
    assert weights is not None
    documents = random_documents(args)
    inputs = [
        first_input(layout, documents[n : n + args.batch_size]) for n in range(0, len(documents), args.batch_size)
    ]
    reading = computing = 0.0
    for block in weights.blocks:
        start = time.perf_counter()
        weights.load(block)
        reading += time.perf_counter() - start
        start = time.perf_counter()
        for number, (hidden, kwargs) in enumerate(inputs):
            output = block.forward(hidden, **kwargs)
            inputs[number] = (output[0] if isinstance(output, tuple) else output, kwargs)
        computing += time.perf_counter() - start
        weights.release(block)
    return {"seconds": computing, "reading": reading}


class _Stop(Exception):
    """There is no need to go on."""


def first_input(layout: Layout, documents: list[list[int]]) -> tuple[Tensor, dict[str, Any]]:
    """What the first block receives."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def stop(module: Any, args: tuple, kwargs: dict) -> None:
        seen.append((args[0], kwargs))
        raise _Stop

    handle = layout.blocks[0].module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        layout.forward(*padded(documents))
    except _Stop:
        return seen[0]
    finally:
        handle.remove()
    raise AssertionError("the first block is not reached")


PROGRAMS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"detect": detect, "forward": forward}


# running them


def measured(command: list[str], limit: float, group: str | None) -> tuple[float, int, str]:
    """Seconds, most bytes resident, and output of a program that may allocate `limit` GiB."""

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GIB), resource.RLIM_INFINITY))
        if group is not None:
            (Path(group) / "cgroup.procs").write_text(str(os.getpid()))

    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=confine) as process:  # noqa: PLW1509
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, output


def own_program(name: str, args: argparse.Namespace, folder: Path, limit: float) -> tuple[dict[str, Any], int]:
    """What one of `PROGRAMS` says, and the most it had resident."""
    sizes = ("documents", "tokens", "batch_size")
    flags = [f"--{size.replace('_', '-')}={getattr(args, size)}" for size in sizes]
    places = [f"--folder={folder / 'model'}", f"--mask={folder / 'xx.safetensors'}"]
    command = [sys.executable, __file__, "--program", name, *flags, *places]
    _, peak, output = measured(command, limit, args.group)
    return json.loads(output.splitlines()[-1]), peak


def print_line(what: str, seconds: float, peak: int, more: str = "") -> None:
    """A line of the table."""
    print(f"{what:<38}{seconds:>9.1f} s{peak / GIB:>8.2f} GiB  {more}".rstrip(), flush=True)


def bench(args: argparse.Namespace, folder: Path) -> None:
    """Makes the checkpoint, runs all, prints the table."""
    start = time.perf_counter()
    size = write_checkpoint(args.shape, folder / "model")
    documents = f"{args.documents} documents of {args.tokens} tokens, {args.batch_size} a batch"
    print(f"{args.shape}: {size / GIB:.2f} GiB of bfloat16 weights (written in {time.perf_counter() - start:.0f} s)")
    print(f"{documents}; {torch.get_num_threads()} threads\n{'':<38}{'time':>11}{'resident':>12}")
    found, peak = own_program("detect", args, folder, args.limit)
    readings = f"{found['windows']} windows, weights read {found['readings']:.3f} times"
    print_line(f"detect --blockwise, limit {args.limit:g} GiB", found["seconds"], peak, readings)
    plain, peak = own_program("forward", args, folder, args.limit)
    ratio = f"{found['seconds'] / plain['seconds']:.2f} times as long is detection"
    print_line("plain forward of the same blocks", plain["seconds"], peak, ratio)
    print(f"{'reading the blocks once, alone':<38}{plain['reading']:>9.1f} s")
    model, mask = str(folder / "model"), str(folder / "xx.safetensors")
    cli = [sys.executable, "-m", "plnd"]
    small = args.file_limit
    for what, command in (
        ("export", [*cli, "export", "--model", model, "--mask", mask, "--output", str(folder / "exported")]),
        ("verify", [*cli, "verify", mask, "--model", model]),
    ):
        seconds, peak, _ = measured(command, small, args.group)
        print_line(f"plnd {what}, limit {small:g} GiB", seconds, peak)


def main(argv: list[str] | None = None) -> None:
    """Prints the table, or runs one of the programs that it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of Llama (default: small)")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="of each document")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--limit", type=float, default=5, help="GiB that detection may allocate (default: 5)")
    parser.add_argument("--file-limit", type=float, default=2, help="GiB that export and verify may (default: 2)")
    parser.add_argument("--group", help="folder of a control group to run in")
    parser.add_argument(
        "--within", help="folder for the checkpoint, twice its size (default: the system's for temporary files)"
    )
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--mask", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.program:
        with torch.no_grad():
            print(json.dumps(PROGRAMS[args.program](args)))
        return
    folder = Path(tempfile.mkdtemp(prefix="plnd-blockwise-", dir=args.within))
    try:
        bench(args, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
