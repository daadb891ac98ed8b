"""How neuron sets lie to each other and in the model: plain arrays, no plotting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS, block_names, split_address
from plnd.errors import PLNDError
from plnd.model_description import check_model
from plnd.neurons.neuron_set import NeuronSet

STRUCTURES = ("all", "attention", "feed_forward")


def overlap(sets: Mapping[str, NeuronSet], structure: str = "all") -> np.ndarray:
    """`overlap(x, y) = |N_x ∩ N_y| / |N_y|` of every pair (eq. 11 of arXiv:2402.18815).

    Args:
        sets: neurons by name, all of one model.
        structure: `all`, `attention` (q, k, v, o) or `feed_forward` (gate, up, down).
    Returns:
        [sets, sets] float64, row x, column y, in the order given; nan where N_y is empty.
    Raises:
        ModelMismatchError: if the sets are not of one model.
        PLNDError: if the structure is unknown.
    """
    if structure not in STRUCTURES:
        raise PLNDError(f"unknown structure {structure!r}: expected one of {', '.join(STRUCTURES)}")
    members = [_members(neurons, structure) for neurons in sets.values()]
    for name, neurons in sets.items():
        check_model(neurons.model, next(iter(sets.values())).model, name)
    return np.array([[len(x & y) / len(y) if y else np.nan for y in members] for x in members])


def layers(neurons: NeuronSet) -> dict[str, np.ndarray]:
    """Number of neurons of each projection in each block (fig. 3 of arXiv:2402.18815).

    Returns:
        Projection to [blocks] int64, blocks in the order of `plnd.models.families.block_names`.
    """
    present = sorted({split_address(a)[1] for a in neurons.widths}, key=PROJECTIONS.index)
    position = {name: n for n, name in enumerate(block_names(neurons.widths))}
    counts = {name: np.zeros(len(position), dtype=np.int64) for name in present}
    for address, indices in neurons.items():
        block, projection = split_address(address)
        counts[projection][position[block]] = len(indices)
    return counts


def _members(neurons: NeuronSet, structure: str) -> set[tuple[str, int]]:
    def inside(address: str) -> bool:
        attention = split_address(address)[1] in ATTENTION_PROJECTIONS
        return structure == "all" or attention == (structure == "attention")

    return {(address, int(k)) for address, ks in neurons.items() if inside(address) for k in ks}
