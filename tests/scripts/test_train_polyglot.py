"""scripts/train_polyglot.py: a checkpoint that loads, and the held-out numbers it reports."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plnd import read_documents
from plnd.demo_data import demo_corpus
from programs import run_script, script

CORPORA = demo_corpus("detect") / "corpora"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of one block, trained for a second on four documents of each of two languages."""
    output = tmp_path_factory.mktemp("polyglot")
    shape = ("--vocabulary", 400, "--hidden", 64, "--ffn", 32, "--blocks", 1, "--length", 16, "--batch", 4)
    options = ("--languages", "en,zh", "--minutes", 0.02)
    run_script("train_polyglot", "--corpora", CORPORA, "--output", output, *options, *shape)
    return output


def test_the_report_is_of_the_checkpoint(trained):
    """Held-out bits per byte are those of the saved model, but for its rounding to bfloat16; tokens are counted."""
    report = json.loads((trained / "training.json").read_text())
    assert report["steps"] > 0 and report["tokens"] == report["steps"] * 4 * 16
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained).float(), AutoTokenizer.from_pretrained(trained)
    assert model.config.num_hidden_layers == 1 and len(tokenizer) == 400
    nats = size = 0.0
    for text in list(read_documents(CORPORA / "zh.jsonl"))[-20:]:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids][:512]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            nats += float(model(tokens, labels=tokens).loss) * (len(ids) - 1)
        size += len(tokenizer.decode(ids[1:]).encode())
    assert report["bits_per_byte"]["zh"] == pytest.approx(nats / math.log(2) / size, rel=0.01)


def test_the_tokenizer_gives_texts_back(trained):
    """Byte-level: whatever it was not trained on can be read again."""
    tokenizer = AutoTokenizer.from_pretrained(trained)
    text = "ไทย, русский — 中文!"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_batch_has_every_language_in_turn():
    """Rows are pieces of the streams, languages one after the other, with one token more than the length."""
    streams = {"a": torch.arange(100, dtype=torch.int32), "b": torch.arange(1000, 1100, dtype=torch.int32)}
    batch = next(script("train_polyglot").batches(streams, 4, 5, "cpu"))
    assert batch.shape == (4, 6) and batch.dtype == torch.int64
    assert [(row[0] >= 1000).item() for row in batch] == [False, True, False, True]
    assert all(row.tolist() == list(range(row[0], row[0] + 6)) for row in batch)
