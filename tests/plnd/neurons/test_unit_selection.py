"""Whole experts and heads, chosen from scores whose numbers are worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import plnd
from handmade import make_scores, scores_metadata
from plnd.commands.main import main
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores

# Two blocks of 3 experts of 2 neurons; 2 query heads of 2 columns, and one key-value head; block 1 is dense.
WIDTHS = {
    "0.q_proj": 4,
    "0.k_proj": 2,
    "0.v_proj": 2,
    "0.o_proj": 4,
    "0.gate_proj": 6,
    "0.up_proj": 6,
    "0.down_proj": 6,
}
WIDTHS |= {"1.o_proj": 4, "1.down_proj": 4, "2.down_proj": 6}
UNITS = {"0.q_proj": 2, "0.k_proj": 1, "0.v_proj": 1, "0.o_proj": 2, "0.gate_proj": 3, "0.up_proj": 3, "0.down_proj": 3}
UNITS |= {"1.o_proj": 2, "2.down_proj": 3}
MODEL: dict[str, Any] = {
    "name": "m",
    "revision": None,
    "model_type": "x",
    "blocks": 3,
    "widths": WIDTHS,
    "units": UNITS,
}


def scores(language: str, *, method: str = "plnd", model: Any = MODEL, **values: list) -> Scores:
    """Scores of one document: `down0` is what the neurons of 0.down_proj weigh; all others weigh 1."""
    importance = {name: np.ones((1, width)) for name, width in WIDTHS.items()}
    for name, of in values.items():
        importance[f"{name[-1]}.{name[:-1]}_proj"] = np.array([of], dtype=np.float64)
    corpus = {**scores_metadata()["corpus"], "documents": 1, "sha256": language.encode().hex().ljust(64, "0")}
    said = {
        "name": method,
        "projections": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    return make_scores(importance, model=model, language=language, corpus=corpus, method={**said, "log_floor": 1e-3})


def chosen(neurons: NeuronSet) -> dict[str, list[int]]:
    """Indices by address."""
    return {name: values.tolist() for name, values in neurons.items()}


ZH = scores("zh", down0=[1, 3, 6, 0, 2, 2], down2=[1, 1, 0, 0, 9, 1], o0=[1, 2, 3, 0], o1=[0, 5, 1, 1])
"""Sums of experts: 4, 6, 4 in block 0 and 2, 0, 10 in block 2; largest: 3, 6, 2 and 1, 0, 9. Heads: 3, 3 and 5, 2."""
EN = scores("en", down0=[2, 3, 1, 0, 4, 2], down2=[3, 1, 0, 0, 1, 1])
"""Sums 5, 1, 6 and 4, 0, 2; parts of their block 5/12, 1/12, 6/12 and 4/6, 0, 2/6."""


def test_sum_and_maximum_by_hand():
    """The best expert of each block by the sum of its neurons, and by the largest of them; then of the whole model."""
    by_sum = plnd.select_units(ZH, unit="expert", top_k=1)
    assert by_sum.metadata.units.members == {"0": [1], "2": [2]}
    assert chosen(by_sum) == {"0.gate_proj": [2, 3], "0.up_proj": [2, 3], "0.down_proj": [2, 3], "2.down_proj": [4, 5]}
    assert {name: values.tolist() for name, values in by_sum.importance.items()} == {
        "0.gate_proj": [6, 6], "0.up_proj": [6, 6], "0.down_proj": [6, 6], "2.down_proj": [10, 10],
    }  # fmt: skip
    two = [plnd.select_units(ZH, unit="expert", pool=pool, top_k=2).metadata.units.members for pool in ("sum", "max")]
    assert two == [{"0": [0, 1], "2": [0, 2]}, {"0": [0, 1], "2": [0, 2]}]
    of_all = plnd.select_units(ZH, unit="expert", pool="max", count=3)
    assert of_all.metadata.units.members == {"0": [0, 1], "2": [2]}  # 9, 6, 3
    assert of_all.importance["0.down_proj"].tolist() == [3, 3, 6, 6]
    assert of_all.metadata.rule["chosen_from"] == 6 and of_all.metadata.rule["kept"] == 3


def test_units_of_no_importance_are_never_chosen():
    """Expert 1 of block 2, to which no token went, is not among the three that are asked for."""
    neurons = plnd.select_units(ZH, unit="expert", top_k=3)
    assert neurons.metadata.units.members == {"0": [0, 1, 2], "2": [0, 2]}


def test_heads_by_hand():
    """A query head is its columns of o; ties go to the first. Its rows of q, and keys with their values, if asked."""
    assert chosen(plnd.select_units(ZH, unit="head", top_k=1)) == {"0.o_proj": [0, 1], "1.o_proj": [0, 1]}
    assert chosen(plnd.select_units(ZH, unit="head", pool="max", top_k=1))["0.o_proj"] == [2, 3]
    both = plnd.select_units(ZH, unit="head", pool="max", count=2, projections=["q_proj", "o_proj"])
    assert chosen(both) == {"0.q_proj": [2, 3], "0.o_proj": [2, 3], "1.o_proj": [0, 1]}
    assert chosen(plnd.select_units(ZH, unit="kv-head", count=1)) == {"0.v_proj": [0, 1]}
    pair = plnd.select_units(ZH, unit="kv-head", count=1, projections=["k_proj", "v_proj"])
    assert chosen(pair) == {"0.k_proj": [0, 1], "0.v_proj": [0, 1]}


def test_contrast_by_hand():
    """Expert 1 of block 0 has 6/14 of its block here and 1/12 there; expert 2 of block 2 has 10/12 and 2/6."""
    neurons = plnd.select_units(ZH, EN, unit="expert")
    assert neurons.metadata.units.members == {"0": [1], "2": [2]}
    assert neurons.importance["0.down_proj"] == pytest.approx([6 / 14 - 2 / 12] * 2)
    assert neurons.importance["2.down_proj"] == pytest.approx([10 / 12 - 4 / 6] * 2)
    assert plnd.select_units(ZH, EN, unit="expert", count=1).metadata.units.members == {"0": [1]}
    assert plnd.select_units(ZH, EN, unit="expert", times=3).metadata.units.members == {"0": [1]}
    assert plnd.select_units(ZH, EN, unit="expert", share=0.2).metadata.rule["kept"] == 1
    assert [record["language"] for record in neurons.metadata.rule["against"]] == ["en"]


def test_a_group_must_show_it_in_each_language():
    """With a second language of whose block 0 expert 1 has nothing, only block 2 is left; exactly twice is enough."""
    de = scores("de", down0=[1, 1, 0, 0, 1, 1], down2=[1, 0, 1, 0, 3, 1])
    found = plnd.select_units([ZH, de], EN, unit="expert")
    assert found.metadata.units.members == {"2": [2]}  # the smaller part: 4/6, twice 2/6
    assert found.importance["2.down_proj"] == pytest.approx([0, 0], abs=1e-7)


def test_relevance_weighs_blocks():
    """Relevance has one unit over the whole model, so that the block with the larger sum here comes first."""
    zh = scores("zh", method="relevance", down0=[1, 3, 6, 0, 2, 2], down2=[100, 100, 0, 0, 900, 100])
    en = scores("en", method="relevance", down0=[2, 3, 1, 0, 4, 2], down2=[3, 1, 0, 0, 1, 1])
    neurons = plnd.select_units(zh, en, unit="expert", count=1)
    assert neurons.metadata.units.members == {"2": [2]}
    assert neurons.importance["2.down_proj"] == pytest.approx([1200 * (10 / 12 - 4 / 6)] * 2)


def test_units_stay_as_long_as_they_are_whole(tmp_path):
    """Set algebra keeps the list of units exactly while the set is made of whole ones, also through a file."""
    one, two = (plnd.select_units(ZH, unit="expert", top_k=k) for k in (1, 2))
    assert (two - one).metadata.units.members == {"0": [0], "2": [0]}
    assert ((two - one) | one).metadata.units.members == two.metadata.units.members
    assert (two & one).metadata.units == one.metadata.units
    assert two.restrict(regions=Regions(("under",), 1, 0)).metadata.units.members == {"0": [0, 1]}
    assert two.top(8).metadata.units.members == {"0": [1], "2": [2]}  # two neurons of 10, six of 6
    heads = plnd.select_units(ZH, unit="head", top_k=1)
    for broken in (two.top(3), two | heads, two.restrict(projections=["down_proj"]), one - one):
        assert broken.metadata.units is None
        assert "units" not in broken.metadata
    (two - one).save(tmp_path / "a.safetensors")
    assert NeuronSet.load(tmp_path / "a.safetensors").metadata == (two - one).metadata


def test_random_units_are_whole():
    """The control of a set of experts is as many other experts of each block, the same at all three projections."""
    neurons = plnd.select_units(ZH, unit="expert", top_k=2)
    drawn = [neurons.random_like(seed) for seed in range(8)]
    for one in drawn:
        units = one.metadata.units
        assert {block: len(members) for block, members in units.members.items()} == {"0": 2, "2": 2}
        assert one.indices["0.gate_proj"].tolist() == one.indices["0.down_proj"].tolist()
        assert one.counts() == neurons.counts()
    assert len({str(one.metadata.units.members) for one in drawn}) > 1
    assert drawn[3] == neurons.random_like(3)


def test_a_file_that_says_another_thing_is_refused(tmp_path):
    """Units that the set is not made of, and counts of units that do not divide a width."""
    neurons = plnd.select_units(ZH, unit="expert", top_k=1)
    said = {"unit": "expert", "projections": ["gate_proj", "up_proj", "down_proj"], "members": {"0": [2], "2": [2]}}
    for units in (said, {**said, "unit": "head"}, {**said, "unit": "layer"}, {**said, "projections": ["down_proj"]}):
        wrong = NeuronSet(neurons.indices, neurons.importance, neurons.metadata.replaced(units=units))
        wrong.save(tmp_path / "wrong.safetensors")
        with pytest.raises(PLNDError, match="made of whole units"):
            NeuronSet.load(tmp_path / "wrong.safetensors")
    for units in ({"0.down_proj": 4}, {"0.down_proj": 0}, {"9.down_proj": 1}):
        scores("zh", model={**MODEL, "units": units}).save(tmp_path / "wrong.scores.safetensors")
        with pytest.raises(PLNDError, match="units, of"):
            Scores.load(tmp_path / "wrong.scores.safetensors")


@pytest.mark.parametrize(
    "others, rule, refusal",
    [
        ([], {"unit": "layer", "top_k": 1}, "unknown unit 'layer'"),
        ([], {"unit": "expert"}, "exactly one|expected one of top_k"),
        ([], {"unit": "expert", "top_k": 1, "count": 1}, "expected one of top_k"),
        ([], {"unit": "expert", "top_k": 0}, "top_k=0"),
        ([], {"unit": "expert", "top_k": 1, "pool": "mean"}, "unknown pool 'mean'"),
        ([], {"unit": "expert", "count": 1, "times": 2}, "times is a rule over languages"),
        ([], {"unit": "head", "top_k": 1, "projections": ["k_proj"]}, "'k_proj' has no part of one head"),
        ([], {"unit": "head", "top_k": 1, "projections": []}, "no projection named"),
        ([EN], {"unit": "expert", "top_k": 1}, "top_k is a rule of one language"),
        ([EN], {"unit": "expert", "times": 50}, "none of the 6 units .* 50 times as large as elsewhere"),
        ([ZH], {"unit": "expert"}, "zh is among the others too"),
        ([], {"unit": "expert", "top_k": 1, "regions": Regions(("under",), 0, 0)}, "no expert to choose from"),
    ],
)
def test_what_makes_no_sense_is_refused(others, rule, refusal):
    """Each in one line."""
    with pytest.raises(PLNDError, match=refusal) as caught:
        plnd.select_units(ZH, others, **rule)
    assert len(str(caught.value).splitlines()) == 1


def test_scores_that_do_not_tell_are_refused():
    """Those of before, which do not say how many units there are; those that measured something else."""
    old = scores("zh", model={name: value for name, value in MODEL.items() if name != "units"})
    with pytest.raises(PLNDError, match="do not say how many experts and heads"):
        plnd.select_units(old, unit="expert", top_k=1)
    without = {name: vectors for name, vectors in ZH.mean.items() if "down" not in name}
    part = Scores(ZH.minimum, without, ZH.worst_rank, ZH.metadata, ZH.mean_log, ZH.std_log)
    with pytest.raises(PLNDError, match="units .expert. are scored by 0.down_proj, which these scores do not cover"):
        plnd.select_units(part, unit="expert", top_k=1)


def test_command_line(tmp_path, capsys):
    """`plnd select --unit` chooses what the call chooses, and `plnd show` says which units."""
    for language, of in (("zh", ZH), ("en", EN)):
        of.save(tmp_path / f"{language}.scores.safetensors")
    zh, en = (str(tmp_path / f"{language}.scores.safetensors") for language in ("zh", "en"))
    out = str(tmp_path / "zh.safetensors")
    assert main(["select", zh, "--against", en, "--unit", "expert", "--count", "1", "--output", out]) == 0
    assert "1 whole expert;" in capsys.readouterr().out
    assert NeuronSet.load(out) == plnd.select_units(ZH, EN, unit="expert", count=1)
    assert main(["show", out]) == 0
    assert "expert 1 of block 0" in capsys.readouterr().out
    assert main(["select", zh, "--unit", "head", "--pool", "max", "--top-k", "1", "--output", out]) == 0
    assert NeuronSet.load(out) == plnd.select_units(ZH, unit="head", pool="max", top_k=1)
    for flags in (["--unit", "expert", "--epsilon", "1"], ["--pool", "max", "--top-k", "1"], ["--unit", "expert"]):
        assert main(["select", zh, *flags, "--output", out]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
