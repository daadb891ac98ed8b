"""Profiles as JSON: the schema of docs/neurons.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

from plnd.inspection.profiles import (
    CorpusRead,
    Firing,
    Inspection,
    LanguageProfile,
    NeuronProfile,
    Writing,
    WrittenToken,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "neurons.md"


def inspection(text: str = "我们") -> Inspection:
    """One neuron by hand."""
    firing = Firing(-3.5, text, "a", "b", document=2, position=4, token_id=9)
    language = LanguageProfile("zh", 12.5, -0.25, 0.5, 0.125, (firing,))
    token = WrittenToken(3, text, 1.0)
    writing = Writing("column", (token,), (token,))
    neuron = NeuronProfile("0.down_proj", 7, 9.0, (), "input column of down_proj", 1.5, (language,), writing)
    return Inspection("tiny", "zh", None, 1, "importance", {"zh": CorpusRead(10, 1234)}, (neuron,))


def names(value, prefix: str = "") -> set[str]:
    """Every field of a JSON value by its path; of `corpora` those of any language."""
    if isinstance(value, list):
        return set().union(*(names(one, f"{prefix}[]") for one in value)) if value else set()
    if not isinstance(value, dict):
        return {prefix}
    if prefix == "corpora":
        return set().union(*(names(one, "corpora.LANGUAGE") for one in value.values()))
    return set().union(*(names(one, f"{prefix}.{name}".removeprefix(".")) for name, one in value.items()))


def test_json_holds_everything():
    """Numbers in full, text as it is, and a form and version to know it by."""
    found = json.loads(inspection().to_json())
    assert (found["format"], found["version"]) == ("plnd.inspection", 1)
    (neuron,) = found["neurons"]
    assert neuron["languages"][0]["firings"][0] == {
        "value": -3.5, "token": "我们", "before": "a", "after": "b", "document": 2, "position": 4, "token_id": 9,
    }  # fmt: skip
    assert neuron["writing"]["promoted"] == [{"token_id": 3, "text": "我们", "logit": 1.0}]
    assert found["corpora"] == {"zh": {"documents": 10, "tokens": 1234}} and "我们" in inspection().to_json()


def test_the_docs_have_every_field():
    """docs/neurons.md names each field of the JSON, and no other."""
    listed = set(re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == names(json.loads(inspection().to_json())) | {"neurons[].also[]"}


def test_half_a_surrogate_pair_is_escaped():
    """JSON that can be written as UTF-8 and read back as it was."""
    text = inspection("\ud800<").to_json()
    assert json.loads(text.encode("utf-8"))["neurons"][0]["writing"]["promoted"][0]["text"] == "\ud800<"
