"""Machine code of the Triton kernels for cards that are not here, and what of a card each program takes.

    python scripts/compile_kernels.py            # needs triton, no GPU; a minute or two

For each kernel, variant and architecture: registers a thread, bytes of spilled registers (0, or a program waits for
memory where it should compute), bytes of shared memory, and seconds to compile. Variants: `rotary` (Llama), `all`
(rotary, head norms, soft-cap, sinks).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plnd.importance import triton_kernels as kernels
from plnd.importance.triton_softmax import KEYS_AT_ONCE, SPREAD_CELLS, TILE, WIDE

FLOATS = ("cap", "scale")
NUMBERS = ("rows", "seen", "heads", "queries", "keys", "channels", "query", "key", "total")
WIDTHS = ("first_width", "second_width", "squares_width")
HEAD_DIM = 128


def variants() -> dict[tuple[str, str], tuple[dict, int]]:
    """Kernel and variant to its constants and warps."""
    heads = dict(HEADS_U=4, HEADS_R=4, HEADS_WANTED=1)
    tile = dict(ROWS=TILE.rows, KEYS=TILE.keys, CHANNELS=TILE.channels, WIDE=WIDE)
    spread = dict(ROWS=SPREAD_CELLS // HEAD_DIM, CHANNELS=HEAD_DIM)
    return {
        ("changes", "rotary"): (dict(SECOND=True, LOGIT=False, CAPPED=False, SINKS=False, **heads, **tile), TILE.warps),
        ("changes", "all"): (dict(SECOND=True, LOGIT=True, CAPPED=True, SINKS=True, **heads, **tile), TILE.warps),
        ("weights", "rotary"): (dict(LOGIT=False, CAPPED=False, KEYS=KEYS_AT_ONCE), 4),
        ("weights", "all"): (dict(LOGIT=True, CAPPED=True, KEYS=KEYS_AT_ONCE), 4),
        ("spreads", "rotary"): (dict(TURNS=True, DERIVED=True, RESCALED=False, KEYS_RESCALED=False, **spread), 8),
        ("spreads", "all"): (dict(TURNS=True, DERIVED=False, RESCALED=True, KEYS_RESCALED=True, **spread), 8),
    }


def compiled(name: str, constants: dict, warps: int, architecture: int) -> tuple[int, int, int, float]:
    """Registers, bytes spilled, bytes of shared memory, and seconds."""
    function = getattr(kernels, name)

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in FLOATS:
            return "fp32"
        if argument in (*NUMBERS, *WIDTHS):
            return "i32"
        return "*i32" if name == "changes" and argument in ("channel", "count") else "*fp32"

    signature = {argument: kind(argument) for argument in function.arg_names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, x in enumerate(signature.values()) if x.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    start = time.perf_counter()
    program = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    seconds = time.perf_counter() - start
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", said)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return registers, stack, program.metadata.shared, seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=[80, 90], help="80: A100, 90: H100")
    parser.add_argument("--quick", action="store_true", help="each variant for one architecture")
    args = parser.parse_args()
    if kernels.INTERPRETED:
        sys.exit("TRITON_INTERPRET is set: unset it, so that there is something to compile")
    print(f"{'kernel':<10}{'for':>6}{'registers':>11}{'spilled':>9}{'shared':>8}{'seconds':>9}  variant")
    for number, ((name, variant), (constants, warps)) in enumerate(variants().items()):
        chosen = [args.architectures[number % len(args.architectures)]] if args.quick else args.architectures
        for architecture in chosen:
            registers, spilled, shared, seconds = compiled(name, constants, warps, architecture)
            found = f"{registers:>11}{spilled:>9}{shared:>8}{seconds:>9.1f}"
            print(f"{name:<10}{f'sm_{architecture}':>6}{found}  {variant}", flush=True)


if __name__ == "__main__":
    main()
