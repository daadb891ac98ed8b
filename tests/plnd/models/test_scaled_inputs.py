"""Llama 4, whose experts receive each token times its share: measured, masked and exported, or refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

from detecting import CONFIG, some_documents
from plnd.addresses import split_address
from plnd.deactivation import deactivated
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.observer import SITES, Observer
from plnd.detection.oracle import sequential
from plnd.detection.run import detect
from plnd.errors import FamilyError
from plnd.exchange.export import export
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.models.plan import distribution
from plnd.probing.float64 import KeepFloat64
from plnd.references.config import ReferenceConfig
from plnd.references.routing_run import routing
from tiny import LLAMA4, SCALED, random_weights, tiny_model

pytestmark = pytest.mark.slow
DOCUMENTS = some_documents((9, 4, 12))
EYES = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vision_output_dim=16,
    image_size=28, patch_size=14, projector_input_dim=16, projector_output_dim=16,
)  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_importances_equal_brute_force(name):
    """Every projection, of experts, of the one that all tokens go through and of dense blocks, with norms of heads and
    without, with positions and with queries scaled where there are none; the second of two documents in a batch."""
    model = tiny_model(name, attention="eager")
    layout, found = Layout(model), {}

    def sink(block, site, importance):
        found.update({f"{block}.{projection}": importance[1] for projection in SITES[site]})

    ids = torch.tensor([DOCUMENTS[0], [*DOCUMENTS[1], *DOCUMENTS[1][-1:] * 5]])
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    with KeepFloat64():
        with torch.no_grad(), Observer(layout, PaperImportance("exact"), sink, [(0, 9), (0, 4)]).attached():
            layout.forward(ids, mask)
        for address in layout.targets:
            at = "attention" if split_address(address)[1] in ("q_proj", "k_proj") else "sublayer"
            expected = sequential(model, torch.tensor(DOCUMENTS[1]), address, at=at)
            assert float((found[address] - expected).abs().max() / expected.abs().max()) < 1e-9, address


def test_the_one_that_sees_and_its_language_model(tmp_path):
    """The language model alone is loaded of a checkpoint with eyes; one mask fits both, and the exported files."""
    config = Llama4Config(text_config=dict(**LLAMA4, moe_layers=[0]), vision_config=EYES)
    torch.manual_seed(0)
    whole = random_weights("llama4_text", Llama4ForConditionalGeneration(config)).float()
    whole.save_pretrained(tmp_path / "model")
    text = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    neurons = detect(text, DOCUMENTS, CONFIG).select(fraction=0.2)
    export(tmp_path / "model", neurons, tmp_path / "without")
    exported = load_model(str(tmp_path / "without"), dtype="float32", device="cpu")
    ids = torch.tensor(DOCUMENTS[:1])
    with torch.no_grad():
        before = text(input_ids=ids).logits
        with deactivated(whole, neurons), deactivated(text, neurons):
            masked = text(input_ids=ids).logits
            torch.testing.assert_close(whole(input_ids=ids).logits, masked)
            torch.testing.assert_close(exported(input_ids=ids).logits, masked)
        assert torch.equal(text(input_ids=ids).logits, before) and not torch.allclose(before, masked)


def test_what_cannot_be_had_of_such_experts_is_refused(monkeypatch):
    """Their values cannot be changed, their routing not counted, and they cannot be measured in parts."""
    model = tiny_model("llama4_text")
    neurons = detect(model, DOCUMENTS, CONFIG).select(fraction=0.2)
    with pytest.raises(FamilyError, match="does not go through transformers' ExpertsInterface"):
        with deactivated(model, neurons, mode="activations"):
            pass
    with pytest.raises(FamilyError, match="block 0: its experts"):
        routing(model, {"xx": DOCUMENTS}, ReferenceConfig(min_length=4))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FamilyError, match="'llama4_text': its experts, whose inputs are scaled"):
        distribution(model)
