"""Language-specific neurons by activation probability entropy (LAPE, Tang et al. 2024, arXiv:2402.16438).

The rule is that of RUCAIBox/Language-Specific-Neurons, `identify.py`, on the scores of several languages' corpora.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plnd.errors import PLNDError
from plnd.io.metadata import NeuronsMetadata
from plnd.model_description import check_model
from plnd.neurons.contrast import check_corpora, check_settings
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores
from plnd.neurons.selection import by_address, chosen_addresses, listed, sites
from plnd.numbers import is_real

TOP_RATE = 0.01
"""The paper's share of all neurons, those of lowest entropy, that are language-specific."""
FILTER_RATE = 0.95
"""A neuron counts only if its activation probability in some language is above this quantile of all of them."""
BAR_RATE = 0.95
"""A language-specific neuron belongs to the languages in which its probability is above this quantile."""


def lape(
    scores: Sequence[Scores],
    *,
    top_rate: float | None = None,
    fraction: float | None = None,
    projections: Iterable[str] | None = None,
    regions: Regions | None = None,
) -> list[NeuronSet]:
    """The neurons that are specific to each of several languages, by the entropy of their activation over languages.

    With p the activation probability of a neuron in each language (over all tokens of its corpus, which is what `mean`
    holds in these scores) and p' = p / Σp, the entropy is -Σ p' ln p'. Neurons whose p is nowhere above the
    `FILTER_RATE` quantile of all neurons' p in all languages are left out. Of the others, those of lowest entropy are
    specific, each to the languages in which its p is above the `BAR_RATE` quantile; it may be to several.

    With scores of `method="activation"` p is the mean activation.

    Args:
        scores: one for each language, of one model, from `detect` with `method="lape"` (or all with `"activation"`).
        top_rate: share of all neurons, of lowest entropy, that are specific; `TOP_RATE` if `fraction` is not given.
        fraction: instead, what share of the neurons each language gets: those of lowest entropy that belong to it (all
            there are, if those are fewer).
        projections: of `gate_proj`, `up_proj` and `down_proj`, whose neurons share a number, the ones that are listed
            in the result; any one of them switches the neuron off. By default all.
        regions: only there; quantiles and shares are of the neurons there.
    Returns:
        As many sets as scores, in order. A neuron's importance is ln(languages) - entropy, so that `top(n)` keeps those
        of lowest entropy.

    Raises:
        PLNDError: if there are fewer than two languages, both rules are given or one makes no sense, or the scores were
            not made for this, or with different settings.
        ModelMismatchError: if the scores are of different models.
    """
    scores, projections = list(scores), listed(projections)
    if top_rate is not None and fraction is not None:
        raise PLNDError("expected one of top_rate and fraction, found both")
    name, value = (
        ("fraction", fraction) if fraction is not None else ("top_rate", TOP_RATE if top_rate is None else top_rate)
    )
    if not (is_real(value) and 0 < value <= 1):
        raise PLNDError(f"{name}={value!r}: expected a number above 0 and at most 1")
    _check(scores)
    first = scores[0]
    widths = {address: len(values) for address, values in first.mean.items()}
    chosen = chosen_addresses(widths, first.metadata.model.blocks, projections, regions)
    if not chosen:
        scored = ", ".join(first.metadata.method.projections)
        raise PLNDError(f"no neuron to select from: these scores cover {scored}")
    blocks = sites(chosen)  # the addresses of each, whose neurons are one and the same
    probability = np.stack([np.concatenate([s.mean[a[0]] for a in blocks]).astype(np.float64) for s in scores], axis=-1)
    entropy, ordered, limits = _order(probability)
    specific = probability > limits["bar"]
    if name == "top_rate":
        ordered = ordered[: round(len(entropy) * value)]
        found = [ordered[specific[ordered, language]] for language in range(len(scores))]
    else:
        count = round(len(entropy) * value)
        found = [ordered[specific[ordered, language]][:count] for language in range(len(scores))]
    rule = {
        "name": "lape",
        name: float(value),
        "filter_rate": FILTER_RATE,
        "bar_rate": BAR_RATE,
        **limits,
        "projections": projections,
        "regions": regions.description() if regions else None,
    }
    # A neuron that is active in one language only has entropy 0 and the largest importance.
    importance = np.clip(math.log(len(scores)) - entropy, 0, None).astype(np.float32)
    return [_neurons(scores, n, rows, blocks, importance, rule) for n, rows in enumerate(found)]


def _order(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Entropies, the neurons that pass the filter by ascending entropy (ties in order), and both quantiles.

    Args:
        probability: [neurons, languages].
    """
    total = probability.sum(-1, keepdims=True)
    share = np.divide(probability, total, out=np.zeros_like(probability), where=total > 0)
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * logarithm).sum(-1)
    every = np.sort(probability, axis=None)
    limits = {
        name: float(every[max(round(len(every) * rate), 1) - 1])
        for name, rate in (("filter", FILTER_RATE), ("bar", BAR_RATE))
    }
    passing = np.flatnonzero((probability > limits["filter"]).any(-1))
    return entropy, passing[np.argsort(entropy[passing], kind="stable")], limits


def _check(scores: list[Scores]) -> None:
    if len(scores) < 2:
        raise PLNDError(f"entropy is taken over languages: expected scores of two or more, found {len(scores)}")
    methods = [s.metadata.method.name for s in scores]
    for method in methods:
        if method not in ("lape", "activation"):
            raise PLNDError(
                f"these scores were detected with method={method}, and entropy is taken of activations: detect with"
                " --method lape (or activation), or compare by contrast (--count or --share instead)"
            )
    if len(set(methods)) > 1:
        raise PLNDError("some of these scores were detected with method=lape and some with method=activation")
    for n, other in enumerate(scores[1:], 2):
        check_model(other.metadata.model, scores[0].metadata.model, f"scores {n}")
    check_settings(scores)
    check_corpora(scores)


def _neurons(
    scores: list[Scores],
    number: int,
    rows: np.ndarray,
    blocks: list[list[str]],
    importance: np.ndarray,
    rule: dict[str, Any],
) -> NeuronSet:
    """The set of one language, from rows that count the neurons of all blocks one after the other."""
    own = scores[number]
    widths = {address: len(values) for address, values in own.mean.items()}
    others = [s for n, s in enumerate(scores) if n != number]
    against = [{"language": s.metadata.language, "sha256": s.digest} for s in others]
    metadata = NeuronsMetadata.selected(own.metadata, {**rule, "against": against}, own.digest)
    return NeuronSet(*by_address(rows, importance, blocks, widths), metadata)
