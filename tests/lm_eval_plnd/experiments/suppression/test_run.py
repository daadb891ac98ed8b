"""The search: which candidates there are, which is chosen, and that it measures what it says."""

from __future__ import annotations

import numpy as np
import pytest

from handmade import make_scores
from lm_eval_plnd.experiments.changes import Estimate
from lm_eval_plnd.experiments.questions import Halves, Rate
from lm_eval_plnd.experiments.suppression.config import SuppressConfig
from lm_eval_plnd.experiments.suppression.run import Point, Suppression, candidates, check_found, choose, material
from lm_eval_plnd.experiments.suppression.texts import Texts
from plnd.comparison.documents import Document
from plnd.errors import NotFoundError


def made(neurons: int, factor: float, slips: int, answers: int, cost: float) -> Point:
    """A point of 10 questions of each kind."""
    estimate = Estimate(cost, cost - 0.1, cost + 0.1, 0.5)
    return Point(neurons, factor, Rate(slips, 10), Rate(answers, 10), Rate(10, 10), 0.5, estimate, {"en": estimate})


POINTS = [
    made(10, 0.5, 0, 8, 0.01),
    made(10, 0.0, 0, 5, 0.02),
    made(20, 0.0, 1, 0, 0.05),
    made(30, 0.5, 0, 1, 0.04),
    made(30, 0.0, 0, 0, 0.09),
]


@pytest.mark.parametrize(
    "target, stop, chosen",
    [
        (0.0, "both", 4),  # the only one without either
        (0.1, "both", 3),  # of three the cheapest
        (0.0, "slips", 0),
        (0.0, "answers", 2),
        (0.5, "both", 1),
    ],
)
def test_the_cheapest_that_reaches_the_target_is_chosen(target, stop, chosen):
    """By the rate that is asked for; both is the larger one."""
    assert choose(POINTS, target, stop) is POINTS[chosen]


def test_of_equals_the_fewest_neurons_then_the_mildest():
    """Where the cost is the same."""
    equals = [made(20, 0.5, 0, 0, 0.1), made(10, 0.0, 0, 0, 0.1), made(10, 0.5, 0, 0, 0.1)]
    assert choose(equals, 0.0, "both") is equals[2]


def test_nothing_is_chosen_where_nothing_reaches_it():
    """And one line says what came nearest, with a status of its own."""
    assert choose(POINTS[:3], 0.05, "both") is None
    config = SuppressConfig(target=0.05)
    found = Suppression("zh", ("en",), "m", config, made(0, 1.0, 2, 10, 0.0), tuple(POINTS[:3]))
    with pytest.raises(NotFoundError) as caught:
        check_found(found)
    assert caught.value.status == 3
    assert str(caught.value) == (
        "nothing reaches a rate of 0.05 on 24 validation questions: 20 neurons off come nearest, from 1.000 to"
        " 0.100; no mask is written: allow a larger --target, larger --shares, or smaller --times"
    )
    silent = Suppression("zh", ("en",), "m", config, made(0, 1.0, 0, 0, 0.0), ())
    assert silent.why_none().startswith("nothing to suppress: the model as it is answers in zh at 0.000")


def test_candidates_are_nested_and_each_has_every_factor():
    """From few to many neurons; what has no contrast is in none, and sizes that coincide come once."""
    random = np.random.default_rng(0)
    plain = random.uniform(0.5, 1.5, (3, 100))
    own = plain.copy()
    own[:, :12] *= np.linspace(20, 4, 12)  # so many are more important here, in this order
    own[:, 12:20] *= np.where(plain[:, 12:20].mean(0) > 1, 1.8, 1.0)  # and some a little more
    corpora = [
        {"source": f"{x}.jsonl", "sha256": x * 64, "documents": 3, "tokens": 9, "max_length": 8, "skipped": {}}
        for x in "ab"
    ]
    model = {"name": "m", "revision": None, "model_type": "llama", "blocks": 1, "widths": {"0.down_proj": 100}}
    zh = make_scores({"0.down_proj": own}, language="zh", corpus=corpora[0], model=model)
    en = make_scores({"0.down_proj": plain}, language="en", corpus=corpora[1], model=model)
    found = candidates(zh, [en], SuppressConfig(shares=(0.5, 0.05, 0.01, 0.4), factors=(0.0, 0.5), times=(2.0,)))
    sizes = [len(one.neurons) for one in found]
    assert sizes[:4] == [1, 1, 5, 5] and len(sizes) == 6 and sizes[4] == sizes[5] <= 12
    assert [one.factor for one in found] == [0.5, 0.0] * 3
    for small, large in zip(found, found[2:], strict=False):
        assert len(small.neurons - large.neurons) == 0
    assert found[0].intervention.record() == {"kind": "scale", "factor": 0.5}
    assert found[1].intervention.record() == {"kind": "zero"}
    drawn = found[4].random_like(1)
    assert (
        drawn.factor == 0.5
        and drawn.neurons.counts() == found[4].neurons.counts()
        and drawn.neurons != found[4].neurons
    )
    mild = candidates(zh, [en], SuppressConfig(shares=(0.5, 0.05), factors=(0.0,), times=(1.1, 2.0)))
    assert mild[0].neurons == found[2].neurons and len(found[4].neurons - mild[1].neurons) == 0
    assert len(mild[1].neurons) > len(found[4].neurons)  # those 1.1 times as important come behind those that are twice
    none = candidates(zh, [en], SuppressConfig(shares=(0.05,), factors=(0.0,), times=(2.0, 1000.0)))
    assert none[0].neurons == found[2].neurons


def test_the_report_sees_nothing_that_the_choice_has_seen():
    """Neither a question, in whatever language, nor a text; kept languages take turns, and share no question."""
    languages = ("zh", "en", "de")
    rows = {part: {x: [{"id": n, "language": x} for n in ids] for x in languages}
            for part, ids in (("validation", [0, 2, 4]), ("report", [1, 3, 5, 6]))}  # fmt: skip
    texts = {
        x: Texts([], [Document(0, [1, 2], 1)], [Document(1, [1, 2], 1), Document(2, [1, 2], 1)]) for x in languages
    }
    choice, report = material(Halves(**rows), texts, "zh", ["en", "de"])
    assert [(row["id"], row["language"]) for row in choice.kept] == [(0, "en"), (2, "de"), (4, "en")]
    assert [(row["id"], row["language"]) for row in report.kept] == [(1, "en"), (3, "de"), (5, "en"), (6, "de")]
    assert [row["id"] for row in choice.own] == [0, 2, 4] and [row["id"] for row in report.own] == [1, 3, 5, 6]
    assert {row["language"] for row in (*choice.own, *report.own)} == {"zh"}
    numbers = [{x: [d.number for d in found] for x, found in one.texts.items()} for one in (choice, report)]
    assert numbers == [{"en": [0], "de": [0]}, {"zh": [1, 2], "en": [1, 2], "de": [1, 2]}]
