"""`plnd.probe`: which projections of a model have exact closed forms, before the families table knows it.

From the configuration alone: a tiny random twin is built, its modules are bound by names and by what passes through
them, and each projection's closed form is held to brute force, one neuron at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from plnd.addresses import PROJECTIONS, split_address
from plnd.errors import FamilyError
from plnd.models.families import Family, Stack
from plnd.models.twin import text_config
from plnd.probing.binding import Binding, bind, rotations, watch
from plnd.probing.float64 import float64
from plnd.probing.twins import build_twin, document, find_blocks, kinds_of
from plnd.probing.verdicts import (
    ATTENTION_OUTPUTS,
    FEED_FORWARD,
    QUERIES_AND_KEYS,
    Bench,
    Known,
    Verdict,
    detection_refuses,
)


@dataclass(frozen=True)
class Kind:
    """One kind of block.

    Attributes:
        block: the first block of the kind in the twin.
        count: blocks of that kind in the twin.
        stack: what was found in it.
        verdicts: of each of its projections, in the usual order.
        missing: what was not found, in words.
        rest: modules with weights beside attention and feed-forward, which are left alone.
    """

    block: int
    count: int
    stack: Stack
    verdicts: tuple[Verdict, ...]
    missing: tuple[str, ...]
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        model_type: of the configuration.
        kinds: of blocks.
        family: a draft of the row; None where one row cannot describe all kinds.
        problem: why the row cannot be used; empty where it can, if without queries and keys that are not exact.
    """

    model_type: str
    kinds: tuple[Kind, ...]
    family: Family | None
    problem: str

    @property
    def usable(self) -> bool:
        """Whether detection may use the row."""
        return self.family is not None and not self.problem

    @property
    def verdicts(self) -> dict[str, bool]:
        """Projection to whether it is exact in every block that has it."""
        found: dict[str, bool] = {}
        for one in (verdict for each in self.kinds for verdict in each.verdicts):
            found[one.projection] = found.get(one.projection, True) and one.exact
        return {name: found[name] for name in PROJECTIONS if name in found}


def probe(model: Any, *, revision: str | None = None, trust_remote_code: bool = False) -> Probe:
    """Holds a model's closed forms to brute force on a tiny random twin of its configuration.

    Args:
        model: folder or hub name, of which the configuration alone is read; or a configuration of transformers.
        revision: hub branch, tag or commit.
        trust_remote_code: run the Python code that comes with the model. Nothing but this argument ever allows it.

    Raises:
        PLNDError: if there is no such model.
        FamilyError: if no twin can be built of its configuration.
    """
    from plnd.models.loading import load_config

    if isinstance(model, (str, Path)):
        model = load_config(str(model), revision=revision, trust_remote_code=trust_remote_code)
    return probe_twin(build_twin(model, trust_remote_code=trust_remote_code))


def probe_twin(twin: Any) -> Probe:
    """The same of a model that is tiny, in float64, and has been loaded with `attn_implementation="eager"`."""
    model_type = text_config(twin.config).model_type
    path, blocks = find_blocks(twin)
    kinds = []
    for number, count in kinds_of(blocks).items():
        binding = _bound(twin, path, number)
        stack, verdicts = _best(twin, model_type, number, binding)
        kinds.append(Kind(number, count, stack, verdicts, binding.missing, binding.rest))
    family, problem = _row(model_type, twin, kinds)
    if family is not None:
        problem = _problem(twin, family, [verdict for each in kinds for verdict in each.verdicts])
    return Probe(model_type, tuple(kinds), family, problem)


def hold(twin: Any, family: Family) -> tuple[tuple[str, ...], str]:
    """Which projections are exact on every block of a twin under a row, and why the row cannot be used, if so.

    Queries and keys may fail without the others: a row can be used for those alone.
    """
    try:
        bench = Bench(twin, family)
        names = [block.name for block in bench.layout.blocks]
        first = [str(number) for number in kinds_of(find_blocks(twin)[1])]
        found = [
            verdict
            for name in (first if set(first) <= set(names) and len(family.stacks) == 1 else names)
            for group in (QUERIES_AND_KEYS, ATTENTION_OUTPUTS, FEED_FORWARD)
            for verdict in bench.verdicts(name, group)
        ]
        judged = {verdict.projection for verdict in found}
        others = {split_address(address)[1] for address in bench.layout.targets} - judged
    except (FamilyError, LookupError) as error:
        return (), str(error)
    if others or not found:
        return (), f"the row has nothing that can be held to brute force, or more ({', '.join(sorted(others))})"
    return _exact(found), _problem(twin, family, found)


def _exact(found: Sequence[Verdict]) -> tuple[str, ...]:
    """Projections of which every verdict is."""
    wrong = {verdict.projection for verdict in found if not verdict.exact}
    return tuple(p for p in PROJECTIONS if any(v.projection == p for v in found) and p not in wrong)


def _problem(twin: Any, family: Family, found: Sequence[Verdict]) -> str:
    for verdict in found:
        if not verdict.exact and verdict.projection not in QUERIES_AND_KEYS:
            return f"{verdict.projection} of block {verdict.block} is {verdict}"
    return detection_refuses(twin, family, set(QUERIES_AND_KEYS) <= set(_exact(found)))


def _bound(twin: Any, path: str, number: int) -> Binding:
    """What is what in one block, from a run of it."""
    block = find_blocks(twin)[1][number]
    ids = document()

    def run() -> None:
        with float64(), torch.no_grad():
            twin(input_ids=ids[None], use_cache=False)

    return bind(path, block, watch(block, run))


def _best(twin: Any, model_type: str, number: int, binding: Binding) -> tuple[Stack, tuple[Verdict, ...]]:
    """The stack, of those that are possible, with the most that is exact, and its verdicts."""
    stack, found = binding.stack, []
    known: Known = {}

    def judge(candidate: Stack, group: Sequence[str]) -> list[Verdict]:
        bench = Bench(twin, Family(model_type, (model_type,), (candidate,)), number, known)
        return bench.verdicts(str(number), tuple(group))

    if binding.attention:
        stack, verdicts = _first_exact(_outputs(stack, binding), ATTENTION_OUTPUTS, judge)
        found += verdicts
        stack, verdicts = _first_exact(_queries(stack), QUERIES_AND_KEYS, judge)
        found += verdicts
    if binding.feed_forward:
        factors = [stack.factor] if binding.attention and all(v.exact for v in found[:2]) else binding.fields["factor"]
        stack, verdicts = _first_exact([replace(stack, factor=f) for f in factors], FEED_FORWARD, judge)
        found += verdicts
    order = list(PROJECTIONS)
    return stack, tuple(sorted(found, key=lambda verdict: order.index(verdict.projection)))


def _first_exact(candidates: Any, group: Sequence[str], judge: Any) -> tuple[Stack, list[Verdict]]:
    """The first candidate that is exact, or else the one that is nearest."""
    nearest, least = None, math.inf
    for candidate in candidates:
        try:
            verdicts = judge(candidate, group)
        except Exception as error:  # a guess that the model's modules do not bear
            names = [p.name for p in candidate.projections if p.name in group]
            verdicts = [Verdict(candidate.name, name, None, f"cannot be bound ({error})") for name in names]
        if all(verdict.exact for verdict in verdicts):
            return candidate, verdicts
        off = max(math.inf if v.error is None else v.error for v in verdicts)
        if nearest is None or off < least:
            nearest, least = (candidate, verdicts), off
    assert nearest is not None
    return nearest


def _outputs(stack: Stack, binding: Binding) -> Iterator[Stack]:
    for factor, fused in product(binding.fields["factor"], binding.fields.get("fused", (None,))):
        projections = stack.projections
        if fused:
            attention = PROJECTIONS[:3]
            projections = tuple(replace(p, fused=fused) if p.name in attention else p for p in projections)
        yield replace(stack, factor=factor, projections=projections)


def _queries(stack: Stack) -> Iterator[Stack]:
    for softcap, rotation in product((False, True), rotations()):
        yield replace(stack, rotation=rotation, softcap=softcap)
    yield replace(stack, rotation=None, scaled_queries=True)


def _row(model_type: str, twin: Any, kinds: Sequence[Kind]) -> tuple[Family | None, str]:
    """One row for all kinds of blocks, if there is one, and else why not."""
    lacking = [k for k in kinds if k.missing]
    if lacking:
        return None, "; ".join(dict.fromkeys(text for k in lacking for text in k.missing))
    stacks = [k.stack for k in kinds]
    stack = stacks[0]
    if any(replace(other, rotation=None) != replace(stack, rotation=None) for other in stacks):
        return None, "its blocks are of several kinds, which one row cannot hold"
    turned = [s.rotation for s in stacks]
    if len(set(turned)) > 1:
        when = _switch(twin, kinds)
        some = {r for r in turned if r is not None}
        if when is None or len(some) > 1:
            return None, "its blocks rotate in several ways, and no attribute tells them apart"
        stack = replace(stack, rotation=replace(some.pop(), when=when))
    return Family(model_type, (model_type,), (stack,), final=_final(twin, stack)), ""


def _switch(twin: Any, kinds: Sequence[Kind]) -> str | None:
    """An attribute of the attention module that is true just where the block rotates."""
    blocks = find_blocks(twin)[1]
    path = kinds[0].stack.attention or ""
    first = blocks[0].get_submodule(path)
    for name in vars(first):
        values = [getattr(blocks[k.block].get_submodule(path), name, None) for k in kinds]
        plain = all(isinstance(v, (bool, int, type(None))) for v in values)
        if plain and [bool(v) for v in values] == [k.stack.rotation is not None for k in kinds]:
            return f"{path}.{name}"
    return None


def _final(twin: Any, stack: Stack) -> tuple[str, ...]:
    """What stands behind the list of blocks in the model's body: its last norm."""
    from plnd.models.layout import text_body

    home = stack.blocks.rpartition(".")[0]
    parent = text_body(twin).get_submodule(home)
    names = [name for name, module in parent.named_children() if "norm" in type(module).__name__.lower()]
    return (f"{home}.{names[-1]}" if home else names[-1],) if names else ()
