"""One tiny random model per family, and a way to lift transformers' float32 casts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHAPE = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)

TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, intermediate_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SHAPE, intermediate_size=36, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
        )
    ),
    "gemma3_text": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SHAPE,
            intermediate_size=40,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97, n_embd=24, n_layer=2, n_head=4, n_inner=40, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
    ),
}
"""model_type to a function that makes a two-block model; random weights are set by `tiny_model`."""


def tiny_model(
    model_type: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """A two-block model whose weights, norms and biases are all random and far from their initial values."""
    torch.manual_seed(seed)
    model = TINY[model_type]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.2)
            if parameter.dim() == 1 and name.endswith("weight") and model_type != "gemma3_text":
                parameter.add_(1)  # the gain of a norm
    model.set_attn_implementation(attention)
    return model.to(dtype)


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
        return func(*args, **kwargs)
