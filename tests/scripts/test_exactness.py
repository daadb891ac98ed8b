"""scripts/exactness.py: the table of docs/families.md, closed forms against brute force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plnd.addresses import PROJECTIONS
from programs import run_script, script
from tiny import MASKED, SCALED, TINY, VARIANTS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
IDS = torch.tensor([5, 17, 40, 8, 96, 3])


def test_errors_are_roundings_of_float64():
    """Every projection of the model is measured, and no error is above what float64 leaves."""
    errors = script("exactness").errors("llama", IDS)
    assert errors.keys() == set(PROJECTIONS)
    assert all(0 <= error < 1e-13 for error in errors.values())


def test_an_error_shows_relative_to_the_largest_importance(monkeypatch):
    """Were the truth a thousandth larger, all errors would be near a thousandth: 1 - 1/1.001."""
    exactness = script("exactness")
    truth = exactness.sequential
    monkeypatch.setattr(exactness, "sequential", lambda *args, **kwargs: 1.001 * truth(*args, **kwargs))
    assert list(exactness.errors("qwen2", IDS).values()) == pytest.approx([1 - 1 / 1.001] * 7)


@pytest.mark.slow
def test_the_table_of_the_docs(capsys):
    """A row for each tiny model, the models and projections of the documented table, and errors no larger than its."""
    try:
        run_script("exactness")
    finally:
        torch.set_default_dtype(torch.float32)
    made, documented = (rows(text) for text in (capsys.readouterr().out, DOCS.read_text(encoding="utf-8")))
    assert made.keys() == {*TINY, *VARIANTS}
    assert made.keys() == documented.keys()
    for name, cells in made.items():
        for cell, told in zip(cells, documented[name], strict=True):
            assert (cell == "–") == (told == "–"), name
            assert cell == "–" or float(cell) <= max(20 * float(told), 1e-14), name


@pytest.mark.slow
def test_the_float32_table_is_of_roundings():
    """In docs/accelerators.md no model's kernels err by more than PyTorch's float32 does, or by more than rounding."""
    text = (DOCS.parent / "accelerators.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    known = {*TINY, *VARIANTS, *MASKED, *SCALED}
    found = {cells[0]: [float(x) for x in cells[1:]] for cells in lines if len(cells) == 5 and cells[0] in known}
    assert len(found) >= 69
    for kernels, pytorch, kernels_first, pytorch_first in found.values():
        assert kernels < max(5 * pytorch, 1e-6) and kernels_first < max(20 * pytorch_first, 1e-6)


def rows(text: str) -> dict[str, list[str]]:
    """Model to the cells of its row in a Markdown table that has one column for each projection."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    names = {*TINY, *VARIANTS}
    return {cells[0].strip("`"): cells[1:] for cells in lines if len(cells) == 8 and cells[0].strip("`") in names}
