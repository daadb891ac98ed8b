"""Tensors whose numbers are read later: what is done with one in between is written down, and done when it is read.

transformers renames, stacks, transposes and casts what it reads, in ways that differ by family and release. Given these
in place of a checkpoint's tensors, `from_pretrained` does all that without reading any; each parameter it leaves in the
model knows how it is made, by the very operations that would have made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from plnd.errors import PLNDError


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on tensors, to be done when its result is wanted.

    Attributes:
        function: takes the arguments, and gives a tensor or several.
        args, kwargs: with tensors among them, deferred or not.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Any = None

    def inputs(self) -> Iterator[Deferred]:
        """The deferred tensors among the arguments."""
        return (x for x in tree_flatten((self.args, self.kwargs))[0] if isinstance(x, Deferred))


class Deferred(Tensor):
    """A tensor of the CPU, by all that can be asked of it, without numbers.

    Args:
        like: a tensor of its shape, strides and dtype, on the meta device.
        step: what makes it.
        part: which of the step's results it is; None where there is one.
    """

    step: Step
    part: int | None

    @staticmethod
    def __new__(cls, like: Tensor, step: Step, part: int | None = None) -> Deferred:  # noqa: D102
        options: dict[str, Any] = {"strides": like.stride(), "dtype": like.dtype, "device": "cpu"}
        tensor: Deferred = Tensor._make_wrapper_subclass(cls, like.shape, **options)  # type: ignore[assignment]
        tensor.step, tensor.part = step, part
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        # torch's would look at the numbers
        return f"Deferred({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Writes an operation down; one that gives no tensor (are these two equal?) is done at once."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise PLNDError(f"{func}: changes a weight in place while it is loaded; leave --blockwise out")
        if not all(result.type.kind() in ("TensorType", "ListType") for result in func._schema.returns):
            return func(*_numbers(args), **_numbers(kwargs))
        shapes = func(*_shapes(args), **{**_shapes(kwargs), **({"device": "meta"} if kwargs.get("device") else {})})
        step = Step(func, args, kwargs)
        if isinstance(shapes, Tensor):
            return cls(shapes, step)
        return [cls(shape, step, part) for part, shape in enumerate(shapes)]


def deferred(shape: Iterable[int], dtype: torch.dtype, read: Callable[[], Tensor]) -> Deferred:
    """A tensor that `read` gives."""
    return Deferred(torch.empty(tuple(shape), dtype=dtype, device="meta"), Step(read))


@torch.no_grad()
def evaluated(tensors: Iterable[Deferred]) -> Iterator[Tensor]:
    """The tensors themselves, in order; what several of them are made from is read once, and kept until the last."""
    tensors = list(tensors)
    uses = _uses(tensors)
    kept: dict[Step, Any] = {}

    def value(tensor: Deferred) -> Tensor:
        step = tensor.step
        result = kept[step] if step in kept else _done(step, value)
        uses[step] -= 1
        if uses[step]:
            kept[step] = result
        else:
            kept.pop(step, None)
        return result if tensor.part is None else result[tensor.part]

    for tensor in tensors:
        yield value(tensor)


def _done(step: Step, value: Callable[[Deferred], Tensor]) -> Any:
    args, kwargs = tree_map(lambda x: value(x) if isinstance(x, Deferred) else x, (step.args, step.kwargs or {}))
    return step.function(*args, **kwargs)


def _uses(tensors: Iterable[Deferred]) -> Counter[Step]:
    """How often each step's result is asked for."""
    uses: Counter[Step] = Counter()
    ahead = list(tensors)
    while ahead:
        step = ahead.pop().step
        uses[step] += 1
        if uses[step] == 1:
            ahead += step.inputs()
    return uses


def _numbers(tree: Any) -> Any:
    return tree_map(lambda x: next(evaluated([x])) if isinstance(x, Deferred) else x, tree)


def _shapes(tree: Any) -> Any:
    """The same with tensors on the meta device."""

    def shape(x: Any) -> Any:
        if isinstance(x, Deferred):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return x.to("meta") if isinstance(x, Tensor) else x

    return tree_map(shape, tree)
