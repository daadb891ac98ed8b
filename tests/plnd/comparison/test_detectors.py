"""The rules of the detectors, against their definitions neuron by neuron and on evidence made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plnd.comparison.config import DETECTORS
from plnd.comparison.detectors import RULES, Evidence, choose, difference, exceeding
from plnd.comparison.measures import BINS, MEASURES
from plnd.neurons.contrast import contrast
from plnd.neurons.scores import Scores

WIDTHS = {"0.down_proj": 30, "1.down_proj": 20}
MODEL = {"name": "made/by-hand", "revision": None, "model_type": "llama", "blocks": 2, "widths": WIDTHS}
LANGUAGES = ("en", "zh", "ru")


def made(own: str = "zh", count: int = 5, documents: int = 6, seed: int = 0) -> Evidence:
    """Random evidence in which neurons 3, 11 and 40 fire for the language `zh` only, in every measure."""
    generator = np.random.default_rng(seed)
    measured, tokens, sizes, binned = {}, {}, {}, {}
    for language in LANGUAGES:
        values = {name: generator.lognormal(0, 0.3, (documents, 50)).astype(np.float32) for name in MEASURES}
        values["probability"] = generator.uniform(0.2, 0.3, (documents, 50)).astype(np.float32)
        counts = generator.integers(5, 10, (50, BINS))
        if language == "zh":
            for name in MEASURES:
                values[name][:, [3, 11, 40]] *= 3 if name == "probability" else 30
            counts[[3, 11, 40]] = 0
            counts[[3, 11, 40], -1] = 99
        else:
            values["probability"][:, [3, 11, 40]] = 0.001
            values["attribution"] *= np.where(np.arange(50) == 20, -1, 1)
        values["square"] += values["value"] ** 2
        measured[language], binned[language] = values, counts
        tokens[language] = generator.integers(20, 60, documents)
        sizes[language] = tokens[language] * 3
    others = tuple(x for x in LANGUAGES if x != own)
    norms = np.arange(50, dtype=float)
    return Evidence(own, others, count, WIDTHS, measured, tokens, sizes, norms, binned, 0, MODEL)


def numbers(neurons) -> list[int]:
    """Its neurons, counted through both blocks."""
    return [int(k) + (30 if name.startswith("1") else 0) for name, ks in neurons.items() for k in ks]


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("weight", "random")])
def test_every_detector_finds_neurons_of_one_language(name):
    """Those that fire for it alone are in its set of three, and the metadata says which rule it was."""
    neurons = choose(name, made(count=3))
    assert numbers(neurons) == [3, 11, 40]
    assert neurons.metadata.rule["name"] == name and neurons.metadata.language == "zh"
    assert all((values >= 0).all() for values in neurons.importance.values())


def test_controls_see_no_language():
    """Weight magnitude takes the same neurons for all; random ones depend on language and sample alone."""
    assert numbers(choose("weight", made())) == numbers(choose("weight", made("en"))) == [45, 46, 47, 48, 49]
    drawn = numbers(choose("random", made()))
    assert len(drawn) == 5 and drawn == numbers(choose("random", made(seed=1))) != numbers(choose("random", made("en")))


@pytest.mark.parametrize("seed", range(5))
def test_difference_takes_the_strictest_limit(seed):
    """Of all limits, tried one by one, the smallest that leaves enough once the union of the others is taken away."""
    generator = np.random.default_rng(seed)
    entry, importance, count = generator.integers(0, 25, (3, 60)).astype(float), generator.random(60), 6
    left: set[int] = set()
    for limit in range(25):
        left = {k for k in range(60) if entry[0, k] <= limit and not (entry[1:, k] <= limit).any()}
        if len(left) >= count:
            break
    assert len(left) >= count
    found = difference(entry, count, importance)
    assert set(np.flatnonzero(found > -np.inf)) == left and all(found[k] == importance[k] for k in left)


def test_difference_takes_most_where_no_limit_leaves_enough():
    """A set may come short; it says so by its size."""
    found = difference(np.array([[1.0, 2, 3, 4], [5, 1, 1, 1]]), 3, np.ones(4))
    assert (found > -np.inf).tolist() == [True, False, False, False]


@pytest.mark.parametrize("method", ["plnd", "relevance"])
def test_excess_is_that_of_select(method):
    """The same neurons, in the same order, as `plnd.contrast` from a scores artifact with these logs and means."""
    generator = np.random.default_rng(0)
    logs = generator.normal(size=(3, 50)).astype(np.float32)
    scores = []
    for language, mean_log in zip(("zh", "en", "ru"), logs, strict=True):
        parts = dict(zip(WIDTHS, np.split(mean_log, [30]), strict=True))
        ones = {name: np.ones(width, dtype=np.float32) for name, width in WIDTHS.items()}
        means = {name: vector * scale for (name, vector), scale in zip(ones.items(), (1, 100), strict=True)}
        ranks = {name: np.zeros(width, dtype=np.int32) for name, width in WIDTHS.items()}
        said = choose("weight", made()).metadata
        corpus = {**said.corpus, "documents": 6, "sha256": language * 32}
        said_method = {"name": method, "projections": ["down_proj"]}
        metadata = {**said, "version": 2, "language": language, "corpus": corpus, "method": said_method}
        scores.append(Scores(ones, means, ranks, metadata, parts, ones))
    found = contrast(scores[0], scores[1:], count=5, projections=["down_proj"])
    units = np.repeat((1.0, 100.0) if method == "relevance" else (1.0, 1.0), list(WIDTHS.values()))
    values = exceeding(logs.astype(float), units)
    assert numbers(found) == sorted(np.argsort(-values, kind="stable")[:5].tolist())
    assert (values > -np.inf).sum() > 5


def test_excess_of_measured_documents():
    """Excess comes from the same mean logs as the contrast: it is above -inf where that is at least ln 2."""
    evidence = made()
    for name, measure in (("plnd", "importance"), ("relevance", "relevance")):
        excess, contrasts = RULES[f"{name}-excess"](evidence), RULES[f"{name}-contrast"](evidence)
        assert ((excess > -np.inf) == (contrasts >= np.log(2))).all() and measure in evidence.measured["zh"]
        assert (excess > -np.inf).any()


def test_diffmean_is_a_distance_in_pooled_deviations():
    """|own mean - mean of the others' means| over the root of the languages' mean variance, by hand."""
    evidence = made()
    stated = {"zh": (3.0, 10.0), "en": (1.0, 2.0), "ru": (-1.0, 5.0)}  # means, means of squares: variances 1, 1, 4
    for language, (mean, square) in stated.items():
        evidence.measured[language]["value"][:] = mean
        evidence.measured[language]["square"][:] = square
    np.testing.assert_allclose(RULES["diffmean"](evidence), 3 / np.sqrt(2))


def test_signed_attribution_is_own_minus_the_largest_other():
    """In bits per byte: each document counts by its bytes."""
    evidence = made()
    means = [np.average(evidence.measured[x]["attribution"], axis=0, weights=evidence.sizes[x]) for x in LANGUAGES]
    found = RULES["attribution-signed"](evidence)
    np.testing.assert_allclose(found, means[1] - np.maximum(means[0], means[2]), rtol=1e-6)


def test_overlap_wants_a_larger_mean():
    """A distribution apart from the others' is no sign of the language, where the values are smaller."""
    evidence = made()
    for language in LANGUAGES:
        evidence.measured[language]["size"][:, 11] = 1 if language == "zh" else 2
    assert numbers(choose("overlap", evidence))[:1] == [3] and 11 not in numbers(choose("overlap", evidence))


def test_fewer_documents_are_the_first_ones():
    """What a detector is given on a curve."""
    evidence = made().first(2)
    assert {len(values) for of in evidence.measured.values() for values in of.values()} == {2}
    assert {len(part[x]) for part in (evidence.tokens, evidence.sizes) for x in LANGUAGES} == {2}
