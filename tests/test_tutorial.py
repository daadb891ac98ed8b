"""docs/tutorial.ipynb: what it installs, what it shows, and that it runs."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LARGEST = 100_000
"""Bytes that the notebook may have, with its pictures."""


def outputs(notebook: dict) -> list[dict]:
    """All outputs, in order."""
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_what_it_installs_exists():
    """By the package's own name, with extras that it has."""
    (line,) = re.findall(r"%pip install -q \\?\"([^\"\\]+)", NOTEBOOK.read_text(encoding="utf-8"))
    name, extras = re.fullmatch(r"(\w+)\[(.+)\]", line).groups()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert name == setup["metadata"]["name"] and set(extras.split(",")) <= setup["options.extras_require"].keys()


def test_what_it_shows():
    """Every cell ran, in order; there are results, but no errors, warnings or folders of a machine; it is small."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = outputs(notebook)
    assert len(shown) >= 8 and any("image/png" in output.get("data", {}) for output in shown)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in shown)
    assert len(text.encode()) < LARGEST and re.findall(r"[\"' (=]/\w+/[\w/]+", json.dumps(shown)) == []


@pytest.mark.slow
def test_it_runs(tmp_path):
    """In a kernel of its own, without an error; tuned on Chinese, only Chinese is read better."""
    for module in ("nbclient", "ipykernel", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install {module})")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = [output["text"] for output in outputs(notebook) if output.get("name") == "stdout"][-1]
    changes = ast.literal_eval(last.splitlines()[-1])
    assert changes.pop("zh") < -0.01 < -0.005 < min(changes.values()) <= max(changes.values()) < 0.005
