"""Deactivates neurons (zero ablation): every parameter of one (weights and, for a row, bias) is zero while it lasts.

Two ways with one result. **weights** zeroes rows and columns in place: no cost per token, for ordinary dense weights.
**activations** zeroes a row's output or a column's input in a hook: for weights that are quantised, shared or wrapped
by a PEFT adapter.

What is off is written down once per model, however the model is wrapped: contexts may overlap and end in any order, and
an entry comes back when the last one that holds it ends. What an entry was lies beside its weight, in a buffer of the
same module, so that a model that is cast or moved meanwhile comes back as if it had been cast or moved before; a state
dictionary that is loaded meanwhile is what comes back. Where something else writes to the entries, or puts another
module in their place, that is said in one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from plnd.errors import FamilyError, PLNDError
from plnd.models.experts import ZeroValues, change_values
from plnd.models.layout import Layout, Target, locate, unwrap
from plnd.models.parts import Parts
from plnd.models.quantised import packing
from plnd.models.running import changed, editing, forget_compiled, lease
from plnd.models.spread import local
from plnd.neurons.neuron_set import NeuronSet, check_set

Mode = Literal["auto", "weights", "activations"]
MODES = ("auto", "weights", "activations")


@contextmanager
def deactivated(model: nn.Module, neurons: NeuronSet, *, mode: Mode = "auto") -> Iterator[nn.Module]:
    """The model with `neurons` ablated; on exit, also by an exception, every parameter is bit for bit what it was.

    Or what it would be, if the model is cast or moved inside. Contexts may be nested, repeated, and close in any order.
    In training, the neurons' weights get no gradient. A copy of the model that is made inside keeps the neurons off; so
    does its state in `weights` mode, while that of `activations` mode has them on. A backward pass belongs inside, too:
    afterwards torch refuses it, but gradient checkpointing computes the blocks again, with the neurons on.

    Args:
        model: a transformers model of a known family, or a PEFT model, a pipeline, `DataParallel`,
            `DistributedDataParallel` or `torch.compile` around one.
        neurons: what to switch off.
        mode: `auto` takes `weights` where every touched weight is dense, on a device, unshared and not wrapped by an
            adapter. With `activations`, what `torch.compile` made is compiled anew, here and on exit.

    Raises:
        ModelMismatchError: if the neurons were made for a model of another family, depth or width.
        PLNDError: if `mode="weights"` and a weight cannot be edited in place; if another thread works on the model, or
            any does on another one that shares modules or weights with it; and, in the next forward pass or on exit, if
            an adapter was put around the neurons or taken away; and, in the next forward pass that is not compiled or
            on exit, if the entries were written to inside (by an optimizer, a merge, by hand), which then stay as
            written while all others are restored.
    """
    off = deactivate(model, neurons, mode=mode)
    try:
        yield model
    finally:
        off.close()


def deactivate(model: nn.Module, neurons: NeuronSet, *, mode: Mode = "auto", holder: str | None = None) -> Deactivation:
    """Ablates `neurons` until the returned object is closed (or called), which restores the model bit for bit.

    Arguments and errors as for `deactivated`; nothing has changed if this raises.

    Args:
        model: as for `deactivated`.
        neurons: as for `deactivated`.
        mode: as for `deactivated`.
        holder: who asks. What the same holder has switched off on the same model until now is closed.
    """
    if mode not in MODES:
        raise PLNDError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
    check_set(neurons)
    layout = Layout(model, spread=True)
    neurons.check_model(layout.description())
    reason = obstacle(layout.model, [layout.targets[name] for name, _ in neurons.items()])
    if mode == "weights" and reason:
        raise PLNDError(f"{reason}: its weights cannot be zeroed in place; use mode=activations")
    if mode == "auto":
        mode = "activations" if reason else "weights"
    parts = Parts(layout)
    places = parts.stored if mode == "weights" else parts.seen
    targets = [
        (places[name].target, places[name].own(torch.from_numpy(chosen).long())) for name, chosen in neurons.items()
    ]
    targets = [(target, own) for target, own in targets if len(own)]
    with editing():
        replaced = [off for off in active(layout.model) if holder is not None and off.holder == holder]
        off = Deactivation(layout.model, neurons, mode, holder, targets)
        for other in replaced:
            other.close()
    return off


def active(model: nn.Module) -> tuple[Deactivation, ...]:
    """What is switched off on a model at the moment, in the order in which it was opened."""
    return tuple(_RECORDS.get(unwrap(model, spread=True), _Record()).open)


def what_is_off(model: nn.Module) -> list[dict[str, Any]]:
    """What artifacts say of it that are measured on the model meanwhile: digest, language and number of each set."""
    return [
        {"sha256": each.neurons.digest, "language": each.neurons.metadata.language, "neurons": len(each.neurons)}
        for each in active(model)
    ]


class Deactivation:
    """Neurons that are switched off until `close`, made by `deactivate`.

    Attributes:
        neurons: which.
        mode: `weights` or `activations`: how.
        holder: who asked, if somebody said so.
        closed: whether they are back.
    """

    def __init__(
        self,
        model: nn.Module,
        neurons: NeuronSet,
        mode: Mode,
        holder: str | None,
        targets: Sequence[tuple[Target, Tensor]],
    ) -> None:
        self.neurons, self.mode, self.holder, self.closed = neurons, mode, holder, False
        self._model = ref(model)
        self._undo: list[Callable[[], None]] = []
        self._kept: list[_Kept] = []
        with editing(), ExitStack() as failed:
            failed.callback(self.close)
            self._undo.append(lease(model))
            record = _RECORDS.setdefault(model, _Record())
            record.open.append(self)
            if mode == "weights":
                self._zero_weights(record, targets)
            else:
                self._undo.append(forget_compiled)
                for hook in _zero_activations(targets):
                    self._undo.append(hook.remove)
                forget_compiled()
            self._watch(record, [target for target, _ in targets])
            changed(model)
            failed.pop_all()

    def __repr__(self) -> str:
        state = "back" if self.closed else "off"
        return f"Deactivation({len(self.neurons):,} neurons {state}, mode={self.mode!r}, holder={self.holder!r})"

    def __call__(self) -> None:
        """The same as `close`."""
        self.close()

    def close(self) -> None:
        """Gives the neurons back what they were; a second time it does nothing.

        Raises:
            PLNDError: if an entry cannot be given back, for what happened to it meanwhile; all others are.
        """
        with editing():
            self.closed, undo, self._undo = True, self._undo, []
            model = self._model()
            if model is not None and undo:
                changed(model)
            record = None if model is None else _RECORDS.get(model)
            if record is not None and self in record.open:
                record.open.remove(self)
            errors = []
            for action in reversed(undo):
                try:
                    action()
                except PLNDError as error:
                    errors.append(str(error))
            if errors:
                more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
                raise PLNDError(errors[-1] + more)

    def _zero_weights(self, record: _Record, targets: Sequence[tuple[Target, Tensor]]) -> None:
        for target, indices in targets:
            for name in target.names:
                kept = record.kept.get((target.name, name))
                if kept is None or kept.module is not target.plain:
                    row = record.kept[target.name, target.names[0]] if name != target.names[0] else None
                    kept = record.kept[target.name, name] = _Kept(target, name, row)
                kept.hold(indices)
                self._undo.append(partial(kept.release, indices, self._model))
                self._kept.append(kept)
        seen = register_module_module_registration_hook(partial(_registered, ref(self)))
        finalize(self, seen.remove)
        self._undo.append(seen.remove)

    def _watch(self, record: _Record, targets: list[Target]) -> None:
        """A hook at each block that looks after its own targets before the block runs."""
        blocks: dict[int, list[Target]] = {}
        for target in targets:
            blocks.setdefault(id(target.block), []).append(target)
        for own in blocks.values():
            kept = [record.kept[target.name, name] for target in own for name in target.names] if self.weights else []
            self._undo.append(partial(_check_places, own))
            self._undo.append(own[0].block.register_forward_pre_hook(_Watch(own, kept), prepend=True).remove)

    @property
    def weights(self) -> bool:
        """Whether weights are zero, not activations."""
        return self.mode == "weights"


@contextmanager
def zeroed(target: Target, indices: Sequence[int]) -> Iterator[None]:
    """The neurons `indices` of one projection with zero parameters, restored on exit."""
    edits = []
    for tensor in target.parameters():
        position = target.position(torch.as_tensor(indices, dtype=torch.long, device=tensor.device))
        edits.append((tensor, position, tensor[position].clone()))
    try:
        for tensor, position, _ in edits:
            tensor[position] = 0
        yield
    finally:
        for tensor, position, values in edits:
            tensor[position] = values


def _registered(off: ref[Deactivation], parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """A hook of all modules: one of those with zeros has been put into another, as adapters do before they merge."""
    deactivation = off()
    for kept in () if deactivation is None else deactivation._kept:
        if kept.module is child:
            kept.doubt()


class _Record:
    """What is off on one model: the open deactivations, and by address and parameter name what weights were."""

    def __init__(self) -> None:
        self.open: list[Deactivation] = []
        self.kept: dict[tuple[str, str], _Kept] = {}


_RECORDS: WeakKeyDictionary[nn.Module, _Record] = WeakKeyDictionary()


class _Kept:
    """The entries of one parameter that are zero at the moment, and what they were.

    They are -0: as a factor that is 0, it stays -0 through every cast, and whatever else writes to an entry (a state
    that is loaded may hold zeros) leaves another number there. What they were is a buffer of the parameter's module,
    which no state dictionary has, and which is cast and moved as the parameter is.

    Attributes:
        neurons: whose entries, int64 [neurons], in the order of the buffer.
        counts: how many deactivations hold each, int64 [neurons].
        row: of a bias, the weight's, which holds the same neurons.
        doubtful: whether the module has been put into another one since the entries were last read.
        written: which of them the last state that was loaded had, bool [neurons].
    """

    def __init__(self, target: Target, name: str, row: _Kept | None) -> None:
        self.target, self.name, self.module, self.row = target, name, target.plain, row
        self.buffer = f"_plnd_{target.projection.name}_{name}"
        self.neurons, self.counts = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        self.written = torch.empty(0, dtype=torch.bool)
        self.doubtful = False
        self._stamp: tuple | None = None
        self._hooks: list[Any] = []
        self._trained: Callable[[], Tensor | None] = lambda: None

    def hold(self, indices: Tensor) -> None:
        """Zeroes what is not zero yet of some neurons' entries; nothing has changed if this raises."""
        new = indices[~torch.isin(indices, self.neurons)]
        if len(self.neurons) and (wrong := self._wrong()):
            raise PLNDError(wrong)
        with torch.inference_mode(False), torch.no_grad():
            values = self._read(new)
            if len(self.neurons):
                values = torch.cat([getattr(self.module, self.buffer).to(values), values])
            self.module.register_buffer(self.buffer, values, persistent=False)  # may raise, before anything is zero
            self._write(new, -0.0)
        self.neurons = torch.cat([self.neurons, new])
        self.counts = torch.cat([self.counts, torch.zeros_like(new)]) + torch.isin(self.neurons, indices)
        if not self._hooks:
            self._hooks = [self.module.register_load_state_dict_post_hook(_OfOriginal(self._adopt))]
            self._hook_gradient()

    def release(self, indices: Tensor, whole: Callable[[], nn.Module | None]) -> None:
        """Gives back what nobody else holds; `whole` is the model, if it is still there.

        Raises:
            PLNDError: if it cannot be given back; it then stays as it is.
        """
        self.counts = self.counts - torch.isin(self.neurons, indices).long()
        done = self.counts == 0
        neurons, kept = self.neurons[done], self.module._buffers.get(self.buffer)
        wrong = self._wrong(neurons) if len(neurons) else None
        if not wrong and kept is None and len(neurons):
            wrong = f"{self.target.name}: what its weights were is gone from {type(self.module).__name__}"
        model = whole()
        if (
            not wrong
            and len(neurons)
            and model is not None
            and not any(self.module is module for module in model.modules())
        ):
            wrong = f"{self.target.name}: its module has been replaced by another while its neurons were switched off"
        with torch.inference_mode(False), torch.no_grad():
            if not wrong and kept is not None and len(neurons):
                self._write(neurons, kept[done.to(kept.device)])
            self.neurons, self.counts = self.neurons[~done], self.counts[~done]
            if kept is not None and len(self.neurons):
                self.module._buffers[self.buffer] = kept[~done.to(kept.device)]
            elif kept is not None:
                delattr(self.module, self.buffer)
        if not len(self.neurons):
            self._forget()
        if wrong:
            raise PLNDError(wrong)

    def _forget(self) -> None:
        """Nobody holds anything here."""
        while self._hooks:
            self._hooks.pop().remove()
        self._trained = lambda: None

    def doubt(self) -> None:
        """The next check reads the entries, whatever else is as it was: PEFT writes past a parameter's version."""
        self.doubtful = True

    def check(self) -> None:
        """Says so, if an entry is not as it was left; costs nothing as long as nobody has touched the parameter.

        Raises:
            PLNDError: what happened.
        """
        if len(self.neurons) and (self.doubtful or self._stamp is None or self._seen() != self._stamp):
            stored = self._stored()
            if isinstance(stored, Tensor) and stored.is_meta:
                return  # not on a device between passes
            if wrong := self._wrong():
                raise PLNDError(wrong)
            self._stamp, self.doubtful = self._seen(), False

    def _stored(self) -> Any:
        """The parameter, or this process's part of one that is spread over processes."""
        return local(self._parameter())

    def _parameter(self) -> Any:
        return getattr(self.module, self.name, None)

    def _seen(self) -> tuple | None:
        """What changes with the parameter, unless it is written to as `.data`; None for one that has no version."""
        stored = self._stored()
        if not isinstance(stored, Tensor) or stored.is_inference():
            return None
        place = 0 if stored.is_meta else stored.data_ptr()
        parameter = self._parameter()
        return id(parameter), stored._version, parameter.requires_grad, stored.dtype, stored.device, place

    def _wrong(self, neurons: Tensor | None = None) -> str | None:
        """Why some neurons' entries, by default all, are not what they were left as, in words; None if they are."""
        stored, name = self._stored(), self.target.name
        if not _is_dense(stored) or stored.is_meta:
            how = "moved to the meta device" if isinstance(stored, Tensor) and stored.is_meta else "made another kind"
            return (
                f"{name}: its {self.name} ({type(stored).__name__}) was {how} while its neurons were switched off, so"
                " they cannot be restored: quantise, shard or offload before or after; now load the model again"
            )
        try:
            values = self._read(self.neurons if neurons is None else neurons)
        except IndexError:
            return f"{name}: its {self.name} has another shape than when its neurons were switched off"
        if bool((values == 0).all()) and bool(torch.signbit(values).all()):
            return None
        return (
            f"{name}: its {self.name} was written to while its neurons were switched off (by an optimizer, a merged"
            " adapter, by hand), and stays as written: do that before or after"
        )

    def _read(self, neurons: Tensor) -> Tensor:
        """Entries of some neurons, a copy, neurons first."""
        with torch.no_grad():
            view = self.target.neurons_first(self._stored())
            return view[self.target.position(neurons.to(view.device))]

    def _write(self, neurons: Tensor, values: Tensor | float) -> None:
        stored = self._stored()
        with torch.inference_mode(stored.is_inference()), torch.no_grad():
            view = self.target.neurons_first(stored)
            view[self.target.position(neurons.to(view.device))] = (
                values.to(view) if isinstance(values, Tensor) else values
            )
        self._stamp = self._seen()

    def _adopt(self) -> None:
        """What a state dictionary has just written to the entries is what they were, and they are zero again.

        A neuron of which every number is still -0 was not in it, or was off when the state was saved. A bias is one
        number, which may be -0 by itself: it goes with its row.
        """
        stored, kept = self._stored(), self.module._buffers.get(self.buffer)
        if not _is_dense(stored) or stored.is_meta or kept is None:
            return
        values = self._read(self.neurons)
        written = ((values != 0) | ~torch.signbit(values)).reshape(len(values), -1).any(1)
        if self.row is not None:
            written = written | self.row.written.to(values.device)
        self.written = written
        if bool(written.any()):
            entries = written.view(-1, *[1] * (values.dim() - 1))
            self.module._buffers[self.buffer] = torch.where(entries, values, kept.to(values))
            self._write(self.neurons, -0.0)
            self._hook_gradient()

    def _hook_gradient(self) -> None:
        """The parameter, which may be a new one, gets no gradient at the entries."""
        parameter = self._parameter()
        if parameter.requires_grad and parameter is not self._trained():
            self._trained = ref(parameter)
            self._hooks.append(parameter.register_hook(self._without_gradient))

    def _without_gradient(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        view = self.target.neurons_first(local(gradient))
        view[self.target.position(self.neurons.to(view.device))] = 0
        return gradient


def _zero_activations(targets: Sequence[tuple[Target, Tensor]]) -> Iterator[Any]:
    """Hooks that zero what leaves a row or enters a column, in place one by one; of fused experts, changes.

    Raises:
        FamilyError: if that is not possible for fused experts.
    """
    for target, indices in targets:
        if target.experts is not None:
            yield change_values(target, ZeroValues(target, indices))
            continue
        index = target.storage(indices)
        if target.projection.axis == "row":
            yield target.module.register_forward_hook(_ZeroOutput(index))
        else:
            yield target.module.register_forward_pre_hook(_ZeroInput(index))


class _ZeroOutput:
    """A hook that zeroes some features, int64 [features], of a module's output; copies with the module."""

    def __init__(self, index: Tensor) -> None:
        self.index = index

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.index_fill(-1, self.index.to(output.device), 0)


class _ZeroInput(_ZeroOutput):
    """A hook that zeroes some features of a module's input."""

    def __call__(self, module: nn.Module, args: tuple) -> tuple[Any, ...]:  # type: ignore[override]
        return (args[0].index_fill(-1, self.index.to(args[0].device), 0), *args[1:])


class _OfOriginal:
    """A hook of a module, but not of its copies, which have zeros and no record."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def __call__(self, module: nn.Module, _: Any) -> None:
        self.action()

    def __deepcopy__(self, memo: dict) -> Callable:
        return _pass

    def __reduce__(self) -> tuple:
        return _nobody, ()


class _Watch(_OfOriginal):
    """Looks after a block's projections before it runs; compiled code is compiled anew where they have moved."""

    def __init__(self, targets: list[Target], kept: list[_Kept]) -> None:
        super().__init__(partial(_check, targets, kept))
        self.kept = kept
        self.places = []
        for target in targets:
            parent = target.block
            for name in target.projection.module.split("."):
                self.places.append((parent, name, getattr(parent, name)))
                parent = getattr(parent, name)

    def __call__(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() or self._moved():
            self.action()

    def _moved(self) -> bool:
        for parent, name, child in self.places:  # a loop that dynamo can trace
            if getattr(parent, name) is not child:
                return True
        for kept in self.kept:
            if kept.doubtful:
                return True
        return False


def _pass(module: nn.Module, _: Any) -> None:
    """The hook of a copied module."""


def _nobody() -> Callable:
    return _pass


def _check(targets: list[Target], kept: list[_Kept]) -> None:
    """Before a block runs: its projections are where they were, and what is off in them is off.

    Raises:
        PLNDError: what happened.
    """
    _check_places(targets)
    for one in kept:
        one.check()


def _check_places(targets: list[Target]) -> None:
    for target in targets:
        try:
            found: Any = locate(target.block, target.projection.module)
        except AttributeError:
            found = None
        if found is not target.module:
            raise PLNDError(
                f"{target.name} has become {type(found).__name__}, from {type(target.module).__name__}, while its"
                " neurons were switched off: add, merge and unload adapters before or after"
            )


def _is_dense(weight: Any) -> bool:
    """Whether a weight has an entry of its own in memory for each of its numbers."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or type(weight.data) is not Tensor:
        return False
    return weight.layout == torch.strided and not any(
        size > 1 and not stride for size, stride in zip(weight.shape, weight.stride(), strict=True)
    )


def obstacle(model: nn.Module, targets: list[Target]) -> str | None:
    """Why weights of `targets` must not be edited in place, in words; None if they may.

    Raises:
        FamilyError: if a module itself serves two blocks, so that neither mode can touch one of them alone.
    """
    modules = Counter(id(module) for name, module in model.named_modules(remove_duplicate=False))
    pointers = Counter(
        local(parameter).data_ptr()
        for _, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.is_meta
    )
    for target in targets:
        if modules[id(target.module)] > 1:
            raise FamilyError(
                f"{target.name}: its module is shared with another block; its neurons cannot be switched off alone"
            )
    for target in targets:
        weight = local(target.stored)
        if target.module is not target.plain:
            return f"{target.name} is wrapped by an adapter ({type(target.module).__name__})"
        if isinstance(weight, Tensor) and weight.is_meta:
            return f"{target.name} is offloaded"
        if reason := packing(target.plain, target.projection.parameter):
            return f"{target.name} is quantised or sharded ({reason})"
        if not _is_dense(weight):
            return f"{target.name} is sparse, or several of its entries are one in memory"
        if pointers[weight.data_ptr()] > 1:
            return f"{target.name} shares its weight with another module"
    return None
