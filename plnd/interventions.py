"""What can be done with a set of neurons: interventions on their values, and directions added to hidden states.

A neuron's value is what leaves its row (`q k v gate up`: the module's output, its bias and what an adapter adds
included, before anything else happens to it), or what enters its column (`o down`).

| kind | what the value becomes, at every token | |
|---|---|---|
| `zero` | 0, and of a row its bias with it | `plnd.deactivated` (zero ablation) |
| `mean` | its mean over a reference corpus | ablation that does not leave the distribution (mean ablation) |
| `scale` | itself times a factor | damping below 1, amplifying above |
| `steer` | itself plus strength times a direction: its mean in one language less that in others | towards a language |

`steered` adds a direction to what leaves whole blocks (DiffMean steering); it goes together with all of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plnd.deactivation import MODES, Mode, deactivated, obstacle
from plnd.errors import FamilyError, PLNDError
from plnd.models.experts import ByExpert, Routed, change_values
from plnd.models.layout import Layout, Target, locate, unwrap
from plnd.models.running import changed, editing, replaces, replacing
from plnd.neurons.neuron_set import NeuronSet, check_set
from plnd.numbers import is_real
from plnd.references.direction import Direction
from plnd.references.means import Means

Kind = Literal["zero", "mean", "scale", "steer"]
KINDS = ("zero", "mean", "scale", "steer")
_NEEDED: dict[str, tuple[str, ...]] = {
    "zero": (),
    "mean": ("means",),
    "scale": ("factor",),
    "steer": ("direction", "strength"),
}


@dataclass(frozen=True)
class Intervention:
    """What becomes of a neuron's value.

    Attributes:
        kind: one of `KINDS`.
        factor: of `scale`.
        means: of `mean`, what `plnd.reference` recorded; or address to the value of every neuron there, [width].
        direction: of `steer`, what `plnd.reference` recorded; or address to numbers, [width].
        strength: of `steer`, how many times the direction; by default once.

    Raises:
        PLNDError: if the kind is unknown, or has not what it needs, or something else.
    """

    kind: Kind = "zero"
    factor: float | None = None
    means: Means | Mapping[str, np.ndarray] | None = None
    direction: Direction | Mapping[str, np.ndarray] | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PLNDError(f"unknown kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.kind == "steer" and self.strength is None:
            object.__setattr__(self, "strength", 1.0)
        for owner, names in _NEEDED.items():
            for name in names:
                given = getattr(self, name) is not None
                if given and owner != self.kind:
                    raise PLNDError(f"{name} belongs to kind={owner}; {self.kind} has none")
                if not given and owner == self.kind:
                    made = ", which `plnd reference` writes" if name in ("means", "direction") else ""
                    raise PLNDError(f"kind={owner} needs {name}{made}")
        for name in ("factor", "strength"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and math.isfinite(value)):
                raise PLNDError(f"{name}={value!r}: expected a finite number")

    def record(self) -> dict[str, Any]:
        """What results and exports say of it."""
        found: dict[str, Any] = {"kind": self.kind, "factor": self.factor, "strength": self.strength}
        for name in ("means", "direction"):
            artifact = getattr(self, name)
            found[name] = artifact.digest if isinstance(artifact, Means | Direction) else None
        return {name: value for name, value in found.items() if value is not None}

    def check_model(self, description: Mapping[str, Any]) -> None:
        """Refuses a model that the means, or the direction, are not of.

        Raises:
            ModelMismatchError: naming the first difference.
        """
        for artifact in (self.means, self.direction):
            if isinstance(artifact, Means | Direction):
                artifact.check_model(description)

    def amounts(self, name: str, width: int, indices: np.ndarray | slice = slice(None)) -> Tensor | None:
        """The values of `mean`, or what `steer` adds, of some neurons of one projection, [neurons] float64.

        Raises:
            PLNDError: if they are missing, of another width, or not finite.
        """
        if self.kind not in ("mean", "steer"):
            return None
        source: Any = self.means if self.kind == "mean" else self.direction
        source = getattr(source, "neurons", source)
        found = source.get(name)
        if found is None or np.shape(found) != (width,):
            what = "no values" if found is None else f"values of shape {np.shape(found)}"
            raise PLNDError(f"{name}: {what}, expected the mean of each of its {width} neurons")
        chosen = np.asarray(found, dtype=np.float64)[indices]
        if not np.isfinite(chosen).all():
            raise PLNDError(f"{name}: a mean that is not finite: take it over other documents, or in another dtype")
        return torch.from_numpy(chosen.copy()) * (1.0 if self.strength is None else self.strength)

    def changed(self, values: Tensor, amounts: Tensor | None) -> Tensor:
        """What the values, [..., neurons], become; `amounts` are those of the neurons."""
        if self.kind == "zero":
            return torch.zeros_like(values)
        if self.kind == "scale":
            assert self.factor is not None
            return values * self.factor
        assert amounts is not None
        amounts = amounts.to(values.device, values.dtype)
        return amounts.expand_as(values) if self.kind == "mean" else values + amounts

    @contextmanager
    def applied(self, model: nn.Module, neurons: NeuronSet, *, mode: Mode = "auto") -> Iterator[nn.Module]:
        """As `intervened`."""
        if mode not in MODES:
            raise PLNDError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
        if self.kind == "zero":
            # hooks that are there already would come after what is zero in the weights, and the outermost would decide
            inside = mode == "auto" and replaces(unwrap(model, spread=True))
            with deactivated(model, neurons, mode="activations" if inside else mode):
                yield model
            return
        check_set(neurons)
        layout = Layout(model)
        neurons.check_model(layout.description())
        self.check_model(layout.description())
        targets = [layout.targets[name] for name, _ in neurons.items()]
        weights = _in_weights(self.kind, layout, targets, mode)
        if not weights:
            _check_alone(layout, targets)
        chosen = [(target, neurons.indices[target.name]) for target in targets]
        amounts = [self.amounts(target.name, target.width, indices) for target, indices in chosen]
        with ExitStack() as stack:
            stack.enter_context(replacing(layout.model))
            for (target, indices), amount in zip(chosen, amounts, strict=True):
                own = torch.from_numpy(indices).long()
                if weights:
                    assert self.factor is not None
                    stack.enter_context(_scaled_weights(layout.model, target, own, self.factor))
                    continue
                change = _Change(self, target, own, amount)
                for handle in change.hooks():
                    stack.callback(handle.remove)
            yield model


@contextmanager
def intervened(
    model: nn.Module,
    neurons: NeuronSet,
    *,
    kind: Kind = "zero",
    factor: float | None = None,
    means: Means | Mapping[str, np.ndarray] | None = None,
    direction: Direction | Mapping[str, np.ndarray] | None = None,
    strength: float | None = None,
    mode: Mode = "auto",
) -> Iterator[nn.Module]:
    """The model with the values of `neurons` changed; on exit, also by an exception, it is bit for bit what it was.

    Inside, what `torch.compile` made runs as if it were not compiled (but for `zero`). Contexts may be nested, and end
    in reverse order: what comes in first happens first, so that of two means the innermost decides, and two factors
    multiply. A copy of the model that is made inside keeps the values changed; with hooks it cannot be pickled.

    Args:
        model: as for `plnd.deactivated`.
        neurons: which.
        kind: one of `KINDS`; `zero` is `plnd.deactivated`.
        factor: of `scale`.
        means: of `mean`; see `Intervention`.
        direction: of `steer`; see `Intervention`.
        strength: of `steer`, 1 by default.
        mode: `weights` multiplies rows and columns in place, or zeroes them, at no cost per token; `activations` hangs
            hooks on the modules; `auto` takes weights where `plnd.deactivated` does. A mean and a direction have no
            form in weights alone.

    Raises:
        ModelMismatchError: if neurons, means or direction were made for a model of another family, depth or width.
        FamilyError: if, with hooks, neurons lie in fused experts that are packed, or a module serves two blocks; in a
            pass, if a block runs without the module that has them.
        PLNDError: if kind, mode or what the kind needs is missing or makes no sense; if another thread works on the
            model; in a pass, if an adapter was put around a module inside; on exit, if weights were written to inside.
    """
    intervention = Intervention(kind, factor, means, direction, strength)
    with intervention.applied(model, neurons, mode=mode):
        yield model


@contextmanager
def steered(
    model: nn.Module, direction: Direction, *, strength: float = 1.0, blocks: Iterable[str | int] | None = None
) -> Iterator[nn.Module]:
    """The model with a direction added to what leaves its blocks, at every token: DiffMean steering.

    It goes together with `intervened` and `deactivated`, inside or around, and leaves no trace.

    Args:
        model: as for `plnd.deactivated`.
        direction: what `plnd.reference` recorded.
        strength: how many times the direction; 1 is the difference of the means itself, negative leads away.
        blocks: names of those at which it is added; by default all of the direction's.

    Raises:
        ModelMismatchError: if the direction is of a model of another family, depth or width.
        PLNDError: if the direction has none for a block; if another thread works on the model.
    """
    if not (is_real(strength) and math.isfinite(strength)):
        raise PLNDError(f"strength={strength!r}: expected a finite number")
    layout = Layout(model)
    direction.check_model(layout.description())
    vectors = direction.chosen(blocks)
    modules = {block.name: block.module for block in layout.blocks}
    with ExitStack() as stack:
        stack.enter_context(replacing(layout.model))
        for name, vector in vectors.items():
            hook = _Addition(torch.from_numpy(vector.copy()), float(strength))
            stack.callback(modules[name].register_forward_hook(hook).remove)
        yield model


class _Addition:
    """A hook that adds a vector, [hidden] float32, times a strength to what leaves a block.

    In the arithmetic of lm-eval's own `steered` model: the vector in the model's dtype, times the strength, added.
    """

    def __init__(self, vector: Tensor, strength: float) -> None:
        self.vector, self.strength = vector, strength

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + self.vector.to(hidden.device).to(hidden.dtype) * self.strength
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def scaled(values: Tensor, factor: float) -> Tensor:
    """Numbers times a factor, in their own dtype; zeros keep their sign, which says of one that it is switched off."""
    return torch.where(values == 0, values, values * factor)


def _in_weights(kind: str, layout: Layout, targets: list[Target], mode: Mode) -> bool:
    """Whether to change weights; otherwise hooks change values."""
    if kind != "scale":
        if mode == "weights":
            raise PLNDError(
                f"kind={kind} adds a constant, which weights without a bias do not have: use mode=activations"
                " (plnd export folds it into biases where there are some)"
            )
        return False
    if mode == "activations" or (mode == "auto" and replaces(layout.model)):
        return False
    reason = obstacle(layout.model, targets)
    if reason and mode == "weights":
        raise PLNDError(f"{reason}: its weights cannot be scaled in place; use mode=activations")
    return not reason


@contextmanager
def _scaled_weights(model: nn.Module, target: Target, indices: Tensor, factor: float) -> Iterator[None]:
    """Every parameter of some neurons of one projection, weights and biases, times a factor; exact again on exit.

    What entries were, and what they are now, lie beside them as buffers that are cast and moved as they are.

    Raises:
        PLNDError: on exit, if they are not what they were left as; they then stay as they are.
    """
    edits: list[_Scaled] = []
    hook = target.block.register_forward_pre_hook(lambda block, args: _check_place(target))
    try:
        with editing():
            for name in target.names:
                edits.append(_Scaled(target, name, indices))
                edits[-1].write(factor)
            changed(model)
        yield
    finally:
        hook.remove()
        with editing():
            changed(model)
            wrong = [problem for edit in reversed(edits) if (problem := edit.restore())]
        if wrong:
            raise PLNDError(wrong[0])


class _Scaled:
    """The entries of one parameter that are scaled at the moment."""

    def __init__(self, target: Target, name: str, indices: Tensor) -> None:
        self.target, self.name, self.indices, self.module = target, name, indices, target.plain
        self.buffers = [f"_plnd_{part}_{id(self)}_{target.projection.name}_{name}" for part in ("before", "scaled")]
        self._keep(self.buffers[0], self._read())

    def write(self, factor: float) -> None:
        """Scales them."""
        self._keep(self.buffers[1], scaled(self.module._buffers[self.buffers[0]], factor))  # type: ignore[arg-type]
        self._write(self.module._buffers[self.buffers[1]])

    def restore(self) -> str | None:
        """Gives them back what they were; if they are not as they were left, says so and leaves them."""
        before, after = (self.module._buffers.pop(name, None) for name in self.buffers)
        for name in self.buffers:
            self.module._non_persistent_buffers_set.discard(name)
        if after is None:
            return None
        try:
            same = torch.equal(self._read().nan_to_num(), after.nan_to_num())
        except (RuntimeError, IndexError, AttributeError, NotImplementedError):  # of another kind, shape or device
            same = False
        if same:
            self._write(before)
            return None
        return (
            f"{self.target.name}: its {self.name} was written to while its neurons were scaled (by an optimizer, a"
            " merged adapter, a state that was loaded, a context that ended out of order), and stays as written: do"
            " that before or after"
        )

    def _keep(self, name: str, values: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.module.register_buffer(name, values.clone(), persistent=False)

    def _view(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        view = self.target.neurons_first(getattr(self.module, self.name))
        return view, self.target.position(self.indices.to(view.device))

    def _read(self) -> Tensor:
        with torch.no_grad():
            view, position = self._view()
            return view[position]

    def _write(self, values: Any) -> None:
        stored = getattr(self.module, self.name)
        with torch.inference_mode(stored.is_inference()), torch.no_grad():
            view, position = self._view()
            view[position] = values


def _check_alone(layout: Layout, targets: list[Target]) -> None:
    """Refuses neurons of a module that serves two blocks."""
    modules = [id(module) for _, module in layout.model.named_modules(remove_duplicate=False)]
    for target in targets:
        if modules.count(id(target.module)) > 1:
            raise FamilyError(f"{target.name}: its module is shared with another block; it cannot be changed alone")


def _check_place(target: Target) -> None:
    """A target's module is where it was.

    Raises:
        PLNDError: if something else is there.
    """
    try:
        found: Any = locate(target.block, target.projection.module)
    except AttributeError:
        found = None
    if found is not target.module:
        raise PLNDError(
            f"{target.name} has become {type(found).__name__}, from {type(target.module).__name__}, while its neurons'"
            " values were changed: add, merge and unload adapters before or after"
        )


class _Change:
    """The hooks that change the values of some neurons of one projection.

    Args:
        intervention: how.
        target: the projection.
        neurons: which, int64 [neurons].
        amounts: `Intervention.amounts` of the neurons.
    """

    def __init__(self, intervention: Intervention, target: Target, neurons: Tensor, amounts: Tensor | None) -> None:
        self.intervention, self.target, self.amounts, self.ran = intervention, target, amounts, False
        if target.experts is None:
            self.index = target.storage(neurons)
        else:
            self.experts = ByExpert(target, neurons)

    def hooks(self) -> Iterator[Any]:
        """Puts them in place: one that changes, and two that hold the block to running it."""
        module = self.target.module
        if self.target.experts is not None:
            yield change_values(self.target, self._of_expert)
            yield module.register_forward_pre_hook(lambda module, args: self._runs())
        elif self.target.projection.axis == "row":
            yield module.register_forward_hook(lambda module, args, output: self._changed(output))
        else:
            yield module.register_forward_pre_hook(lambda module, args: (self._changed(args[0]), *args[1:]))
        yield self.target.block.register_forward_pre_hook(lambda block, args: self._before())
        yield self.target.block.register_forward_hook(lambda block, args, output: self._after())

    def _changed(self, features: Tensor) -> Tensor:
        self._runs()
        return self._replaced(features, self.index, self.amounts)

    def _of_expert(self, routed: Routed, features: Tensor) -> Tensor:
        if routed.expert not in self.experts.of:
            return features
        index, own = self.experts.of[routed.expert]
        return self._replaced(features, index, None if self.amounts is None else self.amounts[own])

    def _replaced(self, features: Tensor, index: Tensor, amounts: Tensor | None) -> Tensor:
        index = index.to(features.device)
        values = self.intervention.changed(features.index_select(-1, index), amounts)
        return features.index_copy(-1, index, values)

    def _runs(self) -> None:
        self.ran = True

    def _before(self) -> None:
        self.ran = False
        _check_place(self.target)

    def _after(self) -> None:
        if not self.ran:
            raise FamilyError(
                f"{self.target.name}: its block ran without calling {type(self.target.module).__name__}, so that the"
                " values of its neurons cannot be changed: use kind=zero"
            )
