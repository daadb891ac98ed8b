"""Deactivates (ablates) other neurons in every row of a batch: those with one role in the row's own example.

Roles differ by example (`plnd.roles`), so the deactivated set does too (Tables 2 and 4 of arXiv:2406.09265). Whatever
else `plnd.interventions` does to a neuron's value is done in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plnd.errors import ModelMismatchError, PLNDError
from plnd.interventions import Intervention
from plnd.models.experts import Routed, change_values
from plnd.models.layout import Layout
from plnd.models.running import replacing
from plnd.neurons.random_draw import draw
from plnd.roles.roles import ROLES, Roles

RANDOM = "random"


@dataclass(frozen=True)
class Choice:
    """Which neurons of an example are deactivated.

    Attributes:
        role: one of `ROLES`, or `random`.
        share: of `random`, which fraction of each block's neurons; 0 deactivates none, for a baseline.
        control: `random` draws as many neurons of each block as there have the role in this example.
        seed: of what is drawn. A block's draw depends on nothing but seed, example, block and count.
    """

    role: str
    share: float | None = None
    control: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, RANDOM):
            raise PLNDError(f"unknown deactivate={self.role}: expected one of {', '.join((*ROLES, RANDOM))}")
        if (self.share is not None) != (self.role == RANDOM):
            raise PLNDError("deactivate=random and share= belong together: deactivate=random,share=0.25")
        if self.share is not None and not 0 <= self.share <= 1:
            raise PLNDError(f"share={self.share}: expected a share from 0 to 1, such as 0.25")
        if self.control not in (None, RANDOM) or (self.control and self.role == RANDOM):
            raise PLNDError(f"unknown control {self.control!r}: expected random, with a role in deactivate=")

    def neurons(self, roles: Roles, example: int) -> dict[str, np.ndarray]:
        """The neurons of one example, bool [width], by block."""
        if self.role == RANDOM:
            assert self.share is not None
            counts = [round(self.share * width) for width in roles.widths.values()]
        else:
            found = {name: codes == ROLES.index(self.role) for name, codes in roles.of(example).items()}
            if self.control is None:
                return found
            counts = [int(chosen.sum()) for chosen in found.values()]
        drawn = {}
        for (name, width), count in zip(roles.widths.items(), counts, strict=True):
            drawn[name] = np.zeros(width, dtype=bool)
            drawn[name][draw(width, count, self.seed, example, name)] = True
        return drawn


@contextmanager
def deactivated_rows(
    model: nn.Module | Layout,
    neurons: Sequence[Mapping[str, np.ndarray]],
    intervention: Intervention | None = None,
) -> Iterator[None]:
    """In row i of every batch the neurons `neurons[i]` are deactivated: everywhere, in every step of a generation.

    What goes into `down_proj` is set to zero there. In a gated feed-forward too that is what an activation of zero
    gives. Of a mixture of experts that is each expert's, at the row's tokens that are routed to it. Where a batch has
    several times as many rows (beam search), consecutive ones belong to one example. What `torch.compile` made runs as
    if it were not compiled in here.

    Args:
        model: as for `plnd.deactivated`, or its layout.
        neurons: for each row, by block, bool [width of its `down_proj`]; blocks that are left out keep all of them.
        intervention: what becomes of what goes in, instead of zero (`plnd.interventions`).

    Raises:
        ModelMismatchError: if a block or its width is not the model's, or means or direction are another's.
        FamilyError: if its experts are packed.
        PLNDError: if a batch has another number of rows, values of the intervention are missing, or another thread
            works on the model.
    """
    layout = model if isinstance(model, Layout) else Layout(model)
    intervention = intervention or Intervention()
    intervention.check_model(layout.description())
    widths = {block.name: layout.widths[f"{block.name}.down_proj"] for block in layout.blocks if block.stack.activation}
    for row in neurons:
        for name, chosen in row.items():
            if chosen.dtype != bool or chosen.shape != (widths.get(name),):
                has = widths.get(name, "no such block")
                raise ModelMismatchError(f"block {name}: roles of {len(chosen)} neurons, but the model has {has}")
    nothing = {name: np.zeros(width, dtype=bool) for name, width in widths.items()}
    with ExitStack() as stack:
        stack.enter_context(replacing(layout.model))
        for name, width in widths.items():
            mask = torch.from_numpy(np.stack([row.get(name, nothing[name]) for row in neurons]))
            if bool(mask.any()):
                amounts = intervention.amounts(f"{name}.down_proj", width)
                target = layout.targets[f"{name}.down_proj"]
                if target.experts is None:
                    hook = _change_rows(mask, intervention, amounts)
                    stack.callback(target.module.register_forward_pre_hook(hook).remove)
                else:
                    change = _change_rows_of_experts(mask, target.experts, intervention, amounts)
                    stack.callback(change_values(target, change).remove)
        yield


def _change_rows(mask: Tensor, intervention: Intervention, amounts: Tensor | None) -> Callable:
    """A hook that changes the inputs of the neurons, [rows, width], that are chosen in each row of a batch."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal mask
        values = args[0]
        rows, width = mask.shape
        if values.numel() % (rows * width) or (values.dim() == 3 and len(values) % rows):
            raise PLNDError(f"a batch of {len(values)} rows, but neurons were chosen for {rows}")
        mask = mask.to(values.device)
        by_row = values.reshape(rows, -1, width)
        changed = torch.where(mask[:, None], intervention.changed(by_row, amounts), by_row)
        return (changed.reshape(values.shape), *args[1:])

    return hook


def _change_rows_of_experts(
    mask: Tensor, experts: int, intervention: Intervention, amounts: Tensor | None
) -> Callable[[Routed, Tensor], Tensor]:
    """The same of the inputs of fused experts' columns; the neurons, [rows, experts·width], are of all experts."""
    by_expert = mask.unflatten(1, (experts, -1))

    def change(routed: Routed, values: Tensor) -> Tensor:
        rows = len(by_expert)
        if routed.count % rows:
            raise PLNDError(f"a batch of {routed.count} tokens, but neurons were chosen for {rows} rows")
        chosen = by_expert[:, routed.expert].to(values.device)[
            routed.tokens.to(values.device) // (routed.count // rows)
        ]
        own = None if amounts is None else amounts.unflatten(0, (experts, -1))[routed.expert]
        return torch.where(chosen, intervention.changed(values, own), values)

    return change
