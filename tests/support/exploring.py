"""Scores, a set and an inspection of the hand-made model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from handmade import MODEL, make_neurons, make_scores
from plnd.explorer.contents import Contents, together
from plnd.inspection.profiles import (
    CorpusRead,
    Firing,
    Inspection,
    LanguageProfile,
    NeuronProfile,
    Writing,
    WrittenToken,
)
from plnd.neurons.scores import Scores


def scores(language: str, seed: int, **changes) -> Scores:
    """Log-normal importances of all neurons in three documents; neuron 3 is each time the language's own."""
    draw = np.random.default_rng(seed)
    importance = {name: draw.lognormal(0, 1, (3, width)) for name, width in MODEL["widths"].items()}
    for values in importance.values():
        values[:, 3] *= 1 if seed % 2 else 50
    corpus = {"source": f"{language}.jsonl", "sha256": f"{seed}" * 64, "documents": 3, "tokens": 120, "max_length": 64,
              "skipped": {}}  # fmt: skip
    return make_scores(importance, **{"language": language, "corpus": corpus, **changes})


def inspection(text: str = "我们", **changes) -> Inspection:
    """Two neurons, one of them a row of a feed-forward, with a text wherever one can be."""
    firing = Firing(-3.5, text, f"{text} ", " b", 0, 4, 5)
    written = (WrittenToken(7, text, 2.5),)
    languages = (LanguageProfile("zh", 12.5, -0.25, 0.5, 0.125, (firing,)), LanguageProfile("en", None, 0.0, 0, 0, ()))
    first = NeuronProfile("0.up_proj", 3, 9.0, ("0.down_proj.3",), "input column of down_proj", 1.5, languages,
                          Writing("column of down_proj", written, written))  # fmt: skip
    second = replace(first, address="1.q_proj", index=5, importance=None, also=(), writing=Writing("nothing"))
    read = {"zh": CorpusRead(10, 1234), "en": CorpusRead(3, 99)}
    given = {"model": "made/by-hand", "language": "zh", "sha256": "ab" * 32, "chosen_from": 40}
    return Inspection(**{**given, "measure": "importance", "corpora": read, "neurons": (first, second), **changes})


def both() -> Contents:
    """Two languages, two sets and an inspection of one model."""
    sets = {
        "zh": make_neurons({"0.down_proj": [3, 5], "1.q_proj": [0]}),
        "en": make_neurons({"0.down_proj": [3], "1.v_proj": [2]}),
    }
    return together({"zh": scores("zh", 2), "en": scores("en", 1)}, sets, {"looked": inspection()})
