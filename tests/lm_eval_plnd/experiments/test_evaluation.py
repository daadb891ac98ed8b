"""Values by document that were kept: what `evaluate` wrote is read, and nothing else."""

from __future__ import annotations

import json

import pytest

from lm_eval_plnd.experiments.evaluation import first_answers, read_values
from plnd.errors import PLNDError

WHOLE = {
    "text": {"bits_per_byte": [1.25, 2.5], "bytes": [10.0, 5.0]},
    "facts": {"acc,strict": [1.0, 0.0], "f1": [0.5, float("nan")]},
}


def test_the_first_answers_are_kept_as_text():
    """Each document once, whatever the filters; the end of a long prompt; what is no text can still be written."""
    samples = [
        {"doc_id": n, "filter": name, "arguments": [(f"{'x' * 500}{n}?", {})], "target": n, "resps": [[f"a{n}\ud800"]]}
        for name in ("strict", "none")
        for n in (4, 1, 0, 2)
    ]
    found = first_answers(samples)
    assert [(one["target"], one["answer"]) for one in found] == [("0", "a0?"), ("1", "a1?"), ("2", "a2?")]
    assert found[1]["prompt"] == "x" * 398 + "1?" and json.dumps(found).encode()


def test_what_was_kept_is_read(tmp_path):
    """Also a number that is none, which a metric may give."""
    (tmp_path / "a.json").write_text(json.dumps(WHOLE))
    assert repr(read_values(tmp_path / "a.json", ["facts", "text"])) == repr(WHOLE)


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {"text": WHOLE["text"]},
        WHOLE | {"more": {"acc": [1.0]}},
        WHOLE | {"facts": {}},
        WHOLE | {"facts": {"acc": []}},
        WHOLE | {"facts": {"acc": [1.0, 0.0], "f1": [0.5]}},
        WHOLE | {"facts": {"acc": [1.0, "0"]}},
        WHOLE | {"facts": {"acc": 1.0}},
        WHOLE | {"facts": [1.0]},
        WHOLE | {"text": {"bits_per_byte": [1.0, 2.0]}},
        WHOLE | {"text": {"bits_per_byte,none": [1.0, 2.0]}},
        WHOLE | {"text": {"bits_per_byte": [1.0, 2.0], "bytes": [3.0, 0.0]}},
    ],
)
def test_what_is_not_a_number_for_each_document_of_each_task_is_damaged(tmp_path, damaged):
    """Tasks that are missing or others, metrics of other lengths or none, other values, bytes that cannot be."""
    (tmp_path / "a.json").write_text(json.dumps(damaged))
    with pytest.raises(PLNDError, match=r"a\.json: damaged; delete it, and this setting is evaluated again"):
        read_values(tmp_path / "a.json", ["facts", "text"])
