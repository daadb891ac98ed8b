"""Stability of a contrast: by hand, against samples that are really drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import plnd
from handmade import MODEL, scores_metadata
from plnd.errors import PLNDError
from plnd.neurons.scores import Scores

DOWN = "1.down_proj"
NEURONS = 400


def scores(language: str, logs: np.ndarray) -> Scores:
    """Scores of a language, of every neuron's log in every document, [documents, neurons]; the ranks say nothing."""
    metadata = scores_metadata(model={**MODEL, "widths": {DOWN: logs.shape[1]}}, language=language)
    about = {"documents": len(logs), "sha256": language.encode().hex().ljust(64, "0")}
    metadata["corpus"] = {**metadata["corpus"], **about}
    metadata["method"] = {**metadata["method"], "projections": ["down_proj"], "log_floor": 1e-3}
    ones, zeros = ({DOWN: np.full(logs.shape[1], x, dtype)} for x, dtype in ((1, "f4"), (0, "i4")))
    deviation = logs.std(0, ddof=1) if len(logs) > 1 else np.zeros(logs.shape[1])
    mean, std = ({DOWN: values.astype(np.float32)} for values in (logs.mean(0), deviation))
    return Scores(ones, ones, zeros, metadata, mean, std)


def sample(random: np.random.Generator, documents: int, spread: float) -> tuple[Scores, Scores]:
    """Two languages in documents drawn anew: the first neurons are special to zh, each a little less than the last."""
    effect = np.concatenate([np.linspace(3, 0, NEURONS // 4), np.zeros(NEURONS - NEURONS // 4)])
    logs = {x: spread * random.standard_normal((documents, NEURONS)) for x in ("zh", "en")}
    logs["zh"] += effect
    return scores("zh", logs["zh"]), scores("en", logs["en"])


def test_documents_that_all_agree_are_stable():
    """Without any spread other documents choose the same neurons; the number is 1, whatever the seed."""
    zh, en = sample(np.random.default_rng(0), 5, 0.0)
    assert plnd.stability(zh, en, count=20) == plnd.stability(zh, en, count=20, seed=1, draws=3) == 1


@pytest.mark.parametrize(
    ("documents", "spread", "error_rate"), [(5, 1.0, None), (20, 1.0, None), (10, 1.0, 0.05), (10, 0.4, 0.05)]
)
def test_it_is_what_other_documents_choose(documents, spread, error_rate):
    """The mean over samples is, to 0.035, the share of a set that a second sample of as many documents has as well."""
    random = np.random.default_rng(7)
    rule = {"count": 40, "error_rate": error_rate}
    expected, found = [], []
    for _ in range(12):
        first, second = (sample(random, documents, spread) for _ in range(2))
        own, other = (plnd.contrast(*pair, **rule).indices[DOWN] for pair in (first, second))
        found.append(np.isin(own, other).mean())
        expected.append(plnd.stability(*first, **rule))
    assert 0.3 < np.mean(found) < 0.98
    assert np.mean(expected) == pytest.approx(np.mean(found), abs=0.035)


def test_more_documents_are_more_stable():
    """And the same seed gives the same number, bit for bit."""
    few, many = (sample(np.random.default_rng(3), documents, 1.0) for documents in (4, 64))
    assert plnd.stability(*few, count=40) < plnd.stability(*many, count=40) == plnd.stability(*many, count=40)


@pytest.mark.parametrize(
    ("documents", "options", "line"),
    [
        (1, {}, "the scores of zh are of 1 document, and stability takes two or more: detect on more documents"),
        (4, {"draws": 0}, "draws=0: expected a whole number above 0"),
        (4, {"times": 0.5}, "times=0.5: expected a number of at least 1, such as 2"),
    ],
)
def test_refusals(documents, options, line):
    """One line."""
    with pytest.raises(PLNDError) as caught:
        plnd.stability(*sample(np.random.default_rng(0), documents, 1.0), count=9, **options)
    assert str(caught.value) == line
