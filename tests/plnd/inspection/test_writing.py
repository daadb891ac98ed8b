"""What neurons write, against what switching them off changes in the model and a matrix product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import plnd
from plnd.inspection.writing import Writer
from plnd.logit_lens.lens import Unembedding
from plnd.models.layout import Layout, attribute
from plnd.neurons.neuron_set import NeuronSet
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model

CENTRED = (
    *("cohere", "gpt2", "gptj", "gpt_neox", "falcon", "bloom", "xglm", "opt"),
    *("cohere2", "cohere2_moe", "nemotron", "olmo", "phi", "stablelm", "starcoder2", "gpt_bigcode"),
)
"""Rows whose final norm takes away the mean."""
OFFSET = ("gemma2", "gemma3_text", "vaultgemma", "nemotron", "qwen3_5_text", "qwen3_next")
"""Rows whose norms have a gain of one more than their weight."""
POST_NORMS = {
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "gemma4_text", "olmo2", "exaone4"),
        ("post_feedforward_layernorm", "post_attention_layernorm"),
    ),
    "hyperclovax": ("post_norm2", "post_norm1"),
    "glm4": ("post_mlp_layernorm", "post_self_attn_layernorm"),
}
"""Rows with norms after the feed-forward and after attention."""
VOCABULARY = 97


def writer(model, count: int = VOCABULARY) -> Writer:
    """Decodes by a tokenizer of made-up words, all of the vocabulary."""
    layout = Layout(model)
    vocabulary = {f"word{n}": n for n in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="word0")))
    return Writer(layout, tokenizer, Unembedding(layout), VOCABULARY, count)


def logits(writing) -> np.ndarray:
    """The logit of every token."""
    found = {token.token_id: token.logit for token in writing.promoted}
    assert len(found) == VOCABULARY
    return np.array([found[n] for n in range(VOCABULARY)])


def change_without(model, address: str, index: int, token: int = 7) -> torch.Tensor:
    """What a neuron adds to its sub-layer's projection where a document is one token, so that all heads attend alike.

    The output of `o_proj` or `down_proj` as it is, less what it is without the neuron, [hidden].
    """
    layout = Layout(model)
    block, _, projection = address.rpartition(".")
    way_out = "o_proj" if projection in ("v_proj", "o_proj") else "down_proj"
    indices = {address: np.array([index], dtype=np.int32)}
    neurons = NeuronSet(indices, {address: np.ones(1, dtype=np.float32)}, {"model": layout.description()})
    outputs = []
    module = layout.targets[f"{block}.{way_out}"].module
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output.reshape(-1)))
    inputs = {"input_ids": torch.tensor([[token]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[token]])
    with torch.no_grad():
        model(**inputs)
        with plnd.deactivated(model, neurons):
            model(**inputs)
    handle.remove()
    return outputs[0] - outputs[1]


def decoded_by_hand(model, family: str, block: str, projection: str, direction: torch.Tensor) -> np.ndarray:
    """Gain of the norm after the sub-layer, centring and gain of the final norm, and the unembedding: products."""
    offset = 1.0 if family in OFFSET else 0.0
    layout = Layout(model)
    feed_forward = projection in ("gate_proj", "up_proj", "down_proj")
    if family in POST_NORMS:
        norm = POST_NORMS[family][0 if feed_forward else 1]
        direction = direction * (layout.at(f"layers.{block}.{norm}").weight + offset)
    if family in CENTRED:
        direction = direction - direction.mean()
    gain = getattr(attribute(layout.body, layout.family.final[0]), "weight", None)  # OLMo's has none
    final = torch.ones_like(direction) if gain is None else gain + offset
    return (model.get_output_embeddings().weight @ (final * direction)).detach().numpy()


@pytest.mark.parametrize("projection", ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_written_tokens_are_those_of_a_matrix_product(family, projection):
    """For every family the direction is what the neuron adds to the model, up to its value; the order of tokens too."""
    model = tiny_model(family)
    layout = Layout(model)
    block = "decoder.1" if model.config.is_encoder_decoder else "1"
    address = f"{block}.{projection}"
    if address not in layout.widths:
        pytest.skip("an ungated feed-forward")
    stack = next(b for b in layout.blocks if b.name == block).stack
    if projection == "v_proj" and (stack.sinks or stack.head_gates):
        pytest.skip("with sinks or gates of their own heads do not attend alike to one token either")
    index = layout.widths[address] - 2
    with KeepFloat64():
        if layout.targets[address].experts is None:
            direction = change_without(model, address, index)
        else:
            experts = layout.targets[f"{block}.down_proj"].plain.down_proj
            experts = experts.mT if layout.targets[address].transposed else experts
            direction = experts[divmod(index, experts.shape[2])[0], :, index % experts.shape[2]]
        (found,) = writer(model).writings(address, [index])
    expected = decoded_by_hand(model, family, block, projection, direction)
    given = logits(found)
    cosine = given @ expected / np.linalg.norm(given) / np.linalg.norm(expected)
    assert abs(cosine) == pytest.approx(1, abs=1e-6)
    if layout.targets[address].experts is not None:
        assert cosine > 0
    order = [token.token_id for token in found.promoted]
    assert order == sorted(range(VOCABULARY), key=lambda token: -given[token])
    assert [token.token_id for token in found.suppressed] == order[::-1]


def test_the_sign_is_that_of_a_positive_value():
    """A token is promoted where a positive value of the neuron raises its logit, of a column made for one token."""
    model = tiny_model("llama")
    head, norm = model.get_output_embeddings().weight, model.model.norm.weight
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 5] = head[42] / norm
    (found,) = writer(model, count=3).writings("1.down_proj", [5])
    product = head @ head[42]
    assert [token.token_id for token in found.promoted] == product.topk(3).indices.tolist()
    assert [token.token_id for token in found.suppressed] == product.topk(3, largest=False).indices.tolist()
    assert found.promoted[0].text.strip() == f"word{found.promoted[0].token_id}"


def test_parts_of_one_feed_forward_neuron_write_the_same():
    """Rows of gate and up have the column of down of their number; a row of v has those of its group's heads."""
    model = tiny_model("llama")
    one, two, three = (writer(model).writings(f"0.{name}", [7])[0] for name in ("gate_proj", "up_proj", "down_proj"))
    assert one == two == three and "column of down_proj" in one.how
    (value,) = writer(model).writings("0.v_proj", [9])
    assert "columns of o_proj of its 3 query heads, summed as if all attended alike" in value.how


def test_a_bias_of_the_unembedding_is_nobodys():
    """What the model adds to every position, whatever neurons do, is in no neuron's tokens."""
    model = tiny_model("gptj")
    before = logits(writer(model).writings("0.down_proj", [3])[0])
    with torch.no_grad():
        model.get_output_embeddings().bias.add_(torch.arange(97.0))
    np.testing.assert_allclose(logits(writer(model).writings("0.down_proj", [3])[0]), before, atol=1e-9)


@pytest.mark.parametrize(
    "name, address, said",
    [
        ("llama", "0.q_proj", "queries and keys decide where a head looks"),
        ("llama", "0.k_proj", "queries and keys decide where a head looks"),
        ("t5", "encoder.0.down_proj", "an encoder's output goes through the decoder's cross-attention"),
    ],
)
def test_neurons_that_write_no_token_say_so(name, address, said):
    """No token is named, and a reason is."""
    (found,) = writer(tiny_model(name)).writings(address, [0])
    assert said in found.how and found.promoted == found.suppressed == ()


def test_a_column_of_zeros_writes_nothing():
    """A pruned neuron has no direction, and no tokens."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[4] = 0
    empty, full = writer(model).writings("0.down_proj", [4, 5])
    assert empty.how == "nothing: its direction is zero" and not empty.promoted and full.promoted


def test_pieces_of_the_unembedding_do_not_matter(monkeypatch):
    """A few logits at a time, as memory may bid: the same tokens."""
    model = tiny_model("qwen3")
    whole = writer(model, 5).writings("1.down_proj", [0, 1, 2])
    monkeypatch.setattr("plnd.inspection.writing.LOGITS_AT_ONCE", 100)
    pieces = writer(model, 5).writings("1.down_proj", [0, 1, 2])
    assert [[t.token_id for t in w.promoted] for w in whole] == [[t.token_id for t in w.promoted] for w in pieces]
