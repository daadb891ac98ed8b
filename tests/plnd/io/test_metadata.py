"""Metadata as types: what a file says is what it says again, and no field is taken for another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from handmade import MODEL, neurons_metadata, scores_metadata
from plnd.errors import PLNDError
from plnd.io.artifact import to_json
from plnd.io.metadata import NeuronsMetadata, RolesMetadata, ScoresMetadata
from plnd.model_description import ModelDescription, check_model
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores

OPERAND = {"operation": "restrict", "projections": None, "regions": {"names": ["under"], "under": 2}}
CONTROL = {"name": "random", "seed": 7}
ROLES = {
    "format": "plnd.roles",
    "version": 1,
    "plnd": "0.1.0",
    "model": MODEL,
    "languages": ["en", "zh"],
    "tasks": None,
    "documents": [[0, 0], [1, 1]],
    "corpus": {"source": None, "sha256": "", "documents": 2, "tokens": 9, "fewshot": 0},
    "method": {"name": "sign", "tokens": "all", "thresholds": [0.0, 1e-9]},
    "dtype": "float32",
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ScoresMetadata, scores_metadata()),
        (ScoresMetadata, scores_metadata(model={**MODEL, "hub": True}, quantisation=None, more=[1, 1.0, {"b": 1}])),
        (ScoresMetadata, scores_metadata(method={"name": "plnd", "projections": [], "epsilon": 1.0, "batch_size": 8})),
        (ScoresMetadata, scores_metadata(method={"name": "plnd", "projections": [], "epsilon": None})),
        (NeuronsMetadata, neurons_metadata(operands=[OPERAND], control=CONTROL, keys={"copy": 2**70})),
        (RolesMetadata, ROLES),
    ],
)
def test_what_was_read_is_what_is_written(kind, said):
    """Unknown fields, null, absent ones, whole and other numbers come out as they went in, under any name."""
    assert to_json(kind.of(json.loads(to_json(said)))) == to_json(said)


def test_a_record_is_a_mapping_of_what_is_there():
    """Fields that are absent have a default, and are no part of the mapping; its order is that of the file."""
    record = ScoresMetadata.of(scores_metadata(more=1))
    assert record.corpus.skipped_counts == {} and "skipped_counts" not in record["corpus"]
    assert record.get("quantisation") is None and record["more"] == 1
    assert list(record) == sorted(scores_metadata(more=1)) and len(record) == len(scores_metadata()) + 1
    assert record == scores_metadata(more=1) and scores_metadata(more=1) == record and record != scores_metadata()
    assert record | {"more": 2} == scores_metadata(more=2)


def test_a_record_does_not_change():
    """A field cannot be set; another record can be made, whose fields are checked as well."""
    record = ScoresMetadata.of(scores_metadata())
    with pytest.raises(ValidationError):
        record.language = "en"
    assert record.replaced(language="en").language == "en" and record.language == "zh"
    with pytest.raises(PLNDError, match="^field language is 7, expected str$"):
        record.replaced(language=7)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"blocks": True}, "field blocks is True, expected int"),
        ({"blocks": 2.0}, "field blocks is 2.0, expected int"),
        ({"blocks": -2}, "field blocks is -2, expected int, 0 or more"),
        ({"hub": 1}, "field hub is 1, expected bool"),
        ({"widths": {"0.q_proj": "6"}}, "field widths['0.q_proj'] is '6', expected int"),
        ({"widths": []}, "field widths is [], expected an object"),
    ],
)
def test_no_type_is_taken_for_another(model, line):
    """A truth value is no number, a number no text, and a whole number no other."""
    with pytest.raises(PLNDError) as caught:
        check_model({**MODEL, **model}, MODEL, "neurons")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    with pytest.raises(PLNDError, match="^field method.epsilon is 1, expected float$"):
        ScoresMetadata.of(scores_metadata(method={"name": "plnd", "projections": [], "epsilon": 1}))


def test_a_set_made_by_hand_is_an_artifact(tmp_path):
    """A set that says its model alone can be saved and read, with all else unknown; without a model there is none."""
    indices = {"0.q_proj": np.array([1], np.int32)}
    made = NeuronSet(indices, {"0.q_proj": np.ones(1, np.float32)}, {"model": MODEL})
    assert isinstance(made.model, ModelDescription) and made.metadata.language is None
    made.save(tmp_path / "made.safetensors")
    assert NeuronSet.load(tmp_path / "made.safetensors").metadata == made.metadata
    with pytest.raises(PLNDError, match="^field model is missing$"):
        NeuronSet(indices, {"0.q_proj": np.ones(1, np.float32)}, {})


def test_scores_made_by_hand_say_all():
    """Scores without a field are refused where they are made."""
    said = scores_metadata()
    del said["corpus"]
    with pytest.raises(PLNDError, match="^field corpus is missing$"):
        Scores({}, {}, {}, said)
