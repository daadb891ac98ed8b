"""docs/python.md does what it says: its Python is run, in its order, in one folder."""

from __future__ import annotations

from pathlib import Path

import plnd
from handmade import importance_matrix, make_scores, scores_metadata
from readme import blocks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"

SMALLER = {"fraction=0.01": "fraction=0.5", "count=100": "count=1"}
"""Of a model of 88 neurons there are fewer to choose."""


def test_all_of_its_python_runs(tmp_path, monkeypatch):
    """Against scores of three languages; the set that it saves is what set algebra says, by sets of Python."""
    for seed, language in enumerate(("zh", "en", "ru")):
        corpus = {**scores_metadata()["corpus"], "sha256": str(seed) * 64}
        scores = make_scores(importance_matrix(documents=4, seed=seed), language=language, corpus=corpus)
        scores.save(tmp_path / f"{language}.scores.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    text = PAGE.read_text(encoding="utf-8")
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    for block in blocks(text, "python"):
        exec(block, names)
    members = {x: {(a, int(k)) for a, ks in names[x].items() for k in ks} for x in ("zh", "en", "ru", "shared", "both")}
    saved = {(a, int(k)) for a, ks in plnd.load("zh_own.safetensors").items() for k in ks}
    assert saved == members["zh"] - members["en"] - members["ru"] != set()
    assert members["shared"] == members["zh"] & members["en"] & members["ru"]
    assert members["both"] == (members["zh"] & members["ru"]) - members["en"]
