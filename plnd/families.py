"""Where each model family keeps its projections: one table, which the algorithms loop over.

A row says where things are, never how to compute with them. To add a family, add a `Family` to `FAMILIES`: the test
suite parametrises over the table and holds the new row to the brute-force oracle (see `tests/support/tiny.py` for its
tiny model).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from plnd.errors import FamilyError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION_PROJECTIONS = PROJECTIONS[:4]
COLUMN_PROJECTIONS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Part:
    """The `index`-th of `of` equal consecutive parts of a fused module's rows."""

    index: int
    of: int

    def rows(self, width: int) -> range:
        """The rows of a fused module of `width` rows that belong to this part."""
        size = width // self.of
        return range(self.index * size, (self.index + 1) * size)


@dataclass(frozen=True)
class Projection:
    """One logical matrix of a block whose rows (or columns) are neurons."""

    name: str
    module: str
    part: Part | None = None

    @property
    def axis(self) -> Literal["row", "column"]:
        """`row`: a neuron is an output row (weights and bias); `column`: an input column."""
        return "column" if self.name in COLUMN_PROJECTIONS else "row"


@dataclass(frozen=True)
class Norm:
    """An RMS norm: its module, the attribute that holds its epsilon, and what is added to its weight for the gain."""

    module: str
    eps: str
    offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """One row of the table; every path is relative to a block unless it says otherwise.

    Attributes:
        model_type: `config.model_type` of the models this row describes.
        blocks: the list of blocks, relative to the model's body (`model.base_model`).
        attention, feed_forward: the two sub-layers.
        projections: where each logical projection lives; an ungated feed-forward has no `gate_proj`.
        head_dim: where the width of one head can be read.
        activation: the feed-forward non-linearity; it must map 0 to 0.
        rotary: the attention module receives `position_embeddings=(cos, sin)` and rotates channel halves.
        query_norm, key_norm: norms over one head's channels between projection and rotation.
        attention_norm, feed_forward_norm: norms of a sub-layer's output before it joins the residual stream.
    """

    model_type: str
    blocks: str
    attention: str
    feed_forward: str
    projections: tuple[Projection, ...]
    head_dim: str
    activation: str
    rotary: bool = False
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None


_LLAMA_PROJECTIONS = tuple(
    Projection(name, f"self_attn.{name}" if name in ATTENTION_PROJECTIONS else f"mlp.{name}") for name in PROJECTIONS
)


def _llama_layout(model_type: str, **norms: Norm) -> Family:
    """A row for models whose modules are named as Hugging Face Llama names them."""
    return Family(
        model_type=model_type,
        blocks="layers",
        attention="self_attn",
        feed_forward="mlp",
        projections=_LLAMA_PROJECTIONS,
        head_dim="self_attn.head_dim",
        activation="mlp.act_fn",
        rotary=True,
        **norms,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _llama_layout("llama"),
        _llama_layout("qwen2"),
        _llama_layout(
            "gemma3_text",
            query_norm=Norm("self_attn.q_norm", eps="eps", offset=1.0),
            key_norm=Norm("self_attn.k_norm", eps="eps", offset=1.0),
            attention_norm=Norm("post_attention_layernorm", eps="eps", offset=1.0),
            feed_forward_norm=Norm("post_feedforward_layernorm", eps="eps", offset=1.0),
        ),
        Family(
            model_type="gpt2",
            blocks="h",
            attention="attn",
            feed_forward="mlp",
            projections=(
                Projection("q_proj", "attn.c_attn", Part(0, 3)),
                Projection("k_proj", "attn.c_attn", Part(1, 3)),
                Projection("v_proj", "attn.c_attn", Part(2, 3)),
                Projection("o_proj", "attn.c_proj"),
                Projection("up_proj", "mlp.c_fc"),
                Projection("down_proj", "mlp.c_proj"),
            ),
            head_dim="attn.head_dim",
            activation="mlp.act",
        ),
    )
}

_LLAMA_BLOCK = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


def find_family(model: PreTrainedModel) -> Family:
    """The table's row for `model`; an unlisted `model_type` is taken as Llama if its blocks have Llama's modules.

    Raises:
        FamilyError: if the family is neither listed nor laid out as Llama.
    """
    model_type = model.config.get_text_config().model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    try:
        block = model.base_model.get_submodule("layers")[0]  # type: ignore[index]
        alike = all({n for n, _ in block.get_submodule(p).named_children()} == c for p, c in _LLAMA_BLOCK.items())
    except (AttributeError, TypeError, IndexError):
        alike = False
    if not alike:
        raise FamilyError(
            f"model family {model_type!r} is not in the families table ({', '.join(FAMILIES)}) and its blocks are not"
            " laid out as Llama's: add a row to plnd/families.py (README, «Model families»)"
        )
    warnings.warn(f"model family {model_type!r} is not in the table; its modules match Llama's layout", stacklevel=2)
    return _llama_layout(model_type)


@dataclass(frozen=True)
class Target:
    """One logical projection of a loaded model.

    Attributes:
        name: address, `"{block}.{projection}"`.
        module: the module that holds it (a PEFT wrapper where there is one).
        projection: its row of the table.
        width: number of neurons.
        transposed: the module is a `Conv1D`, whose weight is [in, out].
        start: first storage row of the projection in a fused module.
    """

    name: str
    module: nn.Module
    projection: Projection
    width: int
    transposed: bool
    start: int

    @property
    def plain(self) -> nn.Module:
        """The module without a PEFT wrapper around it."""
        return self.module.base_layer if hasattr(self.module, "base_layer") else self.module  # type: ignore[return-value]

    @property
    def dim(self) -> int:
        """The dimension of the stored weight along which neurons lie."""
        return int((self.projection.axis == "column") != self.transposed)

    def storage(self, indices: torch.Tensor) -> torch.Tensor:
        """Where neurons `indices` (int64) lie along `dim` of the stored weight; rows of the bias for row neurons."""
        return indices + self.start

    def weight(self) -> torch.Tensor:
        """The logical matrix, [out, in] (a view of the stored weight where that is possible)."""
        stored: torch.Tensor = self.plain.weight.data  # type: ignore[assignment]
        weight = stored.T if self.transposed else stored
        return weight if self.projection.axis == "column" else weight[self.start : self.start + self.width]


def _features(module: nn.Module) -> tuple[int, int, bool] | None:
    """(out, in, transposed) of a linear module, read from its weight or, where that is packed, from itself."""
    transposed = hasattr(module, "nf")  # transformers' Conv1D
    if not transposed and not hasattr(module, "out_features"):
        return None
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "ndim", 0) == 2 and weight.is_floating_point():
        out, into = weight.shape[::-1] if transposed else weight.shape
    else:
        out, into = module.out_features, module.in_features  # type: ignore[assignment]
    return out, into, transposed


class Layout:
    """A family bound to a loaded model: which module, which rows, how wide.

    Args:
        model: a transformers model, or a PEFT model around one.

    Raises:
        FamilyError: if the family is unknown or a projection is not where the table says.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore
        self.family = find_family(self.model)
        try:
            self.blocks: list[nn.Module] = list(self.body.get_submodule(self.family.blocks))  # type: ignore[call-overload]
        except AttributeError as error:
            raise FamilyError(
                f"{self.family.model_type}: no list of blocks at {self.family.blocks!r}: {error}"
            ) from None

    @property
    def body(self) -> PreTrainedModel:
        """The model without its language-model head."""
        return self.model.base_model  # type: ignore[return-value]

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every projection of every block by address, in the table's order."""
        return {target.name: target for target in self._resolve()}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Number of neurons of every projection by address."""
        return {name: target.width for name, target in self.targets.items()}

    def description(self) -> dict:
        """What an artifact says of its base model: name, revision, family, number of blocks, widths."""
        config = self.model.config
        return {
            "name": config._name_or_path or None,
            "revision": getattr(config, "_commit_hash", None),
            "model_type": self.family.model_type,
            "blocks": len(self.blocks),
            "widths": dict(self.widths),
        }

    def _resolve(self) -> Iterator[Target]:
        for number, block in enumerate(self.blocks):
            for projection in self.family.projections:
                name = f"{number}.{projection.name}"
                try:
                    module = block.get_submodule(projection.module)
                except AttributeError:
                    raise FamilyError(
                        f"{name}: the model has no module {projection.module!r} in block {number}"
                    ) from None
                plain = module.base_layer if hasattr(module, "base_layer") else module
                features = _features(plain)  # type: ignore[arg-type]
                if features is None:
                    raise FamilyError(f"{name}: {type(plain).__name__} is not a linear module that plnd knows")
                out, into, transposed = features
                rows = projection.part.rows(out) if projection.part else range(out)
                width = into if projection.axis == "column" else len(rows)
                yield Target(name, module, projection, width, transposed, rows.start)
