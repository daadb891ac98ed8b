"""Where the neurons of languages are, and what they have in common: Figures 3, 5 and 6."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.paper.shown import picture, stages_of
from lm_eval_plnd.experiments.results import NEURONS, SETTINGS
from lm_eval_plnd.experiments.settings import load_settings
from plnd.demo_data import expand
from plnd.detection.active import mean_active
from plnd.detection.config import DetectConfig
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.io.files import write_csv
from plnd.models.loading import load_model, load_tokenizer
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.overlap import STRUCTURES, layers, overlap
from plnd.neurons.scores import Scores
from plnd.plots import plot_layers, plot_overlap


def neurons_of(inputs: Sequence[str]) -> dict[str, NeuronSet]:
    """Neuron sets by name: those of files, or in a folder of `plnd experiment` each language's, all of them."""
    files: list[Path] = []
    for name in map(Path, inputs):
        if not name.is_dir():
            files.append(name)
            continue
        settings = load_settings(name / SETTINGS)
        kind = settings.kinds[0]  # all of a language, but where there are only those that contrast finds
        found = [name / NEURONS / f"{language}.{kind}.safetensors" for language in settings.languages]
        files += [file for file in found if file.exists()]
    if not files:
        raise PLNDError(f"{' '.join(inputs)}: no neurons in it; `plnd experiment` or `plnd select` writes them")
    return {file.name.partition(".")[0]: NeuronSet.load(file) for file in files}


def figure3(args: argparse.Namespace) -> None:
    """Language neurons of each block, attention and feed-forward: Figure 3.

    With --queries those that are active in a query, averaged over queries, as the paper draws them: neurons that do in
    this query what the set's rule asks of every document. Beside them, and without --queries alone, how many neurons
    the set has. From a folder of `plnd experiment` N1 and N2 are marked.
    """
    sets = neurons_of(args.inputs)
    kinds = {"neurons": {name: layers(neurons) for name, neurons in sets.items()}}
    if args.queries:
        kinds = {"active": active_of(args, sets), **kinds}
    rows = [
        (name, projection, block, *(of[name][projection][block].item() for of in kinds.values()))
        for name, by_projection in kinds["neurons"].items()
        for projection, values in by_projection.items()
        for block in range(len(values))
    ]
    for kind, counts in kinds.items():
        print("active in a query, mean" if kind == "active" else "neurons of the set")
        for name, by_projection in counts.items():
            print(name)
            for projection, values in by_projection.items():
                if values.any():
                    print(
                        f"  {projection:<10}"
                        + "".join(f"{v:>7,.1f}" if kind == "active" else f"{v:>7,}" for v in values)
                    )
    write_csv(f"{args.output}.csv", ("language", "projection", "block", *kinds), rows)
    stages, shown = stages_of(args), {"active": "neurons active in a query", "neurons": "neurons of the set"}
    for kind, counts in kinds.items():
        path = picture(args, "" if kind == next(iter(kinds)) else "set")
        plot_layers(counts, path, shown[kind], stages=stages, columns=args.columns)


def active_of(args: argparse.Namespace, sets: Mapping[str, NeuronSet]) -> dict[str, dict[str, np.ndarray]]:
    """Language to projection to neurons active in a query, [blocks], of an experiment's folder."""
    folder = Path(args.inputs[0])
    if len(args.inputs) > 1 or not (folder / SETTINGS).is_file():
        raise PLNDError("--queries needs one folder of `plnd experiment`, which has the scores beside the neurons")
    settings = load_settings(folder / SETTINGS)
    if "{language}" not in args.queries:
        raise PLNDError(f"--queries {args.queries}: expected {{language}} in it, for a corpus of each language")
    name = expand(settings.model["pretrained"])
    source: dict[str, Any] = {"revision": settings.model.get("revision")}
    source["trust_remote_code"] = settings.model.get("trust_remote_code", False)
    dtype, device = settings.model.get("dtype", "auto"), settings.model.get("device")
    model, tokenizer = load_model(name, dtype=dtype, device=device, **source), load_tokenizer(name, **source)
    found = {}
    for language, neurons in sets.items():
        scores = Scores.load(folder / NEURONS / f"{language}.scores.safetensors")
        options = {**settings.detection_of(language), "max_documents": args.max_documents}
        config = DetectConfig(language=language, **options)
        queries = read_documents(args.queries.replace("{language}", language))
        found[language] = mean_active(model, queries, neurons, scores, config, tokenizer=tokenizer, progress=True)
    return found


def figure5(args: argparse.Namespace) -> None:
    """overlap(x, y) = |x ∩ y| / |y| for attention and feed-forward (eq. 11): Figures 5 and 6."""
    sets = neurons_of(args.inputs)
    matrices: Mapping[str, np.ndarray] = {structure: overlap(sets, structure) for structure in STRUCTURES}
    rows = [
        (structure, x, y, float(value))
        for structure, matrix in matrices.items()
        for x, row in zip(sets, matrix, strict=True)
        for y, value in zip(sets, row, strict=True)
    ]
    for structure, matrix in matrices.items():
        print(f"{structure.replace('_', '-'):<14}" + "".join(f"{y:>8}" for y in sets))
        for x, row in zip(sets, matrix, strict=True):
            print(f"{x:<14}" + "".join(f"{'–' if np.isnan(value) else format(value, '.3f'):>8}" for value in row))
    write_csv(f"{args.output}.csv", ("structure", "x", "y", "overlap"), rows)
    shown = {name: matrices[name] for name in STRUCTURES[1:]}
    plot_overlap(shown, list(sets), picture(args), columns=args.columns)
