"""What one process has, and what its hooks see, of every projection of a model that is spread over processes.

Of a model that is whole both are the projections themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.errors import FamilyError
from plnd.models.distributed import is_spread, shares
from plnd.models.layout import Block, Layout, Target


@dataclass(frozen=True)
class Part:
    """What one process has of a projection.

    Attributes:
        target: the projection in this process's own numbering, 0 to width - 1.
        shares: which of the whole projection's neurons each process has, int64 ascending; None: every one has all.
        rank: of this process.
    """

    target: Target
    shares: tuple[Tensor, ...] | None = None
    rank: int = 0

    @property
    def neurons(self) -> Tensor | None:
        """Those of this process; None: all."""
        return None if self.shares is None else self.shares[self.rank]

    def own(self, indices: Tensor) -> Tensor:
        """This process's numbers of those of the whole projection's neurons `indices` that it has, both int64."""
        neurons = self.neurons
        if neurons is None:
            return indices
        if not len(neurons):
            return indices[:0]
        place = torch.searchsorted(neurons, indices).clamp_(max=len(neurons) - 1)
        return place[neurons[place] == indices]

    def lengths(self, rows: int) -> list[int]:
        """Numbers of elements of `rows` vectors of the neurons of each process."""
        assert self.shares is not None
        return [rows * len(share) for share in self.shares]

    def joined(self, pieces: Iterable[Tensor]) -> Tensor:
        """[..., width] of the whole projection, from the piece of every process, [..., own width], in order of rank."""
        assert self.shares is not None
        joined = torch.cat(list(pieces), dim=-1)
        return torch.empty_like(joined).index_copy_(-1, torch.cat(self.shares).to(joined.device), joined)


class Parts:
    """The parts of all projections of a model.

    Args:
        layout: of the model.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.group = layout, layout.group

    @cached_property
    def stored(self) -> dict[str, Part]:
        """What this process has of every projection's weights, by address.

        Raises:
            FamilyError: if a weight is cut in a way that is not known.
        """
        return {name: self._stored(target) for name, target in self.layout.targets.items()}

    @cached_property
    def seen(self) -> dict[str, Part]:
        """What this process's hooks see of every projection, by address.

        Raises:
            FamilyError: if the model is cut where no closed form can be evaluated.
        """
        if self.group is not None:
            check_observable(self.layout)
        parts = {name: self._seen(target) for name, target in self.layout.targets.items()}
        if self.group is not None:
            for block in self.layout.blocks:
                _check_block(block, {p.name: parts[f"{block.name}.{p.name}"] for p in block.stack.projections})
        return parts

    def products(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """Scalar products of vectors [..., out] with the columns that hooks see, where they see more than weights.

        All processes have to ask for the products at the same time, which are gathered. None where hooks see what the
        process has.
        """
        group, part = self.group, self.stored[name]
        if group is None or part.shares is None or self.seen[name].shares is not None:
            return None

        def gathered(vectors: Tensor) -> Tensor:
            own = vectors @ part.target.weight()
            pieces = group.gather(own.flatten(), part.lengths(own.shape[:-1].numel()))
            return part.joined(piece.view(*own.shape[:-1], -1) for piece in pieces)

        return gathered

    def _stored(self, target: Target) -> Part:
        if self.group is None or not is_spread(target.stored):
            return Part(target)
        count, rank = self.group.count, self.group.rank
        if target.experts is None:
            held = shares(target.stored, target.dim, count, target.name)
            return Part(target) if held is None else cut(target, held, rank)
        if (held := shares(target.stored, 0, count, target.name)) is not None:
            return cut_experts(target, held, rank)
        held = shares(target.stored, target.expert_dim, count, target.name)
        return Part(target) if held is None else cut(target, held, rank)

    def _seen(self, target: Target) -> Part:
        if self.group is None:
            return Part(target)
        if target.module is not target.plain:
            raise FamilyError(
                f"{target.name} is wrapped by an adapter ({type(target.module).__name__}), which is not known on parts"
                " of a weight: merge it first, or load the model whole"
            )
        projection = target.projection
        view = self.group.view(target.plain, projection.parameter, projection.axis, target.experts is not None)
        if view == "whole":
            return Part(target)
        part = self.stored[target.name]
        if part.shares is None:
            raise FamilyError(f"{target.name}: its hooks see a part of it, but every process has all of its weight")
        return part


def check_observable(layout: Layout) -> None:
    """Refuses models of whose experts no part can be observed.

    Raises:
        FamilyError: saying so.
    """
    if any(stack.scaled_inputs for stack in layout.family.stacks):
        raise FamilyError(
            f"model family {layout.family.name!r}: its experts, whose inputs are scaled, cannot be observed in parts:"
            " load the model whole, or over devices (docs/larger.md)"
        )


def cut(target: Target, held: Sequence[Tensor], rank: int) -> Part:
    """A projection of which each process has the positions `held` of the stored weight along the neurons' dimension.

    Of fused experts they are positions in each expert's matrix.
    """
    experts = target.experts or 1
    each = target.width // experts
    stored = target.storage(torch.arange(each))
    found = [torch.isin(stored, positions).nonzero().flatten() for positions in held]
    shares = tuple((torch.arange(experts)[:, None] * each + neurons).flatten() for neurons in found)
    rows: range | Tensor = target.rows  # of columns those of the output, of which every process has all
    if target.projection.axis == "row":
        place, order = held[rank].sort()
        rows = order[torch.searchsorted(place, stored[found[rank]])]
        if len(rows) and bool((rows.diff() == 1).all()):
            rows = range(int(rows[0]), int(rows[-1]) + 1)
    return Part(replace(target, width=len(shares[rank]), rows=rows, own=True), shares, rank)


def cut_experts(target: Target, held: Sequence[Tensor], rank: int) -> Part:
    """Fused experts of which each process has those numbered `held`, whole."""
    assert target.experts is not None
    each = target.width // target.experts
    shares = tuple((experts[:, None] * each + torch.arange(each)).flatten() for experts in held)
    return Part(replace(target, width=len(shares[rank]), experts=len(held[rank]), own=True), shares, rank)


def _check_block(block: Block, parts: dict[str, Part]) -> None:
    """Refuses a block of which a process sees something else than groups of heads, and gates with their columns."""
    attention = {name: parts[name] for name in ATTENTION_PROJECTIONS if name in parts}
    feed_forward = [parts[name] for name in ("gate_proj", "up_proj", "down_proj") if name in parts]
    for some in (attention.values(), feed_forward):
        if len({part.shares is None for part in some}) > 1:
            raise FamilyError(
                f"block {block.name}: the plan gives a process parts of some projections and all of others, for which"
                " there is no closed form: take transformers' own plan (tp_plan=auto)"
            )
    if not all(_same(one, other) for one, other in pairwise(feed_forward)):
        raise FamilyError(f"block {block.name}: the plan cuts gate, up and down at different neurons")
    if not attention or attention["o_proj"].shares is None:
        return
    if block.stack.head_gates or block.stack.latent:
        what = "latent attention" if block.stack.latent else "the gates of heads"
        raise FamilyError(
            f"block {block.name}: the plan cuts {what}, for which there is no closed form: load the model whole, or"
            " over devices (docs/larger.md)"
        )
    if any(norm is not None and norm.whole for norm in (block.stack.query_norm, block.stack.key_norm)):
        raise FamilyError(
            f"block {block.name}: queries and keys are normed over all heads, of which the plan gives some"
        )
    if not _by_groups(attention, int(block.at(block.stack.head_dim))):
        raise FamilyError(
            f"block {block.name}: the plan cuts heads, or groups of heads, in two: start a number of processes that"
            f" divides the {block.family} model's key-value heads, or load it by plnd detect --tensor-parallel"
        )


def _same(one: Part, other: Part) -> bool:
    """Whether each process has the same neurons of two projections."""
    if one.shares is None or other.shares is None:
        return one.shares is other.shares
    return all(torch.equal(a, b) for a, b in zip(one.shares, other.shares, strict=True))


def _by_groups(attention: Mapping[str, Part], head_dim: int) -> bool:
    """Whether every process has whole key-value heads, and of queries and outputs the heads that belong to them.

    Of a block whose keys have no rows that are measured, whole heads of queries and outputs.
    """
    queries, outputs = attention["q_proj"], attention["o_proj"]
    keys = attention.get("k_proj", queries)
    assert queries.shares is not None and keys.shares is not None
    per_group = sum(map(len, queries.shares)) // sum(map(len, keys.shares))
    for query, key in zip(queries.shares, keys.shares, strict=True):
        heads = key[::head_dim] // head_dim
        channels = torch.arange(head_dim)
        own = (heads[:, None] * per_group + torch.arange(per_group)).flatten()
        if not torch.equal(key, (heads[:, None] * head_dim + channels).flatten()):
            return False
        if not torch.equal(query, (own[:, None] * head_dim + channels).flatten()):
            return False
    return _same(keys, attention.get("v_proj", keys)) and _same(queries, outputs)
