"""How far the closed forms are from brute force: largest relative error of every family and projection, in float64.

    python scripts/exactness.py            # a minute on two cores; needs the repository, for the tests' tiny models
    TRITON_INTERPRET=1 python scripts/exactness.py --float32       # needs triton: what runs on a GPU, in Python

Feed-forward, V and O are held to the change of the sub-layer's output with the neuron off (eq. 4 and 5 of
arXiv:2402.18815), `exact` Q and K to the change of the model's own attention probabilities (eq. 10), each relative to
the largest importance of the projection, the worst block counting. Models are tiny, with random weights and biases.

`--float32` holds what measures Q and K in float32, on the same queries and keys, to the same: `exact` to brute force in
float64, `first_order` to the Jacobian in float64; by what runs here (Triton's kernels under TRITON_INTERPRET=1, else
Numba's) and by PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS, split_address
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.measures.traces import AttentionTraces
from plnd.detection.observer import SITES, Handle, ObservedBlock, Observer, forward_pass
from plnd.detection.oracle import sequential
from plnd.importance.attention import Attention, attention_importance, measurement
from plnd.importance.softmax import Engine, engine
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from attention_cases import single  # noqa: E402
from tiny import MASKED, SCALED, TINY, VARIANTS, tiny_model  # noqa: E402

ENGINES: list[Engine] = list(dict.fromkeys((engine(torch.float32, torch.device("cpu")), "torch")))
"""What measures queries and keys in float32 in this process, and what it is compared with."""


def errors(name: str, ids: torch.Tensor) -> dict[str, float]:
    """Largest relative error by projection."""
    found: dict[str, torch.Tensor] = {}
    model = tiny_model(name, attention="eager")
    layout = Layout(model)

    def sink(block: str, site: str, importance: torch.Tensor) -> None:
        found.update({f"{block}.{projection}": importance[0] for projection in SITES[site]})

    with KeepFloat64():
        with torch.no_grad(), Observer(layout, PaperImportance("exact"), sink, [(0, len(ids))]).attached():
            layout.forward(ids[None], torch.ones_like(ids[None]))
        worst: dict[str, float] = {}
        for address in layout.targets:
            projection = split_address(address)[1]
            at = "attention" if projection in ATTENTION_PROJECTIONS[:2] else "sublayer"
            expected = sequential(model, ids, address, at=at)  # type: ignore[arg-type]
            error = float((found[address] - expected).abs().max() / expected.abs().max())
            worst[projection] = max(worst.get(projection, 0.0), error)
    return worst


class KeptTraces:
    """What enters each block's attention, kept: what is measured under `KeepFloat64` is measured in float64.

    Attributes:
        makers: block to what puts its traces together.
        traces: (block, trace), in order.
    """

    run = staticmethod(forward_pass)

    def __init__(self) -> None:
        self.makers: dict[str, AttentionTraces] = {}
        self.traces: list[tuple[str, Attention]] = []

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `plnd.detection.observer.Measure`."""
        for block in (x for x in blocks if x.has("q_proj")):
            self.makers[block.name] = AttentionTraces(block, partial(self.keep, block.name))
            yield from self.makers[block.name].hooks()

    def keep(self, block: str, trace: Attention) -> tuple[Tensor, Tensor]:
        """Keeps a trace, and gives what the observer expects."""
        self.traces.append((block, trace))
        return attention_importance(trace, "first_order")


@torch.no_grad()
def float32_errors(name: str, ids: Tensor) -> tuple[dict[tuple[str, str], float], set[str]]:
    """Of queries and keys: (algorithm, engine) to the largest relative error, and the classes that measured here."""
    model, kept = tiny_model(name, attention="eager"), KeptTraces()
    layout, worst, kinds = Layout(model), dict[tuple[str, str], float](), set[str]()
    with KeepFloat64(), Observer(layout, kept, lambda *_: None, [(0, len(ids))]).attached():
        layout.forward(ids[None], torch.ones_like(ids[None]))
    for block, trace in kept.traces:
        latent = kept.makers[block].latent
        for algorithm in ("exact", "first_order"):
            truth = attention_importance(trace, algorithm)  # type: ignore[arg-type]
            measured = kept.makers[block].measured
            rows = list(truth if latent is None else latent.rows(*truth))[: len(measured)]
            if algorithm == "exact":
                with KeepFloat64():
                    rows = [sequential(model, ids, f"{block}.{x}", at="attention") for x in measured]
            for on in ENGINES:
                found = attention_importance(single(trace), algorithm, on=on)  # type: ignore[arg-type]
                assert all(x.dtype == torch.float32 for x in found)
                found = (found if latent is None else latent.rows(*found))[: len(measured)]
                error = max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, rows, strict=True))
                worst[algorithm, on] = max(worst.get((algorithm, on), 0.0), error)
            kinds.add(measurement(algorithm, trace, ENGINES[0]).__name__)  # type: ignore[arg-type]
    return worst, kinds


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows and further models of the tests; all by default")
    parser.add_argument("--tokens", type=int, default=11)
    parser.add_argument("--float32", action="store_true", help="errors of what measures Q and K in float32")
    args = parser.parse_args()
    ids = torch.randint(3, 97, (args.tokens,), generator=torch.Generator().manual_seed(1))
    columns: list[Any] = list(PROJECTIONS)
    if args.float32:
        columns = [(algorithm, on) for algorithm in ("exact", "first_order") for on in ENGINES]
    print(f"| model | {' | '.join(x if isinstance(x, str) else f'`{x[0]}`, {x[1]}' for x in columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name in args.names or [*TINY, *VARIANTS, *MASKED, *SCALED]:
        torch.set_default_dtype(torch.float64 if name == "xglm" else torch.float32)
        worst: dict[Any, float] = float32_errors(name, ids)[0] if args.float32 else errors(name, ids)  # type: ignore[assignment]
        cells = (f"{worst[column]:.0e}" if column in worst else "–" for column in columns)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
