"""How large detection corpora have to be: Table 7, and the stability of sets as documents are added."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.paper.shown import picture
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.detection.config import DetectConfig
from plnd.detection.stability import measure_stability
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.logit_lens.vocabulary import coverage, tokens, words
from plnd.models.loading import load_model, load_tokenizer
from plnd.plots import plot_lines


def table7(args: argparse.Namespace) -> None:
    """Size of detection corpora, and the share of each language's vocabulary that they have: Table 7.

    Inputs are the corpora. A vocabulary is what occurs twice or more in a reference corpus (plnd/vocabulary.py),
    counted in words and, with --model, in tokens of its tokenizer; “running” is the share of the reference's text.
    """
    if not len(args.inputs) == len(args.reference) == len(args.languages):
        sizes = f"{len(args.inputs)} corpora, {len(args.reference)} references, {len(args.languages)} languages"
        raise PLNDError(f"{sizes}: expected one of each")
    units: dict[str, Callable[[str], Any]] = {"words": words}
    if args.model:
        units["tokens"] = partial(tokens, load_tokenizer(args.model))
    rows: list[tuple[Any, ...]] = []
    texts: list[list[str]] = []
    header = ("language", "unit", "documents", "corpus", "vocabulary", "covered", "share", "running")
    print("{:<10}{:<8}{:>10}{:>10}{:>12}{:>10}{:>8}{:>9}".format(*header))
    for language, corpus, reference in zip(args.languages, args.inputs, args.reference, strict=True):
        for name, unit in units.items():
            documents = islice(read_documents(corpus), args.max_documents)
            found = coverage(documents, read_documents(reference), unit)
            counts = (found.documents, found.corpus, found.vocabulary, found.covered)
            rows.append((language, name, *counts, found.share, found.running))
            numbers = "".join(f"{value:>{width},}" for value, width in zip(counts, (10, 10, 12, 10), strict=True))
            print(f"{language:<10}{name:<8}{numbers}{found.share:>8.1%}{found.running:>9.1%}")
            texts.append([language, name, *(f"{x:,}" for x in counts), f"{found.share:.1%}", f"{found.running:.1%}"])
    write_tables(args.output, header, rows, [Shown("coverage of each language's vocabulary", header, texts, 2)])


RULES = {"epsilon": float, "epsilon_for": float, "top_k": int, "fraction": float}
"""Of `plnd select`, for one language."""


def stability(args: argparse.Namespace) -> None:
    """The selected neurons as documents are added, against the final ones, and from how many documents they stay.

    Inputs are corpora. Beyond the papers, which have one number of documents: Jaccard index of the sets after each
    --every documents, from one detection over all of them (plnd/stability.py).
    """
    if len(args.inputs) != len(args.languages):
        raise PLNDError(f"{len(args.inputs)} corpora and {len(args.languages)} languages: expected one for each")
    rule = {name: getattr(args, name) for name in RULES if getattr(args, name) is not None}
    projections = args.projections.split(",") if args.projections else None
    model, tokenizer = load_model(args.model, dtype=args.dtype, device=args.device), load_tokenizer(args.model)
    curves, rows, texts = {}, [], []
    for language, corpus in zip(args.languages, args.inputs, strict=True):
        config = DetectConfig(language, args.qk, args.max_documents, args.max_length, args.min_length, args.batch_size)
        documents = read_documents(corpus)
        found = measure_stability(
            model, documents, config, every=args.every, tokenizer=tokenizer, **rule, projections=projections
        )
        curves[language] = found.jaccard
        rows += [(language, *step) for step in zip(found.documents, found.neurons, found.jaccard, strict=True)]
        enough = found.enough(args.jaccard)
        print(f"{language}: {found.documents[-1]:,} documents, {found.neurons[-1]:,} neurons at the end")
        print(f"{'documents':>12}{'neurons':>10}{'Jaccard':>10}")
        for count, size, jaccard in zip(found.documents, found.neurons, found.jaccard, strict=True):
            print(f"{count:>12,}{size:>10,}{jaccard:>10.3f}")
            texts.append([language, f"{count:,}", f"{size:,}", f"{jaccard:.3f}"])
        print(
            f"  no step before the last stays at {args.jaccard}: the corpus is too small to say how many are enough"
            if enough is None
            else f"  from {enough:,} of {found.documents[-1]:,} documents on the set stays at {args.jaccard} or above"
        )
    header = ("language", "documents", "neurons", "jaccard")
    write_tables(args.output, header, rows, [Shown("neurons as documents are added", header, texts)])
    steps = [args.every * n for n in range(1, max(map(len, curves.values())) + 1)]
    padded = {x: np.pad(values, (0, len(steps) - len(values)), constant_values=np.nan) for x, values in curves.items()}
    sparse = [str(count) if n % -(-len(steps) // 8) == 0 else "" for n, count in enumerate(steps)]
    label = "Jaccard index to the final set"
    plot_lines({"": padded}, picture(args), label, places=sparse, along="documents", columns=args.columns)
