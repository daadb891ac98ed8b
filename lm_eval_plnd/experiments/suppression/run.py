"""Searches the neurons, and what to do to them, that stop a model's answers in one language; reports on others.

The choice sees the validation questions and texts, the report the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextlib import suppress as suppress_error
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_plnd.experiments.ablation.run import ORIGINAL, Effect, effects
from lm_eval_plnd.experiments.changes import Estimate, estimate
from lm_eval_plnd.experiments.evaluation import Values
from lm_eval_plnd.experiments.kept import Kept
from lm_eval_plnd.experiments.questions import Halves, Rate, Row, answers, in_turn, slips, speaks
from lm_eval_plnd.experiments.results import BITS, BYTES
from lm_eval_plnd.experiments.suppression.config import SuppressConfig
from lm_eval_plnd.experiments.suppression.texts import Texts
from lm_eval_plnd.scoring.confusion import confusion_scores, prose
from lm_eval_plnd.scoring.relevance import relevance
from plnd.comparison.documents import Document
from plnd.comparison.evaluation import document_nats
from plnd.errors import NotFoundError, PLNDError
from plnd.interventions import Intervention
from plnd.neurons.contrast import contrast
from plnd.secrets import portable
from plnd.statistics import relative_lengths

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from plnd.neurons.neuron_set import NeuronSet
    from plnd.neurons.scores import Scores

TEXTS_AT_ONCE = 4
"""Of longer texts all logits are made: few at a time."""
SLIPS, ANSWERS, FAITHFUL, ABOUT = "slips", "answers", "faithful", "about"
"""What is said of answers: of those to questions in the kept languages whether they slip into the language, whether all
that can be told of them is in the language of the question (0 where nothing can), and whether they are about it (0, 0.5
or 1); of those to questions in the language whether they are in it."""


@dataclass(frozen=True)
class Candidate:
    """Neurons, and what their values are multiplied by."""

    neurons: NeuronSet
    factor: float

    @property
    def intervention(self) -> Intervention:
        """What is done to them."""
        return Intervention("scale", float(self.factor)) if self.factor else Intervention()

    def random_like(self, seed: int) -> Candidate:
        """As many random neurons of each block and projection, and the same factor."""
        return Candidate(self.neurons.random_like(seed), self.factor)


@dataclass(frozen=True)
class Material:
    """What a model is measured on: questions in the kept languages and in the one to stop, and texts."""

    kept: Sequence[Row]
    own: Sequence[Row]
    texts: Mapping[str, Sequence[Document]]


@dataclass(frozen=True)
class Measured:
    """What a model did.

    Attributes:
        said: the answers, to the questions in the kept languages and to those in the language.
        verdicts: `SLIPS`, … to one number for each of those answers, [questions].
        nats: language to the loss on each of its texts, [documents].
    """

    said: tuple[list[str], list[str]]
    verdicts: Mapping[str, np.ndarray]
    nats: Mapping[str, np.ndarray]

    def rate(self, name: str) -> Rate:
        """How many answers."""
        return Rate.among(self.verdicts[name])


@dataclass(frozen=True)
class Point:
    """A candidate on the curve.

    Attributes:
        neurons: how many.
        factor: what their values are multiplied by.
        slips, answers, faithful: rates, of the validation questions.
        about: mean relevance of the answers to questions in the kept languages.
        cost: what the kept languages' bits per byte rise by, the mean over languages.
        costs: language to the same of it alone.
    """

    neurons: int
    factor: float
    slips: Rate
    answers: Rate
    faithful: Rate
    about: float
    cost: Estimate
    costs: Mapping[str, Estimate]

    def rate(self, stop: str) -> float:
        """The rate of the unwanted language."""
        rates = {"slips": [self.slips], "answers": [self.answers]}.get(stop, [self.slips, self.answers])
        return max(rate.value for rate in rates)


@dataclass(frozen=True)
class Suppression:
    """What came of a search.

    Attributes:
        language: that was to be stopped.
        kept: languages.
        model: its name.
        config: how it was searched.
        original: the model as it is, on the validation half.
        points: the candidates, by number of neurons and factor.
        chosen: which of them was; None where none reaches the target.
        candidate: the same, with its neurons.
        effects: what it changes in each rate and language on the report half, beside as many random neurons.
        rates: setting to rate to how many answers, on the report half; of random neurons those of all draws together.
        by_language: kept language to setting to slips.
        said: of the report half, what the model answered: a record for each question and setting.
    """

    language: str
    kept: tuple[str, ...]
    model: str | None
    config: SuppressConfig
    original: Point
    points: tuple[Point, ...]
    chosen: Point | None = None
    candidate: Candidate | None = None
    effects: tuple[Effect, ...] = ()
    rates: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    by_language: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    said: tuple[Mapping[str, Any], ...] = ()

    def why_none(self) -> str:
        """In one line, why nothing was chosen."""
        asked = f"a rate of {self.config.target:g} on {self.config.questions} validation questions"
        if self.original.rate(self.config.stop) <= self.config.target:
            return (
                f"nothing to suppress: the model as it is answers in {self.language} at"
                f" {self.original.rate(self.config.stop):.3f}, within {asked}; no mask is written"
            )
        best = min(self.points, key=lambda point: (point.rate(self.config.stop), point.cost.value))
        done = f"times {best.factor:g}" if best.factor else "off"
        return (
            f"nothing reaches {asked}: {best.neurons:,} neurons {done} come nearest, from"
            f" {self.original.rate(self.config.stop):.3f} to {best.rate(self.config.stop):.3f}; no mask is written:"
            " allow a larger --target, larger --shares, or smaller --times"
        )


def candidates(
    own: Scores, others: Sequence[Scores], config: SuppressConfig, projections: Iterable[str] | None = None
) -> list[Candidate]:
    """Nested sets of the neurons that matter more for a language than for others, each with every factor.

    Args:
        own: scores of the language.
        others: of those that it is compared with.
        config: which shares, times and factors.
        projections: choose only from these, as `plnd.contrast` takes them.

    Raises:
        PLNDError: if the scores cannot be compared, or no neuron has the least contrast.
    """
    share, times = max(config.shares), sorted(config.times)
    tiers = [contrast(own, others, share=share, times=times[0], projections=projections)]
    of = tiers[0].metadata.rule["chosen_from"]
    for more in times[1:]:
        with suppress_error(PLNDError):  # no neuron matters so many times as much
            tiers.insert(0, contrast(own, others, share=share, times=more, projections=projections))
    largest = _first(tiers, sum(map(len, tiers)))
    sizes = {min(round(share * of), len(largest)) for share in config.shares} - {0}
    return [
        Candidate(_first(tiers, size), factor)
        for size in sorted(sizes)
        for factor in sorted(config.factors, reverse=True)
    ]


def _first(tiers: Sequence[NeuronSet], size: int) -> NeuronSet:
    """So many neurons, if there are: those of the first tier, the most important ones first, then those of the next."""
    found = tiers[0].top(size)
    for tier in tiers[1:]:
        if (missing := size - len(found)) > 0:
            found = found | (tier - found).top(missing)
    return found


def material(
    halves: Halves, texts: Mapping[str, Texts], language: str, kept: Sequence[str]
) -> tuple[Material, Material]:
    """What is measured to choose by, and what is reported. Questions are asked in one kept language after the other."""
    validation = {x: texts[x].validation for x in kept}
    report = {x: texts[x].report for x in (language, *kept)}
    return (
        Material(in_turn(halves.validation, kept), halves.validation[language], validation),
        Material(in_turn(halves.report, kept), halves.report[language], report),
    )


def measure(
    lm: HFLM,
    candidate: Candidate | None,
    on: Material,
    language: str,
    config: SuppressConfig,
    *,
    chat: bool,
    kept: Kept | None = None,
) -> Measured:
    """What the model says, and how well it predicts texts, with a candidate applied or as it is.

    Args:
        lm: lm-eval's model.
        candidate: None is the model as it is.
        on: questions and texts.
        language: the unwanted one.
        config: how many tokens an answer has.
        chat: ask through the tokenizer's chat template.
        kept: what was measured before.
    """
    asked = [*on.kept, *on.own]

    def found() -> dict[str, Any]:
        done = nullcontext() if candidate is None else candidate.intervention.applied(lm.model, candidate.neurons)
        with done:
            said = answers(lm, asked, tokens=config.tokens, chat=chat)
            nats = {x: document_nats(lm.model, documents, TEXTS_AT_ONCE) for x, documents in on.texts.items()}
        return {"answers": said, "nats": {x: values.tolist() for x, values in nats.items()}}

    about = {
        "neurons": None if candidate is None else [candidate.neurons.digest, candidate.factor],
        "prompts": [row["prompt"] for row in asked],
        "generation": [config.tokens, chat, config.batch_size],
        "texts": {x: [document.ids for document in documents] for x, documents in on.texts.items()},
    }
    result = (kept or Kept()).get("answers", about, found)
    of_kept, of_own = result["answers"][: len(on.kept)], result["answers"][len(on.kept) :]
    others = sorted({row["language"] for row in on.kept})
    both = list(zip(on.kept, of_kept, strict=True))
    verdicts = {
        SLIPS: [slips(row, answer, language) for row, answer in both],
        ANSWERS: [speaks(row, answer, language, others) for row, answer in zip(on.own, of_own, strict=True)],
        FAITHFUL: [confusion_scores(row, [answer]).get("lpr", 0.0) for row, answer in both],
        ABOUT: [_about(row, answer) for row, answer in both],
    }
    return Measured(
        (of_kept, of_own),
        {name: np.array(values, float) for name, values in verdicts.items()},
        {x: np.array(values) for x, values in result["nats"].items()},
    )


def _about(row: Row, answer: str) -> float:
    text = " ".join(prose(answer, [row["question"], row["instruction"]]))
    return relevance(text, {one["language"]: one["concepts"] for one in row["terms"]})


def suppress(
    lm: HFLM,
    found: Sequence[Candidate],
    halves: Halves,
    texts: Mapping[str, Texts],
    language: str,
    kept: Sequence[str],
    config: SuppressConfig | None = None,
    *,
    chat: bool = True,
    measured_before: Kept | None = None,
) -> Suppression:
    """Measures every candidate on the validation half, chooses by `RULE`, and measures that one on the report half.

    Args:
        lm: lm-eval's model, loaded (`lm_eval_plnd.experiments.evaluation.load_lm`); it ends as it began.
        found: from `candidates`.
        halves: questions in all languages (`lm_eval_plnd.experiments.questions.halves`).
        texts: of all languages (`lm_eval_plnd.experiments.suppression.texts.read_texts`).
        language: whose answers are to stop.
        kept: languages that are to stay.
        config: how.
        chat: ask through the tokenizer's chat template.
        measured_before: where measurements are kept, so that a search that was killed goes on.

    Returns:
        The search; `chosen` is None where none reaches the target, or the model as it is does. There is no report then.

    Raises:
        ModelMismatchError: if the candidates are of another model.
        PLNDError: if the language is among the kept ones, or there is none of these, or no candidate.
    """
    from tqdm import tqdm

    config = config or SuppressConfig()
    if language in kept or not kept:
        raise PLNDError(f"kept languages {', '.join(kept) or 'none'}: expected at least one other than {language}")
    if not found:
        raise PLNDError("no candidates: expected at least one set of neurons")
    with found[-1].intervention.applied(lm.model, found[-1].neurons):  # refuses now what it cannot do
        pass
    choose_on, report_on = material(halves, texts, language, kept)
    model = portable(lm.pretrained if isinstance(lm.pretrained, str) else found[0].neurons.model.name)
    with tqdm(total=len(found) + 3 + config.draws, desc="suppress", unit=" settings", file=sys.stderr) as bar:

        def measured(candidate: Candidate | None, on: Material) -> Measured:
            result = measure(lm, candidate, on, language, config, chat=chat, kept=measured_before)
            bar.update()
            return result

        before = measured(None, choose_on)
        original = point(None, before, before, choose_on)
        about = (language, tuple(kept), model, config, original)
        if original.rate(config.stop) <= config.target:
            return Suppression(*about, ())
        points = [point(candidate, measured(candidate, choose_on), before, choose_on) for candidate in found]
        chosen = choose(points, config.target, config.stop)
        if chosen is None:
            return Suppression(*about, tuple(points))
        candidate = found[points.index(chosen)]
        settings = {ORIGINAL: None, "neurons": candidate}
        settings |= {f"random{seed}": candidate.random_like(seed) for seed in range(config.draws)}
        results = {name: measured(one, report_on) for name, one in settings.items()}
    return Suppression(*about, tuple(points), chosen, candidate, **_report(results, report_on, kept))


def point(candidate: Candidate | None, now: Measured, before: Measured, on: Material) -> Point:
    """A candidate's place on the curve; None is the model as it is."""
    groups = [_change(now, before, x, documents) for x, documents in on.texts.items()]
    costs = {x: estimate([(1.0, *group)]) for x, group in zip(on.texts, groups, strict=True)}
    return Point(
        0 if candidate is None else len(candidate.neurons),
        1.0 if candidate is None else candidate.factor,
        now.rate(SLIPS),
        now.rate(ANSWERS),
        now.rate(FAITHFUL),
        float(now.verdicts[ABOUT].mean()),
        estimate([(1 / len(groups), *group) for group in groups]),
        costs,
    )


def choose(points: Sequence[Point], target: float, stop: str) -> Point | None:
    """The one that `RULE` says; None if no rate is low enough."""
    low = [one for one in points if one.rate(stop) <= target]
    return min(low, key=lambda one: (one.cost.value, one.neurons, -one.factor), default=None)


def _change(
    now: Measured, before: Measured, language: str, documents: Sequence[Document]
) -> tuple[np.ndarray, np.ndarray]:
    """Differences in bits per byte of each document times its length, and the lengths, [documents] both."""
    sizes = np.array([document.size for document in documents], float)
    lengths = relative_lengths(sizes)
    return (now.nats[language] - before.nats[language]) / log(2) / sizes * lengths, lengths


def _report(results: Mapping[str, Measured], on: Material, kept: Sequence[str]) -> dict[str, Any]:
    """What `Suppression` says of the report half."""
    values: dict[str, Values] = {}
    for name, found in results.items():
        values[name] = {verdict: {"rate": list(numbers)} for verdict, numbers in found.verdicts.items()}
        for language, documents in on.texts.items():
            sizes = [float(document.size) for document in documents]
            bits = [float(n) / log(2) / size for n, size in zip(found.nats[language], sizes, strict=True)]
            values[name][language] = {BITS: bits, BYTES: sizes}
    better = {verdict: {"rate": verdict in (FAITHFUL, ABOUT)} for verdict in (SLIPS, ANSWERS, FAITHFUL, ABOUT)}
    better |= {language: {BITS: False} for language in on.texts}
    merged = {name: [results[name]] for name in (ORIGINAL, "neurons")}
    if random := [found for name, found in results.items() if name not in merged]:
        merged["random"] = random

    def rate(setting: str, verdict: str, language: str | None = None) -> Rate:
        chosen = [n for n, row in enumerate(on.kept) if row["language"] == language]
        all_of = [found.verdicts[verdict] for found in merged[setting]]
        return Rate.among(np.concatenate([one if language is None else one[chosen] for one in all_of]))

    return {
        "effects": tuple(effects(values, better)),
        "rates": {x: {verdict: rate(x, verdict) for verdict in (SLIPS, ANSWERS, FAITHFUL)} for x in merged},
        "by_language": {x: {setting: rate(setting, SLIPS, x) for setting in merged} for x in kept},
        "said": tuple(
            {
                "setting": setting,
                "id": row["id"],
                "asked_in": row["language"],
                "prompt": row["prompt"],
                "answer": answer,
            }
            for setting, found in results.items()
            for rows, said in zip((on.kept, on.own), found.said, strict=True)
            for row, answer in zip(rows, said, strict=True)
        ),
    }


def check_found(found: Suppression) -> None:
    """Refuses a search that chose nothing.

    Raises:
        NotFoundError: saying in one line why.
    """
    if found.chosen is None:
        raise NotFoundError(found.why_none())
