"""scripts/compare_methods.py: sets of one size by each method, and what each does to each language."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from plnd import NeuronSet, deactivated, load_model
from plnd.models.loading import load_tokenizer
from programs import run_script, script

compare_methods = script("compare_methods")
LANGUAGES = ("en", "zh")


def test_the_table_is_what_each_set_does(small_model, tmp_path, capsys):
    """All sets have one size; each change is the bits per byte without the set, less those of the whole model."""
    sizes = ("--detect", 3, "--evaluate", 2, "--max-length", 40, "--share", 0.1, "--draws", 2)
    options = ("--languages", ",".join(LANGUAGES), "--device", "cpu", "--output", tmp_path)
    run_script("compare_methods", "--model", small_model, *sizes, *options)
    with (tmp_path / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 + 3 * 2 * 2 + 2 * 2 * 2
    plain = {row["language"]: float(row["bits_per_byte"]) for row in rows if row["method"] == "nothing"}
    assert len({row["neurons"] for row in rows if row["method"] != "nothing"}) == 1
    for row in rows:
        assert float(row["change"]) == pytest.approx(float(row["bits_per_byte"]) - plain[row["language"]], abs=1e-12)
    model, tokenizer = load_model(small_model, dtype="float32", device="cpu"), load_tokenizer(small_model)
    for method in compare_methods.METHODS:
        neurons = NeuronSet.load(tmp_path / f"{method}.zh.safetensors")
        assert {name for name, count in neurons.counts().items() if count} == {"down_proj"}
        assert len(neurons) == int(rows[-1]["neurons"])
    (row,) = (r for r in rows if (r["method"], r["set"], r["language"]) == ("lape", "zh", "en"))
    with deactivated(model, NeuronSet.load(tmp_path / "lape.zh.safetensors")):
        assert float(row["bits_per_byte"]) == pytest.approx(bits_per_byte(model, tokenizer, "en"), rel=1e-5)
    assert plain["en"] == pytest.approx(bits_per_byte(model, tokenizer, "en"), rel=1e-5)
    last = capsys.readouterr().out.splitlines()[-1].split()
    draws = [float(r["change"]) for r in rows if (r["method"], r["set"], r["language"]) == ("random", "zh", "zh")]
    assert last[:2] == ["random", "zh"] and float(last[4]) == pytest.approx(sum(draws) / 2, abs=6e-5)


def bits_per_byte(model, tokenizer, language: str) -> float:
    """Of the last two documents, one at a time, by the model's own loss."""
    from plnd import read_documents
    from plnd.demo_data import demo_corpus

    nats = size = 0.0
    for text in list(read_documents(demo_corpus("evaluate") / "corpora" / f"{language}.jsonl"))[-2:]:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:39]
        tokens = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            nats += float(model(tokens, labels=tokens).loss) * len(ids)
        size += len(tokenizer.decode(ids).encode())
    return nats / math.log(2) / size


def test_too_few_documents_are_refused(small_model, tmp_path):
    """Detection and evaluation must not share documents."""
    (tmp_path / "en.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    options = ("--model", small_model, "--corpora", tmp_path, "--languages", "en", "--device", "cpu")
    with pytest.raises(SystemExit, match="en: 2 documents, fewer than --detect and --evaluate ask for"):
        run_script("compare_methods", *options, "--detect", 2, "--evaluate", 1, "--output", tmp_path / "out")
