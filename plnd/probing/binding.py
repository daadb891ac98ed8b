"""Which module of a block is what: found by names, widths and what passes through it, never by the model's name.

A finding is a guess until brute force has judged it (`plnd.probing.verdicts`): where several are possible all are
given, the likeliest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from plnd.addresses import PROJECTIONS
from plnd.models.families import Norm, Projection, Rotation, Stack

_ATTENTION = {
    "q_proj": re.compile(r"^(q_proj|query|query_proj|q|wq|q_lin|to_q|Wq)$"),
    "k_proj": re.compile(r"^(k_proj|key|key_proj|k|wk|k_lin|to_k|Wk)$"),
    "v_proj": re.compile(r"^(v_proj|value|value_proj|v|wv|v_lin|to_v|Wv)$"),
    "o_proj": re.compile(r"^(o_proj|out_proj|dense|c_proj|wo|o|out_lin|Wo|out|proj|attention_out|final_linear)$"),
}
_FUSED = re.compile(r"^(qkv_proj|query_key_value|c_attn|Wqkv|qkv|in_proj|W_pack|att_proj|qkv_lin)$")
_NOT_ATTENTION = re.compile(
    r"mlp|ffn|feed_?forward|expert|moe|mamba|ssm|linear_attn|conv|cross|encoder_attn|encoder_decoder|indexer|temporal"
    r"|intermediate(?!_)",
    re.IGNORECASE,
)
_MIXERS = re.compile(r"attn|attention(?!\.output)|mamba|ssm|conv|temporal|mixer|time_mix|per_layer|laurel|altup")
_HEAD_DIMS = ("head_dim", "head_size", "attention_head_size", "d_head", "dim_head", "key_value_proj_dim", "qk_head_dim")
_GATES = re.compile(r"^(gate_proj|w1|wi_0|gate|linear_gate|fc_gate|gate_lin|linear_v)$")
_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")
_ACTIVATIONS = re.compile(r"^act|activation|gelu|silu|swish|nonlin", re.IGNORECASE)


@dataclass
class Passed:
    """What went through one module when the block ran: inputs and outputs that are tensors, call after call."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Binding:
    """What was found in one kind of block.

    Attributes:
        stack: the parts that were found; of attention or feed-forward that were not, no projections.
        attention, feed_forward: whether they were found with all that a row needs.
        missing: what was not found, in words.
        rest: modules with weights that belong to neither, and are left alone.
        fields: other values of fields of `Stack` that are possible, by field.
    """

    stack: Stack
    attention: bool
    feed_forward: bool
    missing: tuple[str, ...]
    rest: tuple[str, ...]
    fields: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def watch(block: nn.Module, run: Any) -> dict[str, Passed]:
    """Every module's inputs and outputs while `run` has the block compute, by path; "" is the block."""
    seen: dict[str, Passed] = {}
    handles = []
    for path, module in block.named_modules():
        passed = seen.setdefault(path, Passed())

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any, passed: Passed = passed) -> None:
            passed.inputs += [x.detach().clone() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)][:1]
            first = output[0] if isinstance(output, (tuple, list)) and len(output) else output
            passed.outputs += [first.detach().clone()] if isinstance(first, Tensor) else []

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def bind(blocks: str, block: nn.Module, seen: Mapping[str, Passed]) -> Binding:
    """What of a block is attention, what is its feed-forward, and what stands between them and the residual stream.

    Args:
        blocks: path of the list of blocks, below the model's body.
        block: one of them.
        seen: what went through it (`watch`).
    """
    return _Search(blocks, block, seen).binding()


class _Search:
    def __init__(self, blocks: str, block: nn.Module, seen: Mapping[str, Passed]) -> None:
        self.blocks, self.block, self.seen = blocks, block, seen
        self.modules = dict(block.named_modules())
        self.linears = {p: m for p, m in self.modules.items() if _is_linear(m)}
        self.missing: list[str] = []
        self.fields: dict[str, tuple[Any, ...]] = {}

    def binding(self) -> Binding:
        attention = self._attention()
        inside = self._parent(attention) if attention else None
        feed_forward = self._feed_forward(inside, attention)
        stack = Stack(
            blocks=self.blocks,
            attention=inside or (feed_forward[0] if feed_forward else ""),
            feed_forward=feed_forward[0] if feed_forward else None,
            projections=(*(attention or ()), *(feed_forward[1] if feed_forward else ())),
            head_dim=self._head_dim(inside, attention) if attention and inside else "training",
            activation=self._activation(feed_forward) if feed_forward else None,
        )
        if feed_forward and stack.activation is None:
            self.missing.append("no module or attribute was found that is the feed-forward's non-linearity")
            stack = replace(stack, feed_forward=None, projections=tuple(attention or ()))
            feed_forward = None
        if attention and inside:
            stack = replace(stack, **self._head_norms(attention), **self._norm_behind("attention_norm", inside))
        if feed_forward:
            behind = self._norm_behind("feed_forward_norm", feed_forward[0])
            stack = replace(stack, experts=feed_forward[2], **behind)
        self.fields |= {"factor": (None, *self._factors())}
        return Binding(
            stack, bool(attention), bool(feed_forward), tuple(self.missing), tuple(self._rest(stack)), self.fields
        )

    # attention

    def _attention(self) -> tuple[Projection, ...] | None:
        """Where q, k, v and o are; None if one is missing or there are several."""
        own = {path: m for path, m in self.linears.items() if not _NOT_ATTENTION.search(path)}
        fused = [path for path in own if _FUSED.match(_last(path))]
        found = {name: [path for path in own if pattern.match(_last(path))] for name, pattern in _ATTENTION.items()}
        if len(fused) == 1:
            home = fused[0].rpartition(".")[0]
            outputs = [p for p in found["o_proj"] if p != fused[0] and p.startswith(home.partition(".")[0])]
            if len(outputs) != 1:
                self.missing.append(f"{fused[0]} is there, but not one output projection of attention")
                return None
            how = self._fusion(fused[0])
            return (
                *(Projection(name, fused[0], how) for name in PROJECTIONS[:3]),  # type: ignore[arg-type]
                Projection("o_proj", outputs[0]),
            )
        if not found["q_proj"]:
            self.missing.append("no attention with a query, a key and a value projection of its own")
            return None
        home = found["q_proj"][0].partition(".")[0]
        for name in ("k_proj", "v_proj", "o_proj"):
            found[name] = [path for path in found[name] if path.partition(".")[0] == home]
        for name, paths in found.items():
            if len(paths) != 1:
                what = f"{len(paths)} modules that may be {name} ({', '.join(paths)})" if paths else f"no {name}"
                self.missing.append(f"attention has {what}")
                return None
        return tuple(Projection(name, paths[0]) for name, paths in found.items())

    def _fusion(self, path: str) -> str:
        self.fields["fused"] = ("stacked", "by_group")
        return "stacked"

    def _parent(self, projections: tuple[Projection, ...]) -> str:
        """The smallest module that holds all of them."""
        paths = [p.module.split(".")[:-1] for p in projections]
        common = []
        for names in zip(*paths, strict=False):
            if len(set(names)) > 1:
                break
            common.append(names[0])
        return ".".join(common)

    def _head_dim(self, inside: str, projections: tuple[Projection, ...]) -> str:
        """An attribute that is the width of one head."""
        for path in (inside, *(p for p in self.modules if p.startswith(f"{inside}."))):
            for name in _HEAD_DIMS:
                if isinstance(getattr(self.modules[path], name, None), int):
                    return f"{path}.{name}" if path else name
        self.missing.append("no attribute that is the width of one head")
        return "training"

    def _head_norms(self, attention: tuple[Projection, ...]) -> dict[str, Any]:
        """Norms whose input is what q_proj, or k_proj, gave."""
        found: dict[str, Any] = {}
        for name, field_name in (("q_proj", "query_norm"), ("k_proj", "key_norm")):
            module = next(p.module for p in attention if p.name == name)
            for path in self._norms():
                if self._receives(path, module):
                    found[field_name] = self._norm(path, whole=self._width(path) == self._out(module))
        return found

    # feed-forward

    def _feed_forward(
        self, inside: str | None, attention: tuple[Projection, ...] | None
    ) -> tuple[str, tuple[Projection, ...], str | None] | None:
        """Path, projections and path of the fused experts."""
        fused = [p for p, m in self.modules.items() if _is_experts(m)]
        if len(fused) == 1:
            return self._experts(fused[0])
        own = {p.module for p in attention or ()}
        rest = {p: m for p, m in self.linears.items() if p not in own and not (inside and p.startswith(f"{inside}."))}
        hidden = self._hidden()
        rest = {p: m for p, m in rest.items() if not _MIXERS.search(p)}
        down = [p for p in rest if self._out(p) == hidden and self._into(p) != hidden and self._into(p) >= 16]
        if len(down) != 1 or fused:
            several = [*fused, *down]
            what = (
                f"several modules that may end the feed-forward ({', '.join(several)})"
                if several
                else "no feed-forward"
            )
            self.missing.append(what)
            return None
        width = self._into(down[0])
        ups = [p for p in rest if self._into(p) == hidden and self._out(p) == width]
        both = [p for p in rest if self._into(p) == hidden and self._out(p) == 2 * width]
        if len(ups) == 1 and not both:
            projections = [Projection("up_proj", ups[0])]
        elif len(ups) == 2 and not both:
            gate = [p for p in ups if self._is_gate(p)] or [p for p in ups if _GATES.match(_last(p))]
            if len(gate) != 1:
                self.missing.append(f"which of {' and '.join(ups)} is the gate is not to be seen")
                return None
            up = next(p for p in ups if p != gate[0])
            projections = [Projection("gate_proj", gate[0]), Projection("up_proj", up)]
        elif len(both) == 1 and not ups:
            projections = [Projection(name, both[0], "halves") for name in ("gate_proj", "up_proj")]
        else:
            self.missing.append(f"{down[0]} ends the feed-forward, but what feeds it is none or several modules")
            return None
        projections.append(Projection("down_proj", down[0]))
        home = self._parent(tuple(projections))
        return home or down[0], tuple(projections), None

    def _experts(self, path: str) -> tuple[str, tuple[Projection, ...], str]:
        projections = (
            Projection("gate_proj", path, "halves", "gate_up_proj"),
            Projection("up_proj", path, "halves", "gate_up_proj"),
            Projection("down_proj", path, None, "down_proj"),
        )
        return path.rpartition(".")[0] or path, projections, path

    def _is_gate(self, path: str) -> bool:
        """Whether what it gives goes through a module that is an activation."""
        return any(
            self._receives(p, path)
            for p, m in self.modules.items()
            if not list(m.parameters(recurse=False)) and m is not self.block
        )

    def _activation(self, feed_forward: tuple[str, tuple[Projection, ...], str | None]) -> str | None:
        """Path of what can be called as the non-linearity: a module, or an attribute."""
        homes = dict.fromkeys(
            (feed_forward[2], feed_forward[0], self._parent(feed_forward[1]), feed_forward[0].rpartition(".")[0], "")
        )
        for home in homes:
            if home is None or home not in self.modules:
                continue
            module = self.modules[home]
            names = [n for n in (*dict(module.named_children()), *vars(module)) if _ACTIVATIONS.search(n)]
            for name in names:
                if callable(getattr(module, name, None)):
                    return f"{home}.{name}" if home else name
        for path, module in self.modules.items():
            if _ACTIVATIONS.search(_last(path)) and not list(module.parameters()) and "attn" not in path:
                return path
        return None

    # norms and factors

    def _norms(self) -> Iterator[str]:
        for path, module in self.modules.items():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 1 and "norm" in type(module).__name__.lower():
                yield path

    def _norm(self, path: str, whole: bool = False) -> Norm:
        module = self.modules[path]
        eps = next((name for name in _EPSILONS if isinstance(getattr(module, name, None), float)), "variance_epsilon")
        return Norm(path, eps=eps, offset=self._offset(module, eps), whole=whole)

    def _offset(self, module: nn.Module, eps: str) -> float:
        """What is added to a norm's weight for its gain: read off what it makes of a vector."""
        weight: Any = module.weight
        x = torch.randn(2, weight.numel(), dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            try:
                gain = (
                    module(x)
                    * torch.rsqrt(x.square().mean(-1, keepdim=True) + getattr(module, eps, 0.0)).reciprocal()
                    / x
                )
            except Exception:  # norms that take more than the vector
                return 0.0
        return 1.0 if torch.allclose(gain, weight + 1, atol=1e-3) else 0.0

    def _norm_behind(self, name: str, sublayer: str) -> dict[str, Any]:
        """The norm whose input is what a sub-layer gave."""
        for path in self._norms():
            if not path.startswith(f"{sublayer}.") and self._receives(path, sublayer):
                return {name: self._norm(path)}
        return {}

    def _factors(self) -> Iterator[str]:
        for name, value in vars(self.block).items():
            if isinstance(value, float) and value not in (0.0, 1.0) and not re.search("eps|drop|prob", name):
                yield name

    # widths and what passes

    def _hidden(self) -> int:
        shapes = self.seen[""].outputs or self.seen[""].inputs
        return shapes[0].shape[-1] if shapes else 0

    def _out(self, path: str) -> int:
        weight = self.linears[path].weight
        return weight.shape[1 if hasattr(self.linears[path], "nf") else 0]  # type: ignore[union-attr, return-value]

    def _into(self, path: str) -> int:
        weight = self.linears[path].weight
        return weight.shape[0 if hasattr(self.linears[path], "nf") else 1]  # type: ignore[union-attr, return-value]

    def _width(self, path: str) -> int:
        return self.modules[path].weight.numel()  # type: ignore[union-attr, operator]

    def _receives(self, path: str, source: str) -> bool:
        """Whether a module was given what another one gave, in whatever shape."""
        return any(_same(x, y) for x in self.seen[path].inputs for y in self.seen[source].outputs)

    def _rest(self, stack: Stack) -> Iterator[str]:
        """Modules with weights that the stack does not name, but for norms; the highest ones."""
        named = {p.module for p in stack.projections} | {stack.experts or ""}
        for norm in (stack.query_norm, stack.key_norm, stack.attention_norm, stack.feed_forward_norm):
            named |= {norm.module} if norm else set()
        done: list[str] = []
        for path, module in self.modules.items():
            if not path or any(path.startswith(f"{d}.") for d in done):
                continue
            if any(name == path or name.startswith(f"{path}.") for name in named if name):
                own = [n for n, _ in module.named_parameters(recurse=False)] if path not in named else []
                done += [path] if path in named else []
                yield from (f"{path}.{name}" for name in own)
                continue
            done.append(path)
            if any(True for _ in module.parameters()) and "norm" not in type(module).__name__.lower():
                yield f"{path} ({type(module).__name__})"
        yield from (name for name, _ in self.block.named_parameters(recurse=False))


def rotations() -> tuple[Rotation | None, ...]:
    """Every way to turn channels that a row can name, the likeliest first."""
    return (Rotation(), None, Rotation("neighbours"))


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor) and weight.dim() == 2 and (hasattr(module, "out_features") or hasattr(module, "nf"))
    )


def _is_experts(module: nn.Module) -> bool:
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _same(x: Tensor, y: Tensor) -> bool:
    if x.numel() != y.numel() or not x.is_floating_point():
        return False
    x, y = x.flatten().sort().values, y.flatten().sort().values
    return torch.equal(x, y.to(x.dtype))
