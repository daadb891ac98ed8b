"""Loading models and tokenizers by name or path, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plnd.errors import PLNDError

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
) -> Any:
    """A causal language model in evaluation mode.

    Args:
        name: folder or hub name.
        revision: hub branch, tag or commit.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own.
        device: `cpu`, `cuda`, `cuda:1`, …, or `auto` to spread the model over all accelerators; by default the first
            accelerator, else the CPU.
        attention: `attn_implementation`, where not the model's default.

    Raises:
        PLNDError: if there is no such model, or it is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise PLNDError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"  # type: ignore
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "device_map": device}
    if attention:
        options["attn_implementation"] = attention
    return _load(AutoModelForCausalLM, name, revision, **options).eval()


def load_skeleton(name: str, *, revision: str | None = None) -> Any:
    """The model without its weights, on the meta device: enough to see its family, blocks and widths.

    Raises:
        PLNDError: if there is no such model, or it is not a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _load(AutoConfig, name, revision)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise PLNDError(f"{name}: not a causal language model ({str(error).partition('.')[0]})") from None


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer saved with a model.

    Raises:
        PLNDError: if there is none.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, revision)


def demo_model() -> Path:
    """Folder of the small multilingual model inside the package (README, «The demo»)."""
    return Path(__file__).parent / "data" / "polyglot-9m"


def demo_corpus(half: str) -> Path:
    """Folder of the small parallel corpus inside the package, as task data: `detect` or `evaluate`."""
    return Path(__file__).parent / "data" / "corpus" / half


def _load(kind: Any, name: str, revision: str | None, **options: Any) -> Any:
    if not name:
        raise PLNDError("no model named: give a folder or a hub name")
    try:
        return kind.from_pretrained(name, revision=revision or "main", **options)
    except Exception as error:  # the hub, the builders and the file formats each raise their own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PLNDError(f"{name}: cannot be loaded ({reason.strip()})") from None
