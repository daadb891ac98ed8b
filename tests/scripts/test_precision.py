"""scripts/precision.py: how much of float64's set other dtypes find."""

from __future__ import annotations

from itertools import islice

import pytest

from plnd import DetectConfig, detect, load_model, read_documents
from plnd.demo_data import demo_corpus
from plnd.models.loading import load_tokenizer
from programs import run_script


def test_the_table_is_the_overlap_with_float64(small_model, capsys):
    """|A ∩ B| / |B| of sets that detection selects in each dtype, over all and by projection."""
    corpus = demo_corpus("detect") / "corpora" / "zh.jsonl"
    options = ("--documents", 3, "--tokens", 24, "--fraction", 0.3, "--qk", "off")
    run_script("precision", "--model", small_model, "--corpus", corpus, *options)
    first, header, _, *table = capsys.readouterr().out.splitlines()
    rows = [dict(zip(cells(header), cells(line), strict=True)) for line in table]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    config, tokenizer = DetectConfig(qk="off", max_length=24, min_length=8), load_tokenizer(small_model)
    documents, sets = list(islice(read_documents(corpus), 3)), {}
    for dtype in ("float64", "bfloat16"):
        model = load_model(small_model, dtype=dtype, device="cpu")
        sets[dtype] = detect(model, documents, config, tokenizer=tokenizer).select(fraction=0.3)
    whole, rounded = sets["float64"], sets["bfloat16"]
    assert first == f"3 documents, {len(whole)} of {whole.total} neurons in float64"
    assert float(rows[0]["all"]) > 0.98
    assert int(rows[1]["neurons"]) == len(rounded)
    assert float(rows[1]["all"]) == pytest.approx(len(rounded & whole) / len(whole), abs=6e-4) and rounded != whole
    a, b = (one.restrict(projections=["down_proj"]) for one in (rounded, whole))
    assert float(rows[1]["down_proj"]) == pytest.approx(len(a & b) / len(b), abs=6e-4)


def cells(line: str) -> list[str]:
    """Of a row in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]
