"""Names what a model answers by content, so that a response cache never serves one model's answers as another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plnd.errors import PLNDError

_NAMES = frozenset({"name_or_path", "_name_or_path", "training"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def answers_digest(model: nn.Module, tokenizer: Any, deactivated: str | None, settings: Mapping[str, Any]) -> str:
    """SHA-256 over all that a model's answers depend on: every number of it, whatever it was loaded from.

    The weights are read once, at about a second for each gigabyte.

    Args:
        model: as it is between requests.
        tokenizer: the one that encodes requests.
        deactivated: digest of the neurons that are off during requests.
        settings: arguments of lm-eval's `hf`.

    Raises:
        PLNDError: if something cannot be read: an offloaded weight, somebody's hook, an argument of unknown content.
    """
    digest = hashlib.sha256()
    for part in _parts(model, tokenizer, deactivated, settings):
        data = part if isinstance(part, memoryview) else memoryview(part.encode())
        digest.update(data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _parts(
    model: nn.Module, tokenizer: Any, deactivated: str | None, settings: Mapping[str, Any]
) -> Iterator[str | memoryview]:
    yield json.dumps([deactivated, _plain(settings, "argument")], sort_keys=True)
    yield _tokenizer(tokenizer)
    for name, module in model.named_modules():
        _refuse_hooks(name, module)
        values = {key: value for key, value in vars(module).items() if key not in _NAMES and _is_plain(value)}
        yield json.dumps([name, type(module).__qualname__, _plain(values, name)], sort_keys=True)
        for key in ("config", "generation_config"):
            config = vars(module).get(key)
            if hasattr(config, "to_dict"):
                record = {k: v for k, v in config.to_dict().items() if k not in _NAMES}
                record["attention"] = getattr(config, "_attn_implementation", None)
                yield json.dumps(record, sort_keys=True, default=str)
    tensors = dict(model.named_buffers()) | model.state_dict()  # the one has unsaved buffers, the other packed weights
    for name in sorted(tensors):
        yield from _tensor(name, tensors[name])


def _tensor(name: str, tensor: Any) -> Iterator[str | memoryview]:
    if not isinstance(tensor, Tensor):
        yield f"{name} {tensor!r}"
        return
    if tensor.is_meta:
        raise _refusal(f"{name} is offloaded, its content cannot be told")
    yield f"{name} {tensor.dtype} {list(tensor.shape)}"
    tensor = tensor.detach()
    if hasattr(tensor, "__tensor_flatten__"):
        inner, context = tensor.__tensor_flatten__()
        yield repr(context)
        for part in inner:
            yield from _tensor(f"{name}.{part}", getattr(tensor, part))
        return
    yield memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())


def _tokenizer(tokenizer: Any) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}  # of a call
    else:
        content = sorted(tokenizer.get_vocab().items())
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    added = {key: getattr(tokenizer, key, None) for key in ("add_bos_token", "add_eos_token", "padding_side")}
    template = getattr(tokenizer, "chat_template", None)
    return json.dumps([type(tokenizer).__qualname__, content, special, added, template], sort_keys=True)


def _refuse_hooks(name: str, module: nn.Module) -> None:
    for kind in _HOOKS:
        for hook in getattr(module, kind).values():
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if not origin.startswith(("transformers.", "accelerate.", "peft.")):
                raise _refusal(f"{name or 'the model'} has a hook of {origin}, which may change what it answers")


def _is_plain(value: Any) -> bool:
    """Whether a value is one of JSON: PEFT keeps scalings and what is merged or disabled in such attributes."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _plain(value: Any, what: str) -> Any:
    """A setting as JSON."""
    if _is_plain(value):
        return value
    if isinstance(value, Mapping):
        # the tokenizer's content is named apart
        return {str(key): _plain(item, f"{what} {key}") for key, item in value.items() if key != "tokenizer"}
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict(), what)
    raise _refusal(f"the content of {what} ({type(value).__name__}) cannot be told")


def _refusal(reason: str) -> PLNDError:
    return PLNDError(f"--use_cache: {reason}: leave it out")
