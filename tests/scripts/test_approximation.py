"""scripts/approximation.py: rank correlations between the paper's measure and eq. 1."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from plnd import DetectConfig, detect, load_model, read_documents
from plnd.demo_data import demo_corpus
from plnd.detection.oracle import sequential
from plnd.models.loading import load_tokenizer
from programs import run_script, script


def test_the_table_is_the_mean_correlation_over_blocks(small_model, capsys):
    """Each number is SciPy's rank correlation of detection with eq. 1 by brute force, over all neurons of a block."""
    run_script("approximation", "--model", small_model, "--languages", "zh", "--tokens", 12, "--sample", 1000)
    lines = capsys.readouterr().out.splitlines()
    found = dict(re.fullmatch(r"zh (\w+): exact (\S+), first_order \S+", line).groups() for line in lines)
    assert list(found) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    model, tokenizer = load_model(small_model, dtype="float32", device="cpu"), load_tokenizer(small_model)
    text = next(read_documents(demo_corpus("evaluate") / "corpora" / "zh.jsonl"))
    ids = tokenizer(text, truncation=True, max_length=12, return_tensors="pt").input_ids[0]
    scores = detect(model, [ids.tolist()], DetectConfig(qk="exact", min_length=1)).minimum
    for projection in ("q_proj", "o_proj"):
        addresses = [f"{block}.{projection}" for block in (0, 1)]
        truth = [sequential(model, ids, address, at="block").numpy() for address in addresses]
        expected = [spearmanr(scores[a], t).statistic for a, t in zip(addresses, truth, strict=True)]
        assert float(found[projection]) == pytest.approx(np.mean(expected), abs=0.006)


def test_rank_correlation():
    """Of order alone: 1 where it agrees, -1 where it is reversed, 0.8 where two neighbours of four are swapped."""
    spearman, values = script("approximation").spearman, np.array([1.0, 2.0, 30.0, 400.0])
    assert [spearman(values, other) for other in (values**3, -values, values[[0, 2, 1, 3]])] == pytest.approx(
        [1, -1, 0.8]
    )
