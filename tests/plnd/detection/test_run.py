"""Detection is the loop over documents one at a time, however they are batched, padded, interrupted and resumed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import plnd
from handmade import ranks
from plnd.commands.main import main
from plnd.detection.checkpoint import fingerprint
from plnd.detection.config import DetectConfig
from plnd.detection.observer import SITES, Observer
from plnd.detection.run import detect
from plnd.errors import CorpusError, FamilyError, PLNDError
from plnd.importance.attention import attention_importance
from plnd.io.corpus import read_documents
from plnd.models.layout import Layout
from plnd.neurons.scores import Scores
from tiny import KeepFloat64, tiny_model

BAD = 96
"""A token whose embedding some tests make infinite."""
LENGTHS = (9, 4, 12, 7, 9, 5, 10)
CONFIG = DetectConfig(language="xx", min_length=4, batch_size=3, qk="exact")


def some_documents(lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    """Random token ids from 3 to 95: neither special tokens nor the last one, `BAD`, are among them."""
    generator = np.random.default_rng(seed)
    return [generator.integers(3, BAD, length).tolist() for length in lengths]


def one_at_a_time(model, documents, qk: str) -> dict[str, np.ndarray]:
    """Importance by address, [documents, width], each document alone in its pass."""
    layout, rows = Layout(model), {}

    def sink(block, site, importance):
        for projection in SITES[site]:
            if f"{block}.{projection}" in layout.targets:
                rows.setdefault(f"{block}.{projection}", []).append(importance[0].numpy())

    for document in documents:
        ids = torch.tensor([document])
        with torch.no_grad(), Observer(layout, qk, sink, [(0, len(document))]).attached():
            layout.forward(ids, torch.ones_like(ids))
    return {name: np.stack(values) for name, values in rows.items()}


def selected(scores: Scores) -> list:
    """What several rules select."""
    rules = [{"top_k": 3}, {"fraction": 0.2}, {"epsilon": float(np.median(scores.minimum["0.up_proj"]))}]
    return [scores.select(**rule) for rule in rules]


# three numbers


@pytest.mark.parametrize("qk", ["exact", "first_order", "off"])
def test_three_numbers_are_those_of_one_document_at_a_time(family, qk):
    """min, mean and worst rank equal those of a loop over documents, for every projection of every family."""
    model, documents = tiny_model(family), some_documents()
    with KeepFloat64():
        scores = detect(model, documents, replace(CONFIG, qk=qk))
        expected = one_at_a_time(model, documents, qk)
    left_out = (".q_proj", ".k_proj") if qk == "off" else ()
    assert scores.minimum.keys() == expected.keys() == {a for a in Layout(model).widths if not a.endswith(left_out)}
    for name, matrix in expected.items():
        np.testing.assert_allclose(scores.minimum[name], matrix.min(0), rtol=1e-4, atol=1e-5 * matrix.max())
        np.testing.assert_allclose(scores.mean[name], matrix.mean(0), rtol=1e-4, atol=1e-5 * matrix.max())
        assert np.array_equal(scores.worst_rank[name], np.max([ranks(row) for row in matrix], axis=0)), name


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_batches_do_not_change_what_is_selected(batch_size):
    """Neither the batch size nor the order of documents changes a selected set."""
    model, documents = tiny_model("llama"), some_documents()
    first = detect(model, documents, CONFIG)
    other = detect(model, documents[::-1], replace(CONFIG, batch_size=batch_size))
    assert selected(first) == selected(other)
    for name in first.minimum:
        np.testing.assert_allclose(first.minimum[name], other.minimum[name], rtol=1e-4, atol=1e-6)


def test_documents_do_matter():
    """The negative of the tests above: another document changes the numbers."""
    model, documents = tiny_model("llama"), some_documents()
    first, other = (detect(model, d, CONFIG) for d in (documents, documents[:-1]))
    assert selected(first) != selected(other)


def test_dropout_is_off_and_the_training_flag_is_put_back():
    """A model in training mode is scored as in evaluation mode, and is back in it afterwards, also after an error."""
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    evaluated = detect(model, some_documents(), CONFIG)
    model.train()
    trained = detect(model, some_documents(), CONFIG)
    assert trained.digest == evaluated.digest
    assert model.training and all(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        detect(model, (1 // 0 for _ in range(1)), CONFIG)
    assert model.training
    detect(model.eval(), some_documents(), CONFIG)
    assert not model.training


def test_detection_leaves_the_model_as_it_was():
    """Parameters and output are bit for bit what they were, and no gradient was recorded."""
    model, ids = tiny_model("llama"), torch.tensor(some_documents()[:1])
    before = model(ids).logits
    detect(model, some_documents(), CONFIG)
    assert torch.equal(model(ids).logits, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# documents


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


@pytest.mark.parametrize(
    "settings, wording",
    [
        ({"qk": "exakt"}, "unknown qk 'exakt': expected first_order, exact or off"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"max_documents": -1}, "max_documents=-1: expected 1 or more"),
        ({"min_length": 0}, "min_length=0: expected 1 or more"),
        ({"max_length": 0}, "max_length=0: expected 1 or more"),
        ({"epsilon": 0}, "epsilon=0: expected a number above 0"),
        ({"epsilon": float("nan")}, "epsilon=nan: expected a number above 0"),
        ({"min_length": 33, "max_length": 32}, "min_length=33 is above max_length=32: no document could be scored"),
    ],
)
def test_settings_that_make_no_sense(settings, wording):
    """A setting out of range is refused before anything is loaded."""
    with pytest.raises(PLNDError) as caught:
        DetectConfig(**settings)
    assert str(caught.value) == wording


# metadata


def test_metadata_says_what_was_done(tmp_path):
    """Model, language, corpus, method and dtype are in the artifact, with the digest of the token ids."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path / "model")
    model = plnd.load_model(str(tmp_path / "model"), device="cpu")
    documents = [[4], *some_documents()]
    scores = detect(model, documents, CONFIG, source="where/from")
    digest = hashlib.sha256()
    for document in documents[1:]:
        digest.update(np.array([len(document), *document], "<i8").tobytes())
    assert scores.metadata == {
        "format": "plnd.scores",
        "version": 1,
        "plnd": plnd.__version__,
        "model": {
            "name": str(tmp_path / "model"),
            "revision": None,
            "model_type": "llama",
            "blocks": 2,
            "widths": Layout(model).widths,
        },
        "language": "xx",
        "corpus": {
            "source": "where/from",
            "sha256": digest.hexdigest(),
            "documents": 7,
            "tokens": sum(LENGTHS),
            "max_length": 512,
            "skipped": {"shorter than 4 tokens": [0]},
            "skipped_counts": {"shorter than 4 tokens": 1},
        },
        "method": {
            "name": "plnd",
            "scoring": "paper",
            "projections": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "qk": "exact",
            "epsilon": None,
            "min_length": 4,
            "batch_size": 3,
        },
        "dtype": "float32",
        "quantisation": None,
    }
    scores.save(tmp_path / "scores")
    assert Scores.load(tmp_path / "scores").metadata == scores.metadata


def test_projections_that_were_not_scored_are_not_claimed():
    """Without queries and keys the metadata names five projections, and the model's widths still name all."""
    scores = detect(tiny_model("llama"), some_documents(), replace(CONFIG, qk="off"))
    assert scores.metadata["method"]["projections"] == ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert "0.q_proj" in scores.metadata["model"]["widths"] and "0.q_proj" not in scores.minimum


def test_scores_are_float32_whatever_the_model_is():
    """The artifact's types do not follow the model's."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        scores = detect(tiny_model("llama", dtype), some_documents(), CONFIG)
        assert scores.metadata["dtype"] == str(dtype).removeprefix("torch.")
        assert {v.dtype for part in (scores.minimum, scores.mean) for v in part.values()} == {np.dtype(np.float32)}
        assert {v.dtype for v in scores.worst_rank.values()} == {np.dtype(np.int32)}


# checkpoints

MANY = some_documents([4 + n % 7 for n in range(10)], seed=1)
SMALL = replace(CONFIG, batch_size=1, qk="off")


@pytest.fixture
def eager_checkpoints(monkeypatch):
    """A checkpoint after every four documents, not every minute."""
    monkeypatch.setattr("plnd.detection.run.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("plnd.detection.run.WINDOW", 4)


def interrupted(documents, after: int) -> Iterator:
    """The documents, with an interrupt before number `after`."""
    yield from documents[:after]
    raise KeyboardInterrupt


def leave_a_checkpoint(model, path, documents=MANY, after: int = 9, config=SMALL) -> None:
    """Detection that is interrupted."""
    with pytest.raises(KeyboardInterrupt):
        detect(model, interrupted(documents, after), config, checkpoint=path)


@pytest.mark.parametrize("after", [0, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("bad", [False, True], ids=["all scored", "some skipped"])
def test_a_resumed_run_gives_the_same_file(tmp_path, eager_checkpoints, after, bad):
    """Interrupted anywhere and resumed, detection writes byte for byte what it would have written at once."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    documents = [[5], MANY[1], [BAD] * 6, *MANY[3:8], [BAD] * 4, MANY[9]] if bad else MANY
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.inf
    expected = detect(model, documents, SMALL, source="here")
    assert expected.metadata["corpus"]["skipped"] == (
        {"shorter than 4 tokens": [0], "non-finite importance": [2, 8]} if bad else {}
    )
    leave_a_checkpoint(model, path, documents, after)
    assert path.exists() == (after >= 4 + bad)
    again = detect(model, iter(documents), SMALL, source="here", checkpoint=path, resume=True)
    assert again.save(tmp_path / "again") == expected.save(tmp_path / "expected")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_finished_run_leaves_its_checkpoint(tmp_path, eager_checkpoints):
    """Until the scores are saved nothing is lost: what a last window's checkpoint covers is not scored again."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    documents = some_documents([8] * 8)
    scores = detect(model, documents, SMALL, checkpoint=path)
    model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    assert detect(model, documents, SMALL, checkpoint=path, resume=True).digest == scores.digest


def test_a_run_can_be_interrupted_again_and_again(tmp_path, eager_checkpoints):
    """Each resumed run goes on from the last one's checkpoint."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    expected = detect(model, MANY, SMALL).digest
    for after in (5, 6, 9):
        with pytest.raises(KeyboardInterrupt):
            detect(model, interrupted(MANY, after), SMALL, checkpoint=path, resume=True)
    assert detect(model, MANY, SMALL, checkpoint=path, resume=True).digest == expected


def test_a_resumed_run_does_not_score_again(tmp_path, eager_checkpoints):
    """What the checkpoint covers is read and compared, and goes through the model no more."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    passes = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    leave_a_checkpoint(model, path)
    assert len(passes) == 8
    detect(model, MANY, SMALL, checkpoint=path, resume=True)
    handle.remove()
    assert len(passes) == 10


def test_without_resume_the_run_starts_again(tmp_path, eager_checkpoints):
    """A checkpoint that is there is not used unless it is asked for."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    other = some_documents([8] * 5, seed=9)
    assert detect(model, other, SMALL, checkpoint=path).digest == detect(model, other, SMALL).digest


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    """`--resume` may be given always."""
    model = tiny_model("llama", torch.float32)
    for path in (None, tmp_path / "checkpoint"):
        found = detect(model, MANY, SMALL, checkpoint=path, resume=True)
        assert found.digest == detect(model, MANY, SMALL).digest


def test_a_checkpoint_is_a_minute_apart(tmp_path):
    """By default a run of a second writes none: the fixture above is what makes the other tests see one."""
    leave_a_checkpoint(tiny_model("llama"), tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "documents",
    [
        [MANY[1], MANY[0], *MANY[2:]],
        MANY[:8][::-1],
        [d[:-1] for d in MANY],
        MANY[:7],
        MANY[:4],
        [],
        [MANY[0] + MANY[1], *MANY[2:]],
    ],
    ids=["two swapped", "reversed", "cut", "one fewer", "shorter", "empty", "joined"],
)
def test_resume_with_another_corpus_is_refused(tmp_path, eager_checkpoints, documents):
    """What was scored must be what is read now, all of it and in the same order."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    before = path.read_bytes()
    with pytest.raises(PLNDError) as caught:
        detect(model, documents, SMALL, checkpoint=path, resume=True)
    assert str(caught.value) == f"{path}: the corpus has changed since; start again without --resume"
    assert path.read_bytes() == before


def test_resume_with_a_corpus_that_grew(tmp_path, eager_checkpoints):
    """New documents behind those that were scored are scored with them."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path, after=8)
    more = [*MANY, *some_documents(seed=5)]
    found = detect(model, more, SMALL, checkpoint=path, resume=True)
    assert found.digest == detect(model, more, SMALL).digest


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2},
        {"max_length": 8},
        {"min_length": 5},
        {"qk": "exact"},
        {"language": "yy"},
        {"max_documents": 10},
        {"epsilon": 0.1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_resume_with_other_settings_is_refused(tmp_path, eager_checkpoints, settings):
    """Every setting must be what it was."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    with pytest.raises(PLNDError) as caught:
        detect(model, MANY, replace(SMALL, **settings), checkpoint=path, resume=True)
    wording = f"{path}: made with another model or settings; repeat them, or start again without --resume"
    assert str(caught.value) == wording


@pytest.mark.parametrize("change", ["family", "dtype", "name", "weights"])
def test_resume_with_another_model_is_refused(tmp_path, eager_checkpoints, change):
    """Another family, another dtype, a model from another place or with other weights cannot go on."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    other = tiny_model("qwen2" if change == "family" else "llama", seed=int(change == "weights"))
    if change == "dtype":
        other = other.float()
    if change == "name":
        other.config._name_or_path = "elsewhere"
    with pytest.raises(PLNDError, match="made with another model or settings"):
        detect(other, MANY, SMALL, checkpoint=path, resume=True)


def test_fingerprint_sees_a_neuron():
    """Each row, each column and each entry of a vector counts; equal weights give one fingerprint."""
    model = torch.nn.Linear(80, 70)
    original = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == original
    with torch.no_grad():
        for part in (*model.weight, *model.weight.T, *model.bias.split(1)):
            before = part.clone()
            part.zero_()
            assert fingerprint(model) != original
            part.copy_(before)
    assert fingerprint(model) == original
    assert fingerprint(model.bfloat16()) != original


def _without(field: str):
    """A damage: the checkpoint's header lacks a field."""

    def damage(data: bytes) -> bytes:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["plnd"]
        record = {k: v for k, v in json.loads(header).items() if k != field}
        return save({"0.ffn.minimum": np.zeros(40, np.float32)}, metadata={"plnd": json.dumps(record)})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"nonsense" * 9,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 3],
        lambda data: save({"x": np.zeros(1)}),
        lambda data: save({"x": np.zeros(1)}, metadata={"plnd": "{"}),
        lambda data: save({"x": np.zeros(1)}, metadata={"plnd": "[]"}),
        _without("nothing"),
        _without("settings"),
        _without("bad"),
    ],
    ids=["empty", "nonsense", "cut", "cut short", "other", "not JSON", "no object", "tensors", "settings", "bad"],
)
def test_damaged_checkpoint_is_one_line(tmp_path, eager_checkpoints, damage):
    """A checkpoint that is not whole says so and what to do, and starts nothing."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PLNDError) as caught:
        detect(model, MANY, SMALL, checkpoint=path, resume=True)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a whole checkpoint (") and "\n" not in message
    assert message.endswith("); delete it to start again")


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


# a rule that is known ahead


def with_known_rule(family: str, qk: str, share: float = 0.5) -> tuple[Scores, Scores, float]:
    """Scores without and with a known rule, which a share of the rows of q_proj in the first block does not pass."""
    model, documents = tiny_model(family), some_documents([4 + n % 7 for n in range(11)])
    config = replace(CONFIG, qk=qk, batch_size=2)
    full = detect(model, documents, config)
    epsilon = float(np.quantile(full.minimum["0.q_proj"], share))
    return full, detect(model, documents, replace(config, epsilon=epsilon)), epsilon


@pytest.mark.parametrize("qk", ["exact", "first_order"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_known_rule_selects_the_same_neurons(family, qk, eager_checkpoints):
    """What is not measured again could not have passed; all other projections are scored as ever."""
    full, known, epsilon = with_known_rule(family, qk)
    for value in (epsilon, 1.5 * epsilon):
        assert known.select(epsilon=value) == full.select(epsilon=value)
        assert 0 < len(known.select(epsilon=value, projections=["q_proj", "k_proj"]))
    for name, minimum in full.minimum.items():
        passes = minimum >= epsilon
        if not name.endswith(("q_proj", "k_proj")):
            assert np.array_equal(known.mean[name], full.mean[name])
            assert np.array_equal(known.worst_rank[name], full.worst_rank[name])
            passes[:] = True
        for part, found in ((full.minimum, known.minimum), (full.mean, known.mean)):
            np.testing.assert_allclose(found[name], np.where(passes, part[name], 0), rtol=1e-4)


def test_known_rule_saves_work(monkeypatch, eager_checkpoints):
    """From the second window on, only rows that passed so far are asked for."""
    asked = []

    def spy(trace, algorithm, alive):
        asked.append(None if alive is None else sum(int(rows.sum()) for rows in alive))
        return attention_importance(trace, algorithm, alive)

    model = tiny_model("llama")
    rows = sum(Layout(model).widths[f"0.{name}"] for name in ("q_proj", "k_proj"))
    full = detect(model, MANY, replace(CONFIG, batch_size=1))
    monkeypatch.setattr("plnd.detection.observer.attention_importance", spy)
    epsilon = float(np.quantile(full.minimum["0.q_proj"], 0.5))
    known = detect(model, MANY, replace(CONFIG, batch_size=1, epsilon=epsilon))
    of_first_block = asked[::2]
    assert of_first_block[:4] == [None] * 4
    assert rows > of_first_block[4] >= of_first_block[8]
    assert of_first_block[4:8] == of_first_block[4:5] * 4
    assert of_first_block[8] >= sum((known.minimum[f"0.{name}"] >= epsilon).sum() for name in ("q_proj", "k_proj"))


def test_known_rule_leaves_no_ranks_of_queries_and_keys():
    """A rank among neurons that were not all measured means nothing: all have the last."""
    _, known, epsilon = with_known_rule("llama", "exact")
    assert known.metadata["method"]["epsilon"] == epsilon
    for name, ranks_of in known.worst_rank.items():
        assert (ranks_of == len(ranks_of) - 1).all() == name.endswith(("q_proj", "k_proj"))


@pytest.mark.parametrize("after", [4, 7, 9])
def test_known_rule_resumes(tmp_path, eager_checkpoints, after):
    """What need not be measured again is known again after an interruption."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    full = detect(model, MANY, replace(SMALL, qk="exact"))
    config = replace(SMALL, qk="exact", epsilon=float(np.quantile(full.minimum["1.k_proj"], 0.5)))
    expected = detect(model, MANY, config)
    leave_a_checkpoint(model, path, after=after, config=config)
    assert detect(model, MANY, config, checkpoint=path, resume=True).digest == expected.digest


# weights that are elsewhere


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_offloaded_weights_are_read(tmp_path, family, offload):
    """Of a model whose weights come to the device for each pass only, every number is that of the model itself."""
    from accelerate import cpu_offload, disk_offload

    model = tiny_model(family, torch.float32)
    expected = detect(model, some_documents(), CONFIG)
    if offload == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    found = detect(model, some_documents(), CONFIG, checkpoint=tmp_path / "checkpoint")
    assert found.digest == expected.digest
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_model_in_several_places(tmp_path):
    """Blocks that a device map puts elsewhere than the embedding give what they give beside it."""
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama", torch.float32)
    model.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert {p.device.type for p in spread.model.layers[0].parameters()} == {"meta"}
    spread.config._name_or_path = model.config._name_or_path
    assert detect(spread, some_documents(), CONFIG).digest == detect(model, some_documents(), CONFIG).digest


def test_a_model_without_weights_is_refused():
    """A skeleton has no importance."""
    with pytest.raises(FamilyError, match="its weight is on the meta device: load the model with its weights"):
        detect(tiny_model("llama").to("meta"), some_documents(), CONFIG)


# models that something was done to


@pytest.mark.parametrize("part", ["mlp", "self_attn"])
def test_compiled_models_are_measured(part):
    """Parts that were compiled and run before, in place or wrapped, have the scores of the plain model."""
    model, documents = tiny_model("llama"), some_documents()
    expected = detect(model, documents, CONFIG)
    for block in model.model.layers:
        setattr(block, part, torch.compile(getattr(block, part), backend="eager"))
        block.mlp.down_proj.compile(backend="eager")
    with torch.no_grad():
        model(torch.tensor([documents[0]]))
    found = detect(model, documents, CONFIG)
    assert all(np.array_equal(found.mean[name], values) for name, values in expected.mean.items())


@pytest.mark.parametrize("kind", ["lora", "neuron_select"])
def test_what_an_adapter_adds_is_measured(kind):
    """Importances with an adapter are those of the model into which it was merged; switched off, those of the base."""
    from peft import LoraConfig, get_peft_model

    import peft_plnd

    base = detect(tiny_model("llama"), some_documents(), CONFIG)
    torch.manual_seed(0)
    names = ["q_proj", "o_proj", "down_proj"]
    config = {
        "lora": LoraConfig(r=2, target_modules=names, init_lora_weights=False),
        "neuron_select": peft_plnd.NeuronSelectConfig(neurons={n: {"in": [1, 5]} for n in names}, init_weights=False),
    }[kind]
    tuned = get_peft_model(tiny_model("llama"), config).eval()
    found = detect(tuned, some_documents(), CONFIG)
    with tuned.disable_adapter():
        off = detect(tuned, some_documents(), CONFIG)
    merged = detect(tuned.merge_and_unload(), some_documents(), CONFIG)
    for name, values in merged.mean.items():
        np.testing.assert_allclose(found.mean[name], values, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(off.mean[name], base.mean[name], rtol=1e-6)
    assert not np.allclose(merged.mean["0.down_proj"], base.mean["0.down_proj"], rtol=1e-2)


def test_an_adapter_that_does_more_is_refused():
    """DoRA scales the weight too: which matrix acts is not what the closed forms would take."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["down_proj"], use_dora=True)
    with pytest.raises(FamilyError, match="0.down_proj: adapter 'default' .* adds to the weight and more: merge it"):
        detect(get_peft_model(tiny_model("llama"), config), some_documents(), CONFIG)
