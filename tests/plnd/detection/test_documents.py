"""Which documents are scored, which are skipped, and what is said of them."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from detecting import BAD, CONFIG, LENGTHS, selected, some_documents
from plnd.commands.main import main
from plnd.detection.run import detect
from plnd.errors import CorpusError, PLNDError
from plnd.io.corpus import read_documents
from tiny import tiny_model


def test_short_documents_are_skipped_and_named():
    """Documents below the stated minimum are left out, counted, and named by their place in the corpus."""
    model, documents = tiny_model("llama"), some_documents()
    scores = detect(model, documents, replace(CONFIG, min_length=8))
    kept = [document for document in documents if len(document) >= 8]
    assert selected(scores) == selected(detect(model, kept, replace(CONFIG, min_length=8)))
    corpus = scores.metadata["corpus"]
    assert corpus["skipped"] == {"shorter than 8 tokens": [1, 3, 5]}
    assert (corpus["documents"], corpus["tokens"]) == (4, 9 + 12 + 9 + 10)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_non_finite_documents_are_skipped_and_named(value):
    """A document that gives a number that is not finite is left out and named, and its neighbours are not touched."""
    model, documents = tiny_model("llama"), some_documents()
    documents[2][5], documents[4][-1] = BAD, BAD
    good = [d for n, d in enumerate(documents) if n not in (2, 4)]
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = value
    scores = detect(model, documents, replace(CONFIG, batch_size=8))
    alone = detect(model, good, replace(CONFIG, batch_size=8))
    corpus = scores.metadata["corpus"]
    assert corpus["skipped"] == {"non-finite importance": [2, 4]}
    assert (corpus["documents"], corpus["tokens"]) == (5, sum(map(len, good)))
    assert selected(scores) == selected(alone)
    for name, mean in alone.mean.items():
        np.testing.assert_allclose(scores.mean[name], mean, rtol=1e-5)
    scores.digest  # noqa: B018  an artifact can be written


def test_many_skipped_documents_are_counted_and_the_first_are_named(monkeypatch, tmp_path, capsys):
    """A long list of skipped documents does not grow the artifact: counts stay exact, and `show` prints them."""
    monkeypatch.setattr("plnd.detection.documents.NAMED", 2)
    monkeypatch.setattr("plnd.detection.run.WINDOW", 2)
    model, documents = tiny_model("llama"), some_documents([2, 9, 3, 5, 2, 12, 7, 9, 4, 8, 1])
    for number in (3, 5, 7, 9):
        documents[number][1] = BAD
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.inf
    scores = detect(model, documents, replace(CONFIG, batch_size=2))
    corpus = scores.metadata["corpus"]
    assert corpus["skipped"] == {"shorter than 4 tokens": [0, 2], "non-finite importance": [3, 5]}
    assert corpus["skipped_counts"] == {"shorter than 4 tokens": 4, "non-finite importance": 4}
    scores.save(tmp_path / "scores")
    assert main(["show", str(tmp_path / "scores")]) == 0
    line = "3 documents, 20 tokens, 4 skipped (non-finite importance), 4 skipped (shorter than 4 tokens)"
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_a_large_corpus_costs_no_more_memory_than_a_small_one():
    """Documents stream: a hundred times as many leave nothing behind."""
    model, good = tiny_model("llama"), some_documents([8])

    def peak(documents: int) -> int:
        stream = itertools.chain(good, ([5] for _ in range(documents)))
        tracemalloc.start()
        try:
            corpus = detect(model, stream, replace(CONFIG, qk="off")).metadata["corpus"]
            assert corpus["skipped_counts"] == {"shorter than 4 tokens": documents}
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is imported or cached once
    assert peak(100_000) < peak(1000) + 20_000


def test_padding_token_does_not_matter():
    """No other token's embedding, not even one that is not finite, reaches a document through padding."""
    model, documents = tiny_model("llama"), some_documents()
    before = detect(model, documents, CONFIG)
    with torch.no_grad():
        model.get_input_embeddings().weight[:3] = torch.inf
    assert detect(model, documents, CONFIG).digest == before.digest


@pytest.mark.parametrize(
    "documents, wording",
    [
        ([], "0 (0 shorter than 4 tokens, 0 with non-finite importance)"),
        ([[5], [6, 7]], "2 (2 shorter than 4 tokens, 0 with non-finite importance)"),
        ([[5], [BAD] * 9], "2 (1 shorter than 4 tokens, 1 with non-finite importance)"),
    ],
    ids=["empty", "short", "non-finite"],
)  # fmt: skip
def test_no_document_left_is_an_error(documents, wording):
    """Where nothing can be scored there is no artifact, and the error says why."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.inf
    with pytest.raises(CorpusError) as caught:
        detect(model, documents, CONFIG)
    assert str(caught.value) == f"corpus: no document to score among {wording}"


def test_max_documents_stops_the_stream():
    """After enough documents nothing more is read; short ones do not count."""
    model, documents = tiny_model("llama"), some_documents()
    read = []

    def stream() -> Iterator[list[int]]:
        for document in [[5], *documents]:
            read.append(document)
            yield document
        raise AssertionError("read to the end")

    scores = detect(model, stream(), replace(CONFIG, max_documents=4))
    assert len(read) == 5
    assert scores.metadata["corpus"]["documents"] == 4
    assert selected(scores) == selected(detect(model, documents[:4], CONFIG))


def test_max_length_cuts_documents():
    """A document is scored on its first tokens, and is as long as these."""
    model, documents = tiny_model("llama"), some_documents()
    scores = detect(model, documents, replace(CONFIG, max_length=5))
    cut = detect(model, [d[:5] for d in documents], replace(CONFIG, max_length=5))
    assert scores.digest == cut.digest and scores.metadata["corpus"]["max_length"] == 5
    assert scores.metadata["corpus"]["tokens"] == sum(min(5, n) for n in LENGTHS)


def test_max_length_beyond_the_positions_is_refused():
    """A model with 64 learned positions cannot read 65 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=24, n_layer=1, n_head=4, n_positions=64))
    with pytest.raises(PLNDError, match="max_length=65: the model has 64 positions; use at most that"):
        detect(model, some_documents(), replace(CONFIG, max_length=65))
    detect(model, some_documents(), replace(CONFIG, max_length=64))


def test_the_name_of_a_file_is_no_list_of_documents():
    """A path given for documents would be read letter by letter: the error says what to pass."""
    with pytest.raises(PLNDError, match=r"for those of a file pass plnd.read_documents\(file\)"):
        detect(tiny_model("llama"), "zh.jsonl")


def test_texts_need_a_tokenizer():
    """A model that was not loaded from a folder or the hub has no tokenizer to go with it."""
    with pytest.raises(PLNDError, match="no model named: give a folder or a hub name"):
        detect(tiny_model("llama"), ["a text"])


def test_texts_and_their_tokens_are_one_corpus(tmp_path):
    """Texts go through the tokenizer, cut at `max_length`; the digest is that of the ids."""
    (tmp_path / "corpus.txt").write_text("five nine four\nseven seven seven seven nine\n")
    words = {"five": 5, "nine": 9, "four": 4, "seven": 7}

    def tokenizer(text: str, truncation: bool, max_length: int) -> dict:
        return {"input_ids": [words[word] for word in text.split()][:max_length]}

    config = replace(CONFIG, min_length=2, max_length=4)
    texts = detect(tiny_model("llama"), read_documents(tmp_path / "corpus.txt"), config, tokenizer=tokenizer)
    tokens = detect(tiny_model("llama"), itertools.chain([[5, 9, 4]], [[7, 7, 7, 7]]), config)
    assert texts.digest == tokens.digest


def test_where_documents_end_is_part_of_the_digest():
    """The same tokens, in documents that end elsewhere, are another corpus."""
    model = tiny_model("llama")
    cut, moved = ([[5, 6, 7, 8], [9, 10, 11, 12, 13]], [[5, 6, 7, 8, 9], [10, 11, 12, 13]])
    digests = {detect(model, documents, CONFIG).metadata.corpus.sha256 for documents in (cut, moved)}
    assert len(digests) == 2
