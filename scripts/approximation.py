"""How the paper's measure at attention (eq. 8 and 10; V and O at the sub-layer) ranks neurons against eq. 1 itself.

    python scripts/approximation.py                   # the demo's model, one document a language: a minute on two cores

Eq. 1 measures the block's output, so a change of attention also passes through the block's own feed-forward. For a
random sample of neurons of every block and of `q_proj`, `k_proj`, `v_proj`, `o_proj` this prints Spearman's rank
correlation between the parallel importance and eq. 1 by brute force (`plnd.detection.oracle.sequential`), mean over
blocks.
"""

from __future__ import annotations

import argparse

import numpy as np

from plnd import DetectConfig, detect, load_model, read_documents
from plnd.demo_data import demo_corpus, demo_model
from plnd.detection.oracle import sequential
from plnd.models.layout import Layout
from plnd.models.loading import load_tokenizer
from plnd.neurons.random_draw import draw

SEED = 0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo_model()))
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--sample", type=int, default=48)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, dtype="float32", device="cpu"), load_tokenizer(args.model)
    blocks = range(len(Layout(model).blocks))
    for language in args.languages.split(","):
        text = next(read_documents(demo_corpus("evaluate") / "corpora" / f"{language}.jsonl"))
        ids = tokenizer(text, truncation=True, max_length=args.tokens, return_tensors="pt").input_ids[0]
        found = {
            qk: detect(model, [ids.tolist()], DetectConfig(qk=qk, min_length=1)).minimum
            for qk in ("exact", "first_order")
        }
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            correlations: dict[str, list[float]] = {qk: [] for qk in found}
            for block in blocks:
                address = f"{block}.{projection}"
                width = len(found["exact"][address])
                sample = draw(width, min(args.sample, width), SEED, address)
                truth = sequential(model, ids, address, neurons=sample.tolist(), at="block").numpy()
                for qk, scores in found.items():
                    correlations[qk].append(spearman(scores[address][sample], truth))
            line = ", ".join(f"{qk} {np.mean(values):.2f}" for qk, values in correlations.items())
            print(f"{language} {projection}: {line}", flush=True)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two vectors without ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


if __name__ == "__main__":
    main()
