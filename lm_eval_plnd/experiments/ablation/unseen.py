"""Whether a set was detected on the very documents that it is to be evaluated on."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from lm_eval_plnd.rows.benchmarks import end_of_corpus
from plnd.demo_data import expand
from plnd.detection.documents import token_bytes
from plnd.detection.part import NON_FINITE
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.neurons.neuron_set import NeuronSet


def check_unseen(neurons: NeuronSet, tokenizer: Any, name: str, path: str) -> None:
    """Of a set that says which documents it comes from; of them, not of those of languages that it was compared with.

    Args:
        neurons: its metadata have the digest of its documents' tokens, in their order.
        tokenizer: of the model that it was detected in.
        name, path: of the file whose end is evaluated, as `--text` has them.

    Raises:
        PLNDError: if detection read this file from its start, and as far as what is evaluated.
    """
    path = expand(path)
    seen = _detected_on(neurons, tokenizer, path)
    if not seen:
        return
    total = sum(1 for _ in read_documents(path))
    before = total - len(end_of_corpus(path))
    if seen[-1] > before:
        others = sum(number <= before for number in seen)
        raise PLNDError(
            f"--text {name}={path}: of its {total} documents the set was detected on the first {seen[-1]}, and the last"
            f" {total - before} are evaluated: detect with --max-documents {others} or fewer, or name another text"
        )


def _detected_on(neurons: NeuronSet, tokenizer: Any, path: str) -> list[int]:
    """Which of a file's documents, from 1 on, detection has scored from its start; none if it read something else."""
    corpus, min_length = neurons.metadata.corpus, neurons.metadata.method.get("min_length")
    if min_length is None:  # not by plnd detect
        return []
    digest, scored = sha256(), []
    wanted = corpus.documents + corpus.counts_skipped().get(NON_FINITE, 0)
    for number, ids in enumerate(_tokens(tokenizer, path, corpus.max_length), start=1):
        if len(ids) < min_length:
            continue
        digest.update(token_bytes(ids))
        scored.append(number)
        if len(scored) == wanted:
            return scored if digest.hexdigest() == corpus.sha256 else []
    return []


def _tokens(tokenizer: Any, path: str, max_length: int) -> Iterator[list[int]]:
    for document in read_documents(path):
        yield tokenizer(document, truncation=True, max_length=max_length)["input_ids"]
