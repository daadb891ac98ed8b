"""How far the closed forms are from brute force: largest relative error of every family and projection, in float64.

    python scripts/exactness.py            # a minute on two cores; needs the repository, for the tests' tiny models

Feed-forward, V and O are held to the change of the sub-layer's output with the neuron off (eq. 4 and 5 of
arXiv:2402.18815), `exact` Q and K to the change of the model's own attention probabilities (eq. 10), each relative to
the largest importance of the projection, the worst block counting. Models are tiny, with random weights and biases.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS, split_address
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.observer import SITES, Observer
from plnd.detection.oracle import sequential
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from tiny import MASKED, SCALED, TINY, VARIANTS, tiny_model  # noqa: E402


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


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows and further models of the tests; all by default")
    parser.add_argument("--tokens", type=int, default=11)
    args = parser.parse_args()
    ids = torch.randint(3, 97, (args.tokens,), generator=torch.Generator().manual_seed(1))
    print(f"| model | {' | '.join(PROJECTIONS)} |")
    print("|---" * (1 + len(PROJECTIONS)) + "|")
    for name in args.names or [*TINY, *VARIANTS, *MASKED, *SCALED]:
        torch.set_default_dtype(torch.float64 if name == "xglm" else torch.float32)
        worst = errors(name, ids)
        cells = (f"{worst[projection]:.0e}" if projection in worst else "–" for projection in PROJECTIONS)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
