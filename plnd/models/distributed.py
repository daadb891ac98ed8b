"""Models that transformers has spread over processes (`tp_plan`, `DistributedConfig`): whose part of a weight is where.

A plan gives a style to each module. A column-wise one leaves every process some rows of a weight, and what its hooks
see of the output are these rows, unless the style puts the whole output together; a row-wise one some columns, and of
the input these, unless it takes the whole input. Of mixtures a process has a part of every expert, or whole experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from plnd.errors import FamilyError, PLNDError
from plnd.models.spread import is_spread

if TYPE_CHECKING:
    from torch import Tensor, nn

View = Literal["own", "whole"]
"""What the hooks of a module see: this process's part of the neurons, or all of them."""

_STYLES: dict[tuple[str, str], View] = {
    ("row", "colwise"): "own",
    ("row", "packed_colwise"): "own",
    ("row", "colwise_gather_output"): "whole",
    ("row", "colwise_rep"): "whole",
    ("column", "rowwise"): "own",
    ("column", "rowwise_split_input"): "whole",
    ("column", "rowwise_rep"): "whole",
}
"""By the neurons' axis and the style of their module."""
_EXPERT_STYLES: tuple[tuple[str, str, str], ...] = (
    ("row", "moe_tp_experts", "packed_colwise"),
    ("column", "moe_tp_experts", "rowwise"),
    ("row", "ep_dispatch_experts", "grouped_gemm"),
    ("column", "ep_dispatch_experts", "grouped_gemm"),
)
"""Fused experts: axis, style of their module and of their parameter; hooks see this process's part."""
GATHERED = {"row": "colwise_gather_output", "column": "rowwise_split_input"}
"""Styles with which a module's inputs and outputs are whole in every process, and its weights are not."""


class Group:
    """The processes that have a part each of one model.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    def __init__(self, model: Any, handle: Any) -> None:
        import torch.distributed as dist

        self.rank, self.count, self._handle = dist.get_rank(handle), dist.get_world_size(handle), handle
        config = model.config.distributed_config
        self._plan: dict[str, str] = {**model.tp_plan, **(model.ep_plan if config.ep_size > 1 else {})}
        self._names = {module: name for name, module in model.named_modules()}

    def exchange(self, value: Any = None, error: str | None = None) -> list[Any]:
        """What every process gave, in the order of ranks.

        Raises:
            PLNDError: in every process, if one of them gave an error.
        """
        import torch.distributed as dist

        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, (value, error), group=self._handle)
        errors = [reason for _, reason in answers if reason is not None]
        if errors:
            raise PLNDError(errors[0])
        return [given for given, _ in answers]

    def gather(self, values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """The one-dimensional tensor of every process, in the order of ranks, of as many elements as `lengths` says."""
        import torch
        import torch.distributed as dist

        padded = values.new_zeros(max(lengths))
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded, group=self._handle)
        return [part[:length] for part, length in zip(found, lengths, strict=True)]

    def view(self, module: nn.Module, parameter: str, axis: str, fused_experts: bool) -> View:
        """What the hooks of a module with neurons see of them.

        Raises:
            FamilyError: if the plan treats the module in a way that is not known.
        """
        name = self._names[module]
        own, of_weight = (self._plan.get(generic(x)) for x in (name, f"{name}.{parameter}"))
        spread = is_spread(getattr(module, parameter))
        if not spread and own is None and of_weight is None:
            return "whole"
        if spread and fused_experts and (axis, own, of_weight) in _EXPERT_STYLES:
            return "own"
        if spread and not fused_experts and of_weight is None and (axis, own or "") in _STYLES:
            return _STYLES[axis, own or ""]
        raise FamilyError(
            f"{name}: the plan spreads it over processes as {own or of_weight or 'nothing that it names'!r}, of which"
            " plnd does not know what its hooks see: take transformers' own plan (tp_plan=auto)"
        )


def group_of(model: Any) -> Group | None:
    """The processes over which a transformers model is spread; None for one that is whole.

    Raises:
        PLNDError: if it is spread in a way that is not known, saying in which.
    """
    count = getattr(model, "_tp_size", None) or 1
    if count == 1:
        return None
    import transformers

    from plnd.models.quantised import quantisation

    what = f"{type(model).__name__} is spread over {count} processes"
    config = getattr(model.config, "distributed_config", None)
    meshes = {parameter.device_mesh for parameter in model.parameters() if is_spread(parameter)}
    if config is None or not meshes or not hasattr(config, "ep_implementation"):
        raise PLNDError(
            f"{what} in the way of transformers {transformers.__version__}; plnd knows that of 5.23: install it, or"
            " load the model whole in each process"
        )
    if config.dp_size > 1 or config.pp_size > 1 or any(mesh.ndim > 1 or mesh.size() != count for mesh in meshes):
        raise PLNDError(f"{what}, and over more by FSDP or in stages: expected tensor or expert parallelism alone")
    if config.ep_size > 1 and config.ep_implementation not in ("auto", "all_reduce"):
        raise PLNDError(
            f"{what}, and its experts receive tokens by {config.ep_implementation!r}, so that no process sees a"
            " document: expected ep_implementation='all_reduce'"
        )
    if packed := quantisation(model):
        raise PLNDError(f"{what} and quantised ({packed}): expected dense weights; load it unquantised, or whole")
    return Group(model, next(iter(meshes)).get_group())


def generic(name: str) -> str:
    """A module's or parameter's name as plans write it, with a star for the number of its block."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def shares(tensor: Any, dim: int, count: int, what: str) -> list[Tensor] | None:
    """Which positions along a dimension each process has, int64 in its own order; None where each has all.

    Args:
        tensor: a parameter.
        dim: the dimension.
        count: of processes.
        what: it is, for errors.
    Raises:
        FamilyError: if it is cut in a way that is not known, or unevenly where it is packed.
    """
    import torch

    if not is_spread(tensor):
        return None
    (placement,) = tensor.placements
    if placement.is_replicate() or getattr(placement, "dim", dim) != dim:
        return None
    size, pieces = tensor.shape[dim], getattr(placement, "split_factor", 1)
    positions = torch.arange(size)
    if pieces > 1 and size % (pieces * count):
        raise FamilyError(
            f"{what}: {pieces} matrices of {size // pieces} neurons in one cannot be shared evenly among {count}"
            " processes: start a number that divides it"
        )
    parts = [piece.chunk(count) for piece in positions.chunk(pieces)]
    found = [torch.cat([part[n] for part in parts if n < len(part)] or [positions[:0]]) for n in range(count)]
    mine = tensor.to_local().shape[dim]
    if len(found[tensor.device_mesh.get_local_rank()]) != mine:
        raise FamilyError(f"{what}: this process has {mine} of {size}, which is not how plnd knows {placement} to cut")
    return found
