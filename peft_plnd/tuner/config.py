"""What to tune: which rows and columns of which modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.utils import PeftType

from peft_plnd.tuner.errors import NeuronSelectError

BIASES = ("none", "selected", "all", "neuron_select_only")
AXES = ("out", "in")
DEFAULT_FRACTION = 0.001


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class RowColumnConfig(PeftConfig):
    """Configuration of a `RowColumnModel`: rows and columns of a model's linear layers, named or drawn at random.

    The neurons come from a dictionary (`neurons`) or a reproducible random draw (`fraction` with `seed`).
    `target_modules`, `exclude_modules` and `layers_to_transform` each narrow them. What was chosen is in `indices` once
    the adapter exists, and in `adapter_config.json`.

    Raises:
        NeuronSelectError: if the arguments contradict one another.
    """

    papers: ClassVar[dict[str, str]] = {
        "How do Large Language Models Handle Multilingualism?": "https://arxiv.org/abs/2402.18815",
    }
    sources: ClassVar[tuple[str, ...]] = ("neurons", "fraction")
    """The arguments one of which says what the neurons are."""
    narrowing: ClassVar[tuple[str, ...]] = ("exclude_modules", "layers_to_transform", "layers_pattern")
    """Those that leave some of them out."""

    neurons: dict[str, dict[str, list[int]]] | None = field(
        default=None,
        metadata=_help(
            "Neurons by hand: module name, or the end of one, to {'out': rows, 'in': columns}, either of which may be "
            "left out. Rows are output features and columns input features, also of a Conv1D; of fused experts the "
            "rows of gate_up_proj and the columns of down_proj, of one expert after the other."
        ),
    )
    fraction: float | None = field(
        default=None,
        metadata=_help(
            "Draw this fraction of every target's neurons at random, at least one: of the output rows of a module, or "
            "of the rows or columns of each projection in it, where these are known."
        ),
    )
    seed: int = field(default=0, metadata=_help("Seed of what is drawn."))
    bias: str = field(
        default="none",
        metadata=_help(
            "'selected': a selected row's bias trains too, where its module has one; 'none'. As in LoRA, 'all' and "
            "'neuron_select_only' train every bias, of the model or of the targeted modules, in place."
        ),
    )
    target_modules: set[str] | list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Only these modules: names or ends of names, a regular expression, or 'all-linear'. By default all that "
            "the neurons lie in; with `fraction`, all projections, where these are known, else PEFT's default."
        ),
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata=_help("Not these modules: names, ends of names, or a regular expression.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_help("Only the blocks with these indices. Not with a regular expression as target.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata=_help("Name of the list of blocks, if it is not a common one, for `layers_to_transform`."),
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Further modules to train in full and to save with the adapter.")
    )
    ensure_weight_tying: bool = field(
        default=False,
        metadata=_help("Where input and output embeddings are one weight and modules_to_save names them: one copy."),
    )
    init_weights: bool = field(
        default=True, metadata=_help("Start at zero change. False starts at random values, for tests.")
    )
    indices: dict[str, dict[str, list[int]]] | None = field(
        default=None, metadata=_help("The chosen neurons by full module name; filled in when the adapter is made.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.NEURON_SELECT  # type: ignore[attr-defined]
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        given = [name for name in self.sources if getattr(self, name) is not None]
        if len(given) > 1:
            raise NeuronSelectError(f"{' and '.join(given)} are given: name the neurons in one way")
        check_number("seed", self.seed)
        if self.fraction is not None and (isinstance(self.fraction, str) or not 0 < self.fraction <= 1):
            raise NeuronSelectError(f"fraction={self.fraction!r}: expected a share, more than 0 and at most 1")
        check_choice("bias", self.bias, BIASES)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise NeuronSelectError("layers_to_transform cannot be used when target_modules is a str")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise NeuronSelectError("layers_pattern cannot be used when target_modules is a str")
        if self.layers_pattern and self.layers_to_transform is None:
            raise NeuronSelectError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    def __repr__(self) -> str:
        """What is not as by default; of neurons, how many they are."""
        said = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        said |= {name: _counted(said[name]) for name in ("neurons", "indices") if name in said}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def with_indices(self, indices: dict[str, dict[str, list[int]]], bias: str) -> RowColumnConfig:
        """The same config for exactly these neurons, whatever it named, drew or narrowed."""
        named = (*self.sources, *self.narrowing)
        defaults: dict[str, Any] = {one.name: one.default for one in fields(self) if one.name in named}
        chosen: dict[str, Any] = {"target_modules": set(indices), "indices": indices, "modules_to_save": None}
        return replace(self, **defaults, **chosen, bias=bias, init_weights=True)


class _Count(str):
    """Words in place of a long value, without quotation marks."""

    __repr__ = str.__str__


def _counted(indices: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    count = sum(len(values) for axes in indices.values() for values in axes.values())
    return _Count(f"<{count:,} neurons in {len(indices)} modules>")


def _as_set(names: Iterable[str] | str | None) -> set[str] | str | None:
    return set(names) if isinstance(names, (list, tuple, set)) else names  # type: ignore[return-value]


def check_number(name: str, value: Any) -> None:
    """Refuses what is no whole number; as text it would be another one in `adapter_config.json`, or another draw."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise NeuronSelectError(f"{name}={value!r}: expected a whole number, 0 or more")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a word that is none of `choices`."""
    if value not in choices:
        raise NeuronSelectError(f"{name}={value!r}: expected {', '.join(map(repr, choices))}")
