"""Measurements that are kept by what they depend on."""

from __future__ import annotations

import pytest

from lm_eval_plnd.experiments.kept import Kept
from plnd.errors import PLNDError


def test_what_is_kept_is_not_measured_again(tmp_path):
    """Of the same model and the same question; of any other it is, and without a folder always."""
    kept = Kept(tmp_path, "a")
    assert kept.get("answers", {"n": 1}, lambda: {"said": ["是"], "nats": [0.1 + 0.2]}) == {
        "said": ["是"],
        "nats": [0.1 + 0.2],
    }
    assert Kept(tmp_path, "a").get("answers", {"n": 1}, dict) == {"said": ["是"], "nats": [0.1 + 0.2]}
    assert kept.get("answers", {"n": 2}, dict) == Kept(tmp_path, "b").get("answers", {"n": 1}, dict) == {}
    assert Kept().get("answers", {"n": 1}, dict) == {} and Kept().path("answers", 1) is None


@pytest.mark.parametrize("change", [("0.5", "0.6"), ("value", "other"), ("{", "")])
def test_a_damaged_file_is_named(tmp_path, change):
    """Another number, another field, no JSON: not taken for what was measured, nor for nothing."""
    kept = Kept(tmp_path, "a")
    kept.get("answers", 1, lambda: {"nats": [0.5]})
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(PLNDError, match=path.name):
        kept.get("answers", 1, dict)
