"""scripts/compatibility.py: rows of the families table against releases; what fails is told, with its reason."""

from __future__ import annotations

import json

import pytest

from programs import run_script, script

compatibility = script("compatibility")


def result(releases: str, **rows: dict[str, str]) -> dict:
    """What one environment gave."""
    checks = {row: dict.fromkeys(compatibility.CHECKS, "") | failed for row, failed in rows.items()}
    return {"python": "3.11.2", "releases": {"transformers": releases}, "results": checks}


def test_the_table_names_what_failed():
    """A column for each environment; a row that was not run there says so; reasons stand below."""
    runs = [result("5.0", llama={}, gpt2={"tune": "gpt2: ValueError: no"}), result("5.8", llama={})]
    first, second = (f"Python 3.11.2, transformers {version}" for version in ("5.0", "5.8"))
    assert list(compatibility.markdown(runs)) == [
        f"| row | {first} | {second} |",
        "|---|---|---|",
        "| `llama` | passes | passes |",
        "| `gpt2` | fails: tune | not run |",
        "",
        f"- `gpt2`, tune, {first}: gpt2: ValueError: no",
    ]


def test_releases_of_a_set():
    """The oldest are those that setup.cfg allows, the pinned ones constraints.txt's; what is spelled out wins."""
    oldest, pinned = compatibility.limits("oldest"), compatibility.limits("pinned")
    assert oldest.keys() == pinned.keys() == set(compatibility.PACKAGES)
    assert all("==" in line for line in (*oldest.values(), *pinned.values())) and oldest != pinned
    assert compatibility.limits("peft==0.1") == pinned | {"peft": "peft==0.1"}
    assert compatibility.limits("newest") == {name: name for name in compatibility.PACKAGES}


@pytest.mark.slow
def test_a_row_in_the_running_environment(tmp_path, capsys, monkeypatch):
    """All five checks of one row pass here; a check that fails is a reason in the table and exit status 1."""
    path = tmp_path / "results.json"
    run_script("compatibility", "--check", path, "--row", "qwen2")
    checked = json.loads(path.read_text())["results"]
    assert checked == {"qwen2": dict.fromkeys(compatibility.CHECKS, "")}
    monkeypatch.setitem(compatibility.CHECKS, "tune", lambda name: 1 / 0)
    assert compatibility.check_rows(["qwen2"])["qwen2"]["tune"] == "qwen2: ZeroDivisionError: division by zero"
