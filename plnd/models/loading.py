"""Loading models and tokenizers by name or path, with one-line errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from plnd.demo_data import settings_only
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
    tensor_parallel: bool = False,
    expert_parallel: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """A language model in evaluation mode: a decoder, an encoder and a decoder (T5), or one that also sees (LLaVA).

    Args:
        name: folder or hub name.
        revision: hub branch, tag or commit.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own.
        device: `cpu`, `cuda`, `cuda:1`, …, or `auto` to spread the model over all accelerators, what does not fit there
            over the CPU's memory; by default the first accelerator, else the CPU.
        attention: `attn_implementation`, where not the model's default.
        quantize: one of `QUANTISED`, to pack the weights with bitsandbytes while they are loaded (8 bits: LLM.int8; 4
            bits: NF4). A checkpoint that is packed already needs no word of it.
        tensor_parallel: spread it over the processes that `torchrun` started, by transformers' plan for the family.
            Attention whose heads they cannot share is computed by each; its weights are shared all the same.
        expert_parallel: the same, and of a mixture each process has some of the experts whole, not a part of each.
        trust_remote_code: run the Python code that comes with the model. Nothing but this argument ever allows it.

    Raises:
        PLNDError: if there is no such model, it is not a language model, it needs code that is not trusted, or
            bitsandbytes is wanted and absent; if it is to be spread, and transformers has no plan for it.
    """
    import torch

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
        options["quantization_config"] = _bitsandbytes(name, revision, quantize, options["dtype"], trust_remote_code)
    if tensor_parallel or expert_parallel:
        from plnd.models.plan import distribution

        if quantize:
            raise PLNDError(f"quantize={quantize}: a model is spread over processes with dense weights only")
        kind = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"  # type: ignore
        if torch.device(device).type != kind:
            raise PLNDError(
                f"device={device}: transformers spreads a model over this machine's {kind} devices; leave it out"
            )
        skeleton = load_skeleton(name, revision=revision, trust_remote_code=trust_remote_code)
        options["distributed_config"] = distribution(skeleton, experts=expert_parallel)
        del options["device_map"]  # each process takes a device of its own
    config = _config(name, revision, trust_remote_code)
    model = _load(_language_model_class(name, config), name, revision, trust_remote_code, **options).eval()
    guard_order(model)
    note_commit(model.config, name, revision)
    return model


def load_skeleton(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model without its weights, on the meta device: enough to see its family, blocks and widths.

    Raises:
        PLNDError: if there is no such model, it is not a language model, or it needs code that is not trusted.
    """
    import torch

    config = _config(name, revision, trust_remote_code)
    kind = _language_model_class(name, config)
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a class makes of a configuration with other values than it expects
        raise cannot_load(name, error) from None


def load_tokenizer(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer saved with a model.

    Raises:
        PLNDError: if there is none, or it needs code that is not trusted.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name, revision, trust_remote_code)


def note_commit(config: Any, name: str, revision: str | None) -> None:
    """Has a configuration just loaded say which commit of the hub it is, as older releases of transformers do."""
    from huggingface_hub import try_to_load_from_cache

    if getattr(config, "_commit_hash", None) is None and not os.path.isdir(name):
        found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
        config._commit_hash = Path(found).parent.name if isinstance(found, str) else None


def model_class(config: Any) -> Any | None:
    """The auto class that makes a language model of a configuration; None if transformers has none for it.

    Of one decoder, of an encoder and a decoder, or of a language model that also sees or hears.
    """
    import transformers

    names = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"]
    if getattr(config, "is_encoder_decoder", False):  # BART, say, has a decoder of its own, too
        names[:2] = reversed(names[:2])
    kinds = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    own = getattr(config, "auto_map", None) or {}  # of models whose code comes with them
    known = [kind for kind in kinds if type(config) in kind._model_mapping]
    return next(iter([*known, *(kind for kind in kinds if kind.__name__ in own)]), None)


def cannot_load(name: str, error: Exception) -> PLNDError:
    """What transformers and the hub say of a model that cannot be loaded, in one line."""
    if inside := settings_only(name):
        return PLNDError(inside)
    if "trust_remote_code" in str(error):
        return PLNDError(
            f"{name}: needs Python code that comes with the model, which runs only if you trust it: read it, then give"
            " --trust-remote-code (trust_remote_code=True)"
        )
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return PLNDError(f"{name}: cannot be loaded ({reason.strip()})")


def disable_progress_bars() -> None:
    """Lets transformers load without drawing bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _language_model_class(name: str, config: Any) -> Any:
    found = model_class(config)
    if found is None:
        raise PLNDError(
            f"{name}: not a causal language model (Unrecognized configuration class {type(config).__name__})"
        )
    return found


def _bitsandbytes(name: str, revision: str | None, quantize: str, dtype: Any, trust_remote_code: bool) -> Any:
    import logging
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise PLNDError(f"{quantize} weights need bitsandbytes: pip install bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its own casts in every pass
    if dtype == "auto":
        dtype = _config(name, revision, trust_remote_code).get_text_config().dtype
    return BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _config(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """A model's configuration, with its commit noted."""
    from transformers import AutoConfig

    config = _load(AutoConfig, name, revision, trust_remote_code)
    note_commit(config, name, revision)
    return config


def _load(kind: Any, name: str, revision: str | None, trust_remote_code: bool, **options: Any) -> Any:
    if not name:
        raise PLNDError("no model named: give a folder or a hub name")
    if not isinstance(trust_remote_code, bool):  # None would have transformers ask, in the middle of a run
        raise PLNDError(f"trust_remote_code={trust_remote_code!r}: expected True or False")
    try:
        return kind.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # the hub, the builders and the file formats each raise their own
        raise cannot_load(name, error) from None
