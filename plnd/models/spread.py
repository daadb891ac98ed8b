"""Weights of which a process has a part only: what they are, and who refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plnd.errors import PLNDError

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_spread(tensor: Any) -> bool:
    """Whether a process has a part of a tensor only (a `DTensor` of torch)."""
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def local(tensor: Any) -> Any:
    """This process's part of a tensor that is spread, which shares its memory; any other tensor itself."""
    import torch

    if not is_spread(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Any) -> Tensor:
    """All of a tensor, gathered from its processes where it is spread."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def check_whole(model: nn.Module) -> None:
    """Refuses a model of whose weights each process has a part: neurons are numbered over the whole matrix.

    Raises:
        PLNDError: naming the first such weight.
    """
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise PLNDError(
            f"{type(model).__name__} is tensor-parallel over {model._tp_size} processes; detection and deactivation"
            " take it so (docs/larger.md), nothing else does: load it without tp_plan="
        )
    for name, parameter in model.named_parameters():
        kinds = {kind.__name__ for kind in type(parameter).__mro__} | {type(parameter.data).__name__}
        if "DTensor" in kinds or "FlatParameter" in kinds or hasattr(parameter, "ds_id"):
            how, what = "tensor-parallel or FSDP", "without tp_plan="
            if hasattr(parameter, "ds_id"):
                how, what = "DeepSpeed ZeRO-3", "before TrainingArguments, or what else makes DeepSpeed's configuration"
            raise PLNDError(
                f"{name} is spread over processes ({how}), which is not supported yet: load the model whole in each"
                f" process ({what})"
            )
