"""A block must compute what the closed forms take it to compute: what does not is refused, what does is scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from plnd.detection.config import DetectConfig
from plnd.detection.oracle import sequential
from plnd.detection.run import detect
from plnd.errors import FamilyError
from tiny import SHAPE, tiny_model, unlisted_model

CONFIG = DetectConfig(min_length=4, qk="exact")
DOCUMENTS = [[5, 9, 33, 7, 61, 4], [8, 8, 70, 12, 3, 9, 41]]


def test_granite_is_eq_1_of_its_block():
    """Granite multiplies what sub-layers add: importances are eq. 1 of the block, not 1/0.22 = 4.5 times it."""
    config = CONFIG_MAPPING["granite"](
        **SHAPE, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, residual_multiplier=0.22
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    found = detect(model, DOCUMENTS, CONFIG).mean
    for address in ("0.gate_proj", "1.down_proj"):
        expected = torch.stack([sequential(model, torch.tensor(d), address, at="block") for d in DOCUMENTS])
        torch.testing.assert_close(torch.from_numpy(found[address]), expected.mean(0).float(), rtol=1e-4, atol=1e-9)


def composed(change):
    """A block that puts its input, attention's output and the normed feed-forward together in its own way."""

    def patch(block):
        def forward(hidden_states, **kwargs):
            attention = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)[0]
            return change(hidden_states, attention, lambda x: block.mlp(block.post_attention_layernorm(x)))

        block.forward = forward

    return patch


def between(change):
    """A block whose feed-forward makes the input of `down_proj` of gate and up in its own way."""

    def patch(block):
        mlp = block.mlp
        mlp.forward = lambda x: mlp.down_proj(change(mlp.gate_proj(x), mlp.up_proj(x)))

    return patch


def doubled(path):
    """A block with a linear layer that does more than its weights say."""

    def patch(block):
        layer = block.get_submodule(path)
        layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)

    return patch


def rms(x):
    """An RMS norm without a module."""
    return x * x.square().mean(-1, keepdim=True).rsqrt()


silu = nn.functional.silu
RESIDUAL = "its output is not its input plus the outputs of attention and feed-forward"
GATES = "between gate_proj and up_proj and down_proj the feed-forward computes something else"
OTHERWISE = {
    "depth scaled": (composed(lambda x, a, f: (y := x + 0.3 * a) + 0.3 * f(y)), RESIDUAL),
    "attention scaled": (composed(lambda x, a, f: (y := x + 0.9 * a) + f(y)), RESIDUAL),
    "feed-forward scaled": (composed(lambda x, a, f: (y := x + a) + 1.1 * f(y)), RESIDUAL),
    "residual scaled": (composed(lambda x, a, f: (y := 1.1 * x + a) + f(y)), RESIDUAL),
    "block scaled": (composed(lambda x, a, f: 0.9 * ((y := x + a) + f(y))), RESIDUAL),
    "norm after the residual": (composed(lambda x, a, f: rms((y := rms(x + a)) + f(y))), RESIDUAL),
    "sandwich norms": (composed(lambda x, a, f: (y := x + rms(a)) + rms(f(y))), RESIDUAL),
    "feed-forward left out": (composed(lambda x, a, f: (f(x), x + a)[1]), RESIDUAL),
    "inner clamp": (between(lambda g, u: (silu(g) * u).clamp(-0.1, 0.1)), GATES),
    "up plus one": (between(lambda g, u: silu(g) * (u + 1)), GATES),
    "another activation": (between(lambda g, u: torch.sigmoid(g) * u), GATES),
    "gate and up swapped": (between(lambda g, u: silu(u) * g), GATES),
}


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", sorted(OTHERWISE))
def test_llama_by_its_modules_alone_is_refused(kind, dtype):
    """Llama's modules put together in another way are one clear error, in every dtype and with --qk off too."""
    model = unlisted_model("cwm", dtype)
    change, message = OTHERWISE[kind]
    change(model.model.layers[1])
    for qk in ("off", "exact"):
        with pytest.raises(FamilyError, match=rf"^block 1: {message}"):
            detect(model, DOCUMENTS, replace(CONFIG, qk=qk))


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
@pytest.mark.parametrize("path", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_projection_that_does_more_than_its_weights_say_is_refused(path):
    """The weights are what is measured and switched off, so the output must be theirs."""
    model = unlisted_model("cwm")
    doubled(path)(model.model.layers[1])
    with pytest.raises(FamilyError, match="does not multiply by its weight|is not its weights times its input"):
        detect(model, DOCUMENTS, replace(CONFIG, qk="off"))


def test_a_model_of_transformers_that_computes_otherwise_is_refused():
    """The same of a model that exists: another Granite, with Llama's modules and a factor on what they add."""
    model = unlisted_model("granite_swa", residual_multiplier=0.22)
    with (
        pytest.warns(UserWarning, match="granite_swa"),
        pytest.raises(FamilyError, match=f"^block 0: {RESIDUAL}, which the families table says of granite_swa"),
    ):
        detect(model, DOCUMENTS, replace(CONFIG, qk="off"))


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
@pytest.mark.parametrize("kind", ["cwm", "side by side"])
def test_llama_by_its_modules_and_its_sums_is_scored(kind):
    """The negative: other models of Llama's layout are scored, and feed-forward importance is eq. 1 of their blocks."""
    model = unlisted_model("cwm" if kind == "side by side" else kind)
    if kind == "side by side":
        composed(lambda x, a, f: x + a + f(x))(model.model.layers[1])
    found = detect(model, DOCUMENTS, CONFIG).mean["1.up_proj"]
    expected = torch.stack([sequential(model, torch.tensor(d), "1.up_proj", at="block") for d in DOCUMENTS])
    torch.testing.assert_close(torch.from_numpy(found), expected.mean(0).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
@pytest.mark.parametrize("kind", ["depth scaled", "inner clamp"])
def test_a_block_is_held_to_the_first_document_that_says_something(kind):
    """A document without finite numbers proves nothing: another form is still refused on the next one."""
    model = unlisted_model("cwm")
    OTHERWISE[kind][0](model.model.layers[1])
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = torch.inf
    with pytest.raises(FamilyError, match=f"^block 1: {OTHERWISE[kind][1]}"):
        detect(model, [[96] * 30, *DOCUMENTS], replace(CONFIG, batch_size=1))


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
def test_a_large_residual_stream_hides_no_factor():
    """Where half the stream is thousands of times what a block adds, in bfloat16, a factor still shows."""
    for factor, ends in ((1.0, None), (0.22, RESIDUAL)):
        model = unlisted_model("cwm", torch.bfloat16)
        with torch.no_grad():
            model.get_input_embeddings().weight[:, ::2] *= 5000
        composed(lambda x, a, f, m=factor: (y := x + m * a) + m * f(y))(model.model.layers[0])
        if ends is None:
            assert detect(model, DOCUMENTS, replace(CONFIG, qk="off")).minimum
        else:
            with pytest.raises(FamilyError, match=f"^block 0: {ends}"):
                detect(model, DOCUMENTS, replace(CONFIG, qk="off"))


def with_activation_in_place(block):
    """The block, whose activation overwrites what gate gave."""
    block.mlp.act_fn = nn.SiLU(inplace=True)


@pytest.mark.filterwarnings("ignore:model family 'cwm'")
@pytest.mark.parametrize(
    "change",
    [with_activation_in_place, composed(lambda x, a, f: (y := x.add_(a)).add_(f(y)))],
    ids=["activation", "sum"],
)
def test_a_block_that_works_in_place_is_scored(change):
    """What went in is held to what came out, though the model has overwritten it by then."""
    plain, changed = unlisted_model("cwm"), unlisted_model("cwm")
    change(changed.model.layers[1])
    assert detect(changed, DOCUMENTS, CONFIG).digest == detect(plain, DOCUMENTS, CONFIG).digest


def test_an_expert_that_computes_otherwise_is_refused():
    """A mixture whose experts clamp between gate and down_proj, as some do."""
    model = tiny_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    whole = experts._apply_gate
    experts._apply_gate = lambda fused: whole(fused).clamp(-0.1, 0.1)
    with pytest.raises(FamilyError, match=f"^block 1: {GATES}"):
        detect(model, DOCUMENTS, CONFIG)


def test_an_adapter_counts_as_merged():
    """With an adapter a neuron does more than its base weights say: its importance is that of the merged model."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model("qwen2", torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["down_proj"], init_lora_weights=False))
    found = detect(adapted, DOCUMENTS, CONFIG).mean
    merged = detect(adapted.merge_and_unload(), DOCUMENTS, CONFIG).mean
    for address, importance in merged.items():
        assert importance.max() > 0
        torch.testing.assert_close(torch.from_numpy(found[address]), torch.from_numpy(importance))
