"""Whole experts and attention heads, chosen by the importance of all their neurons together.

What scores hold of a neuron for this is its mean importance, because means can be added up: the sum of an expert's is
the mean over documents of the sum of its neurons' importances, which no sum of minima would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plnd.addresses import split_address
from plnd.errors import PLNDError
from plnd.io.metadata import NeuronsMetadata
from plnd.neurons.contrast import TIMES, check_comparable, check_numbers, named
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores
from plnd.neurons.selection import chosen_addresses, listed
from plnd.neurons.units import neurons_of, unit_projections, unit_sites, whole_units
from plnd.numbers import is_whole

POOLS: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "max": np.max}
"""What is made of the importances of a unit's neurons."""


def select_units(
    own: Scores | Sequence[Scores],
    others: Scores | Sequence[Scores] | None = None,
    *,
    unit: str,
    pool: str = "sum",
    top_k: int | None = None,
    count: int | None = None,
    share: float | None = None,
    times: float | None = None,
    projections: str | Iterable[str] | None = None,
    regions: Regions | None = None,
) -> NeuronSet:
    """Whole experts or attention heads of largest importance, or that are more important than in other languages.

    A unit's score is the sum, or the largest, of the mean importances (`Scores.mean`) of its neurons at one projection:
    an expert's columns of `down_proj`, a query head's of `o_proj`, a key-value head's rows of `v_proj`. (Without the
    one that `projections` leaves out it is the last of the others.) Units without any importance are never chosen.

    Of one language: the `top_k` units of largest score in each block, or the `count` units of the whole model. Compared
    with others: a unit's part in its block's scores, which add up to 1, has to be at least `times` as large as in any
    other language; those of largest excess, the part here less `times` the largest elsewhere, come first (of relevance,
    which has one unit over the whole model, times the block's score here).

    Args:
        own: scores of the language, or, with others, of each of a group, of which the smallest part counts.
        others: of the languages that it is compared with, of the same model and made with the same settings.
        unit: `expert`, `head` (a query head) or `kv-head` (keys and values of a group of query heads).
        pool: `sum` or `max`.
        top_k: of one language, so many units of each block.
        count: so many units of the whole model.
        share: of languages that are compared, this share of all units chosen from.
        times: by default `plnd.neurons.contrast.TIMES`.
        projections: of which the neurons of the units are taken; by default `plnd.neurons.units.OWN`: an expert's of
            `gate_proj`, `up_proj` and `down_proj`, a head's columns of `o_proj`, a key-value head's rows of `v_proj`,
            without which it adds nothing.
        regions: choose only there.
    Returns:
        All neurons of the chosen units, each with its unit's score (of a comparison the excess; float32) as importance;
        `metadata.units` says which units they are.

    Raises:
        PLNDError: if a number makes no sense, two rules or none are given, the scores do not say how many units the
            model has, cover none, or cannot be compared, or no unit is kept.
        ModelMismatchError: if the scores are of different models.
    """
    own, others = ([x] if isinstance(x, Scores) else [*(x or ())] for x in (own, others))
    taken = unit_projections(unit, listed(projections))
    if pool not in POOLS:
        raise PLNDError(f"unknown pool {pool!r}: expected one of {', '.join(POOLS)}")
    _check_rule(own, others, top_k, count, share, times)
    first, model = own[0], own[0].metadata.model
    allowed = set(chosen_addresses(model.widths, model.blocks, taken, regions))
    sites = {block: [a for a in found if a in allowed] for block, found in unit_sites(model, taken).items()}
    sites = {block: found for block, found in sites.items() if found}
    _check_known([*own, *others], unit, sites)
    scored = {block: addresses[-1] for block, addresses in sites.items()}
    here = [_pooled(scores, scored, pool) for scores in own]
    blocks = np.repeat(np.arange(len(scored)), [len(values) for values in here[0].values()])
    rule: dict[str, Any] = {"unit": unit, "pool": pool, "chosen_from": len(blocks)}
    if others:
        check_comparable(own, others)
        times = TIMES if times is None else float(times)
        asked = count if share is None else max(1, round(share * len(blocks)))
        score, enough = _excess(own, here, [_pooled(scores, scored, pool) for scores in others], times)
        ordered = _largest(score, enough)[:asked]
        rule |= {"name": "unit_contrast", "count": count, "share": share, "times": times, "asked": asked}
        rule |= {"with": named(own[1:]), "against": named(others)}
    else:
        score = np.concatenate(list(here[0].values()))
        ordered = _largest(score, score > 0)[:count]
        if top_k is not None:
            ordered = np.concatenate([ordered[blocks[ordered] == block][:top_k] for block in range(len(scored))])
        rule |= {"name": "unit_rank", "top_k": top_k, "count": count}
    if not len(ordered):
        why = f"has a part in its block {times:g} times as large as elsewhere" if others else "has any importance"
        raise PLNDError(f"none of the {len(blocks):,} units ({unit}) chosen from {why}")
    rule |= {"kept": len(ordered), "projections": taken, "regions": regions.description() if regions else None}
    return _set_of(first, unit, taken, sites, score, np.sort(ordered), rule)


def _set_of(
    scores: Scores,
    unit: str,
    projections: list[str],
    sites: Mapping[str, Sequence[str]],
    score: np.ndarray,
    chosen: np.ndarray,
    rule: Mapping[str, Any],
) -> NeuronSet:
    """All neurons of some units, which are numbered through all blocks, ascending."""
    model, start = scores.metadata.model, 0
    indices, importance = {}, {}
    for addresses in sites.values():
        stop = start + model.units[addresses[-1]]
        members = chosen[(chosen >= start) & (chosen < stop)] - start
        for address in addresses:
            indices[address] = neurons_of(model, address, members)
            each = model.widths[address] // model.units[address]
            importance[address] = np.repeat(score[start:stop][members], each).astype(np.float32)
        start = stop
    said = NeuronsMetadata.selected(scores.metadata, rule, scores.digest)
    return NeuronSet(indices, importance, said.replaced(units=whole_units(indices, model, unit, projections)))


def _pooled(scores: Scores, scored: Mapping[str, str], pool: str) -> dict[str, np.ndarray]:
    """Block to the scores of its units, [units] float64."""
    units = scores.metadata.model.units
    return {
        block: POOLS[pool](scores.mean[address].astype(np.float64).reshape(units[address], -1), axis=1)
        for block, address in scored.items()
    }


def _excess(
    own: Sequence[Scores],
    here: Sequence[Mapping[str, np.ndarray]],
    elsewhere: Sequence[Mapping[str, np.ndarray]],
    times: float,
) -> tuple[np.ndarray, np.ndarray]:
    """By how much each unit's part in its block is above `times` that in any other language, and whether it is at all.

    Returns:
        [units] float64 and [units] boolean.
    """
    excess, enough = [], []
    for block in here[0]:
        mine, most = np.stack([_parts(x[block]) for x in here]), np.max([_parts(x[block]) for x in elsewhere], axis=0)
        unit = [
            x[block].sum() if of.metadata.method.name == "relevance" else 1.0 for of, x in zip(own, here, strict=True)
        ]
        excess.append((np.array(unit)[:, None] * (mine - times * most)).min(0))
        enough.append((mine.min(0) >= times * most) & (mine.min(0) > most))
    return np.concatenate(excess), np.concatenate(enough)


def _parts(scores: np.ndarray) -> np.ndarray:
    """What each unit has of the sum of all; 0 where that is 0."""
    total = scores.sum()
    return scores / total if total > 0 else np.zeros_like(scores)


def _largest(score: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The units that are allowed, those of largest score first; ties by block and number."""
    ordered = np.argsort(-score, kind="stable")
    return ordered[allowed[ordered]]


def _check_rule(
    own: Sequence[Scores],
    others: Sequence[Scores],
    top_k: int | None,
    count: int | None,
    share: float | None,
    times: float | None,
) -> None:
    """Refuses rules that do not fit together, or to whether languages are compared."""
    if not own:
        raise PLNDError("own: no scores, expected those of at least one language")
    check_numbers(count, share, None, TIMES if times is None else times)
    if top_k is not None and not (is_whole(top_k) and top_k > 0):
        raise PLNDError(f"top_k={top_k!r}: expected a whole number above 0")
    if others:
        if top_k is not None:
            raise PLNDError("top_k is a rule of one language: compare languages by count, share and times")
        return
    if len(own) > 1:
        raise PLNDError(f"{len(own)} scores: several are a group of languages, which is compared with others")
    if share is not None or times is not None:
        raise PLNDError(f"{'share' if times is None else 'times'} is a rule over languages: give the scores of others")
    if (top_k is None) == (count is None):
        raise PLNDError("expected one of top_k, of each block, and count, of the whole model")


def _check_known(scores: Sequence[Scores], unit: str, sites: Mapping[str, Sequence[str]]) -> None:
    """Refuses scores that do not tell which units there are, or how important."""
    for each in scores:
        if not each.metadata.model.units:
            raise PLNDError(
                "the scores do not say how many experts and heads the model has, as those of a plnd before this: detect"
                " again"
            )
    if not sites:
        raise PLNDError(f"no {unit} to choose from: the model has none there (plnd families prints which have experts)")
    for each in scores:
        for address in (addresses[-1] for addresses in sites.values()):
            if address not in each.mean:
                raise PLNDError(f"units ({unit}) are scored by {address}, which these scores do not cover")
            known = each.metadata.method.epsilon
            if known is not None and split_address(address)[1] in ("q_proj", "k_proj"):
                raise PLNDError(
                    f"{address}: the scores were detected with epsilon={known:g}, which leaves nothing below it in"
                    " q_proj and k_proj: take other projections, or detect again without epsilon"
                )
