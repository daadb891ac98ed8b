"""Settings for every test, the families of the table, and data that may be absent.

What tests import from each other is in `tests/support`, which `pyproject.toml` puts on the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Read when torch and huggingface_hub are imported, which nothing above does.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

from tiny import TINY, VARIANTS, marked  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=marked(TINY))
def family(request) -> Iterator[str]:
    """Every row of the families table in turn, but those with tests of their own: its model's name in `tiny.TINY`."""
    with _default_dtype(request.param):
        yield request.param


@pytest.fixture(params=marked({**TINY, **VARIANTS}, variants=True))
def variant(request) -> Iterator[str]:
    """Every tiny model in turn, also those that share a row with another."""
    with _default_dtype(request.param):
        yield request.param


@contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    """XGLM makes a number of the default dtype that must hold float64's smallest."""
    import torch

    before = torch.get_default_dtype()
    if name == "xglm":
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data described in the README, or a skip."""
    path = Path(os.environ.get("PLND_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no evaluation data at {path} (set PLND_DATA)")
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """Folder of a random Llama of two blocks with the demo model's tokenizer: whole programs run on it in seconds."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from plnd.demo_data import demo_model

    path: Path = tmp_path_factory.mktemp("small") / "model"
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **tokens, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
