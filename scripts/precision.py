"""How the dtype of the model changes what is selected: overlap of float32's and bfloat16's sets with float64's.

    python scripts/precision.py                          # the demo's model, two languages
    python scripts/precision.py --model DIR --corpus zh.jsonl --documents 20

Prints |A ∩ B| / |B| for each projection, A selected in float32 or bfloat16, B in float64, by the same rule.
"""

from __future__ import annotations

import argparse
from itertools import islice

from plnd import DetectConfig, detect, load_model, read_documents
from plnd.demo_data import demo_corpus, demo_model
from plnd.models.loading import load_tokenizer


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo_model()))
    parser.add_argument("--corpus", default=str(demo_corpus("detect") / "corpora" / "zh.jsonl"))
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--qk", default="exact", choices=["exact", "first_order", "off"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    documents = list(islice(read_documents(args.corpus), args.documents))
    tokenizer = load_tokenizer(args.model)
    config = DetectConfig(qk=args.qk, max_length=args.tokens, min_length=8)
    sets = {}
    for dtype in ("float64", "float32", "bfloat16"):
        model = load_model(args.model, dtype=dtype, device=args.device)
        scores = detect(model, documents, config, tokenizer=tokenizer, progress=True)
        sets[dtype] = scores.select(fraction=args.fraction)
    reference = sets["float64"]
    projections = [name for name, count in reference.counts().items() if count]
    print(f"{scores.metadata.corpus.documents} documents, {len(reference)} of {reference.total} neurons in float64")
    print(f"| dtype | neurons | all | {' | '.join(projections)} |")
    print("|---" * (3 + len(projections)) + "|")
    for dtype in ("float32", "bfloat16"):
        found = sets[dtype]
        parts = [(found, reference)] + [
            tuple(x.restrict(projections=[p]) for x in (found, reference)) for p in projections
        ]
        shares = (f"{len(a & b) / len(b):.3f}" for a, b in parts)
        print(f"| {dtype} | {len(found)} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
