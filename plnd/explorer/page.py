"""The page to explore: one file with its script and all numbers in it, which asks no one for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from plnd.errors import PLNDError
from plnd.explorer import summary
from plnd.explorer.arrays import pieces, scales, size
from plnd.explorer.contents import Contents
from plnd.inspection.choice import site_of
from plnd.inspection.profiles import Firing, Inspection, NeuronProfile, WrittenToken
from plnd.inspection.text import visible, visible_token
from plnd.neurons.contrast import TIMES
from plnd.neurons.history import rule_in_words
from plnd.secrets import portable, published
from plnd.version import __version__

MAX_BYTES = 2**28
"""Of the numbers in a page. Browsers that hold more of it are rare."""

OVER_TOKENS = ("relevance", "activation", "lape")
"""Methods whose mean importance is over all tokens of a corpus; that of the others is over documents."""


def explorer_page(contents: Contents, *, rounded: bool = False) -> str:
    """The page: a map of blocks and projections, lists, and every neuron by its address.

    It has a script, its own, which its content policy names by digest and which writes text and nothing else. Names,
    tokens and texts of files are shown as text.

    Args:
        contents: what to show.
        rounded: keep 16 bits of numbers of single neurons; the page says how exact they are.

    Raises:
        PLNDError: if the page would be too large for browsers.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    bytes_needed = size(contents, rounded)
    if bytes_needed > MAX_BYTES:
        advice = "--projections" if rounded else "--rounded or --projections"
        raise PLNDError(
            f"the page would have {bytes_needed / 2**20:,.0f} MB of numbers, and browsers take"
            f" {MAX_BYTES / 2**20:,.0f} MB: choose {advice}"
        )
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("plnd.explorer"), PackageLoader("plnd.inspection")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    rounding = scales(contents) if rounded else {}
    error = max((s.error for one in rounding.values() for s in (one.mean, one.log)), default=0.0)
    script = _script()
    by_tokens = any(one.metadata.method.name in OVER_TOKENS for one in contents.scores.values())  # all by one method
    return environment.get_template("explore.html").render(
        contents=contents,
        facts=facts(contents) | {"scales": {name: asdict(one) for name, one in rounding.items()}},
        pieces=pieces(contents, rounding),
        made_of=list(made_of(contents)),
        overlaps=summary.overlaps(contents.sets) if len(contents.sets) > 1 else [],
        neurons=sum(width or 0 for width in contents.widths.values()),
        rounding=f"{100 * error:.2g} %" if rounded else "",
        times=f"{TIMES:g}",
        over="all tokens of the corpus" if by_tokens else "documents",
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )


def facts(contents: Contents) -> dict[str, Any]:
    """What the script reads first: names, sizes, the map, the neurons to begin with, and what is known of single ones.

    Texts of others are made visible here, once (`plnd.inspection.text.visible`).
    """
    names, sets = list(contents.scores), list(contents.sets)
    compared = names if contents.compared else []
    table = [
        [contents.widths.get(f"{block}.{projection}", -1) for projection in contents.projections]
        for block in contents.blocks
    ]
    return {
        "blocks": contents.blocks,
        "projections": contents.projections,
        "widths": table,
        "scored": [
            [contents.scored(f"{block}.{projection}") for projection in contents.projections]
            for block in contents.blocks
        ],
        "relative": contents.relative,
        "times": TIMES,
        "languages": list(map(visible, names)),
        "keys": names,
        "sets": list(map(visible, sets)),
        "map": {
            "own": [summary.own_neurons(contents, name) for name in compared],
            "largest": [summary.largest_importance(contents, name) for name in names],
            "mean": [summary.mean_importance(contents, name) for name in names],
            "sets": [summary.neurons_of_set(contents, name) for name in sets],
            "inspected": [summary.inspected(contents)] if contents.inspections else [],
        },
        "top": {
            "languages": [summary.most_specific(contents, name) for name in compared],
            "sets": [summary.most_important(contents, one) for one in contents.sets.values()],
        },
        "profiles": profiles(contents),
    }


def profiles(contents: Contents) -> dict[str, list[dict[str, Any]]]:
    """What inspections say, by the place where a neuron's value is read, `"{block}.{projection}.{index}"`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, inspection in contents.inspections.items():
        for neuron in inspection.neurons:
            key = f"{site_of(neuron.address)}.{neuron.index}"
            found.setdefault(key, []).append(_profile(name, inspection, neuron))
    return found


def made_of(contents: Contents) -> Iterator[list[str]]:
    """Of each file what it is, its language, what was read, its rule, and its SHA-256."""
    for name, one in contents.scores.items():
        corpus, method = one.metadata.corpus, one.metadata.method
        source = published(corpus.source or "an unnamed corpus")
        read = f"{corpus.documents:,} documents, {corpus.tokens:,} tokens of {source}"
        yield ["scores", name, f"{method.name}; {read}", one.digest]
    for name, neurons in contents.sets.items():
        about = f"{len(neurons):,} neurons, {neurons.metadata.language or 'no language'}"
        yield ["neurons", name, f"{about}; {rule_in_words(neurons.metadata)}", neurons.digest]
    for name, found in contents.inspections.items():
        read = ", ".join(f"{language} {corpus.documents:,}" for language, corpus in found.corpora.items())
        yield ["inspection", name, f"{len(found.neurons):,} neurons of {portable(found.model)}; documents: {read}", "–"]


def _profile(name: str, inspection: Inspection, neuron: NeuronProfile) -> dict[str, Any]:
    numbers = inspection.by_language(neuron)
    return {
        "file": visible(name),
        "name": neuron.name,
        "measure": inspection.measure,
        "value": visible(neuron.value),
        "large": neuron.large,
        "languages": [
            {
                "name": visible(one.language),
                "number": numbers[one.language],
                "size": one.mean_size,
                "mean": one.mean,
                "large": one.large,
                "firings": list(map(_firing, one.firings)),
            }
            for one in neuron.languages
        ],
        "how": visible(neuron.writing.how),
        "promoted": list(map(_written, neuron.writing.promoted)),
        "suppressed": list(map(_written, neuron.writing.suppressed)),
    }


def _firing(firing: Firing) -> list[Any]:
    before, token, after = visible(firing.before.lstrip()), visible_token(firing.token), visible(firing.after)
    return [firing.value, before, token, after, firing.document, firing.position]


def _written(token: WrittenToken) -> list[Any]:
    return [visible_token(token.text), token.logit, token.token_id]


@cache
def _script() -> str:
    """As it stands in the page: what the content policy has the digest of."""
    return f"\n{files('plnd.explorer').joinpath('templates', 'explore.js').read_text(encoding='utf-8')}"
