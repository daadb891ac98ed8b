"""Encoders that fill in masked tokens (XLM-R, ModernBERT): measured where nothing is causal, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, XLMRobertaConfig

from detecting import CONFIG, some_documents
from plnd.addresses import split_address
from plnd.commands.main import main
from plnd.comparison.measures import feed_forward_blocks
from plnd.deactivation import deactivated
from plnd.demo_data import demo_model
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.observer import SITES, Observer
from plnd.detection.oracle import sequential
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.exchange.export import export
from plnd.logit_lens.lens import decode_tokens
from plnd.models.blockwise import blockwise_model
from plnd.models.layout import Layout, find_family
from plnd.models.loading import model_class
from plnd.neurons.neuron_set import NeuronSet
from plnd.probing.float64 import KeepFloat64
from plnd.roles.activations import Watch
from tiny import BERT, MASKED, logits, tiny_model

DEFAULT = ("modernbert", "xlm-roberta")
"""One of whose blocks the norms stand before the sub-layers, and one of whose they stand behind."""
ENCODERS = [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in MASKED]
DOCUMENTS = some_documents((9, 4, 12))
WITHOUT_QK = replace(CONFIG, qk="off")
"""Queries and keys are held to brute force on their own."""


@pytest.mark.parametrize("name", ENCODERS)
def test_importances_equal_brute_force(name):
    """Every projection, where each token sees all others: V, O and feed-forward by what the sub-layer adds, Q and K by
    the model's own attention probabilities; two documents in a batch, one of them padded."""
    model = tiny_model(name, attention="eager")
    layout, found = Layout(model), {}

    def sink(block, site, importance):
        found.update({f"{block}.{projection}": importance[1] for projection in SITES[site]})

    ids = torch.tensor([DOCUMENTS[0], [*DOCUMENTS[1], *DOCUMENTS[1][-1:] * 5]])
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    document = torch.tensor(DOCUMENTS[1])
    with KeepFloat64():
        with torch.no_grad(), Observer(layout, PaperImportance("exact"), sink, [(0, 9), (0, 4)]).attached():
            layout.forward(ids, mask)
        for address in [a for a in layout.targets if a.startswith("1.")]:
            at = "attention" if split_address(address)[1] in ("q_proj", "k_proj") else "sublayer"
            expected = sequential(model, document, address, at=at)
            assert float((found[address] - expected).abs().max() / expected.abs().max()) < 1e-9, address


def test_norms_of_the_stream_are_held_to_the_model():
    """A row that does not know of BERT's norms behind the sub-layers is refused on the first document."""
    model = tiny_model("xlm-roberta")
    family = find_family(model)
    wrong = replace(family, stacks=(replace(family.stacks[0], stream_norms=()),))
    layout, ids = Layout(model, family=wrong), torch.tensor(DOCUMENTS[:1])
    with pytest.raises(FamilyError, match="block 0: its output is not its input plus"), torch.no_grad():
        with Observer(layout, PaperImportance("off"), lambda *_: None, [(0, 9)]).attached():
            layout.forward(ids, torch.ones_like(ids))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_mask_of_an_encoder(name, tmp_path):
    """Weights and activations modes, and the exported checkpoint, give the same masked logits; whole afterwards."""
    model = tiny_model(name, torch.float32)
    neurons = detect(model, DOCUMENTS, WITHOUT_QK).select(fraction=0.2)
    ids = torch.tensor([DOCUMENTS[0]])
    with torch.no_grad():
        whole = logits(model, ids)
        with deactivated(model, neurons, mode="weights"):
            masked = logits(model, ids)
        with deactivated(model, neurons, mode="activations"):
            torch.testing.assert_close(logits(model, ids), masked)
        assert not torch.allclose(whole, masked) and torch.equal(logits(model, ids), whole)
        model.save_pretrained(tmp_path / "model")
        export(tmp_path / "model", neurons, tmp_path / "without")
        exported = type(model).from_pretrained(tmp_path / "without")
        torch.testing.assert_close(logits(exported.eval(), ids), masked)
    assert Layout(model).left_alone == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_blockwise_is_the_whole_model(name, tmp_path):
    """Scores of an encoder that is read from its files block by block are those of the loaded one, bit for bit."""
    model = tiny_model(name, torch.float32)
    model.save_pretrained(tmp_path)
    one, other = (detect(m, DOCUMENTS, CONFIG) for m in (model, blockwise_model(str(tmp_path), device="cpu")))
    assert all(np.array_equal(one.minimum[address], other.minimum[address]) for address in one.minimum)


@pytest.mark.parametrize("name", DEFAULT)
def test_batches_do_not_change_what_is_read(name):
    """Activations, which roles come of, of documents in one batch are those of each alone: padding is not seen."""
    model = tiny_model(name)
    watch = Watch(Layout(model))
    with watch.attached(), torch.no_grad():
        together = watch.read(DOCUMENTS)[0]
        alone = torch.cat([watch.read([document])[0] for document in DOCUMENTS])
    torch.testing.assert_close(together, alone)


def test_the_class_of_an_encoder():
    """XLM-R is loaded with the head that fills in; as a decoder, which it can be, it has no row."""
    assert model_class(XLMRobertaConfig()) is AutoModelForMaskedLM
    config = XLMRobertaConfig(**BERT, is_decoder=True)
    assert model_class(config) is AutoModelForCausalLM
    with pytest.raises(FamilyError, match="'xlm-roberta' with is_decoder=True"):
        Layout(AutoModelForCausalLM.from_config(config))


def test_positions_begin_after_the_padding():
    """XLM-R has as many positions as its table has rows behind the padding's; a longer document is refused."""
    model = tiny_model("xlm-roberta")
    assert Layout(model).positions == 512 and Layout(tiny_model("bert")).positions == 514
    with pytest.raises(PLNDError, match="max_length=513: the model has 512 positions"):
        detect(model, DOCUMENTS, replace(WITHOUT_QK, max_length=513))


def test_what_needs_next_tokens_is_refused():
    """The lens, relevance, the published scoring and the arena say in one line that an encoder predicts none."""
    model = tiny_model("xlm-roberta")
    said = "model family 'bert' fills in masked tokens and predicts no next ones"
    with pytest.raises(FamilyError, match=said):
        decode_tokens(model, None, DOCUMENTS)
    with pytest.raises(FamilyError, match=said):
        detect(model, DOCUMENTS, replace(WITHOUT_QK, method="relevance"))
    with pytest.raises(FamilyError, match=said):
        feed_forward_blocks(Layout(model))
    with pytest.raises(FamilyError, match="'xlm-roberta' fills in masked tokens, of which the published code"):
        detect(model, DOCUMENTS, replace(WITHOUT_QK, scoring="official"))


@pytest.mark.slow
def test_an_encoder_from_the_command_line(tmp_path, monkeypatch, capsys):
    """`detect`, `select` and `export` take an encoder's folder; `lm_eval --model plnd` refuses it in one line."""
    from lm_eval_plnd.model import PLNDLM

    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    config = XLMRobertaConfig(**{**BERT, "vocab_size": len(tokenizer), "max_position_embeddings": 514})
    AutoModelForMaskedLM.from_config(config).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")
    Path("de.txt").write_text("Ein kleiner Satz, und noch einer, der lang genug ist, um gezählt zu werden. " * 3)
    common = "--model encoder --language de --corpus de.txt --output de.scores --device cpu --max-length 128"
    assert main(f"detect {common}".split()) == 0
    assert main("select de.scores --fraction 0.1 --output de.safetensors".split()) == 0
    assert main("export --mask de.safetensors --output without".split()) == 0
    assert len(NeuronSet.load("de.safetensors"))
    with pytest.raises(PLNDError, match="model_type 'xlm-roberta' fills in masked tokens"):
        PLNDLM(mask="de.safetensors", device="cpu")
