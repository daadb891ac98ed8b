"""A model small enough to run a whole script on in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from plnd.demo_data import demo_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """Folder of a random Llama of two blocks with the demo model's tokenizer."""
    path: Path = tmp_path_factory.mktemp("small") / "model"
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **tokens, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
