"""The neuron sets of a folder beside each other: in which blocks they are, and how much they have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lm_eval_plnd.experiments.report.page import Cell, Section, Table, in_full, shown
from plnd.addresses import block_names
from plnd.errors import ModelMismatchError
from plnd.neurons.neuron_set import NeuronSet
from plnd.plot_style import in_words


def sets_section(sets: Mapping[Path, NeuronSet]) -> Section:
    """Of the sets of one folder and one kind (`zh.specific`, `en.specific`) a table by blocks, and one of overlaps."""
    section = Section("neurons", "Where the neurons are, and what they have in common")
    kinds: dict[tuple[Path, str], dict[str, NeuronSet]] = {}
    for path, neurons in sets.items():
        language, _, kind = path.name.removesuffix(".safetensors").partition(".")
        if len(neurons):
            kinds.setdefault((path.parent, kind), {})[language] = neurons
    for (_, kind), named in kinds.items():
        label = in_words(kind) if kind != "all" else "all of the language"
        try:
            shares = [_overlaps(label, named)] if len(named) > 1 else []
        except ModelMismatchError as error:
            section.warnings = [*section.warnings, f"{label or 'sets'}: not of one model ({error})"]
        else:
            section.tables += [_by_block(label, named), *shares]
    return section


def _by_block(kind: str, sets: Mapping[str, NeuronSet]) -> Table:
    import numpy as np

    from plnd.neurons.overlap import layers

    counts = {name: np.sum(list(layers(neurons).values()), axis=0) for name, neurons in sets.items()}
    blocks = block_names(next(iter(sets.values())).widths)
    most = max(int(of.max()) for of in counts.values())
    rows = [
        [Cell(in_words(name), hint=name), _count(sum(of.tolist())), *(_count(n, most) for n in of.tolist())]
        for name, of in counts.items()
    ]
    found = [
        f"{in_words(name)} has most in block {blocks[int(of.argmax())]} ({of.max():,})" for name, of in counts.items()
    ]
    caption = f"{_title(kind)}: how many in each block"
    return Table(caption, ["neurons of", "all", *blocks], rows, findings=["; ".join(found) + "."])


def _overlaps(kind: str, sets: Mapping[str, NeuronSet]) -> Table:
    from plnd.neurons.overlap import overlap

    matrix = overlap(sets).tolist()
    names = list(sets)
    rows = [
        [Cell(in_words(name), hint=name), *(_share(value, place == row) for place, value in enumerate(matrix[row]))]
        for row, name in enumerate(names)
    ]
    pairs = [(matrix[x][y], names[x], names[y]) for x in range(len(names)) for y in range(len(names)) if x != y]
    high, low = max(pairs), min(pairs)
    said = "No two of these languages have a neuron in common."
    if high[0] > 0:
        said = f"Most in common: {_said(high)}; least: {_said(low)}."
    caption = f"{_title(kind)}: share of the column's neurons that the row has, too"
    return Table(caption, ["neurons of", *map(in_words, names)], rows, findings=[said])


def _said(pair: tuple[float, str, str]) -> str:
    share, own, other = pair
    return f"{in_words(own)} has {share:.1%} of the neurons of {in_words(other)}"


def _title(kind: str) -> str:
    return f"Neurons, {kind}" if kind else "Neurons"


def _count(count: int, most: int = 0) -> Cell:
    return Cell(f"{count:,}", kind="number", shade=count / most if most else 0.0)


def _share(share: float, own: bool) -> Cell:
    return Cell(shown(share), in_full(share), "number", 0.0 if own or math.isnan(share) else share)
