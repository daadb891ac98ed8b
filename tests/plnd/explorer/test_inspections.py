"""The JSON of `plnd neuron` is read as it was written, and refused where it is anything else."""

from __future__ import annotations

import json

import pytest

from exploring import inspection
from plnd.errors import PLNDError
from plnd.explorer.inspections import is_address, load_inspection


def written(tmp_path, **changes):
    """A file with some of its fields changed."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**json.loads(inspection().to_json()), **changes}), encoding="utf-8")
    return path


def test_round_trip(tmp_path):
    """What is read equals what was saved."""
    path = tmp_path / "x.json"
    path.write_text(inspection("\U0001f600 <b>").to_json(), encoding="utf-8")
    assert load_inspection(path) == inspection("\U0001f600 <b>")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "plnd.scores"}, "format 'plnd.scores', expected plnd.inspection"),
        ({"version": 2}, "version 2, expected 1"),
        ({"chosen_from": "40"}, "field chosen_from: "),
        ({"measure": "size"}, "measure 'size', expected importance or mean"),
        ({"neurons": [{"address": "0.up_proj"}]}, "field neurons.0.index: "),
    ],
)
def test_other_fields(tmp_path, changes, problem):
    """The line names the file, and the first field that is wrong."""
    with pytest.raises(PLNDError, match=problem) as raised:
        load_inspection(written(tmp_path, **changes))
    assert str(raised.value).startswith(f"{tmp_path / 'x.json'}: ") and "\n" not in str(raised.value)


def test_other_files(tmp_path):
    """No JSON, a number that JSON has not, an address that no model has."""
    path = tmp_path / "x.json"
    text = inspection().to_json()
    for wrong, problem in (
        ("{", "not JSON"),
        (text.replace("12.5", "NaN"), "not JSON"),
        (text.replace('"0.up_proj"', '"0.up"'), "neuron '0.up.3', expected block, projection and number"),
        (text.replace('"index": 3', '"index": -3'), "neuron '0.up_proj.-3'"),
    ):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(PLNDError, match=problem):
            load_inspection(path)


def test_addresses():
    """Of all kinds of blocks that plnd has names for, and of nothing else."""
    assert all(map(is_address, ("0.q_proj", "31.shared.up_proj", "encoder.1.o_proj", "decoder.0.cross.k_proj")))
    assert not any(map(is_address, ("q_proj", "0.q", "x.q_proj", "0.q_proj.1", "-1.q_proj", "٣.q_proj", "0.q_proj\n")))
