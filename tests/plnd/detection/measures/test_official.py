"""`scoring="official"` against a literal transcription of the published code, in float64.

`llama`, `mistral` and `gemma2` below follow `neuron_detection/transformers/models/*/modeling_*.py` of
DAMO-NLP-SG/multilingual_analysis (commit be2b161) tensor by tensor. The same modules give these numbers when the files
themselves are run (transformers 4.42.4, float32): to 5e-7 of the largest.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from plnd.detection.config import DetectConfig
from plnd.detection.measures.official import OfficialImportance, mask_of_all, squared_change
from plnd.detection.observer import SITES, Observer
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.importance.attention import Attention
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model

LENGTH = 11
IDS = torch.randint(3, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))


def observe(model, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Official scores of one document by address, [width]."""
    seen: dict[str, torch.Tensor] = {}

    def sink(block, site, importance):
        seen.update({f"{block}.{projection}": importance[0] for projection in SITES[site]})

    layout = Layout(model)
    observer = Observer(layout, OfficialImportance("exact"), sink, [(0, LENGTH)])
    with observer.attached(), KeepFloat64():
        layout.forward(IDS[None], mask)
    return seen


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """To 1e-9 of the largest."""
    return float((found - expected).abs().max() / expected.abs().max()) < 1e-9


# the published code, one document at a time


def attention_and_mlp(model, mask: torch.Tensor):
    """Of every block: the attention module, its input and rotation, the feed-forward module and its input."""
    inputs: dict[nn.Module, tuple] = {}

    def note(module, args, kwargs):
        inputs[module] = (args or (kwargs["hidden_states"],), kwargs)

    modules = [m for layer in model.model.layers for m in (layer.self_attn, layer.mlp)]
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in modules]
    with torch.no_grad(), KeepFloat64():
        model.model(input_ids=IDS[None], attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer in model.model.layers:
        (hidden,), kwargs = inputs[layer.self_attn]
        yield layer.self_attn, hidden, kwargs["position_embeddings"], layer.mlp, inputs[layer.mlp][0][0]


def rotate_half(x):
    """modeling_llama.py: rotate_half."""
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def shared_forward(attn, hidden_states, position_embeddings, scaling, softcap, attention_mask):
    """modeling_llama.py: LlamaAttention.shared_forward (Gemma 2: soft-cap; Mistral, default: attention_mask None)."""
    bsz, q_len, _ = hidden_states.size()
    query_states = attn.q_proj(hidden_states).view(bsz, q_len, -1, attn.head_dim).transpose(1, 2)
    key_states = attn.k_proj(hidden_states).view(bsz, q_len, -1, attn.head_dim).transpose(1, 2)
    value_states = attn.v_proj(hidden_states).view(bsz, q_len, -1, attn.head_dim).transpose(1, 2)
    cos, sin = (x.unsqueeze(1) for x in position_embeddings)
    query_states = query_states * cos + rotate_half(query_states) * sin
    key_states = key_states * cos + rotate_half(key_states) * sin
    n_rep = query_states.shape[1] // key_states.shape[1]
    key_states = key_states.repeat_interleave(n_rep, dim=1)
    value_states = value_states.repeat_interleave(n_rep, dim=1)
    attn_weights = torch.matmul(query_states, key_states.transpose(2, 3)) * scaling
    attn_weights_temp = torch.matmul(
        query_states.transpose(2, 3).unsqueeze(-1), key_states.transpose(2, 3).unsqueeze(-1).transpose(-2, -1)
    )
    if softcap is not None:
        attn_weights = attn_weights / softcap
        attn_weights = torch.tanh(attn_weights)
        attn_weights = attn_weights * softcap
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights_temp = attn_weights.unsqueeze(2).expand(-1, -1, query_states.size()[-1], -1, -1) - attn_weights_temp
    attn_weights_temp = nn.functional.softmax(attn_weights_temp, dim=-1)
    attn_weights = nn.functional.softmax(attn_weights, dim=-1)
    attn_output = torch.matmul(attn_weights, value_states)
    attn_weights_temp = attn_weights_temp - attn_weights.unsqueeze(2).expand(-1, -1, query_states.size()[-1], -1, -1)
    attn_weights_temp = attn_weights_temp**2
    attn_weights_temp = attn_weights_temp.sum(dim=(-2, -1)).view(-1)
    attn_output = attn_output.transpose(1, 2).contiguous().reshape(bsz, q_len, -1)
    return attn_weights_temp.squeeze(), torch.sum(torch.abs(attn_output), dim=1).squeeze()


def causal(window: int | None = None) -> torch.Tensor:
    """_update_causal_mask, and Gemma2DecoderLayer.forward where there is a window: [1, 1, q_len, q_len]."""
    lowest = torch.finfo(torch.float64).min
    mask = torch.full((LENGTH, LENGTH), lowest, dtype=torch.float64).triu(1)
    if window is not None:
        mask = torch.where(torch.ones_like(mask, dtype=torch.bool).tril(-window), lowest, mask)
    return mask[None, None]


def official(name: str, model, mask: torch.Tensor):
    """(up and down, query and key, value and output) of every block, all of the width of the code's own lists."""
    config = model.config
    for block, (attn, hidden, rotation, mlp, x) in enumerate(attention_and_mlp(model, mask)):
        if name == "llama":
            settings = (1 / math.sqrt(attn.head_dim), None, causal())
        elif name == "mistral":
            settings = (1 / math.sqrt(attn.head_dim), None, None)
        else:
            window = None if block % 2 else config.sliding_window
            settings = (config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping, causal(window))
        with torch.no_grad():
            query, value = shared_forward(attn, hidden, rotation, *settings)
            yield torch.sum(torch.abs(mlp.up_proj(x)), dim=1).squeeze(), query, value


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_the_three_published_files(name):
    """Every list that the published code returns is ours; of keys and values, the largest of a row's query heads."""
    model = tiny_model(name, attention="eager")
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    if name == "mistral":
        mask = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64)
    found = observe(model, mask_of_all(torch.ones(1, LENGTH)) if name == "mistral" else mask)
    head_dim, groups = model.config.head_dim, model.config.num_key_value_heads
    for block, (up, query, value) in enumerate(official(name, model, mask)):
        assert close(found[f"{block}.up_proj"], up) and close(found[f"{block}.down_proj"], up)
        assert close(found[f"{block}.q_proj"], query)
        assert close(found[f"{block}.o_proj"], value)
        assert close(found[f"{block}.k_proj"], query.view(groups, -1, head_dim).amax(1).flatten())
        assert close(found[f"{block}.v_proj"], value.view(groups, -1, head_dim).amax(1).flatten())
    assert not any(address.endswith("gate_proj") for address in found)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("kind", ["causal", "window", "bias of each head"])
def test_squared_change_is_the_dense_formula(kind, softcap, monkeypatch):
    """Any mask, with and without soft-cap, also when the work is cut into pieces."""
    torch.manual_seed(0)
    heads, groups, head_dim, scaling = 6, 2, 4, 0.7
    q, k = torch.randn(heads, 9, head_dim).double(), torch.randn(groups, 9, head_dim).double()
    seen = torch.ones(1, 9, 9, dtype=torch.bool).tril()
    mask = None
    if kind == "window":
        mask = seen = seen.triu(-3)
    if kind == "bias of each head":
        mask = torch.randn(heads, 9, 9).double().masked_fill(~seen, -torch.inf)
    keys = k.repeat_interleave(heads // groups, 0)
    s = q @ keys.mT * scaling
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~seen, -torch.inf) if kind != "bias of each head" else s + mask
    change = (s[:, None] - q.mT[..., None] * keys.mT[:, :, None]).softmax(-1) - s.softmax(-1)[:, None]
    expected = change.square().sum((-2, -1)).flatten()
    trace = Attention(q * 3, k * 5, q, k, scaling, mask=mask, softcap=softcap)  # unrotated ones are not read
    assert close(squared_change(trace), expected)
    monkeypatch.setattr("plnd.importance.memory.ROWS_BUDGET", 60)
    monkeypatch.setattr("plnd.importance.memory.CELLS_BUDGET", 20)
    assert close(squared_change(trace), expected)


def test_every_decoder_is_measured(family):
    """Up is the size of the up-projection's output, O that of the heads'; models with an encoder are refused.

    So are latent attention and values that are not measured.
    """
    model = tiny_model(family)
    layout, outputs, inputs = Layout(model), {}, {}
    if model.config.is_encoder_decoder:
        with pytest.raises(FamilyError, match="has an encoder, of which the published code knows nothing"):
            detect(model, [IDS.tolist()], DetectConfig(scoring="official", min_length=1))
        return
    if any(stack.latent for stack in layout.family.stacks):
        with pytest.raises(FamilyError, match="has latent attention, of which the published code knows nothing"):
            detect(model, [IDS.tolist()], DetectConfig(scoring="official", min_length=1))
        return
    if family == "gemma4_text":
        with pytest.raises(FamilyError, match="rows of v_proj are not measured"):
            detect(model, [IDS.tolist()], DetectConfig(scoring="official", min_length=1))
        return
    for address, target in layout.targets.items():
        if address.endswith("up_proj") and target.experts is None:
            target.module.register_forward_hook(lambda m, a, o, t=target: outputs.update({t.name: t.select(o)}))
        if address.endswith("o_proj"):
            target.module.register_forward_pre_hook(lambda m, a, t=target: inputs.update({t.name: a[0]}))
    found = observe(model, torch.ones(1, LENGTH, dtype=torch.long))
    assert found.keys() == {address for address in layout.targets if not address.endswith("gate_proj")}
    for address, output in outputs.items():
        assert close(found[address], output.reshape(LENGTH, -1).abs().sum(0))
    for address, context in inputs.items():
        assert close(found[address], context.reshape(LENGTH, -1).abs().sum(0))
    assert all(value.min() > 0 for address, value in found.items() if address.endswith(("q_proj", "k_proj")))


def test_experts_count_the_tokens_routed_to_them():
    """In a mixture, up is summed over the tokens of each expert."""
    model, seen = tiny_model("mixtral"), {}
    experts = model.model.layers[0].mlp.experts
    experts.register_forward_pre_hook(lambda module, args: seen.update(hidden=args[0], index=args[1]))
    found = observe(model, torch.ones(1, LENGTH, dtype=torch.long))["0.up_proj"].view(4, -1)
    for expert in range(4):
        tokens = (seen["index"] == expert).any(-1)
        up = seen["hidden"][tokens] @ experts.gate_up_proj[expert].chunk(2)[1].T
        assert torch.allclose(found[expert], up.abs().sum(0), rtol=1e-9, atol=1e-12)


def test_documents_past_mistrals_window_are_refused():
    """From its window on, the published Mistral file computes something else."""
    with pytest.raises(PLNDError, match="shorter than the sliding window of 4 tokens"):
        detect(tiny_model("mistral"), [IDS.tolist()], DetectConfig(scoring="official", min_length=1))


def test_a_document_does_not_depend_on_its_batch():
    """Mistral's mask of all tokens is one of each document's own tokens."""
    model = tiny_model("mistral", torch.float64)
    documents = [IDS.tolist()[:3], IDS.tolist()[4:6]]
    settings = {"scoring": "official", "min_length": 1, "max_length": 3}
    together = detect(model, documents, DetectConfig(**settings, batch_size=2))
    alone = [detect(model, [document], DetectConfig(**settings)) for document in documents]
    for address, values in together.minimum.items():
        expected = torch.minimum(*(torch.from_numpy(x.minimum[address]) for x in alone))
        assert torch.allclose(torch.from_numpy(values), expected, rtol=1e-5, atol=1e-7), address
    assert together.metadata["method"]["scoring"] == "official" and together.metadata["method"]["qk"] == "exact"


def test_qk_off_leaves_both_out():
    """Q and K have one form, but need not be scored."""
    config = DetectConfig(scoring="official", qk="off", min_length=1)
    scores = detect(tiny_model("llama", torch.float32), [IDS.tolist()], config)
    assert scores.metadata["method"]["projections"] == ["v_proj", "o_proj", "up_proj", "down_proj"]
