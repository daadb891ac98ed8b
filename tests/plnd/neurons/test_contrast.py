"""The contrast of importance between languages: by hand, against scipy neuron by neuron, and on languages shuffled."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

import plnd
from handmade import MODEL, importance_matrix, logs_over_median, make_scores, scores_metadata
from plnd.addresses import split_address
from plnd.errors import ModelMismatchError, PLNDError
from plnd.neurons.contrast import DEFAULT_ERROR_RATE, DEFAULT_SHARE, ONCE, TIMES, contrast_of, excess_of
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores

Q, DOWN = "0.q_proj", "1.down_proj"  # of 6 and 8 neurons
SMALL = {**MODEL, "widths": {Q: 6, DOWN: 8}}


def said(language: str | None, documents: int = 3, **corpus: Any) -> dict[str, Any]:
    """What differs between the scores of two languages."""
    about = {**scores_metadata()["corpus"], "sha256": (language or "x").encode().hex().ljust(64, "0")}
    return {"language": language, "corpus": {**about, "documents": documents, **corpus}}


def scores(language: str | None, importance: dict[str, Any], **changes: Any) -> Scores:
    """Scores of a language, from what every neuron weighs in every document."""
    arrays = {address: np.asarray(values, dtype=np.float64) for address, values in importance.items()}
    documents = len(next(iter(arrays.values())))
    return make_scores(arrays, **{"model": SMALL, **said(language, documents), **changes})


def from_logs(language: str, mean: dict[str, Any], deviation: Any = 0.1, documents: int = 10) -> Scores:
    """Scores with these mean logs and deviations (one for all, or by address); the ranks say nothing."""
    mean = {address: np.array(values, np.float32) for address, values in mean.items()}
    spread = deviation if isinstance(deviation, dict) else dict.fromkeys(mean, deviation)
    widths = {address: len(values) for address, values in mean.items()}
    ones, zeros = ({address: np.full(w, x, t) for address, w in widths.items()} for x, t in ((1, "f4"), (0, "i4")))
    metadata = scores_metadata(model={**MODEL, "widths": widths}, **said(language, documents))
    method = {"projections": ["q_proj", "down_proj"], "log_floor": 1e-3}
    metadata["method"] = {**metadata["method"], **method}
    std = {address: np.full(w, spread[address], np.float32) for address, w in widths.items()}
    return Scores(ones, ones, zeros, metadata, mean, std)


def chosen(neurons: NeuronSet) -> dict[str, list[int]]:
    """Indices by address."""
    return {name: values.tolist() for name, values in neurons.items()}


def changed(scores: Scores, **changes: Any) -> Scores:
    """The same scores with other metadata; a dictionary changes some fields of one."""
    metadata = copy.deepcopy({**scores.metadata})
    for name, value in changes.items():
        metadata[name] = {**metadata[name], **value} if isinstance(value, dict) else value
    return Scores(scores.minimum, scores.mean, scores.worst_rank, metadata, scores.mean_log, scores.std_log)


def refusal(*args: Any, **kwargs: Any) -> str:
    """The one line with which a contrast is refused."""
    with pytest.raises(PLNDError) as caught:
        plnd.contrast(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# by hand

ZH = from_logs("zh", {Q: [2, 1, 3, -1, 0, 0.5], DOWN: [4, 0, 1, 1, 1, -2, 0.25, 0]})
EN = from_logs("en", {Q: [1, 2, 1, -5, 0, 0.0], DOWN: [3, 0, -1, 0, 2, -6, 0.25, 0]})
RU = from_logs("ru", {Q: [0, 0, 2, -5, 0, 0.25], DOWN: [3.5, 0, 0, 0, 0, -6, 0.25, -1]})


def test_contrast_by_hand():
    """More important than in any of the others, and above the median; what falls below the median does not count.

    Neuron 3 of q and 5 of down are four times as important as elsewhere, and of no importance; they are left out.
    """
    neurons = plnd.contrast(ZH, [EN, RU], count=99, times=1)
    assert chosen(neurons) == {Q: [0, 2, 5], DOWN: [0, 2, 3]}
    e = np.exp
    expected = {Q: [e(2) - e(1), e(3) - e(2), e(0.5) - e(0.25)], DOWN: [e(4) - e(3.5), e(1) - 1, e(1) - 1]}
    for address, values in neurons.importance.items():
        assert values.dtype == np.float32 and np.allclose(values, expected[address])
    assert chosen(plnd.contrast(ZH, EN, count=99, times=1)) == {Q: [0, 2, 5], DOWN: [0, 2, 3]}
    assert chosen(plnd.contrast(ZH, RU, count=99, times=1)) == {Q: [0, 1, 2, 5], DOWN: [0, 2, 3, 4]}


def test_how_many_times_as_important():
    """By default twice; importance is what is left above that. Exactly so many times is enough."""
    assert TIMES == 2
    neurons = plnd.contrast(ZH, [EN, RU], count=99)
    assert chosen(neurons) == {Q: [0, 2], DOWN: [2, 3]}
    e = np.exp
    assert np.allclose(neurons.importance[Q], [e(2) - 2 * e(1), e(3) - 2 * e(2)])
    assert chosen(plnd.contrast(ZH, [EN, RU], count=99, times=e(1) - 1e-9)) == {Q: [0, 2], DOWN: [2, 3]}
    assert "0 of them at least 2.8 times as important" in refusal(ZH, [EN, RU], count=99, times=2.8)
    twice = [from_logs(x, {Q: [m] + [1] * 5, DOWN: [1] * 8}) for x, m in (("zh", np.log(4)), ("en", np.log(2)))]
    assert np.float32(np.log(4)) - np.float32(np.log(2)) >= np.log(2)
    assert chosen(plnd.contrast(*twice, count=99)) == {Q: [0]}


@pytest.mark.parametrize(
    "count, expected",
    [
        (1, {DOWN: [0]}),
        (2, {Q: [2], DOWN: [0]}),
        (3, {Q: [0, 2], DOWN: [0]}),
        (4, {Q: [0, 2], DOWN: [0, 2]}),
        (5, {Q: [0, 2], DOWN: [0, 2, 3]}),
        (6, {Q: [0, 2, 5], DOWN: [0, 2, 3]}),
    ],
)
def test_count_is_over_the_whole_model(count, expected):
    """Largest excess first, wherever it is; two neurons are equal, and come by address and index."""
    neurons = plnd.contrast(ZH, [EN, RU], count=count, times=1)
    assert chosen(neurons) == expected
    assert neurons == plnd.contrast(ZH, [EN, RU], count=6, times=1).top(count)
    rule = neurons.metadata.rule
    assert (rule["asked"], rule["kept"], rule["chosen_from"], rule["count"]) == (count, count, 14, count)


def test_of_many_equal_neurons_the_first_are_taken():
    """Ties come by address and index, however many there are and whatever stands between them."""
    zh, en = (from_logs(x, {Q: [m, 1.5 * m] * 15, DOWN: [m, 1.5 * m] * 15}) for x, m in (("zh", 2), ("en", 1)))
    odd, even = [*range(1, 30, 2)], [*range(0, 20, 2)]
    assert chosen(plnd.contrast(zh, en, count=40, times=1)) == {Q: sorted(odd + even), DOWN: odd}


def test_relevance_is_counted_in_one_unit():
    """A projection whose median neuron has a hundredth of the relevance comes last; of importance it comes first."""
    logs = ({Q: [m] + [1] * 5, DOWN: [2 * m - 1] + [1] * 7} for m in (3, 1))
    zh, en = (from_logs(x, of) for x, of in zip(("zh", "en"), logs, strict=True))
    assert chosen(plnd.contrast(zh, en, count=1)) == {DOWN: [0]}
    relevance = [
        Scores(
            x.minimum,
            {Q: np.ones(6, "f4"), DOWN: np.full(8, 0.01, "f4")},
            x.worst_rank,
            x.metadata,
            x.mean_log,
            x.std_log,
        )
        for x in (changed(y, method={"name": "relevance"}) for y in (zh, en))
    ]
    neurons = plnd.contrast(*relevance, count=2)
    assert neurons.top(1).indices.keys() == {Q}
    assert np.allclose(neurons.importance[DOWN], 0.01 * (np.exp(5) - 2 * np.exp(1)))


def test_share_is_of_all_neurons_chosen_from():
    """Of 14, or of those of the projections and regions that are named."""
    assert len(plnd.contrast(ZH, [EN, RU], share=3 / 14)) == 3
    assert chosen(plnd.contrast(ZH, [EN, RU], share=1 / 4, projections=["down_proj"])) == {DOWN: [2, 3]}
    assert chosen(plnd.contrast(ZH, [EN, RU], share=1 / 6, regions=Regions(("under",), 1, 0))) == {Q: [2]}
    assert refusal(ZH, EN, share=0.01) == (
        "share=0.01: less than one of the 14 neurons chosen from; give a larger share, or a count"
    )


def test_a_group_is_as_specific_as_its_weakest():
    """Of several own languages the smallest counts, and each must be above its own median."""
    ja = from_logs("ja", {Q: [1.5, 9, -1, 9, 9, 9], DOWN: [9, 9, 9, 0.125, 9, 9, 9, 9]})
    neurons = plnd.contrast([ZH, ja], [EN, RU], count=99, times=1)
    assert chosen(neurons) == {Q: [0, 5], DOWN: [0, 2, 3]}
    e = np.exp
    expected = {Q: [e(1.5) - e(1), e(0.5) - e(0.25)], DOWN: [e(4) - e(3.5), e(1) - 1, e(0.125) - 1]}
    assert all(np.allclose(values, expected[address]) for address, values in neurons.importance.items())
    assert plnd.contrast([ja, ZH], [EN, RU], count=99, times=1) == neurons  # the order of a group does not matter
    assert neurons.metadata.language == "zh" and neurons.metadata.rule["with"] == [
        {"language": "ja", "sha256": ja.digest}
    ]


def test_the_statistics():
    """Smallest of the own minus largest of the others; of importances, in units, times as many."""
    own, others = np.array([[3.0, 1], [2, 5]]), np.array([[1.0, 0], [-1, 2]])
    assert contrast_of(own, others).tolist() == [1, -1]
    excess = excess_of(np.log(own), np.log([[1.0, 0.5], [0.5, 2]]), 1.5, np.array([[1.0, 1], [10, 1]]))
    assert np.allclose(excess, [min(3 - 1.5, 10 * (2 - 1.5)), min(1 - 3, 5 - 3)])


def test_from_importances_document_by_document():
    """The rule on scores by definition is the rule written out on the importances."""
    importance = {x: importance_matrix(4, seed, SMALL["widths"]) for seed, x in enumerate(("zh", "en", "ru"))}
    logs = {
        x: {a: np.mean([logs_over_median(row) for row in m], axis=0).astype(np.float32) for a, m in matrices.items()}
        for x, matrices in importance.items()
    }
    expected = {}
    for address in SMALL["widths"]:
        difference = logs["zh"][address] - np.maximum(logs["en"][address], logs["ru"][address])
        expected[address] = np.flatnonzero((difference >= np.log(1.2)) & (logs["zh"][address] > 0)).tolist()
    others = [scores(x, importance[x]) for x in ("en", "ru")]
    found = plnd.contrast(scores("zh", importance["zh"]), others, count=99, times=1.2)
    assert chosen(found) == {address: rows for address, rows in expected.items() if rows}
    assert 1 < len(found) < 12


def test_a_feed_forward_neuron_counts_once():
    """By default as a column of down_proj; named, in each of the projections that are named, and still as one."""
    whole = {
        x: {a: np.ones((3, w)) * (1 + 9 * ((np.arange(w) == k) & (x == "zh"))) for a, w in MODEL["widths"].items()}
        for k, x in ((2, "zh"), (2, "en"))
    }
    zh, en = (scores(x, importance, model=MODEL) for x, importance in whole.items())
    neurons = plnd.contrast(zh, en, count=99)
    assert chosen(neurons) == {a: [2] for a in neurons.indices} and len(neurons) == 10
    assert {split_address(address)[1] for address in neurons.indices} == set(ONCE)
    assert neurons.metadata.rule["projections"] == list(ONCE) and neurons.metadata.rule["chosen_from"] == 56
    named = plnd.contrast(zh, en, count=1, projections=["gate_proj", "down_proj"])
    assert chosen(named) == {"0.gate_proj": [2], "0.down_proj": [2]}
    assert named.metadata.rule["kept"] == 1 and named.metadata.rule["chosen_from"] == 16


# error rate


def some_languages(seed: int, documents: tuple[int, ...], effect: float, model: dict = SMALL) -> dict[str, dict]:
    """Importances of three languages, log-normal over documents; some neurons matter more to the first one."""
    random = np.random.default_rng(seed)
    base = {address: random.normal(0, 1, width) for address, width in model["widths"].items()}
    found = {}
    for language, count in zip(("zh", "en", "ru"), documents, strict=True):
        found[language] = {a: np.exp(b + random.normal(0, 0.5, (count, len(b)))) for a, b in base.items()}
    for values in found["zh"].values():
        values[:, ::3] *= np.exp(effect)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_error_rate_by_scipy_neuron_by_neuron(seed, error_rate):
    """Welch's test for every neuron and pair, the largest p-value, and Benjamini and Hochberg's steps written out."""
    importance = some_languages(seed, (6, 9, 4), effect=1.5)
    zh, en, ru = (scores(x, matrices) for x, matrices in importance.items())
    documents = {
        x: {a: np.array([logs_over_median(r) for r in m]) for a, m in i.items()} for x, i in importance.items()
    }
    p = {
        (address, k): max(
            ttest_ind(
                documents["zh"][address][:, k], documents[x][address][:, k], equal_var=False, alternative="greater"
            ).pvalue
            for x in ("en", "ru")
        )
        for address, width in SMALL["widths"].items()
        for k in range(width)
    }
    ordered = sorted(p, key=p.get)
    passing = max((n for n, key in enumerate(ordered, 1) if p[key] <= error_rate * n / len(p)), default=0)
    above = {(a, k) for a, k in ordered[:passing] if documents["zh"][a].mean(0)[k] > 0}
    neurons = plnd.contrast(zh, [en, ru], error_rate=error_rate, times=1)
    assert {(a, k) for a, rows in chosen(neurons).items() for k in rows} == above and above
    rule = neurons.metadata.rule
    assert (rule["error_rate"], rule["asked"], rule["kept"]) == (error_rate, None, len(above))


def test_error_rate_and_number_go_together():
    """Of those that pass, the ones of largest excess; more are not made up."""
    zh, en, ru = (scores(x, i) for x, i in some_languages(0, (6, 9, 4), effect=1.5).items())
    passing = plnd.contrast(zh, [en, ru], error_rate=0.2, times=1)
    assert len(passing) == 4
    assert plnd.contrast(zh, [en, ru], error_rate=0.2, times=1, count=2) == passing.top(2)
    most = plnd.contrast(zh, [en, ru], error_rate=0.2, times=1, share=0.5)
    assert most == passing and (most.metadata.rule["asked"], most.metadata.rule["kept"]) == (7, 4)
    assert len(plnd.contrast(zh, [en, ru], count=7, times=1)) > 4


def drawn(language: str, seed: int, effect: float) -> Scores:
    """Scores of eight documents of one language, whose logs are drawn anew for each; neurons with an `effect` gain."""
    random = np.random.default_rng([seed, ord(language[0])])
    logs = {a: 1 + random.normal(0, 0.5, (8, w)) for a, w in (("0.q_proj", 60), ("1.down_proj", 80))}
    for values in logs.values():
        values[:, ::3] += effect
    mean, deviation = ({a: f(v) for a, v in logs.items()} for f in (lambda v: v.mean(0), lambda v: v.std(0, ddof=1)))
    return from_logs(language, mean, deviation, documents=8)


@pytest.mark.parametrize("effect, least, most", [(0, 0, 0.2), (2, 1, 1)], ids=["languages shuffled", "a real effect"])
def test_shuffled_languages_pass_no_more_often_than_the_rate(effect, least, most):
    """Where the documents of all languages are alike, all that passes is false: at Q = 0.2, in at most 20 % of draws.

    The second case is the proof that the first can fail: a real effect passes in each.
    """
    draws, found = 60, 0
    for seed in range(draws):
        try:
            found += len(plnd.contrast(drawn("zh", seed, effect), drawn("en", seed, 0), error_rate=0.2, times=1)) > 0
        except PLNDError as error:
            assert "none at an error rate of 0.2" in str(error)
    assert least <= found / draws <= most


def test_documents_that_all_agree():
    """A neuron that never varies is no warning and no accident: more important is significant, equal is not."""
    zh, en = (from_logs(x, {Q: [m, 1, 1, 1, 1, 1]}, deviation=0) for x, m in (("zh", 2), ("en", 1)))
    assert chosen(plnd.contrast(zh, en, error_rate=0.05)) == {Q: [0]}


def test_neurons_without_a_difference_make_no_other_one_significant():
    """A neuron that never varies and is equal everywhere has no p-value; it counts as one that does not pass."""
    deviation = {Q: [0.2, 0, 0, 0, 0, 0]}  # p = 0.02 of the first, of six tests
    zh, en = (from_logs(x, {Q: [m, 1, 1, 1, 1, 1]}, deviation) for x, m in (("zh", 1.2), ("en", 1)))
    assert "none at an error rate of 0.05" in refusal(zh, en, error_rate=0.05, times=1)
    assert chosen(plnd.contrast(zh, en, error_rate=0.2, times=1)) == {Q: [0]}


def test_the_default():
    """A share and an error rate, both of them in the metadata."""
    first = np.arange(600) < 9
    zh, en = (from_logs(x, {Q: np.where(first, m, 1), DOWN: [1] * 1400}) for x, m in (("zh", 2), ("en", 1)))
    neurons = plnd.contrast(zh, en)
    assert len(neurons) == round(DEFAULT_SHARE * 2000) == 2
    assert neurons == plnd.contrast(zh, en, share=DEFAULT_SHARE, error_rate=DEFAULT_ERROR_RATE)
    assert (neurons.metadata.rule["share"], neurons.metadata.rule["error_rate"]) == (0.001, 0.05)
    assert plnd.contrast(zh, en, share=0.01).metadata.rule["error_rate"] is None


# the artifact


def test_metadata_names_all_languages(tmp_path):
    """The rule with its numbers and the statistic's, and every other language's scores, are read back from the file."""
    regions = Regions(("under", "gen"), 1, 1)
    neurons = plnd.contrast(ZH, (EN, RU), count=np.int64(2), regions=regions)
    neurons.save(tmp_path / "zh.safetensors")
    again = NeuronSet.load(tmp_path / "zh.safetensors")
    assert again == neurons and again.metadata == neurons.metadata
    assert again.metadata.rule == {
        "name": "contrast",
        "count": 2,
        "share": None,
        "error_rate": None,
        "times": 2,
        "asked": 2,
        "kept": 2,
        "chosen_from": 14,
        "log_floor": 1e-3,
        "projections": list(ONCE),
        "regions": {"names": ["under", "gen"], "under": 1, "gen": 1},
        "with": [],
        "against": [{"language": "en", "sha256": EN.digest}, {"language": "ru", "sha256": RU.digest}],
    }
    assert again.metadata.scores_sha256 == ZH.digest and again.metadata.language == "zh"


# refusals


@pytest.mark.parametrize(
    "arguments, line",
    [
        ({"count": 1, "share": 0.1}, "expected one of count and share, found both"),
        ({"count": 0}, "count=0: expected a whole number above 0"),
        ({"count": 2.5}, "count=2.5: expected a whole number above 0"),
        ({"count": float("inf")}, "count=inf: expected a whole number above 0"),
        ({"share": 0}, "share=0: expected a number above 0 and at most 1"),
        ({"share": 1.5}, "share=1.5: expected a number above 0 and at most 1"),
        ({"share": float("nan")}, "share=nan: expected a number above 0 and at most 1"),
        ({"error_rate": 0}, "error_rate=0: expected a number above 0 and below 1, such as 0.05"),
        ({"error_rate": 1}, "error_rate=1: expected a number above 0 and below 1, such as 0.05"),
        ({"count": 1, "times": 0.5}, "times=0.5: expected a number of at least 1, such as 2"),
        ({"count": 1, "times": float("nan")}, "times=nan: expected a number of at least 1, such as 2"),
        ({"count": 1, "projections": ["x_proj"]}, "unknown projection 'x_proj': expected one of q_proj, k_proj,"),
        ({"count": 1, "projections": ["k_proj"]}, "no neuron to select from: these scores cover q_proj, down_proj"),
        ({"count": 1, "projections": []}, "no neuron to select from: these scores cover q_proj, down_proj"),
    ],
)
def test_numbers_that_make_no_sense(arguments, line):
    """Two numbers, or one out of range, and nothing to choose from."""
    assert refusal(ZH, EN, **arguments).startswith(line)


@pytest.mark.parametrize(
    "changes, setting",
    [
        ({"method": {"name": "activation"}}, "method is plnd in the scores of zh and activation in those of en"),
        ({"method": {"scoring": "official"}}, "scoring is None in the scores of zh and official in those of en"),
        ({"method": {"qk": "first_order"}}, "qk is exact in the scores of zh and first_order in those of en"),
        ({"method": {"log_floor": 0.01}}, "log_floor is 0.001 in the scores of zh and 0.01 in those of en"),
        ({"method": {"projections": ["q_proj"]}}, "projections is q_proj, down_proj in the scores of zh and q_proj in"),
        ({"corpus": {"max_length": 128}}, "max_length is 64 in the scores of zh and 128 in those of en"),
        ({"dtype": "bfloat16"}, "dtype is float32 in the scores of zh and bfloat16 in those of en"),
        ({"quantisation": "4bit"}, "quantisation is None in the scores of zh and 4bit in those of en"),
    ],
)
def test_other_settings_are_refused(changes, setting):
    """Importances of other methods, settings and dtypes do not differ by language alone; the line names which."""
    found = refusal(ZH, [RU, changed(EN, **changes)], count=1)
    assert found.startswith(setting)
    assert found.endswith("their importances cannot be compared; detect again with the same settings")
    assert len(plnd.contrast(ZH, [RU, changed(EN, method={"batch_size": 3, "min_length": 9})], count=1)) == 1


def test_other_models_are_refused():
    """Of another shape, and of the hub's another name or revision."""
    with pytest.raises(ModelMismatchError, match="^the scores of en: made for mistral"):
        plnd.contrast(ZH, changed(EN, model={"model_type": "mistral"}), count=1)
    hub = [changed(x, model={"hub": True, "name": "a/b", "revision": r}) for x, r in ((ZH, "1"), (EN, "2"), (RU, "1"))]
    with pytest.raises(ModelMismatchError) as caught:
        plnd.contrast(hub[0], hub[1], count=1)
    assert str(caught.value) == (
        "the scores of en are of a/b at 2, and those of zh of a/b at 1: detect all languages on one model"
    )
    assert len(plnd.contrast(hub[0], hub[2], count=1)) == 1


def test_a_language_is_compared_with_others():
    """Not with itself, not with its own corpus under another name, and with at least one."""
    assert refusal(ZH, [EN, ZH], count=1) == "zh is among the others too: compare a language with other languages"
    twin = changed(EN, corpus={"sha256": ZH.metadata.corpus.sha256})
    for own, others in ((ZH, twin), ([ZH, twin], RU), (RU, [ZH, twin])):
        assert refusal(own, others, count=1) == (
            "the scores of zh and en are of one corpus, the same documents: give each language's scores once"
        )
    assert refusal(ZH, [], count=1) == "others: no scores, expected those of at least one language"
    assert refusal([], EN, count=1) == "own: no scores, expected those of at least one language"


def test_scores_of_version_1_are_refused():
    """They have no logs; the line says which scores, and what to do."""
    old = make_scores({Q: np.ones((3, 6)), DOWN: np.ones((3, 8))}, model=SMALL, version=1, **said("en"))
    for own, others in ((ZH, [RU, old]), (old, ZH)):
        assert refusal(own, others, count=1) == (
            "the scores of en are of format version 1, without the logs that contrast compares: detect again with this"
            " plnd"
        )


def test_a_rule_that_was_known_ahead():
    """Queries and keys that were not all measured cannot be compared; other projections can."""
    known = changed(EN, method={"epsilon": 0.5})
    assert refusal(ZH, known, count=1) == (
        "the scores of en were detected with epsilon=0.5, which leaves no logs in q_proj and k_proj: choose other"
        " projections, or detect again without epsilon"
    )
    assert len(plnd.contrast(ZH, known, count=1, projections=["down_proj"])) == 1


def test_one_document_has_no_error_rate():
    """How documents vary cannot be seen on one; how many or which share can be asked for."""
    one = changed(EN, corpus={"documents": 1})
    line = (
        "the scores of en are of 1 document, and an error rate takes two or more: detect on more documents, or give a"
        " count or a share alone"
    )
    assert refusal(ZH, one, error_rate=0.1) == refusal(ZH, one, projections=["down_proj"]) == line
    assert len(plnd.contrast(ZH, one, count=3)) == 3


def test_no_neuron_says_why():
    """The line tells where the last neuron was lost, and what to do about it."""
    low, high = (from_logs(x, {Q: [m] * 6, DOWN: [m] * 8}, deviation=9) for x, m in (("zh", -1), ("en", 3)))
    some = from_logs("ru", {Q: [3.5] + [3] * 5, DOWN: [3] * 8}, deviation=9)
    start = "no neuron serves {} more than en: of 14 neurons {} are above the median in {}"
    assert refusal(low, high, count=2) == (start.format("zh", 0, "zh") + "; choose from more projections or regions")
    assert refusal(changed(high, **said("de")), high, count=2) == (
        start.format("de", 14, "de")
        + ", 0 of them at least 2 times as important as elsewhere; ask for fewer times, compare with fewer languages,"
        " or choose from more projections or regions"
    )
    assert refusal(some, high, count=2, error_rate=0.05, times=1) == (
        start.format("ru", 14, "ru")
        + ", 1 of them at least 1 times as important as elsewhere, and none at an error rate of"
        " 0.05; detect on more documents, allow a higher error rate, or give a count or a share alone"
    )


def test_scores_without_a_language_have_their_source():
    """What nobody named is called by where its documents are from."""
    old = make_scores({Q: np.ones((3, 6)), DOWN: np.ones((3, 8))}, model=SMALL, version=1, **said(None))
    assert refusal(ZH, old, count=1).startswith("the scores of zh.jsonl are of format version 1")
