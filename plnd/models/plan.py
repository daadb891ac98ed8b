"""How to spread a model over the processes of this run, from what transformers has planned for its family."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.errors import FamilyError, PLNDError
from plnd.models.distributed import GATHERED, generic
from plnd.models.layout import Layout
from plnd.models.parts import check_observable

if TYPE_CHECKING:
    from torch import nn


def distribution(model: nn.Module, *, experts: bool = False) -> Any:
    """transformers' `DistributedConfig` with which a model is spread over all processes of this run.

    It is the family's plan. Where the processes cannot share the key-value heads evenly, each computes all of
    attention, as in transformers' own plan for OLMo 2; its weights are shared all the same.

    Args:
        model: one of the same configuration, on any device.
        experts: of a mixture, each process has some of the experts whole, not a part of each.
    Raises:
        FamilyError: if transformers has no plan for the family, or none of whole experts where they are wanted; if its
            experts cannot be observed in parts.
        PLNDError: if there are no other processes, or this transformers spreads models in another way.
    """
    import transformers

    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        raise PLNDError(
            "tensor parallelism needs several processes, and there is one: torchrun --nproc_per_node 2 -m plnd detect"
            " --tensor-parallel …"
        )
    try:
        from transformers.distributed import DistributedConfig

        own = dict(model.tp_plan)  # type: ignore[arg-type]
        known = "ep_implementation" in DistributedConfig.__dataclass_fields__
    except (ImportError, AttributeError):
        known = False
    if not known:
        raise PLNDError(
            f"transformers {transformers.__version__} spreads models in a way that plnd does not know: install 5.23 or"
            " later"
        )
    layout = Layout(model)
    if not any(name in own for name in _names(layout)):
        raise FamilyError(
            f"model family {layout.family.name!r}: transformers {transformers.__version__} has no plan to spread it"
            " over processes: leave --tensor-parallel out (docs/larger.md has other ways)"
        )
    check_observable(layout)
    if experts and not any(stack.experts for stack in layout.family.stacks):
        raise FamilyError(f"model family {layout.family.name!r} has no experts to share among processes")
    plan: Any = dict(_gathered(layout, count)) or "auto"
    return DistributedConfig(tp_size=count, tp_plan=plan, ep_size=count if experts else 1)


def _names(layout: Layout) -> dict[str, str]:
    """Module of every projection, as a plan names it, to the axis of its neurons."""
    names = {module: name for name, module in layout.model.named_modules()}
    return {generic(names[target.plain]): target.projection.axis for target in layout.targets.values()}


def _gathered(layout: Layout, count: int) -> Iterator[tuple[str, str]]:
    """What the plan has to say of attention modules whose heads cannot be shared evenly.

    Raises:
        FamilyError: if some of these modules have no rows that are measured, so that their names are not known.
    """
    names = {module: name for name, module in layout.model.named_modules()}
    for block in (block for block in layout.blocks if block.stack.attention):
        of = {name: layout.targets.get(f"{block.name}.{name}") for name in ATTENTION_PROJECTIONS}
        keys = of["v_proj"] or of["k_proj"]
        if keys is None or keys.width // int(block.at(block.stack.head_dim)) % count == 0:
            continue
        for projection, target in of.items():
            if target is None:
                raise FamilyError(
                    f"block {block.name}: {count} processes cannot share its key-value heads evenly, and the row of"
                    f" {block.family} does not name its {projection}: start a number that divides them"
                )
            yield generic(names[target.plain]), GATHERED[target.projection.axis]
