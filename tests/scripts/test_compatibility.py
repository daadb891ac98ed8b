"""scripts/compatibility.py: its sets of releases, a row that passes, a row that does not, and the table."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from plnd.models.families import FAMILIES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compatibility.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; what it puts on the path goes again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("compatibility", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sets_of_releases(script):
    """The oldest are setup.cfg's lower bounds, the pinned ones constraints.txt's; what a set leaves out is pinned."""
    oldest, pinned = script.limits("oldest"), script.limits("pinned")
    assert oldest == {"transformers": "transformers==5.0", "peft": "peft==0.21", "lm-eval": "lm-eval==0.4.13"}
    assert pinned["transformers"].startswith("transformers==5.2") and set(pinned) == set(oldest)
    assert script.limits("transformers==5.8.1") == {**pinned, "transformers": "transformers==5.8.1"}


@pytest.mark.slow
def test_a_row_that_works_passes_and_one_that_does_not_fails(script, monkeypatch):
    """Real checks: GPT-2 passes all five; with its non-linearity elsewhere detection says so, the rest still passes."""
    assert script.check_rows(["gpt2"]) == {"gpt2": dict.fromkeys(script.CHECKS, "")}
    row = FAMILIES["gpt2"]
    monkeypatch.setitem(FAMILIES, "gpt2", replace(row, stacks=(replace(row.stacks[0], activation="mlp.moved"),)))
    failed = {check: reason for check, reason in script.check_rows(["gpt2"])["gpt2"].items() if reason}
    assert list(failed) == ["detect"] and "gpt2: FamilyError: block 0 has no 'mlp.moved'" in failed["detect"]


@pytest.mark.slow
def test_a_row_of_a_later_release_is_left_out(script, monkeypatch):
    """Where transformers has no such type, as 5.0 has none of many, nothing is run, and nothing stops."""
    from transformers import CONFIG_MAPPING

    monkeypatch.delitem(CONFIG_MAPPING._mapping, "smollm3")
    assert script.check_rows(["smollm3"]) == {"smollm3": {}}


def test_the_table_says_what_fails_and_what_was_not_run(script):
    """One column for each environment, failed checks by name, their reasons below."""
    releases = {"transformers": "5.0.0"}
    runs = [
        {
            "python": "3.11.7",
            "releases": releases,
            "results": {"llama": {"detect": ""}, "phi": {"detect": ""}, "opt": {"detect": "opt: no"}},
        },
        {"python": "3.12.1", "releases": releases, "results": {"llama": {}, "phi": {"detect": ""}}},
    ]
    assert list(script.markdown(runs)) == [
        "| row | Python 3.11.7, transformers 5.0.0 | Python 3.12.1, transformers 5.0.0 |",
        "|---|---|---|",
        "| `llama` | passes | not in this release |",
        "| `opt` | fails: detect | not run |",
        "| `phi` | passes | passes |",
        "",
        "- `opt`, detect, Python 3.11.7, transformers 5.0.0: opt: no",
    ]
