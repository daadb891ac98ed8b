"""Neurons that serve one language, or a group of languages, more than the others: the contrast of their importance.

The statistics are `contrast_of`, how many times as important a neuron is, and `excess_of`, by how much; all else here
checks that scores can be compared, and keeps the neurons of sufficient contrast and largest excess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from plnd.errors import ModelMismatchError, PLNDError
from plnd.io.metadata import NeuronsMetadata
from plnd.model_description import ModelDescription, check_model
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import LOGS_SINCE, Scores
from plnd.neurons.selection import GROUPS, by_address, chosen_addresses, listed, sites
from plnd.numbers import is_real, is_whole

TIMES = 2.0
"""How many times as important as in any other language a neuron has to be (docs/arena.md says why)."""
DEFAULT_SHARE = 0.001
"""Of all neurons, where the caller says neither how many nor how sure."""
DEFAULT_ERROR_RATE = 0.05
"""The error rate that comes with it."""
ONCE = GROUPS["once"]
"""The projections chosen from by default: each feed-forward neuron once, at its column of `down_proj`."""


def contrast(
    own: Scores | Sequence[Scores],
    others: Scores | Sequence[Scores],
    *,
    count: int | None = None,
    share: float | None = None,
    error_rate: float | None = None,
    times: float = TIMES,
    projections: str | Iterable[str] | None = None,
    regions: Regions | None = None,
) -> NeuronSet:
    """The neurons that matter much more for one language than for any of the others, those that matter most first.

    With m the mean over a language's documents of ln(importance / median importance of the projection in that document)
    (`Scores.mean_log`), a neuron's contrast is m of the own language minus the largest m of the others: ln 2 where it
    is twice as important here as in the next language. Only neurons with a contrast of at least ln(`times`), and with m
    above 0 (more important than the median neuron), are kept. They are ordered by their excess, exp(m) of the own
    language minus `times` the largest exp(m) of the others, in units of the median neuron of their projection; of
    relevance, which has one unit over the whole model, that is times this neuron's relevance in the own language. Of
    several own languages, a group, each must show this: contrast and excess are those of the weakest.

    Without `count`, `share` and `error_rate`, the share is `DEFAULT_SHARE` and the error rate `DEFAULT_ERROR_RATE`.

    Args:
        own: scores of the language, or of each language of a group (a family, a script, all but one), from `detect`.
        others: of the languages that it is compared with, of the same model and detected with the same settings.
        count: so many neurons, over the whole model, of largest excess.
        share: instead, this share of all neurons chosen from.
        error_rate: only neurons whose contrast is no accident of the documents: of all that pass, at most this share is
            expected to pass by chance. One-sided Welch tests of m over documents, own above each other language; of
            a neuron's tests the largest p-value counts (an intersection-union test), and those are corrected for the
            number of neurons chosen from (Benjamini and Hochberg 1995). Alone it keeps all that pass.
        times: how many times as important as in any of the others, at least 1.
        projections: choose only from these; by default from all, each feed-forward neuron once, as a column of
            `down_proj`: its rows of `gate_proj` and `up_proj` share its importance, and any one of the three switches
            it off. Where several of the three are named, a neuron counts once and is listed in each.
        regions: choose only from these.
    Returns:
        The neurons, the excess (float32) as their importance. There may be fewer than asked for, if no more have the
        contrast (and pass): `rule.asked` and `rule.kept` in the metadata are both numbers.

    Raises:
        PLNDError: if a number makes no sense, the scores cannot be compared (made by other methods or settings, of one
            language or one corpus, of format version 1, or of too few documents for an error rate), or no neuron is
            kept.
        ModelMismatchError: if the scores are of different models.
    """
    found = Comparison.of(own, others, count, share, error_rate, times, projections, regions)
    ordered = found.chosen()
    first, places = found.scores[0][0], found.places
    rule = {
        "name": "contrast",
        "count": found.asked if share is None else None,
        "share": None if found.share is None else float(found.share),
        "error_rate": None if found.error_rate is None else float(found.error_rate),
        "times": float(times),
        "asked": found.asked,
        "kept": len(ordered),
        "chosen_from": found.neurons,
        "log_floor": first.metadata.method.log_floor,
        "projections": found.projections,
        "regions": regions.description() if regions else None,
        "with": named(found.scores[0][1:]),
        "against": named(found.scores[1]),
    }
    metadata = NeuronsMetadata.selected(first.metadata, rule, first.digest)
    widths = {address: len(values) for address, values in first.minimum.items()}
    return NeuronSet(*by_address(ordered, found.excess().astype(np.float32), places, widths), metadata)


@dataclass(frozen=True)
class Comparison:
    """What `contrast` chooses by.

    Attributes:
        scores: those of the own languages, and of the others.
        own, others: means and deviations of the logs.
        units: what the excess is counted in, in each own language, [languages, neurons].
        places: addresses of the projections chosen from; those that share their neurons stand together.
        times, error_rate, share, asked, projections: the rule, with its defaults.
    """

    scores: tuple[list[Scores], list[Scores]]
    own: list[_Statistic]
    others: list[_Statistic]
    units: np.ndarray
    places: Sequence[Sequence[str]]
    times: float
    error_rate: float | None
    share: float | None
    asked: int | None
    projections: list[str] | None

    @classmethod
    def of(
        cls,
        own: Scores | Sequence[Scores],
        others: Scores | Sequence[Scores],
        count: int | None,
        share: float | None,
        error_rate: float | None,
        times: float,
        projections: str | Iterable[str] | None,
        regions: Regions | None,
    ) -> Comparison:
        """Checks all that `contrast` is given."""
        own, others = _listed(own), _listed(others)
        if count is None and share is None and error_rate is None:
            share, error_rate = DEFAULT_SHARE, DEFAULT_ERROR_RATE
        check_numbers(count, share, error_rate, times)
        names = listed(ONCE if projections is None else projections)
        check_comparable(own, others)
        first = own[0]
        widths = {address: len(values) for address, values in first.minimum.items()}
        chosen = chosen_addresses(widths, first.metadata.model.blocks, names, regions)
        if not chosen:
            scored = ", ".join(first.metadata.method.projections)
            raise PLNDError(f"no neuron to select from: these scores cover {scored}")
        _check_measured([*own, *others], chosen)
        if error_rate is not None:
            check_documents(
                [*own, *others],
                "an error rate takes two or more: detect on more documents, or give a count or a share alone",
            )
        places = sites(chosen)
        neurons = sum(widths[addresses[0]] for addresses in places)
        asked = None if count is None else int(count)
        if share is not None:
            asked = round(share * neurons)
            if not asked:
                advice = "give a larger share, or a count"
                raise PLNDError(f"share={share:g}: less than one of the {neurons:,} neurons chosen from; {advice}")
        here, elsewhere = ([_Statistic.of(scores, places) for scores in side] for side in (own, others))
        units = np.stack([_units(scores, places) for scores in own])
        return cls((own, others), here, elsewhere, units, places, times, error_rate, share, asked, names)

    @property
    def neurons(self) -> int:
        """How many are chosen from."""
        return len(self.own[0].mean)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean logs of the own languages and of the others, [languages, neurons] each."""
        own, others = (np.stack([statistic.mean for statistic in side]) for side in (self.own, self.others))
        return own, others

    def excess(self) -> np.ndarray:
        """As `excess_of`, [neurons]."""
        return excess_of(*self.means, self.times, self.units)

    def more(self) -> np.ndarray:
        """Which neurons are above the median and have the contrast, [neurons] boolean."""
        own, others = self.means
        contrasts = contrast_of(own, others)
        # once as important is not more important
        return (own > 0).all(0) & (contrasts >= math.log(self.times)) & (contrasts > 0)

    def limit(self) -> float | None:
        """The largest p-value that the error rate allows; None without one."""
        if self.error_rate is None:
            return None
        from scipy.stats import false_discovery_control

        found = _p_values(self.own, self.others, slice(None))
        passing = found[false_discovery_control(found) <= self.error_rate]
        return float(passing.max(initial=-1.0))

    def ordered(self, limit: float | None) -> np.ndarray:
        """The neurons that are kept, the largest excess first, where the error rate allows p-values up to `limit`."""
        found = np.flatnonzero(self.more())
        if limit is not None:
            found = found[_p_values(self.own, self.others, found) <= limit]
        excess = self.excess()[found]
        return found[np.argsort(-excess, kind="stable")][: self.asked]  # ties: by address and index

    def chosen(self) -> np.ndarray:
        """The neurons that are kept, the largest excess first.

        Raises:
            PLNDError: if none is, saying where the last one was lost.
        """
        found = self.ordered(self.limit())
        if not len(found):
            above, more = int((self.means[0] > 0).all(0).sum()), int(self.more().sum())
            counts = {"chosen from": self.neurons, "above the median": above, "more so than elsewhere": more}
            raise PLNDError(_why_none(*self.scores, counts, self.error_rate, self.times))
        return found

    def moved(self, random: np.random.Generator) -> Comparison:
        """The same with mean logs as they might be of other documents."""
        own, others = ([statistic.moved(random) for statistic in side] for side in (self.own, self.others))
        return replace(self, own=own, others=others)


def contrast_of(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Smallest mean log of the own languages minus the largest of the others, [neurons] float64.

    Args:
        own: mean logs of each own language, [languages, neurons].
        others: of each of the others, [languages, neurons].
    """
    return own.min(0) - others.max(0)


def excess_of(own: np.ndarray, others: np.ndarray, times: float, units: np.ndarray) -> np.ndarray:
    """By how much the own language's importance is above `times` the largest of the others, [neurons] float64.

    Args:
        own: mean logs of each own language, [languages, neurons].
        others: of each of the others, [languages, neurons].
        times: how many times as important a neuron has to be.
        units: importance of the median neuron in each own language, [languages, neurons].
    """
    return (units * (np.exp(own) - times * np.exp(others.max(0)))).min(0)


def _units(scores: Scores, places: Sequence[Sequence[str]]) -> np.ndarray:
    """What a neuron's excess is counted in, [neurons]: 1, its projection's median; of relevance that median itself."""
    widths = [len(scores.mean[addresses[0]]) for addresses in places]
    if scores.metadata.method.name != "relevance":
        return np.ones(sum(widths))
    medians = [float(np.median(scores.mean[addresses[0]])) for addresses in places]
    return np.repeat(medians, widths)


class _Statistic(NamedTuple):
    """Mean and standard deviation over documents of every neuron's log, [neurons] float64, and how many documents."""

    mean: np.ndarray
    deviation: np.ndarray
    documents: int

    @classmethod
    def of(cls, scores: Scores, places: Sequence[Sequence[str]]) -> _Statistic:
        """Those of the neurons of some places (`plnd.neurons.selection.sites`), one after the other."""
        assert scores.mean_log is not None and scores.std_log is not None, "the version was checked"
        mean, deviation = (
            np.concatenate([vectors[addresses[0]] for addresses in places]).astype(np.float64)
            for vectors in (scores.mean_log, scores.std_log)
        )
        return cls(mean, deviation, scores.metadata.corpus.documents)

    def of_neurons(self, neurons: np.ndarray | slice) -> _Statistic:
        """Of these alone."""
        return self._replace(mean=self.mean[neurons], deviation=self.deviation[neurons])

    def moved(self, random: np.random.Generator) -> _Statistic:
        """With the mean of as many other documents: the difference of two such means is added."""
        step = self.deviation * math.sqrt(2 / self.documents)
        return self._replace(mean=self.mean + step * random.standard_normal(len(step)))


def _p_values(own: Sequence[_Statistic], others: Sequence[_Statistic], neurons: np.ndarray | slice) -> np.ndarray:
    """The p-value of some neurons being more important in every own language than in every other one, [neurons]."""
    from scipy.stats import ttest_ind_from_stats

    largest = np.zeros(len(own[0].mean[neurons]))
    with np.errstate(divide="ignore", invalid="ignore"):  # neurons whose documents all agree
        for one in own:
            for other in others:
                test = ttest_ind_from_stats(
                    *one.of_neurons(neurons), *other.of_neurons(neurons), equal_var=False, alternative="greater"
                )
                largest = np.maximum(largest, np.nan_to_num(test.pvalue, nan=1.0))
    return largest


def _listed(scores: Scores | Sequence[Scores]) -> list[Scores]:
    return [scores] if isinstance(scores, Scores) else list(scores)


def check_numbers(
    count: int | None = None, share: float | None = None, error_rate: float | None = None, times: float = TIMES
) -> None:
    """Refuses numbers that `contrast` cannot take.

    Raises:
        PLNDError: saying which, and what is expected.
    """
    if count is not None and share is not None:
        raise PLNDError("expected one of count and share, found both")
    if count is not None and not (is_whole(count) and count > 0):
        raise PLNDError(f"count={count!r}: expected a whole number above 0")
    if share is not None and not (is_real(share) and 0 < share <= 1):
        raise PLNDError(f"share={share!r}: expected a number above 0 and at most 1")
    if error_rate is not None and not (is_real(error_rate) and 0 < error_rate < 1):
        raise PLNDError(
            f"error_rate={error_rate!r}: expected a number above 0 and below 1, such as {DEFAULT_ERROR_RATE}"
        )
    if not (is_real(times) and 1 <= times < math.inf):
        raise PLNDError(f"times={times!r}: expected a number of at least 1, such as {TIMES:g}")


# what can be compared


def check_comparable(own: list[Scores], others: list[Scores]) -> None:
    """Refuses scores between which a difference of importance would not be one of languages.

    Raises:
        PLNDError: if they were made by other methods or settings, or are of one language or one corpus.
        ModelMismatchError: if they are of different models.
    """
    for side, name in ((own, "own"), (others, "others")):
        if not side:
            raise PLNDError(f"{name}: no scores, expected those of at least one language")
    for scores in (*own, *others):
        if scores.metadata.version < LOGS_SINCE:
            raise PLNDError(
                f"the scores of {_name(scores)} are of format version {scores.metadata.version}, without the logs that"
                " contrast compares: detect again with this plnd"
            )
    check_settings([*own, *others])
    _check_distinct(own, others)


def check_settings(scores: Sequence[Scores]) -> None:
    """Refuses scores whose numbers cannot stand beside each other: of other models, or made with other settings.

    Raises:
        PLNDError: naming the first difference.
        ModelMismatchError: if the scores are of different models.
    """
    for one in scores[1:]:
        first = scores[0]
        check_model(one.metadata.model, first.metadata.model, f"the scores of {_name(one)}")
        _check_weights(one, first)
        for setting, value in _settings(one).items():
            expected = _settings(first)[setting]
            if value != expected:
                raise PLNDError(
                    f"{setting} is {expected} in the scores of {_name(first)} and {value} in those of {_name(one)}:"
                    " their importances cannot be compared; detect again with the same settings"
                )


def _check_weights(scores: Scores, first: Scores) -> None:
    """Refuses two models of the hub, or two revisions of one, which `check_model` takes for one by their shape."""
    found, expected = (each.metadata.model for each in (scores, first))
    if found.hub and expected.hub and (found.name, found.revision) != (expected.name, expected.revision):
        raise ModelMismatchError(
            f"the scores of {_name(scores)} are of {_weights(found)}, and those of {_name(first)} of"
            f" {_weights(expected)}: detect all languages on one model"
        )


def _weights(model: ModelDescription) -> str:
    return f"{model.name} at {model.revision or 'an unknown revision'}"


def _settings(scores: Scores) -> dict[str, Any]:
    """What importance depends on beside the model and the documents."""
    metadata = scores.metadata
    method = {name: metadata.method.get(name) for name in ("name", "scoring", "qk", "log_floor")}
    return {
        "method": method.pop("name"),
        **method,
        "max_length": metadata.corpus.max_length,
        "projections": ", ".join(metadata.method.projections),
        "dtype": metadata.dtype,
        "quantisation": metadata.get("quantisation"),
        "deactivated": str(metadata.get("deactivated")),
    }


def _check_distinct(own: list[Scores], others: list[Scores]) -> None:
    """Refuses a language that is compared with itself, and one corpus in the place of two."""
    for scores in own:
        for other in others:
            if scores.metadata.language is not None and scores.metadata.language == other.metadata.language:
                raise PLNDError(
                    f"{scores.metadata.language} is among the others too: compare a language with other languages"
                )
    check_corpora([*own, *others])


def check_corpora(scores: Iterable[Scores]) -> None:
    """Refuses one corpus in the place of two.

    Raises:
        PLNDError: naming the two languages.
    """
    seen: dict[str, Scores] = {}
    for one in scores:
        sha256 = one.metadata.corpus.sha256
        if sha256 and sha256 in seen:
            raise PLNDError(
                f"the scores of {_name(seen[sha256])} and {_name(one)} are of one corpus, the same documents: give"
                " each language's scores once"
            )
        seen[sha256] = one


def _check_measured(scores: Iterable[Scores], chosen: Iterable[str]) -> None:
    """Refuses rows of queries and keys that were not all measured."""
    if not any(address.endswith((".q_proj", ".k_proj")) for address in chosen):
        return
    for each in scores:
        epsilon = each.metadata.method.epsilon
        if epsilon is not None:
            raise PLNDError(
                f"the scores of {_name(each)} were detected with epsilon={epsilon:g}, which leaves no logs in q_proj"
                " and k_proj: choose other projections, or detect again without epsilon"
            )


def check_documents(scores: Iterable[Scores], expected: str) -> None:
    """Refuses scores of one document where more are needed."""
    for each in scores:
        if each.metadata.corpus.documents < 2:
            raise PLNDError(
                f"the scores of {_name(each)} are of {each.metadata.corpus.documents} document, and {expected}"
            )


def _name(scores: Scores) -> str:
    return scores.metadata.language or f"{scores.metadata.corpus.source or 'a language without a name'}"


# what is kept


def _why_none(
    own: list[Scores], others: list[Scores], counts: dict[str, int], error_rate: float | None, times: float
) -> str:
    """Where the last neuron was lost, and what to do."""
    language, rest = "+".join(map(_name, own)), ", ".join(map(_name, others))
    found = f"no neuron serves {language} more than {rest}: of {counts['chosen from']:,} neurons"
    found += f" {counts['above the median']:,} are above the median in {language}"
    if not counts["above the median"]:
        return f"{found}; choose from more projections or regions"
    found += f", {counts['more so than elsewhere']:,} of them at least {times:g} times as important as elsewhere"
    if not counts["more so than elsewhere"]:
        return f"{found}; ask for fewer times, compare with fewer languages, or choose from more projections or regions"
    return (
        f"{found}, and none at an error rate of {error_rate:g}; detect on more documents, allow a higher error rate, or"
        " give a count or a share alone"
    )


def named(scores: Iterable[Scores]) -> list[dict[str, Any]]:
    """What a rule says of the scores of other languages."""
    return [{"language": each.metadata.language, "sha256": each.digest} for each in scores]
