"""scripts/enhancement.py: what its table of changes holds; the training itself is that of scripts/finetune.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; it imports its neighbour."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("enhancement")
    for name in ("enhancement", "finetune"):
        sys.modules.pop(name, None)


def test_changes_have_a_sign_and_scores_have_none(script):
    """For every metric the base model's scores, then the change of every run, positive ones with a plus."""
    base = {"t_en": {"bits_per_byte": 1.0}, "t_zh": {"bits_per_byte": 1.5, "acc": 0.5}}
    after = {"t_en": {"bits_per_byte": 1.25}, "t_zh": {"bits_per_byte": 1.375, "acc": 0.5}}
    header, rows = script.changes(base, {("zh", 100, "lora"): {"trained_parameters": 4321, "after": after}})
    assert header == ["metric", "trained on", "documents", "method", "parameters", "t_en", "t_zh"]
    assert rows == [
        ["bits_per_byte", "nothing", "", "", "", 1.0, 1.5],
        ["bits_per_byte", "zh", 100, "lora", 4321, "+0.25", "-0.125"],
        ["acc", "nothing", "", "", "", "", 0.5],
        ["acc", "zh", 100, "lora", 4321, "", "+0.0"],
    ]
