"""How the rule of a set reads in notebooks, reports and cards."""

from __future__ import annotations

import pytest

from handmade import neurons_metadata
from plnd.io.metadata import NeuronsMetadata
from plnd.neurons.history import rule_in_words

OTHERS = [{"language": "en", "sha256": "1" * 64}, {"language": "ru", "sha256": "2" * 64}]


@pytest.mark.parametrize(
    "rule, words",
    [
        ({"name": "top_k", "value": 2, "projections": None, "regions": None}, "top_k 2"),
        ({"name": "lape", "top_rate": 0.01, "against": OTHERS}, "lape top_rate 0.01, against en, ru"),
        (
            {"name": "contrast", "count": None, "share": 0.002, "error_rate": 0.05, "with": [], "against": OTHERS},
            "contrast share 0.002 error_rate 0.05, against en, ru",
        ),
        (
            {"name": "contrast", "count": 9, "with": OTHERS[1:], "against": OTHERS[:1], "projections": ["o_proj"]},
            "contrast count 9, with ru, against en, of o_proj",
        ),
        ({"name": "fraction", "value": 0.03, "share": 0.11221590909090909}, "fraction 0.03 share 0.112216"),
        ({"name": "odd", "against": "en", "with": [1, {"x": 2}]}, "odd"),
    ],
)
def test_rule_in_words(rule, words):
    """Its numbers and the languages that it compares with; whatever else a file may hold there is passed over."""
    assert rule_in_words(NeuronsMetadata.of(neurons_metadata(rule=rule))) == words
