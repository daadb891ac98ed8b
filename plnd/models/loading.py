"""Loading models and tokenizers by name or path, with one-line errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.demo_data import settings_only
from plnd.errors import PLNDError
from plnd.models.accepted import fills_in
from plnd.models.free_memory import check_fits, is_out_of_memory, parameter_bytes

if TYPE_CHECKING:
    from torch import Tensor

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
    offload: bool = False,
    tensor_parallel: bool = False,
    expert_parallel: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """A language model in evaluation mode: a decoder, an encoder and a decoder (T5), an encoder (XLM-R), or one that
    also sees (LLaVA).

    Args:
        name: folder or hub name.
        revision: hub branch, tag or commit.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own.
        device: `cpu`, `cuda`, `cuda:1`, …, or `auto` to spread the model over all accelerators, what does not fit there
            over the CPU's memory; by default the first accelerator, else the CPU.
        offload: let `auto` leave what fits nowhere on the disk, from where it is read in every pass.
        attention: `attn_implementation`, where not the model's default.
        quantize: one of `QUANTISED`, to pack the weights with bitsandbytes while they are loaded (8 bits: LLM.int8; 4
            bits: NF4). A checkpoint that is packed already needs no word of it.
        tensor_parallel: spread it over the processes that `torchrun` started, by transformers' plan for the family.
            Attention whose heads they cannot share is computed by each; its weights are shared all the same.
        expert_parallel: the same, and of a mixture each process has some of the experts whole, not a part of each.
        trust_remote_code: run the Python code that comes with the model. Nothing but this argument ever allows it.

    Raises:
        PLNDError: if there is no such model, it is not a language model, it needs code that is not trusted, it is
            larger than the memory that is free, or bitsandbytes is wanted and absent; if it is to be spread, and
            transformers has no plan for it.
    """
    import torch

    from plnd.models.quantised import guard_order

    if dtype not in DTYPES:
        raise PLNDError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTISED:
        raise PLNDError(f"unknown quantize {quantize!r}: expected one of {', '.join(QUANTISED)}")
    device = device or default_device()
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "device_map": device}
    if attention:
        options["attn_implementation"] = attention
    if quantize:
        options["quantization_config"] = _bitsandbytes(name, revision, quantize, options["dtype"], trust_remote_code)
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    kind = _language_model_class(name, config)
    if tensor_parallel or expert_parallel:
        from plnd.models.plan import distribution

        if quantize:
            raise PLNDError(f"quantize={quantize}: a model is spread over processes with dense weights only")
        if torch.device(device).type != torch.device(default_device()).type:
            raise PLNDError(
                f"device={device}: transformers spreads a model over this machine's {default_device()} devices; leave"
                " it out"
            )
        skeleton = _skeleton(kind, name, config, trust_remote_code)
        options["distributed_config"] = distribution(skeleton, experts=expert_parallel)
        del options["device_map"]  # each process takes a device of its own
    elif not (offload and device == "auto"):
        size = _least_bytes(_skeleton(kind, name, config, trust_remote_code), options["dtype"], quantize)
        check_fits(name, size, device)
    model = _load(kind, name, revision, trust_remote_code, **options).eval()
    if not offload:
        check_not_on_disk(name, model)
    guard_order(model)
    note_commit(model.config, name, revision)
    return model


def load_skeleton(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """The model without its weights, on the meta device: enough to see its family, blocks and widths.

    Args:
        name: folder or hub name.
        revision: hub branch, tag or commit.
        trust_remote_code: run the Python code that comes with it.
        changes: fields of the language model's configuration to be otherwise.

    Raises:
        PLNDError: if there is no such model, it is not a language model, or it needs code that is not trusted.
    """
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    for field, value in (changes or {}).items():
        setattr(config.get_text_config(), field, value)
    return _skeleton(_language_model_class(name, config), name, config, trust_remote_code)


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A model's configuration, with its commit noted.

    Raises:
        PLNDError: if there is none, or it needs code that is not trusted.
    """
    from transformers import AutoConfig

    config = _load(AutoConfig, name, revision, trust_remote_code)
    note_commit(config, name, revision)
    return config


def load_from(kind: Any, name: str, config: Any, state: Mapping[str, Tensor], dtype: Any) -> Any:
    """A model from the tensors of its checkpoint, on the CPU, in evaluation mode.

    Args:
        kind: its class.
        name: its folder or hub name.
        config: its configuration, or one that holds it.
        state: the tensors, as they are called in the files.
        dtype: of torch, or `auto`.

    Raises:
        PLNDError: if transformers cannot.
    """
    if not isinstance(config, kind.config_class):
        config = config.get_text_config()
    try:
        model = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()
    except Exception as error:  # the builders each raise their own
        raise cannot_load(name, error) from None
    model.config.name_or_path = model.name_or_path = name
    return model


def default_device() -> str:
    """The kind of the accelerator, if there is one, else `cpu`."""
    import torch

    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"  # type: ignore


def check_not_on_disk(name: str, model: Any) -> None:
    """Refuses a model that transformers spread over devices and did not get in.

    Raises:
        PLNDError: saying what to do instead.
    """
    places = list((getattr(model, "hf_device_map", None) or {}).values())
    if "disk" in places:
        raise PLNDError(
            f"{name}: {places.count('disk')} of its {len(places)} parts fit on no device and would be read from disk in"
            " every pass; plnd detect --blockwise (plnd.blockwise_model) reads each block once for many documents, and"
            " --offload (offload=True) takes the disk all the same"
        )


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

    if getattr(config, "_commit_hash", None) is None and not os.path.exists(name):
        found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
        config._commit_hash = Path(found).parent.name if isinstance(found, str) else None


def model_class(config: Any) -> Any | None:
    """The auto class that makes a language model of a configuration; None if transformers has none for it.

    Of one decoder, of an encoder and a decoder, of an encoder that fills in masked tokens, or of a language model that
    also sees or hears.
    """
    import transformers

    names = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"]
    if getattr(config, "is_encoder_decoder", False):  # BART, say, has a decoder of its own, too
        names[:2] = reversed(names[:2])
    if fills_in(config):
        names = ["AutoModelForMaskedLM"]
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
        dtype = load_config(name, revision=revision, trust_remote_code=trust_remote_code).get_text_config().dtype
    return BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _skeleton(kind: Any, name: str, config: Any, trust_remote_code: bool) -> Any:
    """A model on the meta device."""
    import torch

    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a class makes of a configuration with other values than it expects
        raise cannot_load(name, error) from None


def _least_bytes(skeleton: Any, dtype: Any, quantize: str | None) -> int:
    """What a model's weights take in memory at least; 0 of a checkpoint that is packed in a way of its own."""
    import torch

    if getattr(skeleton.config, "quantization_config", None) is not None:
        return 0
    own = dtype if dtype != "auto" else skeleton.config.get_text_config().dtype
    size = parameter_bytes(skeleton, own if isinstance(own, torch.dtype) else torch.bfloat16)
    return size if quantize is None else parameter_bytes(skeleton, torch.int8) // (1 if quantize == "8bit" else 2)


def _load(kind: Any, name: str, revision: str | None, trust_remote_code: bool, **options: Any) -> Any:
    if not name:
        raise PLNDError("no model named: give a folder or a hub name")
    if not isinstance(trust_remote_code, bool):  # None would have transformers ask, in the middle of a run
        raise PLNDError(f"trust_remote_code={trust_remote_code!r}: expected True or False")
    try:
        return kind.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # the hub, the builders and the file formats each raise their own
        if is_out_of_memory(error):
            raise
        raise cannot_load(name, error) from None
