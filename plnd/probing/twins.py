"""Tiny random models of a configuration: few blocks that show every kind, small widths, float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plnd.errors import FamilyError
from plnd.models.layout import text_body
from plnd.models.loading import model_class
from plnd.models.twin import depth, no_twin, text_config, twin_config
from plnd.probing.float64 import float64

TOKENS = 11
"""Length of the document on which a twin is held to brute force."""
_AT_LEAST = 2
"""Blocks of a twin, so that what hangs on a block's number shows."""
_NUMBERED = ("idx", "index", "layer_id", "layer_num")


def document() -> Tensor:
    """Token ids of the document, [TOKENS]."""
    return torch.randint(4, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))


def build_twin(config: Any, *, trust_remote_code: bool = False, seed: int = 0) -> Any:
    """A tiny model of a configuration: the fewest first blocks that show every kind that it has.

    Args:
        config: of transformers; of a model that also sees or hears, its language model is built.
        trust_remote_code: run the Python code that comes with the model. Nothing but this argument ever allows it.
        seed: of the weights, which are normal, far from their initial values.

    Raises:
        FamilyError: if there is none.
    """
    config = text_config(config)
    if getattr(config, "is_encoder_decoder", False):
        raise no_twin(config, "an encoder and a decoder, which is not one stack of blocks")
    reason: Exception | None = None
    for square in (False, True):
        try:
            return _fewest_blocks(config, square, trust_remote_code, seed)
        except FamilyError:
            raise
        except Exception as error:  # whatever a class makes of sizes that it does not expect
            reason = reason or error
    raise no_twin(config, reason)


def _fewest_blocks(config: Any, square: bool, trust_remote_code: bool, seed: int) -> Any:
    whole = _build(twin_config(config, square=square), trust_remote_code, seed)
    _, blocks = find_blocks(whole)
    kinds = [kind(block) for block in blocks]
    count = max(_AT_LEAST, 1 + max(kinds.index(one) for one in set(kinds)))
    if count < len(kinds) and depth(config.to_dict()) == len(kinds):
        try:
            few = _build(twin_config(config, count, square=square), trust_remote_code, seed)
            if [kind(block) for block in find_blocks(few)[1]] == kinds[:count]:
                return few
        except Exception:  # a configuration that holds together at its full depth only
            pass
    return whole


def _build(config: Any, trust_remote_code: bool, seed: int) -> Any:
    found = model_class(config)
    if found is None:
        raise no_twin(config, "no class of transformers makes a language model of it")
    torch.manual_seed(seed)
    options = {"trust_remote_code": trust_remote_code, "dtype": torch.float64}
    with float64():
        try:
            model = found.from_config(config, attn_implementation="eager", **options)
        except ValueError as error:
            if "attn" not in str(error):
                raise
            model = found.from_config(config, **options)
        randomise(model)
        if hasattr(model, "set_experts_implementation"):
            try:
                model.set_experts_implementation("eager")  # the default one has no float64
            except (ValueError, KeyError):
                pass
        with torch.no_grad():
            output = model(input_ids=document()[None], use_cache=False)
    logits = getattr(output, "logits", None)
    if logits is None or not torch.isfinite(logits).all():
        raise no_twin(config, "its logits are not finite")
    return model


def randomise(model: nn.Module) -> None:
    """Evaluation mode, float64, and parameters that are normal: 0.3 wide, gains of norms 1 ± 0.2."""
    model.eval().double()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.2)
                if parameter.dim() == 1 and path.endswith("weight"):
                    parameter.add_(1)


def find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Path, below the model's body, and list of its blocks: the list with the most parameters.

    Raises:
        FamilyError: if there is none.
    """
    lists = [
        (path, module)
        for path, module in text_body(model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not any(c.isdigit() for c in path.split("."))
    ]
    if not lists:
        raise no_twin(model.config, "it has no list of blocks")
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))


def kind(block: nn.Module) -> tuple:
    """What sets a block apart from others of its model: its modules' classes, widths and switches."""

    def facts(module: nn.Module) -> tuple:
        plain = {n: v for n, v in vars(module).items() if isinstance(v, (str, bool, int, type(None)))}
        return tuple(sorted((n, str(v)) for n, v in plain.items() if not any(word in n for word in _NUMBERED)))

    modules = tuple((path, type(module).__name__, facts(module)) for path, module in block.named_modules())
    return modules, tuple((path, tuple(p.shape)) for path, p in block.named_parameters())


def kinds_of(blocks: nn.ModuleList) -> dict[int, int]:
    """The first block of each kind, and how many blocks are of that kind."""
    all_kinds = [kind(block) for block in blocks]
    return {all_kinds.index(one): all_kinds.count(one) for one in dict.fromkeys(all_kinds)}
