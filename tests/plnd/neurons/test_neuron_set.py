"""Neuron sets: the algebra of sets, what is kept and recorded on the way, and the random control."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import MODEL, make_neurons, make_scores
from plnd.addresses import address_order, split_address
from plnd.errors import ModelMismatchError, PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.selection import FEED_FORWARD

Members = set[tuple[str, int]]

MEMBERS = st.sets(st.sampled_from([(name, k) for name, width in MODEL["widths"].items() for k in range(width)]))


def neurons_of(members: Members, language: str = "zh") -> NeuronSet:
    """The set with these neurons, each as important as its index plus one."""
    return make_neurons({name: [k for n, k in members if n == name] for name in MODEL["widths"]}, language=language)


def members_of(neurons: NeuronSet) -> Members:
    """The neurons as a Python set; on the way, whether vectors are ascending int32 and no address is empty."""
    for values in neurons.indices.values():
        assert values.dtype == np.int32 and len(values) and (np.diff(values) > 0).all()
    assert neurons.indices.keys() == neurons.importance.keys()
    return {(name, int(k)) for name, values in neurons.items() for k in values}


def importance_of(neurons: NeuronSet) -> dict[tuple[str, int], float]:
    """Importance by neuron."""
    return {
        (name, int(k)): float(value)
        for name, values in neurons.items()
        for k, value in zip(values, neurons.importance[name], strict=True)
    }


# algebra


@settings(max_examples=100, deadline=None)
@given(MEMBERS, MEMBERS, MEMBERS)
def test_algebra_is_that_of_sets(a, b, c):
    """Union, intersection, difference and `minus_shared` are what Python's sets give."""
    x, y, z = neurons_of(a), neurons_of(b), neurons_of(c)
    assert members_of(x | y) == a | b
    assert members_of(x & y) == a & b
    assert members_of(x - y) == a - b
    assert members_of(x.minus_shared([y, z])) == a - (a & b & c)
    assert members_of((x | y) - z) == (a | b) - c
    assert len(x | y) == len(a | b)


@settings(max_examples=50, deadline=None)
@given(MEMBERS, MEMBERS)
def test_equality_is_that_of_sets(a, b):
    """Two sets are equal if they hold the same neurons of the same model, whatever their importance and history."""
    assert (neurons_of(a) == neurons_of(b)) == (a == b)
    assert neurons_of(a) | neurons_of(b) == neurons_of(b) | neurons_of(a)


def test_equality_minds_the_model():
    """The same indices in a model of other widths are another set, and a set equals nothing but a set."""
    a = make_neurons({"0.q_proj": [1]})
    model = {**MODEL, "widths": {**MODEL["widths"], "1.q_proj": 7}}
    assert a != make_neurons({"0.q_proj": [1]}, model=model)
    assert a != {"0.q_proj": [1]} and a != [1]


def test_importance_is_kept():
    """A neuron keeps its importance; one that only the other set has brings that set's along."""
    a = make_neurons({"0.q_proj": [1, 2], "1.q_proj": [0]}, {"0.q_proj": [10, 20], "1.q_proj": [5]})
    b = make_neurons({"0.q_proj": [2, 3], "0.k_proj": [1]}, {"0.q_proj": [200, 300], "0.k_proj": [7]})
    assert importance_of(a | b) == {
        ("0.q_proj", 1): 10, ("0.q_proj", 2): 20, ("0.q_proj", 3): 300, ("1.q_proj", 0): 5, ("0.k_proj", 1): 7,
    }  # fmt: skip
    assert importance_of(a & b) == {("0.q_proj", 2): 20}
    assert importance_of(a - b) == {("0.q_proj", 1): 10, ("1.q_proj", 0): 5}
    assert importance_of(a.minus_shared([b])) == importance_of(a - b)
    assert importance_of(a.restrict(projections=["q_proj"])) == importance_of(a)
    assert importance_of(a.top(2)) == {("0.q_proj", 1): 10, ("0.q_proj", 2): 20}


def test_operations_leave_the_operands_alone():
    """An operation makes a new set; neither operand's neurons nor metadata change."""
    a, b = make_neurons({"0.q_proj": [1, 2]}), make_neurons({"0.q_proj": [2, 3]}, language="en")
    before = a.digest, b.digest, copy.deepcopy(a.metadata)
    a | b, a & b, a - b, a.minus_shared([b]), a.restrict(projections=[]), a.top(1), a.random_like(1)  # noqa: B018
    assert (a.digest, b.digest, a.metadata) == before


def test_operations_are_recorded_in_order():
    """The result says what was done to the first set, with which others (language, size, digest), in which order."""
    zh = make_neurons({"0.q_proj": [1, 2, 3], "1.down_proj": [1, 2]})
    en, ru = make_neurons({"0.q_proj": [2]}, language="en"), make_neurons({"0.q_proj": [5]}, language="ru")
    regions = Regions(("under",), 1, 0)
    result = ((zh - en) | ru).minus_shared([en, ru]).restrict(projections=["q_proj"], regions=regions).top(2)

    def other(operation: str, neurons: NeuronSet) -> dict:
        facts = {"language": neurons.metadata["language"], "neurons": len(neurons), "sha256": neurons.digest}
        return {"operation": operation, **facts}

    assert result.metadata["operands"] == [
        other("minus", en),
        other("union", ru),
        other("minus_shared", en),
        other("minus_shared", ru),
        {
            "operation": "restrict",
            "projections": ["q_proj"],
            "regions": {"names": ["under"], "under": 1, "gen": 0},
        },
        {"operation": "top", "n": 2},
    ]
    with_condition = zh.restrict(where=lambda block, projection: True).metadata["operands"]
    assert with_condition[0]["where"] == "a condition in Python"
    assert "operands" not in zh.metadata and result.metadata["language"] == "zh"


def test_what_was_done_survives_a_file(tmp_path):
    """A result with a history is a valid artifact."""
    zh, en = make_neurons({"0.q_proj": [1, 2, 3]}), make_neurons({"0.q_proj": [2]}, language="en")
    result = (zh - en).restrict(regions=Regions(("under",), 1, 1)).top(1).random_like(3)
    result.save(tmp_path / "result")
    assert NeuronSet.load(tmp_path / "result").metadata == result.metadata


def test_whole_completes_feed_forward_neurons(tmp_path):
    """A neuron of gate, up or down is in all three, with the largest importance that it had; others stay."""
    given = make_neurons(
        {"0.gate_proj": [1, 4], "0.down_proj": [2, 4], "1.q_proj": [3], "1.up_proj": [7]},
        {"0.gate_proj": [5, 6], "0.down_proj": [0, 9], "1.q_proj": [8], "1.up_proj": [1]},
    )
    whole = given.whole()
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert whole.indices[f"0.{name}"].tolist() == [1, 2, 4] and whole.indices[f"1.{name}"].tolist() == [7]
        assert whole.importance[f"0.{name}"].tolist() == [5, 0, 9]
    assert whole.indices["1.q_proj"].tolist() == [3] and len(whole) == 3 * 3 + 3 + 1
    assert whole.whole() == whole and whole.metadata["operands"] == [{"operation": "whole"}]
    whole.save(tmp_path / "whole")
    assert NeuronSet.load(tmp_path / "whole") == whole


def test_minus_shared_needs_another_set():
    """What a set shares with nobody is no question: asking it is an error, not an empty set."""
    with pytest.raises(PLNDError, match="minus_shared needs at least one other set"):
        make_neurons({"0.q_proj": [1]}).minus_shared([])


@pytest.mark.parametrize("operation", ["__or__", "__and__", "__sub__", "minus_shared"])
@pytest.mark.parametrize(
    "changes, wording",
    [
        ({"model_type": "gpt2"}, "made for gpt2 with 2 blocks (made/by-hand), but the model is llama with 2 blocks"),
        ({"blocks": 3}, "made for llama with 3 blocks (made/by-hand), but the model is llama with 2 blocks"),
        (
            {"widths": {**MODEL["widths"], "1.k_proj": 5}},
            "made for a model whose 1.k_proj has 5 neurons, but this one's has 4",
        ),
        ({"widths": {}}, "made for a model whose 0.down_proj has no neurons, but this one's has 8"),
    ],
    ids=["family", "blocks", "width", "no widths"],
)
def test_sets_of_two_models_do_not_mix(operation, changes, wording):
    """The algebra refuses a set of another family, depth or width, and says which of them differs."""
    ours, theirs = make_neurons({"0.q_proj": [1]}), make_neurons({"0.q_proj": [1]}, model={**MODEL, **changes})
    with pytest.raises(ModelMismatchError) as caught:
        getattr(ours, operation)([theirs] if operation == "minus_shared" else theirs)
    assert wording in str(caught.value) and str(caught.value).startswith("the other set: made for ")
    assert str(caught.value).endswith("detect again on this model, or use the model that they were made for")


def test_same_shape_under_another_name_mixes():
    """The negative: a copy of the model at another place, or a tuned one, is still the model."""
    theirs = make_neurons({"0.q_proj": [1]}, model={**MODEL, "name": "elsewhere", "revision": "abc"})
    assert len(make_neurons({"0.q_proj": [2]}) | theirs) == 2


# parts


@settings(max_examples=50, deadline=None)
@given(MEMBERS, st.sets(st.sampled_from(["q_proj", "o_proj", "up_proj", "down_proj"])), st.booleans())
def test_restrict_keeps_what_was_asked_for(members, projections, first_block):
    """Projections, regions and a condition each keep their neurons, together those that meet all of them."""
    neurons = neurons_of(members)
    regions = Regions(("under",), 1, 1) if first_block else Regions(("gen",), 1, 1)
    block = "0" if first_block else "1"
    assert members_of(neurons.restrict(projections=projections)) == {
        m for m in members if m[0].split(".")[1] in projections
    }
    assert members_of(neurons.restrict(regions=regions)) == {m for m in members if m[0].split(".")[0] == block}
    assert members_of(
        neurons.restrict(projections=projections, regions=regions, where=lambda b, p: p != "q_proj" and b < 2)
    ) == {m for m in members if m[0].split(".")[0] == block and m[0].split(".")[1] in projections - {"q_proj"}}
    assert neurons.restrict() == neurons


def test_restrict_refuses_what_does_not_exist():
    """An unknown projection, or regions larger than the model, are errors and not empty sets."""
    neurons = make_neurons({"0.q_proj": [1]})
    with pytest.raises(PLNDError, match="unknown projection 'x_proj': expected one of q_proj, k_proj, v_proj, o_proj,"):
        neurons.restrict(projections=["x_proj"])
    with pytest.raises(PLNDError, match="projections='q_proj': expected a list of names"):
        neurons.restrict(projections="q_proj")
    with pytest.raises(PLNDError, match="under=2 and gen=1 overlap: the model has 2 blocks"):
        neurons.restrict(regions=Regions(("under",), 2, 1))


def test_top_takes_the_most_important():
    """The n most important of the whole set, wherever they are."""
    neurons = make_neurons(
        {"0.q_proj": [0, 1, 2], "1.down_proj": [4, 5]}, {"0.q_proj": [5, 1, 3], "1.down_proj": [4, 2]}
    )
    assert members_of(neurons.top(1)) == {("0.q_proj", 0)}
    assert members_of(neurons.top(3)) == {("0.q_proj", 0), ("1.down_proj", 4), ("0.q_proj", 2)}
    assert neurons.top(5) == neurons.top(99) == neurons
    assert len(neurons.top(0)) == 0
    with pytest.raises(PLNDError, match="top -1: expected a number of neurons, 0 or more"):
        neurons.top(-1)


def test_top_breaks_ties_by_address_then_index():
    """Among equals the first block, then the usual order of projections, then the lowest index goes first."""
    indices = {"1.q_proj": [0], "0.down_proj": [1], "0.q_proj": [2, 4], "0.k_proj": [3]}
    neurons = make_neurons(indices, {name: [1] * len(v) for name, v in indices.items()})
    order = [("0.q_proj", 2), ("0.q_proj", 4), ("0.k_proj", 3), ("0.down_proj", 1), ("1.q_proj", 0)]
    for n in range(6):
        assert members_of(neurons.top(n)) == set(order[:n])


def test_counts_total_and_order():
    """Counts are by projection in the usual order, zeros included; items go by block, then projection."""
    neurons = make_neurons({"1.q_proj": [0, 1], "0.down_proj": [3], "0.q_proj": [5]})
    assert neurons.counts() == {
        "q_proj": 3, "k_proj": 0, "v_proj": 0, "o_proj": 0, "gate_proj": 0, "up_proj": 0, "down_proj": 1,
    }  # fmt: skip
    assert list(neurons.counts())[-1] == "down_proj"
    assert [name for name, _ in neurons.items()] == ["0.q_proj", "0.down_proj", "1.q_proj"]
    assert (len(neurons), neurons.total) == (4, sum(MODEL["widths"].values()))
    assert address_order("10.q_proj") > address_order("9.down_proj")


def test_counts_name_only_projections_of_the_model():
    """A model without gate_proj has no count for it."""
    widths = {name: width for name, width in MODEL["widths"].items() if "gate" not in name}
    assert "gate_proj" not in make_neurons({"0.q_proj": [1]}, model={**MODEL, "widths": widths}).counts()


def test_empty_addresses_are_left_out():
    """An address without neurons is not in the set, so that equal sets have equal files."""
    with_empty = make_neurons({"0.q_proj": [1], "1.q_proj": []})
    assert with_empty.indices.keys() == {"0.q_proj"}
    assert with_empty.digest == make_neurons({"0.q_proj": [1]}).digest


def test_sets_are_not_hashable():
    """A set's arrays could change, so it is no key."""
    with pytest.raises(TypeError):
        hash(make_neurons({}))


# the random control


@settings(max_examples=50, deadline=None)
@given(MEMBERS, st.integers(0, 2**31))
def test_random_like_draws_as_many_of_each(members, seed):
    """The control has as many distinct neurons in every block and projection, all within the width."""
    neurons = neurons_of(members)
    drawn = neurons.random_like(seed)
    members_of(drawn)
    assert {name: len(v) for name, v in drawn.items()} == {name: len(v) for name, v in neurons.items()}
    assert all(0 <= v[0] and v[-1] < MODEL["widths"][name] for name, v in drawn.items())
    assert drawn == neurons.random_like(seed)


def test_random_like_is_the_same_everywhere():
    """A golden draw: the same seed gives the same control on every machine and with every numpy."""
    neurons = make_neurons({"0.q_proj": [0, 1], "1.down_proj": [0, 1, 2, 3], "1.k_proj": [0, 1, 2, 3]})
    drawn = {name: v.tolist() for name, v in neurons.random_like(0).items()}
    assert drawn == {"0.q_proj": [0, 4], "1.k_proj": [0, 1, 2, 3], "1.down_proj": [0, 3, 4, 6]}


def test_random_like_depends_on_seed_and_address_alone():
    """Other seeds draw others; which neurons the mask has does not matter, only how many."""
    model = {**MODEL, "widths": {name: 1000 for name in MODEL["widths"]}}
    one = make_neurons({"0.q_proj": range(50), "1.q_proj": range(50)}, model=model)
    other = make_neurons({"0.q_proj": range(100, 150)}, model=model)
    first, second = one.random_like(0), one.random_like(1)
    assert first != second and first != one
    assert np.array_equal(first.indices["0.q_proj"], other.random_like(0).indices["0.q_proj"])
    assert not np.array_equal(first.indices["0.q_proj"], first.indices["1.q_proj"])


@settings(max_examples=30, deadline=None)
@given(MEMBERS, st.integers(0, 2**31))
def test_random_like_has_as_many_feed_forward_neurons(members, seed):
    """Of gate, up and down of one block any one switches a neuron off: the control lists each as often as the set."""
    neurons = neurons_of(members)

    def listed(found) -> dict[str, list[int]]:
        """Block to how often each of its feed-forward neurons is listed."""
        every: dict[str, list[int]] = {}
        for address, indices in found.items():
            if split_address(address)[1] in FEED_FORWARD:
                every.setdefault(split_address(address)[0], []).extend(indices.tolist())
        return {block: sorted(Counter(each).values()) for block, each in every.items()}

    assert listed(neurons.random_like(seed)) == listed(neurons)


def test_random_like_is_uniform():
    """Over many seeds every neuron of a projection is drawn about equally often (chi-squared, far in the tail)."""
    neurons = make_neurons({"0.gate_proj": [0, 1]})
    draws = np.concatenate([neurons.random_like(seed).indices["0.gate_proj"] for seed in range(400)])
    expected = len(draws) / 8
    assert ((np.bincount(draws, minlength=8) - expected) ** 2 / expected).sum() < 30


def test_random_like_is_recorded_and_claims_no_importance():
    """The control says that it is one, and with which seed; its importances are zero."""
    control = make_neurons({"0.q_proj": [1, 2]}).random_like(7)
    assert control.metadata["control"] == {"name": "random", "seed": 7}
    assert set(importance_of(control).values()) == {0.0}


def test_a_set_and_scores_are_shown_in_one_line():
    """In a notebook: how many of how many, whose and of what, and no array."""
    scores = make_scores({address: np.ones((2, width)) for address, width in MODEL["widths"].items()})
    assert repr(scores) == (
        f"Scores({', '.join(scores.metadata.method.projections)} over 3 documents, language='zh',"
        f" model={scores.metadata.model.name!r}, method='plnd')"
    )
    neurons = scores.select(top_k=99, projections=["q_proj", "down_proj"])
    sizes = {"q_proj": 12, "down_proj": 16}
    assert repr(neurons) == (
        f"NeuronSet(28 of {neurons.total} neurons, language='zh', model={neurons.model.name!r}, by projection: {sizes})"
    )
