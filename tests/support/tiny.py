"""A tiny random model for every row of the families table, and a way to lift transformers' float32 casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, __version__

from plnd.models.families import FAMILIES

SHAPE = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = dict(intermediate_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
GEMMA = dict(
    **{**SHAPE, **GROUPED, "num_attention_heads": 4},
    query_pre_attn_scalar=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
)
T5 = dict(
    vocab_size=97,
    d_model=24,
    d_kv=6,
    d_ff=40,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    decoder_start_token_id=0,
)


def _make(kind: Any, model_type: str, *, attention: str = "sdpa", **values: Any) -> PreTrainedModel:
    config = CONFIG_MAPPING[model_type](**values)
    model_class = kind._model_mapping[type(config)]
    if attention == "sdpa" and not model_class._supports_sdpa:
        attention = "eager"
    return kind.from_config(config, attn_implementation=attention)


_causal = partial(_make, AutoModelForCausalLM)
_seq2seq = partial(_make, AutoModelForSeq2SeqLM)

TINY: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": partial(_causal, "llama", **SHAPE, **GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": partial(_causal, "mistral", **SHAPE, **GROUPED, sliding_window=4),
    "qwen2": partial(
        _causal,
        "qwen2",
        **SHAPE,
        intermediate_size=36,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
    "qwen3": partial(_causal, "qwen3", **SHAPE, **GROUPED),
    "gemma2": partial(_causal, "gemma2", **GEMMA, attn_logit_softcapping=2.0),
    "gemma3_text": partial(_causal, "gemma3_text", **GEMMA),
    "olmo2": partial(_causal, "olmo2", **SHAPE, **{k: v for k, v in GROUPED.items() if k != "head_dim"}),
    "granite": partial(
        _causal,
        "granite",
        **SHAPE,
        intermediate_size=40,
        num_attention_heads=6,
        num_key_value_heads=2,
        residual_multiplier=0.22,
        attention_multiplier=0.7,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
    ),
    "smollm3": partial(_causal, "smollm3", **SHAPE, **GROUPED, no_rope_layers=[1, 0]),
    "cohere": partial(_causal, "cohere", **SHAPE, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2),
    "phi3": partial(
        _causal,
        "phi3",
        **{**SHAPE, "hidden_size": 48},
        intermediate_size=40,
        num_attention_heads=6,
        num_key_value_heads=2,
        partial_rotary_factor=0.5,
    ),
    "mixtral": partial(_causal, "mixtral", **SHAPE, **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": partial(
        _causal,
        "qwen3_moe",
        **SHAPE,
        **GROUPED,
        moe_intermediate_size=20,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "gpt2": partial(
        _causal,
        "gpt2",
        vocab_size=97,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gptj": partial(
        _causal,
        "gptj",
        vocab_size=97,
        bos_token_id=1,
        eos_token_id=2,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_inner=40,
        rotary_dim=4,
        n_positions=512,
    ),
    "gpt_neox": partial(
        _causal, "gpt_neox", **SHAPE, intermediate_size=40, num_attention_heads=3, rotary_pct=0.5, hidden_act="gelu"
    ),
    "falcon": partial(
        _causal,
        "falcon",
        **SHAPE,
        num_attention_heads=6,
        num_kv_heads=2,
        new_decoder_architecture=True,
        ffn_hidden_size=40,
        bias=True,
    ),
    "bloom": partial(_causal, "bloom", vocab_size=97, hidden_size=24, n_layer=2, n_head=4),
    "xglm": partial(
        _causal,
        "xglm",
        vocab_size=97,
        d_model=24,
        ffn_dim=40,
        num_layers=2,
        attention_heads=4,
        pad_token_id=0,
        max_position_embeddings=512,
    ),
    "opt": partial(
        _causal,
        "opt",
        **{**SHAPE, "pad_token_id": 1},
        ffn_dim=40,
        num_attention_heads=4,
        word_embed_proj_dim=24,
        max_position_embeddings=512,
    ),
    "t5": partial(_seq2seq, "t5", **T5),
    "t5_gated": partial(_seq2seq, "mt5", **T5, feed_forward_proj="gated-gelu"),
}
"""Row of the table to a function that makes a two-block model; random weights are set by `tiny_model`."""

VARIANTS: dict[str, Callable[..., PreTrainedModel]] = {
    "falcon_multi_query": partial(
        _causal, "falcon", **SHAPE, num_attention_heads=6, multi_query=True, parallel_attn=True, ffn_hidden_size=40
    ),
    "falcon_multi_head": partial(
        _causal, "falcon", **SHAPE, num_attention_heads=6, multi_query=False, parallel_attn=False, ffn_hidden_size=40
    ),
    "gpt_neox_sequential": partial(
        _causal,
        "gpt_neox",
        **SHAPE,
        intermediate_size=40,
        num_attention_heads=4,
        rotary_pct=1.0,
        use_parallel_residual=False,
    ),
    "umt5": partial(_seq2seq, "umt5", **T5, feed_forward_proj="gated-gelu"),
}
"""Further models of rows of the table, whose storage or residual stream differs."""


def tiny_model(
    name: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """A two-block model whose weights, norms and biases are all random and far from their initial values.

    Args:
        name: row of the families table, or one of `VARIANTS`.
        dtype: of the weights.
        attention: `sdpa` (where the model has it) or `eager`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    model = random_weights(name, (TINY | VARIANTS)[name](attention=attention))
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the default one has no float64
    return model.to(dtype)


def random_weights(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """`model`, of a row of the table, in evaluation mode and with parameters far from their initial values."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.2)
            if parameter.dim() == 1 and path.endswith("weight") and not name.startswith("gemma"):
                parameter.add_(1)  # the gain of a norm
    return model.eval()


def unlisted_model(model_type: str, dtype: torch.dtype = torch.float64, **values: Any) -> PreTrainedModel:
    """A two-block model with Llama's modules of a type that the families table does not list; skips if there is none.

    Args:
        model_type: of transformers.
        dtype: of the weights.
        values: further fields of the configuration.
    """
    assert not any(model_type in family.model_types for family in FAMILIES.values()), "take another family"
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no {model_type}")
    torch.manual_seed(0)
    model = _causal(model_type, **{**SHAPE, **GROUPED, **values}).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(0, 0.3)
            if parameter.dim() == 1 and path.endswith("weight"):
                parameter.add_(1)
    return model.to(dtype)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Next-token logits, [batch, seq, vocabulary]; a decoder with an encoder reads the same tokens."""
    further = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **further).logits


class KeepFloat64(TorchFunctionMode):
    """Lifts the float32 casts of transformers' norms and softmax, whose noise would hide float64 agreement."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D102
        kwargs = dict(kwargs or {})
        double = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if double and func is torch.Tensor.float:
            return args[0]
        if double and func is torch.Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")):
            return args[0]
        if double and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__) and torch.float64 in (x.dtype for x in args):
            args = [x.double() for x in args]  # rotary positions, in releases that cast their frequencies
        return func(*args, **kwargs)
