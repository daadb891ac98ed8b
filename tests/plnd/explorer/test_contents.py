"""What can be shown together, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exploring import inspection, scores
from handmade import MODEL, make_neurons
from plnd.errors import PLNDError
from plnd.explorer.contents import as_indices, read, together
from plnd.references.means import Means


def other_model(**changes):
    """Metadata of a model with one block's width changed."""
    return {**MODEL, "widths": {**MODEL["widths"], "0.q_proj": 7}, **changes}


def test_files_of_all_kinds_are_read_together(tmp_path, contents):
    """Scores by their language, sets and inspections by the names of their files; all blocks and projections."""
    for name, one in contents.scores.items():
        one.save(tmp_path / f"{name}.scores.safetensors")
    contents.sets["zh"].save(tmp_path / "own.safetensors")
    (tmp_path / "looked.json").write_text(contents.inspections["looked"].to_json(), encoding="utf-8")
    found = read([str(path) for path in sorted(tmp_path.iterdir())])
    assert list(found.scores) == ["en", "zh"] and list(found.sets) == ["own"]
    assert found.inspections == contents.inspections
    assert found.widths == MODEL["widths"] and found.blocks == ["0", "1"] and len(found.projections) == 7
    assert found.compared and found.model == "made/by-hand"


def test_only_some_projections(contents):
    """What is not chosen is not there; a name that is none is refused."""
    chosen = together(contents.scores, contents.sets, {}, ["o_proj", "down_proj"])
    assert chosen.projections == ["o_proj", "down_proj"] and len(chosen.widths) == 4
    with pytest.raises(PLNDError, match="unknown projection 'down'"):
        together(contents.scores, {}, {}, ["down"])


def test_an_inspection_alone_says_nothing_of_sizes():
    """Its addresses are shown, their numbers of neurons are not known."""
    alone = together({}, {}, {"looked": inspection()})
    assert alone.widths == {"0.up_proj": None, "1.q_proj": None} and not alone.compared


def test_a_neuron_that_the_model_has_not(contents):
    """An inspection of another model is refused by the first neuron that does not fit."""
    neuron = inspection().neurons[0]
    for changes, problem in (
        ({"index": 8}, "neuron 0.up_proj.8, but the model of the artifacts has 8 neurons there"),
        ({"address": "7.up_proj"}, "neuron 7.up_proj.3, but the model of the artifacts has no such projection"),
    ):
        wrong = replace(inspection(), neurons=(replace(neuron, **changes),))
        with pytest.raises(PLNDError, match=problem):
            together(contents.scores, {}, {"looked": wrong})


def test_scores_that_do_not_compare():
    """Of other methods, of one corpus, of another model."""
    zh = scores("zh", 2)
    relevance = scores("en", 1, method={**zh.metadata.method, "name": "relevance"})
    with pytest.raises(PLNDError, match="method is plnd in the scores of zh and relevance in those of en"):
        together({"zh": zh, "en": relevance}, {}, {})
    with pytest.raises(PLNDError, match="of one corpus, the same documents"):
        together({"zh": zh, "en": scores("en", 2)}, {}, {})
    with pytest.raises(PLNDError, match=r"the neurons of x: made for a model whose 0\.q_proj has 7"):
        together({"zh": zh}, {"x": make_neurons({"1.q_proj": [1]}, model=other_model())}, {})


def test_names_that_come_twice(tmp_path):
    """Two scores of a language, and two sets in files of one name, are refused."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make_neurons({"0.q_proj": [1]}).save(tmp_path / folder / "x.safetensors")
        scores("zh", 2).save(tmp_path / folder / "zh.scores.safetensors")
    for name, problem in (("x.safetensors", "another x"), ("zh.scores.safetensors", "another zh")):
        with pytest.raises(PLNDError, match=problem):
            read([str(tmp_path / "a" / name), str(tmp_path / "b" / name)])


def test_scores_without_logs_are_shown_and_not_compared():
    """Those of format version 1 have none."""
    old = together({"zh": scores("zh", 2, version=1), "en": scores("en", 1, version=1)}, {}, {})
    assert old.scored("0.q_proj") and not old.relative and not old.compared


def test_where_detection_knew_an_epsilon_queries_and_keys_are_not_compared():
    """Their logs are 0 there, whatever was measured."""
    method = {**scores("zh", 2).metadata.method, "epsilon": 0.5}
    known = together({"zh": scores("zh", 2, method=method)}, {}, {})
    assert known.scored("0.q_proj") and not known.measured("0.q_proj") and known.measured("0.v_proj")


def test_a_set_without_neurons_somewhere(contents):
    """Has empty arrays there."""
    indices, importance = as_indices(contents, "zh", "1.down_proj")
    assert not len(indices) and not len(importance)
    assert as_indices(contents, "zh", "0.down_proj")[0].tolist() == [3, 5]


def test_an_artifact_of_another_kind(tmp_path):
    """Means of values are no importance, and no set."""
    said = {"format": "plnd.means", "version": 1, "plnd": "0", "model": MODEL, "dtype": "float32"}
    corpus = {"source": "de.jsonl", "sha256": "", "documents": 2, "tokens": 9, "max_length": 5, "skipped": {}}
    means = Means({"0.down_proj": np.zeros(8, np.float32)}, {**said, "corpora": {"de": corpus}})
    means.save(tmp_path / "m.safetensors")
    with pytest.raises(PLNDError, match=r"m\.safetensors: means, expected scores, neurons, or JSON of plnd neuron"):
        read([str(tmp_path / "m.safetensors")])
