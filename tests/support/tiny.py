"""A tiny random model for every row of the families table, and a way to lift transformers' float32 casts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    __version__,
)

from plnd.models.families import FAMILIES

SHAPE = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = dict(intermediate_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
FEW = {**GROUPED, "intermediate_size": 10}
NARROW = {name: size for name, size in GROUPED.items() if name != "head_dim"}
MIXED_WINDOWS = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
EXPERTS = dict(moe_intermediate_size=10, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)
GLM_EXPERTS = dict(
    moe_intermediate_size=9,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=2,
    first_k_dense_replace=1,
    routed_scaling_factor=1.5,
    n_group=1,
    topk_group=1,
)
LATENT = dict(
    intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=10,
    kv_lora_rank=12,
    qk_rope_head_dim=4,
    qk_nope_head_dim=6,
    v_head_dim=5,
)
TEMPERED = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=2.0,
    original_max_position_embeddings=4,
    llama_4_scaling_beta=0.3,
)
LINEAR = dict(
    layer_types=["linear_attention", "full_attention"],
    linear_num_value_heads=2,
    linear_num_key_heads=2,
    linear_key_head_dim=4,
    linear_value_head_dim=4,
)
LLAMA4 = dict(
    **SHAPE,
    **FEW,
    intermediate_size_mlp=20,
    no_rope_layers=[1, 0],
    attention_chunk_size=4,
    floor_scale=2,
    attn_scale=0.3,
    num_local_experts=3,
    num_experts_per_tok=2,
)
MODERNBERT = dict(
    **SHAPE,
    intermediate_size=40,
    num_attention_heads=3,
    layer_types=["sliding_attention", "full_attention"],
    local_attention=4,
    sep_token_id=2,
    cls_token_id=1,
)
MAMBA = dict(mamba_expand=1, mamba_n_heads=2, mamba_n_groups=1, mamba_d_state=4)
GEMMA = dict(
    **{**SHAPE, **GROUPED, "num_attention_heads": 4},
    query_pre_attn_scalar=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
)
GEMMA4 = dict(
    **{**SHAPE, **GROUPED, "num_hidden_layers": 3},
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention", "full_attention"],
    global_head_dim=12,
    hidden_size_per_layer_input=6,
    vocab_size_per_layer_input=97,
    num_kv_shared_layers=1,
    use_double_wide_mlp=True,
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
    config = CONFIG_MAPPING[model_type](**deepcopy(values))  # some write into what they are given
    if type(config) not in kind._model_mapping:  # the text tower of a larger model
        return getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM"))._from_config(
            config, attn_implementation=attention
        )
    model_class = kind._model_mapping[type(config)]
    if attention == "sdpa" and not model_class._supports_sdpa:
        attention = "eager"
    return kind.from_config(config, attn_implementation=attention)


_causal = partial(_make, AutoModelForCausalLM)
_seq2seq = partial(_make, AutoModelForSeq2SeqLM)
_masked = partial(_make, AutoModelForMaskedLM)

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
    "gemma4_text": partial(_causal, "gemma4_text", **GEMMA4),
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
    "olmo": partial(_causal, "olmo", **SHAPE, **NARROW),
    "cohere2": partial(_causal, "cohere2", **SHAPE, **GROUPED, **MIXED_WINDOWS),
    "ernie4_5": partial(_causal, "ernie4_5", **SHAPE, **GROUPED, use_bias=True),
    "exaone4": partial(_causal, "exaone4", **SHAPE, **GROUPED, **MIXED_WINDOWS),
    "stablelm": partial(
        _causal,
        "stablelm",
        **{**SHAPE, "hidden_size": 48},
        **NARROW,
        use_qkv_bias=True,
        use_parallel_residual=True,
    ),
    "nemotron": partial(
        _causal, "nemotron", **{**SHAPE, "hidden_size": 48}, **GROUPED, attention_bias=True, mlp_bias=True
    ),
    "apertus": partial(_causal, "apertus", **SHAPE, **GROUPED, dtype=torch.float64),
    "starcoder2": partial(_causal, "starcoder2", **SHAPE, **NARROW, sliding_window=4),
    "phi": partial(_causal, "phi", **{**SHAPE, "hidden_size": 48}, **NARROW),
    "glm": partial(_causal, "glm", **SHAPE, **GROUPED, attention_bias=True),
    "glm4": partial(_causal, "glm4", **SHAPE, **GROUPED, attention_bias=True),
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
    "olmoe": partial(_causal, "olmoe", **SHAPE, **NARROW, num_experts=4, num_experts_per_tok=2),
    "granitemoe": partial(
        _causal, "granitemoe", **SHAPE, **NARROW, num_local_experts=4, num_experts_per_tok=2, residual_multiplier=0.22
    ),
    "gpt_oss": partial(
        _causal,
        "gpt_oss",
        **SHAPE,
        **FEW,
        **MIXED_WINDOWS,
        num_local_experts=3,
        num_experts_per_tok=2,
        swiglu_limit=1.0,
    ),
    "deepseek_v2": partial(_causal, "deepseek_v2", **SHAPE, **LATENT, **GLM_EXPERTS, topk_method="greedy"),
    "deepseek_v3": partial(_causal, "deepseek_v3", **SHAPE, **LATENT, **GLM_EXPERTS),
    "mistral4": partial(_causal, "mistral4", **SHAPE, **LATENT, **GLM_EXPERTS, rope_parameters=TEMPERED),
    "ministral3": partial(_causal, "ministral3", **{**SHAPE, "hidden_size": 48}, **GROUPED, rope_parameters=TEMPERED),
    "hunyuan_v1_dense": partial(_causal, "hunyuan_v1_dense", **SHAPE, **GROUPED, attention_bias=True),
    "hunyuan_v1_moe": partial(
        _causal, "hunyuan_v1_moe", **SHAPE, **FEW, num_experts=4, moe_topk=[2, 2], num_experts_per_tok=2
    ),
    "qwen2_moe": partial(
        _causal, "qwen2_moe", **SHAPE, **NARROW, **EXPERTS, shared_expert_intermediate_size=28, mlp_only_layers=[1]
    ),
    "ernie4_5_moe": partial(
        _causal,
        "ernie4_5_moe",
        **SHAPE,
        **NARROW,
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=20,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        use_bias=True,
    ),
    "glm4_moe": partial(_causal, "glm4_moe", **SHAPE, **GROUPED, **GLM_EXPERTS, use_qk_norm=True),
    "exaone_moe": partial(
        _causal,
        "exaone_moe",
        **SHAPE,
        **NARROW,
        **MIXED_WINDOWS,
        **EXPERTS,
        num_shared_experts=2,
        first_k_dense_replace=1,
    ),
    "granitemoeshared": partial(
        _causal,
        "granitemoeshared",
        **SHAPE,
        **NARROW,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=28,
        residual_multiplier=0.22,
    ),
    "qwen3_5_text": partial(_causal, "qwen3_5_text", **SHAPE, **GROUPED, **LINEAR),
    "qwen3_next": partial(
        _causal,
        "qwen3_next",
        **SHAPE,
        **GROUPED,
        **LINEAR,
        **EXPERTS,
        shared_expert_intermediate_size=28,
        mlp_only_layers=[0],
    ),
    "lfm2": partial(_causal, "lfm2", **SHAPE, **NARROW, layer_types=["conv", "full_attention"]),
    "lfm2_moe": partial(
        _causal,
        "lfm2_moe",
        **SHAPE,
        **NARROW,
        moe_intermediate_size=10,
        num_experts=4,
        num_experts_per_tok=2,
        num_dense_layers=1,
        layer_types=["conv", "full_attention"],
    ),
    "jamba": partial(
        _causal,
        "jamba",
        **SHAPE,
        **{**NARROW, "intermediate_size": 10},
        mamba_expand=1,
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=0,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "vaultgemma": partial(_causal, "vaultgemma", **GEMMA, attn_logit_softcapping=2.0),
    "hyperclovax": partial(_causal, "hyperclovax", **SHAPE, **GROUPED, attention_multiplier=0.7),
    "gpt_bigcode": partial(
        _causal,
        "gpt_bigcode",
        vocab_size=97,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "cohere2_moe": partial(
        _causal,
        "cohere2_moe",
        **SHAPE,
        **FEW,
        **MIXED_WINDOWS,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        shared_expert_combination_strategy="sum",
        prefix_dense_intermediate_size=20,
        mlp_layer_types=["dense", "sparse"],
    ),
    "bamba": partial(_causal, "bamba", **SHAPE, **NARROW, **MAMBA, attn_layer_indices=[1]),
    "falcon_h1": partial(
        _causal,
        "falcon_h1",
        **SHAPE,
        **NARROW,
        **MAMBA,
        mamba_d_ssm=24,
        embedding_multiplier=3.0,
        lm_head_multiplier=0.5,
        mlp_multipliers=[0.7, 0.3],
        key_multiplier=0.6,
        attention_in_multiplier=1.3,
        attention_out_multiplier=0.8,
        ssm_in_multiplier=1.2,
        ssm_out_multiplier=0.4,
    ),
    "granitemoehybrid": partial(
        _causal,
        "granitemoehybrid",
        **SHAPE,
        **NARROW,
        **MAMBA,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=28,
        residual_multiplier=0.22,
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
    "gemma": partial(_causal, "gemma", **SHAPE, **GROUPED),
    "ministral": partial(_causal, "ministral", **SHAPE, **GROUPED, **MIXED_WINDOWS),
    "seed_oss": partial(_causal, "seed_oss", **SHAPE, **GROUPED, attention_bias=True, attention_out_bias=True),
    "olmo3": partial(_causal, "olmo3", **SHAPE, **NARROW, **MIXED_WINDOWS),
    "helium": partial(_causal, "helium", **{**SHAPE, "hidden_size": 48}, **GROUPED),
    "exaone4_everywhere": partial(
        _causal, "exaone4", **SHAPE, **GROUPED, sliding_window=None, layer_types=["full_attention"] * 2
    ),
    "stablelm_sequential": partial(
        _causal, "stablelm", **{**SHAPE, "hidden_size": 48}, **NARROW, use_parallel_residual=False
    ),
    "arcee": partial(_causal, "arcee", **SHAPE, **GROUPED, attention_bias=True, mlp_bias=True),
    "phimoe": partial(
        _causal, "phimoe", **SHAPE, **NARROW, num_local_experts=4, num_experts_per_tok=2, attention_bias=True
    ),
    "glm4_moe_without_norms": partial(_causal, "glm4_moe", **SHAPE, **GROUPED, **GLM_EXPERTS, use_qk_norm=False),
    "deepseek_v2_lite": partial(
        _causal, "deepseek_v2", **SHAPE, **{**LATENT, "q_lora_rank": None}, **GLM_EXPERTS, topk_method="greedy"
    ),
    "glm4_moe_lite": partial(
        _causal,
        "glm4_moe_lite",
        **SHAPE,
        **LATENT,
        **{**GLM_EXPERTS, "first_k_dense_replace": None},
        mlp_layer_types=["dense", "sparse"],
    ),
    "hy_v3": partial(
        _causal, "hy_v3", **SHAPE, **GROUPED, **EXPERTS, num_shared_experts=2, mlp_layer_types=["dense", "sparse"]
    ),
    "solar_open": partial(
        _causal,
        "solar_open",
        **SHAPE,
        **GROUPED,
        moe_intermediate_size=10,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=2,
    ),
    "youtu": partial(_causal, "youtu", **SHAPE, **LATENT),
    "jais2": partial(_causal, "jais2", **SHAPE, **GROUPED),
    "mellum": partial(_causal, "mellum", **SHAPE, **GROUPED, **EXPERTS),
    "dots1": partial(_causal, "dots1", **SHAPE, **GROUPED, **GLM_EXPERTS),
    "qwen3_5_moe_text": partial(
        _causal, "qwen3_5_moe_text", **SHAPE, **GROUPED, **LINEAR, **EXPERTS, shared_expert_intermediate_size=28
    ),
    "granitemoehybrid_dense": partial(
        _causal,
        "granitemoehybrid",
        **SHAPE,
        **NARROW,
        **MAMBA,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=0,
        shared_intermediate_size=28,
        residual_multiplier=0.22,
        position_embedding_type="rope",
    ),
    "gemma4_unified_text": partial(
        _causal,
        "gemma4_unified_text",
        **{**SHAPE, **GROUPED, **MIXED_WINDOWS},
        global_head_dim=12,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    ),
    "minimax_m2": partial(_causal, "minimax_m2", **SHAPE, **FEW, num_local_experts=4, num_experts_per_tok=2),
}
"""Further models of rows of the table, whose storage or residual stream differs."""

SCALED: dict[str, Callable[..., PreTrainedModel]] = {
    "llama4_text": partial(_causal, "llama4_text", **LLAMA4, moe_layers=[0]),
    "llama4_text_without_norms": partial(_causal, "llama4_text", **LLAMA4, moe_layers=[0, 1], use_qk_norm=False),
}
"""A row, and a further model of it, whose experts' inputs are scaled, so that no value of theirs can be changed."""
BERT = dict(
    **SHAPE,
    intermediate_size=40,
    num_attention_heads=3,
    max_position_embeddings=514,
    hidden_act="gelu",
)
MASKED: dict[str, Callable[..., PreTrainedModel]] = {
    "modernbert-decoder": partial(_causal, "modernbert-decoder", **MODERNBERT),
    "modernbert": partial(_masked, "modernbert", **MODERNBERT),
    "eurobert": partial(_masked, "eurobert", **SHAPE, **GROUPED),
    "bert": partial(_masked, "bert", **BERT),
    "xlm-roberta": partial(_masked, "xlm-roberta", **{**BERT, "pad_token_id": 1, "bos_token_id": 0}),
    "roberta": partial(_masked, "roberta", **{**BERT, "pad_token_id": 1, "bos_token_id": 0}),
    "camembert": partial(_masked, "camembert", **{**BERT, "pad_token_id": 1, "bos_token_id": 0}),
}
"""Rows, and further models of them, of encoders, and of a decoder with a head as they have, which no lens follows."""

RARE = {
    *(
        "deepseek_v2",
        "deepseek_v2_lite",
        "glm4_moe_lite",
        "mistral4",
        "ministral3",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
    ),
    *("apertus", "arcee", "cohere2", "ernie4_5", "exaone4", "exaone4_everywhere", "gemma", "glm", "glm4", "granitemoe"),
    *("helium", "minimax_m2", "ministral", "nemotron", "olmo", "olmo3", "olmoe", "phi", "phimoe", "seed_oss"),
    *("stablelm", "stablelm_sequential", "starcoder2", "qwen2_moe", "ernie4_5_moe", "glm4_moe", "dots1"),
    *("exaone_moe", "hy_v3", "solar_open", "youtu", "qwen3_moe", "smollm3", "umt5"),
    *("glm4_moe_without_norms", "granitemoeshared", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe", "jamba"),
    *(
        "cohere2_moe",
        "vaultgemma",
        "gemma4_unified_text",
        "hyperclovax",
        "gpt_bigcode",
        "jais2",
        "mellum",
    ),
    *("bamba", "falcon_h1", "granitemoehybrid", "granitemoehybrid_dense"),
}
"""Models of whose structure others have every part: tests of them are marked `slow`."""
LATEST = {"gpt_oss", "qwen3_next", "deepseek_v3", "gemma4_text"}
"""Models of structures of their own, on which every test of a `variant` runs, and those of a `family` are `slow`."""


def dense() -> list[str]:
    """Rows without experts."""
    rows = (TINY | MASKED).keys() & FAMILIES.keys()
    return [name for name in rows if not any(stack.experts for stack in FAMILIES[name].stacks)]


def marked(names: Iterable[str], *, variants: bool = False) -> list[Any]:
    """Parameters of a test of these models, in order; of rare ones marked `slow`."""
    slow = RARE | MASKED.keys() | SCALED.keys()
    slow = slow if variants else slow | LATEST
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in sorted(names)]


def tiny_model(
    name: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """A model of two blocks (or three) whose weights, norms and biases are all random and far from their initial ones.

    Args:
        name: row of the families table, or one of `VARIANTS`, `MASKED` or `SCALED`.
        dtype: of the weights.
        attention: `sdpa` (where the model has it) or `eager`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    model = random_weights(name, (TINY | VARIANTS | MASKED | SCALED)[name](attention=attention))
    if hasattr(model.config, "num_experts_per_tok") and name not in SCALED:
        model.set_experts_implementation("eager")  # the default one has no float64
    return model.to(dtype)


def random_weights(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """`model`, of a row of the table, in evaluation mode and with parameters far from their initial values."""
    with torch.no_grad():
        for path, factor in model.named_buffers():
            if path.endswith("layer_scalar"):  # of Gemma 4, as its checkpoints have it
                factor.fill_(0.7)
        for path, parameter in model.named_parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.2)
            if parameter.dim() == 1 and path.endswith("weight") and ("gemma" not in name or "gemma4" in name):
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
