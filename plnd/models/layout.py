"""A family's row bound to one model: its blocks, and where each projection's weights lie."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS, block_of, block_order
from plnd.errors import FamilyError, PLNDError, TokenError
from plnd.model_description import is_hub_name
from plnd.models.accepted import accepted, listed
from plnd.models.distributed import Group, group_of
from plnd.models.families import Family, Norm, Projection, Stack, like_llama
from plnd.models.spread import check_whole, is_spread, local, whole

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from plnd.models.gating import Gating

_LLAMA_BLOCK = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
"""Classes of torch that hold a module and run it, and the attribute that it is."""


def unwrap(model: Any, *, spread: bool = False) -> PreTrainedModel:
    """The transformers model inside a pipeline, a PEFT model, `torch.compile`, or (distributed) data parallelism.

    Args:
        model: the model.
        spread: the caller knows what to do with one that transformers has spread over processes.

    Raises:
        PLNDError: if there is none, or its weights are spread over processes.
    """
    pipelines = sys.modules.get("transformers.pipelines.base")
    if pipelines is not None and isinstance(model, pipelines.Pipeline):
        model = model.model
    given = type(model).__name__
    while True:
        inner = _inner(model)
        if inner is model:
            break
        model = inner
    if not hasattr(getattr(model, "config", None), "get_text_config") or not hasattr(model, "base_model"):
        raise PLNDError(
            f"{given}: expected a transformers model, or one inside a pipeline, a PEFT model, DataParallel,"
            " DistributedDataParallel or torch.compile"
        )
    if not (spread and group_of(model)):
        check_whole(model)
    return model


def _inner(module: Any) -> Any:
    """The module that another one wraps, or the module itself."""
    if hasattr(module, "get_base_model"):
        return module.get_base_model()
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") and kind.__name__ in _WRAPPERS:
            return getattr(module, _WRAPPERS[kind.__name__])
        if kind.__module__.startswith("peft.") and kind.__name__ == "PeftMixedModel":
            return module.base_model.model
    return module


def find_family(model: PreTrainedModel) -> Family:
    """The table's row for `model`; an unlisted `model_type` is taken as Llama if its blocks have Llama's modules.

    Raises:
        FamilyError: if the family is neither listed nor laid out as Llama, or if the model's configuration is one for
            which its row is not exact.
    """
    config = model.config.get_text_config()
    rows = listed(config.model_type)
    if not rows and (probed := accepted(config)):
        return probed
    if rows:
        family = next((row for row in rows if _fits(row, text_body(model))), rows[0])
        for name, wanted in family.requires.items():
            found = getattr(config, name, wanted)
            if found != wanted:
                raise FamilyError(
                    f"model family {config.model_type!r} with {name}={found!r}: its exact form is not known; plnd has"
                    f" it for {name}={wanted!r} only"
                )
        return family
    try:
        block = _inner(text_body(model).get_submodule("layers")[0])  # type: ignore[index]
        alike = all({n for n, _ in locate(block, p).named_children()} == c for p, c in _LLAMA_BLOCK.items())
    except (AttributeError, TypeError, IndexError):
        alike = False
    if not alike:
        raise FamilyError(
            f"model family {config.model_type!r} is not in the families table (`plnd families` prints it) and its"
            " blocks are not laid out as Llama's: `plnd probe` says which of its projections"
            " are exact and drafts a row (docs/families.md)"
        )
    warnings.warn(
        f"model family {config.model_type!r} is not in the table; its modules match Llama's layout", stacklevel=2
    )
    return like_llama(config.model_type)


def text_body(model: PreTrainedModel) -> PreTrainedModel:
    """The language model without its head (and without the other parts of a multimodal one)."""
    body: Any = _inner(model.base_model)
    while (inner := _language_model(body)) is not body:
        body = inner
    return body


def _language_model(module: Any) -> Any:
    """The language model inside a larger one (or below a head inside it), or the module itself."""
    for name in ("language_model", "text_model", "model"):  # Llama 4's body is no `base_model` of its language model
        inner = _inner(getattr(module, name, None))
        if hasattr(inner, "base_model"):
            return _inner(inner.base_model)
    return module


def _fits(family: Family, body: nn.Module) -> bool:
    """Whether the first block of every stack has the row's modules."""
    try:
        for stack in family.stacks:
            block = _inner(body.get_submodule(stack.blocks)[0])  # type: ignore[index]
            for projection in stack.projections:
                locate(block, projection.module)
    except (AttributeError, IndexError):
        return False
    return True


@dataclass(frozen=True)
class Block:
    """One transformer block (or the cross-attention of one) of a loaded model.

    Attributes:
        name: its address.
        module: the block.
        stack: its kind.
        family: the row of the table.
    """

    name: str
    module: nn.Module
    stack: Stack
    family: str

    def at(self, path: str) -> Any:
        """What lies at a path that the row names.

        Raises:
            FamilyError: if nothing does.
        """
        try:
            return attribute(self.module, path)
        except AttributeError:
            raise missing(self.family, f"block {self.name}", path) from None

    @property
    def activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The non-linearity of the block's feed-forward; only where it has one."""
        return self.gating.activation

    @property
    def gating(self) -> Gating:
        """What the block's feed-forward makes of gate and up; only where it has one."""
        from plnd.models.gating import ClampedSwiGLU, Gating, OffsetGating

        path = self.stack.activation
        assert path is not None
        if self.stack.gating == "clamped":
            return ClampedSwiGLU.of(float(self.at(f"{path}.alpha")), float(self.at(f"{path}.limit")))
        if path.startswith("torch."):
            import torch

            function = attribute(torch, path.removeprefix("torch."))  # type: ignore[arg-type]
        else:
            function = self.at(path)
        if self.stack.factors.gate is not None:
            function = _OfMultiple(function, float(self.at(self.stack.factors.gate)))
        return {"product": Gating, "offset": OffsetGating}[self.stack.gating](function)

    @property
    def experts(self) -> Any:
        """The fused experts, without a PEFT wrapper around them; only where it has some."""
        assert self.stack.experts is not None
        return _plain(self.at(self.stack.experts))

    def factor(self, of: Literal["attention", "feed_forward", "beside"]) -> float:
        """What is multiplied into what a part of the block adds to the residual stream as it leaves the block."""
        paths = (self.stack.factor, getattr(self.stack.factors, of), self.stack.factors.stream)
        return math.prod(float(self.at(path)) for path in paths if path is not None)

    @property
    def stream_factor(self) -> float:
        """What the block multiplies the residual stream by when all has joined it."""
        path = self.stack.factors.stream
        return 1.0 if path is None else float(self.at(path))

    def gain(self, norm: Norm) -> torch.Tensor:
        """What a norm of the block multiplies by, [width of the norm], at least float32; 1 for one without a weight."""
        import torch

        from plnd.models.quantised import dequantised

        if not norm.weight:
            return torch.ones(int(self.at(self.stack.head_dim)), device=next(self.module.parameters()).device)
        weight = dequantised(self.at(norm.module))
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + norm.offset


@dataclass(frozen=True)
class Target:
    """One logical projection of a loaded model.

    Attributes:
        name: address, `"{block}.{projection}"`.
        block: the transformer block that it lies in.
        module: the module that holds it (a PEFT wrapper where there is one, but not that of `torch.compile`).
        projection: its row of the table.
        width: number of neurons.
        transposed: the module is a `Conv1D`, whose weight is [in, out], or has experts' weights so.
        rows: storage rows of the projection in the module, in its own order (of one expert's matrix).
        experts: number of experts, where they are fused in one parameter; `width` counts the neurons of all.
        own: of a model that is spread over processes, numbers and weights are those that this process has (see
            `plnd.models.parts`).
    """

    name: str
    block: nn.Module
    module: nn.Module
    projection: Projection
    width: int
    transposed: bool
    rows: range | torch.Tensor
    experts: int | None = None
    own: bool = False

    @property
    def plain(self) -> nn.Module:
        """The module without a PEFT wrapper around it."""
        return _plain(self.module)

    @property
    def stored(self) -> Any:
        """The parameter that holds the neurons' weights; None where they are packed in another way."""
        return getattr(self.plain, self.projection.parameter, None)

    @property
    def dim(self) -> int:
        """The dimension of the stored weight along which neurons lie; only where experts are not fused."""
        assert self.experts is None
        return int((self.projection.axis == "column") != self.transposed)

    @property
    def expert_dim(self) -> int:
        """The dimension of fused experts' stored weight along which the neurons of one expert lie."""
        return 1 + int((self.projection.axis == "column") != self.transposed)

    def storage(self, indices: torch.Tensor) -> torch.Tensor:
        """Where neurons `indices` (int64) lie along `dim` of the stored weight; rows of the bias for row neurons."""
        if isinstance(self.rows, range):
            return indices + self.rows.start
        return self.rows.to(indices.device)[indices]

    def select(self, output: torch.Tensor) -> torch.Tensor:
        """The projection's own rows of its module's output, [..., width] (a view where they are consecutive)."""
        if isinstance(self.rows, range):
            return output[..., self.rows.start : self.rows.stop]
        return output.index_select(-1, self.rows.to(output.device))

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes of `plain` that hold parameters of the neurons."""
        weight = self.projection.parameter
        bias = "bias" if self.experts is None else f"{weight}_bias"
        has_bias = self.projection.axis == "row" and getattr(self.plain, bias, None) is not None
        return (weight, bias) if has_bias else (weight,)

    def neurons_first(self, stored: torch.Tensor) -> torch.Tensor:
        """A view of a stored tensor of `names`, to be read and written at `position`."""
        axes = self.axes(stored)
        return stored.movedim(axes, tuple(range(len(axes))))

    def axes(self, stored: torch.Tensor) -> tuple[int, ...]:
        """The dimensions of a stored tensor of `names` along which neurons lie, in the order of `position`."""
        if self.experts is not None:
            return (0, self.expert_dim if stored.dim() == 3 else 1)
        return (0,) if stored.dim() == 1 else (self.dim,)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Views of every stored tensor with parameters of the neurons, neurons first: edit them at `position`.

        Raises:
            FamilyError: if the weight is not stored as the matrix that the module multiplies by.
        """
        from plnd.models.quantised import packing

        if reason := packing(self.plain, self.projection.parameter):
            raise FamilyError(f"{self.name}: {reason}, expected a dense one: it cannot be edited in place")
        for name in self.names:
            yield self.neurons_first(local(getattr(self.plain, name).data))

    def position(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Index, along the first dimensions of `parameters`, of the neurons `indices` (int64)."""
        if self.experts is None:
            return (self.storage(indices),)
        each = self.width // self.experts
        return indices // each, self.storage(indices % each)

    def weight(self) -> torch.Tensor:
        """The logical matrix, [out, in]: a view of the stored weight where it is dense, on a device and consecutive.

        Of fused experts, the experts' matrices one after the other: [experts·width, in] or [out, experts·width]. What
        an adapter adds is part of it. Of a model that is spread over processes, all of them have to ask for it.

        Raises:
            FamilyError: if the weight cannot be read, or an adapter does more than add to it.
        """
        from plnd.models.quantised import dequantised

        if is_spread(self.stored):
            stored = (local if self.own else whole)(self.stored.detach())
        else:
            stored = dequantised(self.plain, self.projection.parameter)
        of = () if self.experts is None else (self.projection.parameter,)
        for change in _added(self.name, self.module, *of):
            stored = stored + change.to(stored)
        if self.experts is not None:
            stored = stored.mT if self.transposed else stored
            if self.projection.axis == "column":
                return stored.movedim(0, 1).flatten(1)
            return self.select(stored.mT).mT.flatten(0, 1)
        weight = stored.T if self.transposed else stored
        return weight if self.projection.axis == "column" else self.select(weight.T).T


def _features(module: nn.Module, projection: Projection) -> tuple[int, int, bool, int | None] | None:
    """(out, in, transposed, experts) of a linear module, read from its weight or, where that is packed, from itself."""
    import torch

    weight: Any = getattr(module, projection.parameter, None)
    if getattr(weight, "ndim", 0) == 3:
        out, into = weight.shape[:0:-1] if projection.transposed else weight.shape[1:]
        return out, into, projection.transposed, weight.shape[0]
    transposed = hasattr(module, "nf")  # transformers' Conv1D
    if not transposed and not hasattr(module, "out_features"):
        return None
    if type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.ndim == 2 and weight.is_floating_point():
        out, into = weight.shape[::-1] if transposed else weight.shape
    else:
        out, into = module.out_features, module.in_features  # type: ignore[assignment]
    return out, into, transposed, None


class Layout:
    """A family bound to a loaded model: which module, which rows, how wide.

    Args:
        model: a transformers model, or what `unwrap` takes around one.
        spread: the caller knows what to do with one that transformers has spread over processes.
        family: the row to bind; by default the table's, or one that was accepted (`plnd.accept_family`).

    Attributes:
        model: the transformers model.
        group: the processes over which it is spread; None for a model that is whole.
        family: its row of the table.
        blocks: its blocks, in order.

    Raises:
        FamilyError: if the family is unknown or a projection is not where the table says.
        PLNDError: if there is no transformers model, or its weights are spread over processes (in a way that is not
            known, where `spread`).
    """

    def __init__(self, model: nn.Module, *, spread: bool = False, family: Family | None = None) -> None:
        self.model = unwrap(model, spread=spread)
        self.group: Group | None = group_of(self.model)
        self.family = family or find_family(self.model)
        self.blocks: list[Block] = sorted(self._bound(), key=lambda block: block_order(block.name))

    @classmethod
    def of_all(cls, model: nn.Module, *, spread: bool = False) -> Layout:
        """The layout of a model of which `forward` runs all: what a PEFT model puts before the tokens would be missing.

        Raises:
            PLNDError: if an adapter learns a prompt (prompt tuning, prefix tuning).
        """
        adapter: Any = getattr(model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise PLNDError(
                f"the adapter ({adapter.peft_type.value}) puts learned tokens before every text, which cannot be"
                " measured: pass the base model, or an adapter of weights"
            )
        return cls(model, spread=spread)

    def _bound(self) -> Iterator[Block]:
        """Every block by its name, of the first kind whose modules it has."""
        kinds: dict[tuple[str, str], list[Stack]] = {}
        for stack in self.family.stacks:
            kinds.setdefault((stack.blocks, stack.name), []).append(stack)
        found: set[nn.Module] = set()
        for (blocks, name), stacks in kinds.items():
            for n, module in enumerate(map(_inner, self.at(blocks))):
                kind = next((stack for stack in stacks if _has(module, stack.having)), None)
                if kind is not None:
                    found.add(module)
                    yield Block(name.format(n=n), module, kind, self.family.name)
        for stack in self.family.stacks:
            for n, module in enumerate(map(_inner, self.at(stack.blocks))):
                if module not in found:
                    names = ", ".join(name for name, _ in module.named_children())
                    raise FamilyError(
                        f"block {n} ({names}) is of no kind that the families table has of {self.family.name}: mend the"
                        " row (docs/families.md)"
                    )

    @property
    def body(self) -> PreTrainedModel:
        """The model without its language-model head."""
        return text_body(self.model)

    @property
    def left_alone(self) -> list[str]:
        """Names of what the model has besides a language model: what sees or hears, and what carries that over."""
        if self.model.config.get_text_config() is self.model.config:
            return []
        return list(_outermost(self.model, "", self.body, self.model.get_output_embeddings()))

    def at(self, path: str) -> Any:
        """What lies at a path that the row names, relative to the model's body.

        Raises:
            FamilyError: if nothing does.
        """
        try:
            return attribute(self.body, path)
        except AttributeError:
            raise missing(self.family.name, type(self.body).__name__, path) from None

    @cached_property
    def interface(self) -> bool:
        """Whether attention goes through transformers' `AttentionInterface`, as more models do in each release."""
        own = any(stack.own_attention for stack in self.family.stacks)
        return not own or self.body._can_set_attn_implementation()

    @property
    def positions(self) -> int | None:
        """How long a document may be at most; None: the model does not say."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        table = getattr(getattr(self.body, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)  # RoBERTa's positions begin after it
        return limit if limit is None or padding is None else limit - padding - 1

    def check_length(self, max_length: int) -> None:
        """Refuses documents longer than the model takes.

        Raises:
            PLNDError: saying how long they may be.
        """
        if self.positions and max_length > self.positions:
            raise PLNDError(f"max_length={max_length}: the model has {self.positions} positions; use at most that")

    def check_predicts(self, what: str) -> None:
        """Refuses a model that fills in masked tokens where next ones are needed.

        Args:
            what: needs them, for the error.

        Raises:
            FamilyError: saying so.
        """
        if self.family.masked:
            raise FamilyError(
                f"model family {self.family.name!r} fills in masked tokens and predicts no next ones, which {what}"
                " needs: take a model that does"
            )

    @property
    def input_device(self) -> torch.device:
        """As the function, of the language model alone."""
        return input_device(self.body)

    def check_tokens(self, ids: Iterable[int], what: str) -> None:
        """As the function, for this model."""
        check_tokens(self.model, ids, what)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> None:
        """One pass of the body, without its head; a decoder with an encoder reads the same document, shifted by one.

        Args:
            input_ids: [batch, seq], padded, by plnd itself on the right (`plnd.models.batches`).
            attention_mask: [batch, seq], 1 for tokens and 0 for padding; or what each token sees, [batch, 1, seq, seq].
            kwargs: further arguments of the body of a decoder-only model.
        """
        body, config = self.body, self.model.config
        if not getattr(config, "is_encoder_decoder", False):
            if attention_mask.dim() == 2 and not self.family.masked:
                attention_mask = (attention_mask.cumsum(1) > 0).to(attention_mask)  # see `padded`; on the left it stays
            body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
            return
        before = attention_mask.roll(1, dims=1)
        before[:, 0] = 0
        shifted = input_ids.roll(1, dims=1).masked_fill(before == 0, config.decoder_start_token_id or 0)
        seen = body.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        body.get_decoder()(
            input_ids=shifted,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every projection of every block by address, in the table's order."""
        return {target.name: target for target in self._resolve()}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Number of neurons of every projection by address."""
        return {name: target.width for name, target in self.targets.items()}

    @cached_property
    def units(self) -> dict[str, int]:
        """By address, the number of experts or heads in which neurons lie, one after the other; if there are any."""
        found = {}
        for block in self.blocks:
            for projection in block.stack.projections:
                name = f"{block.name}.{projection.name}"
                if projection.name in ATTENTION_PROJECTIONS:
                    # of latent attention, whose queries and keys have heads of other widths, each head has its own
                    like = "o_proj" if projection.name in ("q_proj", "o_proj") else projection.name
                    like = "v_proj" if block.stack.latent and like == "k_proj" else like
                    found[name] = self.widths[f"{block.name}.{like}"] // int(block.at(block.stack.head_dim))
                elif (experts := self.targets[name].experts) is not None:
                    found[name] = experts
        return found

    def description(self) -> dict:
        """What an artifact says of its base model: name (is it the hub's?), revision, family, blocks, widths, units."""
        config = self.model.config
        name = config._name_or_path or None
        return {
            "name": name,
            **({"hub": True} if name and is_hub_name(name) else {}),
            "revision": getattr(config, "_commit_hash", None),
            "model_type": config.get_text_config().model_type,
            "blocks": len({block_of(block.name) for block in self.blocks}),
            "widths": dict(self.widths),
            "units": dict(self.units),
            **({"row": self.family.record()} if self.family.exact is not None else {}),
        }

    def _resolve(self) -> Iterator[Target]:
        for block in self.blocks:
            for projection in block.stack.projections:
                name = f"{block.name}.{projection.name}"
                module = block.at(projection.module)
                plain = _plain(module)
                features = _features(plain, projection)
                if features is None:
                    raise FamilyError(f"{name}: {type(plain).__name__} is not a linear module that plnd knows")
                out, into, transposed, experts = features
                rows = self._rows(block, projection, out)
                width = (into if projection.axis == "column" else len(rows)) * (experts or 1)
                yield Target(name, block.module, module, projection, width, transposed, rows, experts)

    def _rows(self, block: Block, projection: Projection, out: int) -> range | torch.Tensor:
        """The rows of a fused module of `out` rows that belong to one projection."""
        if projection.fused is None:
            return range(out)
        part = PROJECTIONS.index(projection.name)
        if projection.fused == "halves":
            return range(out // 2) if projection.name == "gate_proj" else range(out // 2, out)
        import torch

        if projection.fused == "alternating":
            return torch.arange(out)[projection.name != "gate_proj" :: 2]
        if projection.fused == "latent":
            assert block.stack.latent is not None
            nope, values = (int(block.at(path)) for path in (block.stack.latent.key_dim, block.stack.head_dim))
            heads = torch.arange(out).unflatten(0, (-1, nope + values))
            return (heads[:, :nope] if projection.name == "k_proj" else heads[:, nope:]).flatten()
        if projection.fused == "gated":
            return torch.arange(out).unflatten(0, (-1, 2, int(block.at(block.stack.head_dim))))[:, 0].flatten()
        output = next(p for p in block.stack.projections if p.name == "o_proj")
        features = _features(_plain(block.at(output.module)), output)
        assert features is not None
        queries = features[1]
        keys = (out - queries) // 2
        if projection.fused == "stacked":
            return (range(queries), range(queries, queries + keys), range(queries + keys, out))[part]
        groups = keys // int(block.at(block.stack.head_dim))
        rows = torch.arange(out).view(groups, out // groups)
        own = queries // groups
        each = keys // groups
        return (rows[:, :own], rows[:, own : own + each], rows[:, own + each :])[part].flatten()


@dataclass(frozen=True)
class _OfMultiple:
    """A function of its argument times a factor; messages name both."""

    function: Callable[[torch.Tensor], torch.Tensor]
    factor: float

    def __call__(self, gate: torch.Tensor) -> torch.Tensor:
        return self.function(gate * self.factor)


def _has(block: nn.Module, paths: Iterable[str]) -> bool:
    """Whether a block has modules at all of some paths."""
    try:
        return all(attribute(block, path) is not None for path in paths)
    except AttributeError:
        return False


def _outermost(module: nn.Module, name: str, body: Any, head: Any) -> Iterator[str]:
    """Names of the largest modules with parameters that hold neither the body nor the head of a language model."""
    for child, part in module.named_children():
        path = f"{name}.{child}" if name else child
        within = set(part.modules())
        if part is not body and body in within:
            yield from _outermost(part, path, body, head)
        elif not within & {body, head} and any(True for _ in part.parameters()):
            yield path


def locate(block: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path below a block as it is now, without the wrapper of `torch.compile`.

    Raises:
        AttributeError: if there is none.
    """
    return _inner(block.get_submodule(path))


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go in: where the embedding runs. (In an offloaded model, parameters are nowhere.)"""
    import torch

    embedding: Any = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device(embedding.weight.device if device is None else device)


def check_tokens(model: Any, ids: Iterable[int], what: str) -> None:
    """Refuses token ids that a model has no embedding for, before a kernel reads beyond its table.

    Args:
        model: a transformers model, or a PEFT model around one.
        ids: token ids.
        what: they are from, for the error.

    Raises:
        TokenError: naming the first that is too large.
    """
    count = getattr(model.get_input_embeddings(), "num_embeddings", None)  # None: an embedding that does not say
    wrong = None if count is None else next((token for token in ids if not 0 <= token < count), None)
    if wrong is not None:
        raise TokenError(
            f"{what}: token id {wrong}, but the model's embedding has {count} rows: use the tokenizer that was saved"
            " with the model"
        )


def _plain(module: nn.Module) -> nn.Module:
    return module.base_layer if hasattr(module, "base_layer") else module  # type: ignore[return-value]


def _added(name: str, module: Any, *of: str) -> Iterator[torch.Tensor]:
    """What a PEFT wrapper's adapters that are at work, and not merged, add to the weight, in its stored shape.

    Args:
        of: of fused experts, which of their parameters.
    """
    if not hasattr(module, "base_layer") or module.merged or module.disable_adapters:
        return
    for adapter in module.active_adapters:
        if adapter not in module._get_available_adapters():
            continue
        kind = type(module).__module__.partition(".")[0]
        lora = adapter in getattr(module, "lora_A", {}) and not getattr(module, "lora_variant", {}).get(adapter)
        if not (lora or kind == "peft_plnd"):
            raise FamilyError(
                f"{name}: adapter {adapter!r} ({type(module).__name__}) adds to the weight and more: merge it first"
            )
        yield module.get_delta_weight(adapter, *of).detach()


def missing(family: str, where: str, what: str) -> FamilyError:
    """The error of a place that a row of the table names and a model does not have."""
    from transformers import __version__

    return FamilyError(
        f"{where} has no {what!r}, where the families table has it for {family} (transformers {__version__}):"
        " docs/compatibility.md lists the releases that were tried; for another, mend the row (docs/families.md)"
    )


def attribute(block: nn.Module, path: str) -> Any:
    """The attribute at a dotted path below a module, without wrappers of `torch.compile` on the way."""
    value: Any = block
    for name in path.split("."):
        if isinstance(value, dict):  # in a configuration
            if name not in value:
                raise AttributeError(name)
            value = value[name]
        else:
            value = _inner(getattr(value, name))
    return value
