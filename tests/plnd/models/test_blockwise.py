"""A model whose weights stay in their files: the same weights, the same numbers, two blocks at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from detecting import CONFIG, LENGTHS, MANY, SMALL, Stopped, interrupted, some_documents
from plnd.deactivation import deactivated
from plnd.detection.config import DetectConfig
from plnd.detection.part import merge
from plnd.detection.run import detect, detect_shard
from plnd.errors import PLNDError
from plnd.models.blockwise import blockwise_model, in_step, weights_of
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from tiny import SCALED, TINY, VARIANTS, logits, tiny_model

DIFFERENT = ("mixtral", "qwen2", "t5_gated")
"""Experts that are stored one by one; an unembedding that is the embedding; an encoder, a decoder, an odd bias."""
EVERY = sorted({**TINY, **VARIANTS, **SCALED})
ALL = [pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.slow) for name in EVERY]


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """The folder of a tiny model; of Youtu without the number of the token whose embedding loading sets to zero."""
    model = tiny_model(name, dtype)
    if name == "youtu":
        model.config.pad_token_id = None
    model.save_pretrained(folder)
    return str(folder)


def weight(model, name: str) -> torch.Tensor:
    """A parameter or buffer of a blockwise model, read where it is not there."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    value = getattr(module, key)
    return weights_of(model).read(module, key) if value.is_meta else value


@pytest.mark.parametrize("name", ALL)
def test_same_weights_and_importance(name, tmp_path, monkeypatch):
    """Every parameter and buffer is bit for bit that of the loaded model, in a dtype that is not the files', too; so
    are all scores, over two windows, with a document that is left out; each weight is read once a window.
    """
    monkeypatch.setattr("plnd.detection.run.WINDOW", 2)
    path = saved(name, tmp_path)
    for dtype in ("auto", "bfloat16"):
        whole, model = (load(path, dtype=dtype, device="cpu") for load in (load_model, blockwise_model))
        tensors = [*whole.named_parameters(remove_duplicate=False), *whole.named_buffers()]
        for key, expected in tensors:
            found = weight(model, key)
            assert found.dtype == expected.dtype and torch.equal(found, expected), key
    whole, model = (load(path, device="cpu") for load in (load_model, blockwise_model))
    documents = some_documents(LENGTHS)  # three batches of three
    weights = weights_of(model)
    before = weights.bytes_read
    config = replace(CONFIG, qk="first_order")
    assert detect(model, documents, config).digest == detect(whole, documents, config).digest
    blocks = {block.module for block in Layout(whole).blocks}
    inside = sum(tensor.nbytes for block in blocks for tensor in block.state_dict().values())
    assert weights.bytes_read - before == 2 * inside


@pytest.mark.slow
def test_a_weight_that_is_changed_while_it_is_loaded(tmp_path):
    """Youtu sets the padding token's embedding to zero, whatever the file holds: read later, it would be the file's."""
    tiny_model("youtu").save_pretrained(tmp_path)
    with pytest.raises(PLNDError, match=r"changes a weight in place while it is loaded; leave --blockwise out"):
        blockwise_model(str(tmp_path))


@pytest.mark.parametrize("method", [{"scoring": "official"}, {"method": "activation"}, {"method": "lape"}])
@pytest.mark.slow
def test_other_methods(method, tmp_path):
    """What needs no gradients is measured as on the whole model."""
    path = saved("llama", tmp_path)
    config = replace(SMALL, **method)
    whole, model = (load(path, device="cpu") for load in (load_model, blockwise_model))
    assert detect(model, MANY, config).digest == detect(whole, MANY, config).digest


def test_relevance_is_refused(tmp_path):
    """It needs a backward pass."""
    model = blockwise_model(saved("llama", tmp_path), device="cpu")
    with pytest.raises(PLNDError, match="backward pass, which blockwise does not have"):
        detect(model, MANY, DetectConfig(method="relevance", min_length=4))


def test_documents_that_are_not_finite(tmp_path):
    """A document that overflows is left out and named as on the whole model."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = torch.inf
    model.save_pretrained(tmp_path)
    documents = [*MANY[:3], [96] * 5, *MANY[3:]]
    whole, model = (load(str(tmp_path), device="cpu") for load in (load_model, blockwise_model))
    scores = detect(model, documents, CONFIG)
    assert scores.digest == detect(whole, documents, CONFIG).digest
    assert scores.metadata.corpus.skipped["non-finite importance"] == [3]


@pytest.mark.parametrize(
    "first, second",
    [(load_model, blockwise_model), pytest.param(blockwise_model, load_model, marks=pytest.mark.slow)],
)
def test_one_goes_on_where_the_other_was_killed(first, second, tmp_path, monkeypatch):
    """A run that was out of memory is resumed blockwise, and the other way round, to the same file."""
    monkeypatch.setattr("plnd.detection.run.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("plnd.detection.run.WINDOW", 4)
    path, checkpoint = saved("llama", tmp_path / "model"), tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        detect(first(path, device="cpu"), interrupted(MANY, 9), SMALL, checkpoint=checkpoint)
    assert checkpoint.exists()
    model = second(path, device="cpu")
    resumed = detect(model, MANY, SMALL, checkpoint=checkpoint, resume=True)
    assert resumed.digest == detect(model, MANY, SMALL).digest


def test_shards(tmp_path, monkeypatch):
    """Parts of which one was measured blockwise make the scores of the whole model; a shard's batches of several
    windows pass in step, so that the weights are not read for each of them (and once for the fingerprint).
    """
    monkeypatch.setattr("plnd.detection.run.WINDOW", 2)
    path = saved("llama", tmp_path)
    whole, model = (load(path, device="cpu") for load in (load_model, blockwise_model))
    weights = weights_of(model)
    before = weights.bytes_read
    parts = [detect_shard(model, MANY, "1/2", SMALL), detect_shard(whole, MANY, "2/2", SMALL)]  # five batches each
    inside = sum(p.nbytes for block in weights.blocks for p in block.parameters())
    assert weights.bytes_read - before == 4 * inside + model.lm_head.weight.nbytes
    assert merge(parts).digest == detect(whole, MANY, SMALL).digest


def test_neurons_are_switched_off_in_it(tmp_path):
    """`deactivated` works on activations, there being no weights to zero, and detection measures the rest."""
    path = saved("llama", tmp_path)
    whole, model = (load(path, device="cpu") for load in (load_model, blockwise_model))
    neurons = detect(whole, MANY, SMALL).select(fraction=0.1)
    assert len(neurons)
    with deactivated(whole, neurons, mode="activations"), deactivated(model, neurons):
        assert detect(model, MANY, SMALL).digest == detect(whole, MANY, SMALL).digest
        with pytest.raises(PLNDError, match="cannot be zeroed in place"):
            deactivated(model, neurons, mode="weights").__enter__()


def test_two_blocks_at_a_time(tmp_path):
    """However many passes are made in step, no more than two blocks have weights, and none has any afterwards."""
    config = tiny_model("llama").config
    config.num_hidden_layers = 5
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = blockwise_model(str(tmp_path), device="cpu")
    weights, there = weights_of(model), []
    for block in weights.blocks:
        block.mlp.register_forward_hook(lambda *_: there.append(with_weights()))

    def with_weights() -> int:
        return sum(not block.mlp.up_proj.weight.is_meta for block in weights.blocks)

    ids = torch.tensor([MANY[0]])
    turns: list[int] = []
    with torch.no_grad():
        list(in_step(model, [lambda: model(input_ids=ids).logits] * 3, turns.append))
    assert len(there) == 15 and set(there) <= {1, 2}
    assert turns == [0, 1, 2] * 6
    assert with_weights() == 0


def test_a_single_pass(tmp_path):
    """Called as any other model it computes the same logits, and lets its weights go."""
    path = saved("gpt2", tmp_path)
    ids = torch.tensor([MANY[0]])
    whole, model = (load(path, device="cpu") for load in (load_model, blockwise_model))
    with torch.no_grad():
        assert torch.equal(logits(model, ids), logits(whole, ids))
    assert all(p.is_meta for block in weights_of(model).blocks for p in block.parameters())


def test_an_error_in_a_pass_ends_all(tmp_path):
    """It arrives as it is; the passes that waited are ended, the weights gone, and the model can be used again."""
    model = blockwise_model(saved("llama", tmp_path), device="cpu")
    ids, ended = torch.tensor([MANY[0]]), []

    def fine() -> None:
        try:
            model(input_ids=ids)
        finally:
            ended.append("fine")

    def broken() -> None:
        raise ZeroDivisionError

    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        list(in_step(model, [fine, broken], lambda number: None))
    assert ended == ["fine"]
    assert all(p.is_meta for block in weights_of(model).blocks for p in block.parameters())
    with torch.no_grad():
        assert [number for number, _ in in_step(model, [fine], lambda number: None)] == [0]


def test_refusals(tmp_path):
    """A quantised checkpoint, one in another format, a device that is several, a file that is cut: one line each."""
    path = Path(saved("llama", tmp_path / "model"))
    with pytest.raises(PLNDError, match="device 'auto' spreads"):
        blockwise_model(str(path), device="auto")
    with pytest.raises(PLNDError, match="device 'gpu': Expected one of cpu"):
        blockwise_model(str(path), device="gpu")
    model = blockwise_model(str(path), device="cpu")
    with open(path / "model.safetensors", "r+b") as stream:
        stream.truncate(1000)
    with torch.no_grad(), pytest.raises(PLNDError, match="ends before its tensors do"):
        model(input_ids=torch.tensor([MANY[0]]))
    with pytest.raises(PLNDError, match="not a whole safetensors file"):
        blockwise_model(str(path), device="cpu")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PLNDError, match=r"quantised \(gptq\), which blockwise cannot read"):
        blockwise_model(str(path), device="cpu")
    config.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(PLNDError, match=r"only pytorch_model.bin: load it with transformers and save it again"):
        blockwise_model(str(path), device="cpu")
