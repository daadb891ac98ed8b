"""Loading models and tokenizers by name or path, with one-line errors."""

from __future__ import annotations

from typing import Any

from plnd.errors import PLNDError

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
QUANTISED = ("8bit", "4bit")


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    quantize: str | None = None,
) -> Any:
    """A language model in evaluation mode: a decoder, or an encoder and a decoder (T5).

    Args:
        name: folder or hub name.
        revision: hub branch, tag or commit.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own.
        device: `cpu`, `cuda`, `cuda:1`, …, or `auto` to spread the model over all accelerators, what does not fit there
            over the CPU's memory; by default the first accelerator, else the CPU.
        attention: `attn_implementation`, where not the model's default.
        quantize: one of `QUANTISED`, to pack the weights with bitsandbytes while they are loaded (8 bits: LLM.int8; 4
            bits: NF4). A checkpoint that is packed already needs no word of it.

    Raises:
        PLNDError: if there is no such model, it is not a language model, or bitsandbytes is wanted and absent.
    """
    import torch
    from transformers import AutoConfig

    from plnd.models.quantised import guard_order

    if dtype not in DTYPES:
        raise PLNDError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTISED:
        raise PLNDError(f"unknown quantize {quantize!r}: expected one of {', '.join(QUANTISED)}")
    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"  # type: ignore
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "device_map": device}
    if attention:
        options["attn_implementation"] = attention
    if quantize:
        options["quantization_config"] = _bitsandbytes(name, revision, quantize, options["dtype"])
    model = _load(_model_class(_load(AutoConfig, name, revision)), name, revision, **options).eval()
    guard_order(model)
    return model


def load_skeleton(name: str, *, revision: str | None = None) -> Any:
    """The model without its weights, on the meta device: enough to see its family, blocks and widths.

    Raises:
        PLNDError: if there is no such model, or it is not a causal language model.
    """
    import torch
    from transformers import AutoConfig

    config = _load(AutoConfig, name, revision)
    try:
        with torch.device("meta"):
            return _model_class(config).from_config(config)
    except ValueError as error:
        raise PLNDError(f"{name}: not a causal language model ({str(error).partition('.')[0]})") from None


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer saved with a model.

    Raises:
        PLNDError: if there is none.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, revision)


def disable_progress_bars() -> None:
    """Lets transformers load without drawing bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _model_class(config: Any) -> Any:
    """The auto class of a language model: of one decoder, or of an encoder and a decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _bitsandbytes(name: str, revision: str | None, quantize: str, dtype: Any) -> Any:
    import logging
    from importlib.util import find_spec

    from transformers import AutoConfig, BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise PLNDError(f"{quantize} weights need bitsandbytes: pip install bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its own casts in every pass
    if dtype == "auto":
        dtype = _load(AutoConfig, name, revision).get_text_config().dtype
    return BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _load(kind: Any, name: str, revision: str | None, **options: Any) -> Any:
    if not name:
        raise PLNDError("no model named: give a folder or a hub name")
    try:
        return kind.from_pretrained(name, revision=revision or "main", **options)
    except Exception as error:  # the hub, the builders and the file formats each raise their own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PLNDError(f"{name}: cannot be loaded ({reason.strip()})") from None
