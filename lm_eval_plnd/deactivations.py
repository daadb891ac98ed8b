"""What a `plnd` model is evaluated without: a mask, roles, or nothing but an adapter; and what is done instead of zero.

Each is one value, read from model arguments and checked before any weight is loaded.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.deactivation import MODES, Mode
from plnd.errors import PLNDError
from plnd.interventions import KINDS, Intervention, steered
from plnd.model_description import base_model, is_hub_name
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.references.direction import Direction, named_blocks
from plnd.references.means import Means
from plnd.roles.deactivation import Choice
from plnd.roles.roles import ROLES, Roles

if TYPE_CHECKING:
    from torch import nn

    from lm_eval_plnd.documents import DocumentLM

CONTROLS = ("random",)
REMEDY = "add pretrained=, a folder or hub name"

_OF_PARTS = ("regions", "projections", "under", "gen", "mode")
_OF_DRAWS = ("control", "seed")
_OF_ROLES = ("deactivate", "share")
_OF_KINDS = ("intervene", "factor", "means")
_OF_STEERING = ("steer", "strength", "blocks")
ARGUMENTS = ("mask", *_OF_PARTS, *_OF_DRAWS, "roles", *_OF_ROLES, *_OF_KINDS, *_OF_STEERING)
"""The model arguments that say what to deactivate, or what to do instead."""


class Deactivation(ABC):
    """One source of what is deactivated."""

    @abstractmethod
    def base_model(self) -> tuple[str, str | None]:
        """Name and revision of the model that it was made for.

        Raises:
            PLNDError: if it names none, or a folder that is not here.
        """

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the results file says of it."""

    @property
    def digest(self) -> str | None:
        """Names what the model is evaluated without, by content; None: nothing."""
        return None

    @abstractmethod
    def attach(self, lm: DocumentLM) -> None:
        """Checks the loaded model, and prepares it for requests.

        Raises:
            ModelMismatchError: if it was made for another model.
        """

    def applied(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While it lasts, the model is without what does not differ by request."""
        return nullcontext()


@dataclass(frozen=True)
class MaskDeactivation(Deactivation):
    """The same neurons in every request.

    Attributes:
        path: the mask's file, if it has one.
        mask: the whole mask.
        chosen: those of it that are deactivated, or in whose place the control is drawn.
        mode: as of `plnd.intervened`.
        options: the arguments that chose among the mask, for the results file.
        intervention: what becomes of the neurons' values.
    """

    path: str | None
    mask: NeuronSet
    chosen: NeuronSet
    mode: Mode
    options: Mapping[str, Any]
    intervention: Intervention

    @cached_property
    def neurons(self) -> NeuronSet:
        """What is deactivated. A control is drawn when it is wanted first, after the model was checked."""
        return self.chosen if self.options["control"] is None else self.chosen.random_like(self.options["seed"])

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> MaskDeactivation:
        """From model arguments.

        Raises:
            PLNDError: if the mask cannot be read, an argument makes no sense, or no neuron is left.
        """
        control, mode = given.get("control"), given.get("mode", "auto")
        if control is not None and control not in CONTROLS:
            raise PLNDError(f"unknown control {control!r}: expected {', '.join(CONTROLS)}")
        if mode not in MODES:
            raise PLNDError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
        if control is None and "seed" in given:
            raise PLNDError("seed= draws the neurons of control=random: give both or neither")
        seed = _whole("seed", given.get("seed", 0))
        parts = {name: _whole(name, given[name]) for name in ("under", "gen") if name in given}
        regions = _names("regions", given["regions"]) if "regions" in given else None
        projections = _names("projections", given["projections"]) if "projections" in given else None
        if regions is None and parts:
            raise PLNDError("under= and gen= say how large the regions are: name some with regions=")
        chosen = None if regions is None else Regions.parse(regions, parts.get("under"), parts.get("gen"))
        path, mask = _opened("mask", given["mask"], NeuronSet)
        neurons = mask
        if chosen is not None or projections is not None:
            neurons = mask.restrict(projections=projections, regions=chosen)
        if not len(neurons):
            raise PLNDError(
                f"mask {path or 'from Python'}: {_why_empty(mask, regions, projections)}, so that the whole model would"
                " be evaluated; choose others, or take --model hf"
            )
        options = {
            "regions": None if regions is None else "+".join(regions),
            "projections": None if projections is None else "+".join(projections),
            "under": parts.get("under"),
            "gen": parts.get("gen"),
            "control": control,
            "seed": seed if control else None,
            "mode": mode,
        }
        return cls(path, mask, neurons, mode, options, _intervention(given))

    def base_model(self) -> tuple[str, str | None]:  # noqa: D102
        return base_model(self.mask.model, f"mask {self.path or 'from Python'}", REMEDY)

    def record(self) -> dict[str, Any]:  # noqa: D102
        return {
            "mask": self.path,
            "mask_sha256": self.mask.digest,
            "language": self.mask.metadata.language,
            "neurons": len(self.neurons),
            "of": self.neurons.total,
            "counts": self.neurons.counts(),
            **self.options,
            "intervene": self.intervention.record(),
        }

    @property
    def digest(self) -> str:  # noqa: D102
        if self.intervention.kind == "zero":
            return self.neurons.digest
        return _digest(self.neurons.digest, self.intervention.record())

    def attach(self, lm: DocumentLM) -> None:  # noqa: D102
        self.mask.check_model(Layout(lm.model, spread=True).description())
        with self.applied(lm.model):  # refuses now what it cannot do
            pass

    def applied(self, model: nn.Module) -> AbstractContextManager[Any]:  # noqa: D102
        return self.intervention.applied(model, self.neurons, mode=self.mode)


@dataclass(frozen=True)
class RolesDeactivation(Deactivation):
    """In each request the neurons that have a role in its own document."""

    path: str | None
    roles: Roles
    choice: Choice
    intervention: Intervention

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> RolesDeactivation:
        """From model arguments.

        Raises:
            PLNDError: if the roles cannot be read, an argument makes no sense, or no neuron has the role.
        """
        if "deactivate" not in given:
            raise PLNDError(f"roles= needs deactivate=, one of {', '.join(ROLES)}, or random with share=")
        share = _share(given["share"]) if "share" in given else None
        choice = Choice(given["deactivate"], share, given.get("control"), _whole("seed", given.get("seed", 0)))
        path, roles = _opened("roles", given["roles"], Roles)
        if choice.role in ROLES and not roles.shares()[choice.role]:
            raise PLNDError(
                f"roles {path or 'from Python'}: no neuron is {choice.role} in any example, so that the whole model"
                " would be evaluated; take another role"
            )
        return cls(path, roles, choice, _intervention(given))

    def base_model(self) -> tuple[str, str | None]:  # noqa: D102
        return base_model(self.roles.model, f"roles {self.path or 'from Python'}", REMEDY)

    def record(self) -> dict[str, Any]:  # noqa: D102
        drawn = self.choice.role == "random" or self.choice.control is not None
        return {
            "roles": self.path,
            "roles_sha256": self.roles.digest,
            "languages": self.roles.languages,
            "deactivate": self.choice.role,
            "share": self.choice.share,
            "control": self.choice.control,
            "seed": self.choice.seed if drawn else None,
            "intervene": self.intervention.record(),
        }

    def attach(self, lm: DocumentLM) -> None:  # noqa: D102
        lm.switch_off(self.roles, self.choice, self.intervention)


@dataclass(frozen=True)
class NoDeactivation(Deactivation):
    """An adapter alone: the model that it tuned, as a whole."""

    adapter: str

    def base_model(self) -> tuple[str, str | None]:  # noqa: D102
        from peft import PeftConfig

        try:
            config = PeftConfig.from_pretrained(self.adapter)
        except Exception as error:  # whatever PEFT and the hub raise for a folder that holds no adapter
            raise PLNDError(f"{self.adapter}: not a PEFT adapter ({str(error).splitlines()[0]})") from None
        name = config.base_model_name_or_path
        model = {"name": name or None, "hub": bool(name) and is_hub_name(name), "revision": config.revision}
        return base_model(model, f"peft {self.adapter}", REMEDY)

    def record(self) -> dict[str, Any]:  # noqa: D102
        return {"mask": None, "neurons": 0}

    def attach(self, lm: DocumentLM) -> None:  # noqa: D102
        pass


@dataclass(frozen=True)
class NoMask(Deactivation):
    """Nothing is switched off: a direction alone."""

    def base_model(self) -> tuple[str, str | None]:  # noqa: D102
        raise PLNDError("nothing here names a model")

    def record(self) -> dict[str, Any]:  # noqa: D102
        return {"mask": None, "neurons": 0}

    def attach(self, lm: DocumentLM) -> None:  # noqa: D102
        pass


@dataclass(frozen=True)
class Steering(Deactivation):
    """A direction that is added to what leaves blocks, whatever is done to neurons beside it.

    Attributes:
        inner: what is done to neurons.
        path: the direction's file, if it has one.
        direction: what is added.
        strength: how many times.
        blocks: at which; None: at all.
    """

    inner: Deactivation
    path: str | None
    direction: Direction
    strength: float
    blocks: list[str] | None

    def base_model(self) -> tuple[str, str | None]:  # noqa: D102
        if isinstance(self.inner, NoMask):
            return base_model(self.direction.model, f"direction {self.path or 'from Python'}", REMEDY)
        return self.inner.base_model()

    def record(self) -> dict[str, Any]:  # noqa: D102
        return {**self.inner.record(), "steer": self._said()}

    def _said(self) -> dict[str, Any]:
        return {
            "direction": self.path,
            "direction_sha256": self.direction.digest,
            "language": self.direction.language,
            "strength": self.strength,
            "blocks": None if self.blocks is None else "+".join(self.blocks),
        }

    @property
    def digest(self) -> str:  # noqa: D102
        return _digest(self.inner.digest, {**self._said(), "direction": None})

    def attach(self, lm: DocumentLM) -> None:  # noqa: D102
        self.inner.attach(lm)
        with self.applied(lm.model):  # refuses now what it cannot do
            pass

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[Any]:  # noqa: D102
        with ExitStack() as stack:
            stack.enter_context(self.inner.applied(model))
            stack.enter_context(steered(model, self.direction, strength=self.strength, blocks=self.blocks))
            yield model


def read_deactivation(given: Mapping[str, Any], adapter: str | None) -> Deactivation:
    """What model arguments say is to be done to the model.

    Args:
        given: values of some of `ARGUMENTS`; None is no value.
        adapter: `peft=`.

    Raises:
        PLNDError: if they name nothing, or two sources of neurons, or do not go together.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "steer" not in given:
        _refuse(given, ("strength", "blocks"), "need steer=FILE, a direction from `plnd reference`")
    if "steer" not in given or given.get("intervene") == "steer":
        if "blocks" in given:
            raise PLNDError("blocks= says where steer= is added to blocks; intervene=steer adds to the mask's neurons")
        return _read_neurons(given, adapter)
    path, direction = _opened("steer", given["steer"], Direction)
    strength = _number("strength", given.get("strength", 1.0))
    blocks: Any = given.get("blocks")
    if blocks is not None:
        blocks = named_blocks("+".join(map(str, [blocks] if isinstance(blocks, str | int) else blocks)))
    direction.chosen(blocks)
    of_neurons = {name: value for name, value in given.items() if name not in _OF_STEERING}
    alone = not of_neurons and adapter is None
    return Steering(NoMask() if alone else _read_neurons(of_neurons, adapter), path, direction, strength, blocks)


def _intervention(given: Mapping[str, Any]) -> Intervention:
    """What becomes of neurons' values.

    Raises:
        PLNDError: if the kind is unknown, or has not what it needs, or something else.
    """
    kind = given.get("intervene", "zero")
    if kind not in KINDS:
        raise PLNDError(f"unknown intervene={kind}: expected one of {', '.join(KINDS)}")
    if kind == "mean" and "means" not in given:
        raise PLNDError("intervene=mean needs means=FILE, from `plnd reference`: a mask carries none")
    if kind == "scale" and "factor" not in given:
        raise PLNDError("intervene=scale needs factor=, such as factor=0.5")
    if kind == "steer" and "steer" not in given:
        raise PLNDError("intervene=steer needs steer=FILE, a direction from `plnd reference`")
    for name, owner in (("means", "mean"), ("factor", "scale")):
        if name in given and kind != owner:
            raise PLNDError(f"{name}= goes with intervene={owner}")
    return Intervention(
        kind,
        _number("factor", given["factor"]) if "factor" in given else None,
        _opened("means", given["means"], Means)[1] if "means" in given else None,
        _opened("steer", given["steer"], Direction)[1] if "steer" in given else None,
        _number("strength", given["strength"]) if "strength" in given else None,
    )


def _digest(neurons: str | None, record: Mapping[str, Any]) -> str:
    """Names neurons and what is done to them, by content."""
    return hashlib.sha256(json.dumps([neurons, record], sort_keys=True).encode()).hexdigest()


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise PLNDError(f"{name}={value}: expected a number")


def _read_neurons(given: Mapping[str, Any], adapter: str | None) -> Deactivation:
    """The one source of neurons that model arguments name.

    Args:
        given: values of some of `ARGUMENTS`; None is no value.
        adapter: `peft=`.

    Raises:
        PLNDError: if they name none, or two, or do not go together.
    """
    if "mask" in given and "roles" in given:
        raise PLNDError("mask= and roles= both say what to deactivate: give one of them")
    if "roles" in given:
        _refuse(given, _OF_PARTS, "go with mask=, not with roles=")
        return RolesDeactivation.read(given)
    _refuse(given, _OF_ROLES, "need roles=FILE, a roles artifact from `plnd roles`")
    if "mask" in given:
        return MaskDeactivation.read(given)
    if adapter is None:
        raise PLNDError("model_args need mask=FILE, a neurons artifact from `plnd select` or `plnd combine`")
    _refuse(given, (*_OF_PARTS, *_OF_DRAWS, *_OF_KINDS), "go with mask=; peft= alone deactivates nothing")
    return NoDeactivation(adapter)


def _refuse(given: Mapping[str, Any], names: Iterable[str], reason: str) -> None:
    if not given.keys().isdisjoint(names):
        *first, last = (f"{name}=" for name in names)
        raise PLNDError(f"{', '.join(first)} and {last} {reason}")


def _why_empty(mask: NeuronSet, regions: list[str] | None, projections: list[str] | None) -> str:
    if not len(mask):
        return "it holds no neuron"
    parts = [f"{name}={'+'.join(v)}" for name, v in (("regions", regions), ("projections", projections)) if v]
    return f"none of its {len(mask):,} neurons is in {','.join(parts)}"


def _opened(name: str, value: Any, kind: Any) -> tuple[str | None, Any]:
    """Path and content of an artifact that may be given as either."""
    if isinstance(value, kind):
        return None, value
    if not isinstance(value, str | Path):
        raise PLNDError(f"{name}={value!r:.60}: expected the name of a file, or a {kind.__name__}")
    return str(value), kind.load(value)


def _whole(name: str, value: Any) -> int:
    """A number of blocks, or a seed."""
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise PLNDError(f"{name}={value}: expected a whole number, 0 or more")
    return int(text)


def _share(value: Any) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise PLNDError(f"share={value}: expected a share from 0 to 1, such as 0.25")


def _names(name: str, value: Any) -> list[str]:
    """Names joined by `+` (or, from Python, by commas or as a list)."""
    items: Any = value.replace("+", ",").split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise PLNDError(f"{name}={value}: expected names joined by +")
    names = [item.strip() for item in items if item.strip()]
    if not names:
        raise PLNDError(f"{name}= is empty: expected names joined by +, or leave it out")
    return names
