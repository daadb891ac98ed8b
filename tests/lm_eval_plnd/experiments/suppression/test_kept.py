"""Measurements that are kept by what they depend on."""

from __future__ import annotations

import pytest

from lm_eval_plnd.experiments.suppression.kept import Kept
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


def test_a_damaged_file_is_named(tmp_path):
    """And not taken for nothing."""
    kept = Kept(tmp_path, "a")
    kept.get("answers", 1, dict)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(PLNDError, match=path.name):
        kept.get("answers", 1, dict)
