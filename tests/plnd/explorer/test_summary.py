"""The numbers of the map and of the lists, counted once more by hand."""

from __future__ import annotations

import numpy as np

import plnd
from exploring import scores
from handmade import MODEL
from plnd.explorer import summary
from plnd.explorer.contents import together


def test_own_neurons_are_those_that_contrast_keeps(contents):
    """Without a limit, `plnd.contrast` keeps of every projection as many as the map says."""
    zh, en = contents.scores["zh"], contents.scores["en"]
    found = summary.own_neurons(contents, "zh")
    kept = plnd.contrast(zh, en, share=1.0, projections=["q_proj", "v_proj", "down_proj"])
    for row, block in enumerate(contents.blocks):
        for column, projection in enumerate(contents.projections):
            if projection in ("q_proj", "v_proj", "down_proj"):
                indices = kept.indices.get(f"{block}.{projection}", ())
                assert found[row][column] == len(indices), (block, projection)
    assert sum(map(sum, found)) > 0


def test_importance_of_the_map(contents):
    """Largest and mean, over neurons, of the mean over documents."""
    column = contents.projections.index("o_proj")
    values = contents.scores["en"].mean["1.o_proj"]
    assert summary.largest_importance(contents, "en")[1][column] == float(values.max())
    assert np.isclose(summary.mean_importance(contents, "en")[1][column], values.mean())


def test_projections_that_were_not_scored_are_blank():
    """Not zero."""
    whole = scores("zh", 2)
    part = {name: v for name, v in whole.mean.items() if name.endswith("down_proj")}
    method = {**whole.metadata.method, "projections": ["down_proj"]}
    logs = {name: whole.mean_log[name] for name in part}
    ranks = {name: whole.worst_rank[name] for name in part}
    some = plnd.Scores(part, part, ranks, {**whole.metadata, "method": method}, logs, logs)
    shown = together({"zh": some}, {}, {})
    assert summary.largest_importance(shown, "zh")[0][:-1] == [None] * 6
    assert summary.largest_importance(shown, "zh")[0][-1] == float(part["0.down_proj"].max())


def test_sets_and_inspections_are_counted(contents):
    """By block and projection; overlaps by pair."""
    down = contents.projections.index("down_proj")
    assert summary.neurons_of_set(contents, "zh")[0][down] == 2 and summary.neurons_of_set(contents, "zh")[1][down] == 0
    assert summary.overlaps(contents.sets) == [[3, 1], [1, 2]]
    assert sum(map(sum, summary.inspected(contents))) == 2
    assert sum(MODEL["widths"].values()) == sum(contents.widths.values())


def test_the_first_neurons_are_the_rules_own(contents):
    """Those of contrast, largest excess first; of a set those of largest importance."""
    found = summary.most_specific(contents, "zh")
    kept = plnd.contrast(contents.scores["zh"], contents.scores["en"], count=summary.TOP)
    assert {(address, index) for address, index, _ in found} == {(a, int(k)) for a, ks in kept.items() for k in ks}
    assert [value for *_, value in found] == sorted((value for *_, value in found), reverse=True)
    assert summary.most_important(contents, contents.sets["zh"])[0] == ["0.down_proj", 5, 6.0]
    other = {**scores("en", 1).metadata.corpus, "sha256": ""}
    same = together({"zh": scores("zh", 1), "en": scores("en", 1, corpus=other)}, {}, {})
    assert summary.most_specific(same, "zh") == []
