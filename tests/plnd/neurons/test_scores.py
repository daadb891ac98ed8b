"""Every rule is what its definition says of the importances document by document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handmade import MODEL, WIDTHS, importance_matrix, make_scores, ranks, scores_metadata
from plnd.detection.totals import descending_rank
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores

TWO = ("0.q_proj", "1.down_proj")  # of 6 and 8 neurons

MATRICES = st.fixed_dictionaries(
    {
        name: arrays(np.float64, (3, MODEL["widths"][name]), elements=st.integers(0, 6).map(float))
        for name in TWO
    }
)  # fmt: skip
"""Importances of three documents, with many ties."""


def chosen(neurons: NeuronSet) -> dict[str, set[int]]:
    """Indices by address."""
    return {name: set(values.tolist()) for name, values in neurons.items()}


def by_definition(importance: dict[str, np.ndarray], inside) -> dict[str, set[int]]:
    """The neurons for whose column of importances, and ranks, over documents `inside(column, ranks, width)` holds."""
    result = {}
    for name, matrix in importance.items():
        ranked = np.array([ranks(row) for row in matrix])
        width = matrix.shape[1]
        result[name] = {k for k in range(width) if inside(matrix[:, k], ranked[:, k], width)}
    return {name: members for name, members in result.items() if members}


# rules


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 7))
def test_epsilon_keeps_what_is_important_in_every_document(importance, epsilon):
    """Eq. 2: importance at least epsilon in each of the documents; equality counts."""
    expected = by_definition(importance, lambda column, ranked, width: all(column >= epsilon))
    assert chosen(make_scores(importance).select(epsilon=epsilon)) == expected


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 9))
def test_top_k_keeps_what_is_among_the_k_of_every_document(importance, k):
    """Among the k most important of the projection in each document; at most k neurons, also where many are equal."""
    expected = by_definition(importance, lambda column, ranked, width: all(ranked < k))
    neurons = make_scores(importance).select(top_k=k)
    assert chosen(neurons) == expected
    assert all(len(v) <= k for _, v in neurons.items())


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 100))
def test_fraction_is_the_share_of_every_width_that_comes_nearest(importance, percent):
    """Of all sets `rank < share * width`, one share for every projection, the one of the nearest size is kept."""
    fraction = percent / 100
    candidates = [
        by_definition(importance, lambda column, ranked, width, s=share: all(ranked + 1 <= s * width + 1e-9))
        for share in sorted({0.0} | {k / width for width in (6, 8) for k in range(1, width + 1)})
    ]
    sizes = [sum(map(len, c.values())) for c in candidates]
    distances = [abs(size - fraction * 14) for size in sizes]
    expected = candidates[int(np.argmin(distances))]  # the first: the smaller one on a tie
    neurons = make_scores(importance).select(fraction=fraction)
    assert chosen(neurons) == expected
    assert abs(len(neurons) - fraction * 14) == min(distances)


@pytest.mark.parametrize("fraction, kept", [(0.25, 1), (0.75, 4), (0.26, 2)])
def test_of_two_sets_that_are_equally_near_the_smaller_one_is_kept(fraction, kept):
    """A quarter of six neurons is one and a half: one; a little more than a quarter is two."""
    scores = make_scores({"0.q_proj": np.arange(6.0, 0, -1)[None]}, model={**MODEL, "widths": {"0.q_proj": 6}})
    assert len(scores.select(fraction=fraction)) == kept


def test_fraction_follows_the_width():
    """A projection twice as wide gives twice as many neurons, where importances fall alike."""
    model = {**MODEL, "widths": {"0.q_proj": 100, "1.q_proj": 200}}
    scores = make_scores({name: -np.arange(w)[None] + 500.0 for name, w in model["widths"].items()}, model=model)
    neurons = scores.select(fraction=0.1)
    assert {name: len(v) for name, v in neurons.items()} == {"0.q_proj": 10, "1.q_proj": 20}
    assert neurons.metadata["rule"]["share"] == 0.1
    assert len(scores.select(fraction=1)) == 300 and len(scores.select(fraction=1e-6)) == 0


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 14))
def test_larger_rules_keep_more(importance, n):
    """A smaller epsilon, a larger k or a larger fraction never loses a neuron."""
    scores = make_scores(importance)
    for less, more in (({"epsilon": n + 1}, {"epsilon": n}), ({"top_k": n}, {"top_k": n + 1}),
                       ({"fraction": n / 15}, {"fraction": (n + 1) / 15})):  # fmt: skip
        assert len(scores.select(**less) - scores.select(**more)) == 0


def test_epsilon_is_compared_exactly():
    """An epsilon beyond what float32 can hold is not rounded to zero or infinity on the way."""
    scores = make_scores({"0.q_proj": np.array([[0, 1e-30, 1, 2, 3, 3e38]])})
    assert chosen(scores.select(epsilon=1e-60)) == {"0.q_proj": {1, 2, 3, 4, 5}}
    assert chosen(scores.select(epsilon=1e300)) == {}


def test_selected_neurons_carry_importance_and_origin(tmp_path):
    """The set has the smallest importances, the scores' digest and the rule with its numbers; and it can be saved."""
    importance = importance_matrix()
    scores = make_scores(importance)
    regions = Regions(("under", "solve_ffn"), 1, 0)
    neurons = scores.select(top_k=np.int64(2), projections=["q_proj", "down_proj"], regions=regions)
    for name, values in neurons.items():
        assert np.array_equal(neurons.importance[name], importance[name].min(0)[values])
    assert neurons.metadata["scores_sha256"] == scores.save(tmp_path / "scores")
    assert neurons.metadata["rule"] == {
        "name": "top_k",
        "value": 2,
        "projections": ["q_proj", "down_proj"],
        "regions": {"names": ["under", "solve_ffn"], "under": 1, "gen": 0},
    }
    neurons.save(tmp_path / "neurons")
    again = NeuronSet.load(tmp_path / "neurons")
    assert again == neurons and again.metadata == neurons.metadata
    origin = ("model", "language", "corpus", "method", "dtype", "plnd")
    assert all(again.metadata[key] == scores.metadata[key] for key in origin)


@pytest.mark.parametrize("rule", [{"epsilon": 2}, {"top_k": 3}, {"fraction": 0.3}])
def test_numbers_of_any_kind_are_one_rule(rule):
    """Python's and numpy's numbers, integers and floats of one value give the same file."""
    scores = make_scores(importance_matrix())
    ((name, value),) = rule.items()
    digests = {scores.select(**{name: kind(value)}).digest for kind in (float, np.float64)}
    digests.add(scores.select(**rule).digest)
    assert len(digests) == 1


# restriction


def test_restriction_by_projections_and_regions():
    """Only the named projections of the named regions are chosen from."""
    scores = make_scores({name: np.ones((1, w)) * np.arange(1, w + 1) for name, w in MODEL["widths"].items()})
    kept = scores.select(epsilon=1, projections=["k_proj", "up_proj"])
    assert chosen(kept) == {f"{b}.{p}": set(range(WIDTHS[p])) for b in (0, 1) for p in ("k_proj", "up_proj")}
    kept = scores.select(epsilon=1, regions=Regions(("gen",), 1, 1))
    assert chosen(kept) == {f"1.{p}": set(range(w)) for p, w in WIDTHS.items()}
    kept = scores.select(epsilon=1, projections=("k_proj", "up_proj"), regions=Regions(("solve_attn",), 1, 0))
    assert chosen(kept) == {"1.k_proj": {0, 1, 2, 3}}


def test_fraction_is_of_what_is_chosen_from():
    """The share counts among the projections and regions that were named, not in the whole model."""
    scores = make_scores({name: np.arange(w, 0, -1.0)[None] for name, w in MODEL["widths"].items()})
    assert {name: len(v) for name, v in scores.select(fraction=0.5, projections=["q_proj"]).items()} == {
        "0.q_proj": 3,
        "1.q_proj": 3,
    }


# errors


@pytest.mark.parametrize(
    "arguments, wording",
    [
        ({}, "expected exactly one of epsilon, top_k, fraction, found none"),
        ({"epsilon": 1, "top_k": 2}, "expected exactly one of epsilon, top_k, fraction, found epsilon, top_k"),
        ({"epsilon": 0}, "epsilon=0: expected a number above 0"),
        ({"epsilon": -1.5}, "epsilon=-1.5: expected a number above 0"),
        ({"epsilon": float("nan")}, "epsilon=nan: expected a number above 0"),
        ({"epsilon": float("inf")}, "epsilon=inf: expected a number above 0"),
        ({"top_k": 0}, "top_k=0: expected a whole number above 0"),
        ({"top_k": 2.5}, "top_k=2.5: expected a whole number above 0"),
        ({"fraction": 1.01}, "fraction=1.01: expected a number above 0 and at most 1"),
        ({"fraction": 0}, "fraction=0: expected a number above 0 and at most 1"),
        ({"top_k": 1, "projections": ["x_proj"]}, "unknown projection 'x_proj': expected one of q_proj, k_proj,"),
        ({"top_k": 1, "projections": []}, "no neuron to select from: these scores cover q_proj, down_proj"),
        ({"top_k": 1, "projections": ["k_proj"]}, "no neuron to select from: these scores cover q_proj, down_proj"),
        ({"top_k": 1, "regions": Regions(("under",), 2, 2)}, "under=2 and gen=2 overlap: the model has 2 blocks"),
    ],
)
def test_rules_that_make_no_sense(arguments, wording):
    """No rule or two, a number out of range, and nothing to choose from are errors that say what was expected."""
    scores = make_scores({name: np.ones((1, MODEL["widths"][name])) for name in TWO})
    with pytest.raises(PLNDError) as caught:
        scores.select(**arguments)
    assert str(caught.value).startswith(wording)


@pytest.mark.parametrize("rule", [{"top_k": 3}, {"fraction": 0.5}, {"epsilon": 0.49}])
def test_a_rule_that_was_not_known_ahead_is_refused(rule):
    """Scores detected for one epsilon decide of queries and keys by that one or a larger one only."""
    method = {"name": "plnd", "projections": ["q_proj", "up_proj"], "qk": "exact", "epsilon": 0.5}
    ones = {name: np.ones((1, MODEL["widths"][name])) for name in ("0.q_proj", "0.up_proj")}
    scores = make_scores(ones, method=method)
    ((name, value),) = rule.items()
    with pytest.raises(PLNDError) as caught:
        scores.select(**rule)
    assert str(caught.value) == (
        f"{name}={value}: these scores were detected with epsilon=0.5, which leaves no ranks in q_proj and k_proj and"
        " nothing below it; select with an epsilon of 0.5 or more, or other projections"
    )
    scores.select(**rule, projections=["up_proj"])
    for known in (0.5, 2):
        scores.select(epsilon=known)


def test_a_k_beyond_every_width_keeps_all():
    """A k larger than a projection, however large, is no error."""
    scores = make_scores({"0.q_proj": np.ones((1, 6))})
    assert len(scores.select(top_k=7)) == len(scores.select(top_k=10**400)) == 6
    assert len(scores.select(top_k=5)) == 0  # six equal neurons: none is among five


# ranks


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        elements=st.floats(0, 8, width=32) | st.integers(0, 3).map(float),
    )
)
def test_descending_rank_is_its_definition(importance):
    """Rank 0 is the largest; equal values share the larger rank; so fewer than k + 1 neurons have a rank below k."""
    found = descending_rank(*torch.from_numpy(importance).sort(-1)).numpy()
    assert found.dtype == np.int32
    for row, ranked in zip(importance, found, strict=True):
        assert np.array_equal(ranked, ranks(row))
        for k in range(len(row) + 1):
            assert (ranked < k).sum() <= k
        if len(set(row)) == len(row):
            assert sorted(ranked) == list(range(len(row)))


def test_equal_values_share_the_larger_rank():
    """Worked out by hand."""
    importance = torch.tensor([[5.0, 1.0, 5.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert descending_rank(*importance.sort(-1)).tolist() == [[1, 2, 1, 3], [3, 3, 3, 3]]


def test_scores_metadata_is_left_alone():
    """Selecting writes nothing into the scores."""
    said = scores_metadata(version=1)
    scores = Scores(*({"0.q_proj": np.ones(6, t)} for t in (np.float32, np.float32, np.int32)), said)
    scores.select(top_k=2)
    assert scores.metadata == said
