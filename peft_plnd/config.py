"""What to tune: which rows and columns of which modules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from peft.config import PeftConfig

from peft_plnd.card import write_card
from peft_plnd.errors import NeuronSelectError
from peft_plnd.peft_type import NAME, add_peft_type
from plnd.neurons.neuron_set import NeuronSet

BIASES = ("none", "selected", "all", "neuron_select_only")
CONTROLS = ("random",)
AXES = ("out", "in")
DEFAULT_FRACTION = 0.001


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class NeuronSelectConfig(PeftConfig):
    """Configuration of a `NeuronSelectModel`.

    The neurons come from one of three sources: a neurons artifact (`mask`, a file or a `plnd.NeuronSet`), a dictionary
    (`neurons`), or a reproducible random draw (`fraction` with `seed`). `regions`, `projections`, `target_modules`,
    `exclude_modules` and `layers_to_transform` each narrow them. What was chosen is in `indices` once the adapter
    exists, and in `adapter_config.json`: a saved adapter needs neither its mask nor the families table again.

    Raises:
        NeuronSelectError: if the arguments contradict one another.

    Example:
        >>> import peft_plnd
        >>> from peft import get_peft_model
        >>> config = peft_plnd.NeuronSelectConfig(mask="zh.safetensors", task_type="CAUSAL_LM")
        >>> model = get_peft_model(base, config)
    """

    papers: ClassVar[dict[str, str]] = {
        "How do Large Language Models Handle Multilingualism?": "https://arxiv.org/abs/2402.18815",
    }

    mask: str | NeuronSet | None = field(
        default=None,
        metadata=_help(
            "Neurons artifact, as written by `plnd select` or `plnd combine`: its file, or a `plnd.NeuronSet`, of"
            " which a saved adapter keeps the indices and, in `source`, the SHA-256."
        ),
    )
    neurons: dict[str, dict[str, list[int]]] | None = field(
        default=None,
        metadata=_help(
            "Neurons by hand: module name, or the end of one, to {'out': rows, 'in': columns}, either of which may be "
            "left out. Rows are output features and columns input features, also of a Conv1D."
        ),
    )
    fraction: float | None = field(
        default=None,
        metadata=_help(
            "Draw this fraction of every target's neurons at random, at least one: of every projection of the families "
            "table, or of the output rows of a module that is not in it."
        ),
    )
    seed: int = field(default=0, metadata=_help("Seed of `fraction` and of `control`."))
    whole: bool = field(
        default=False,
        metadata=_help(
            "Of each feed-forward neuron of the mask train the rows of gate and up and the column of down together."
        ),
    )
    control: str | None = field(
        default=None,
        metadata=_help("'random': as many neurons of each block and projection as the mask has, drawn at random."),
    )
    projections: list[str] | None = field(
        default=None, metadata=_help("Only these projections, e.g. ['o_proj', 'down_proj'] (Llama's names).")
    )
    regions: str | None = field(
        default=None, metadata=_help("Only these regions, e.g. 'under+gen': under, solve, solve_attn, solve_ffn, gen.")
    )
    under: int | None = field(default=None, metadata=_help("Number of understanding blocks, where `regions` needs it."))
    gen: int | None = field(default=None, metadata=_help("Number of generation blocks, where `regions` needs it."))
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
            "the neurons lie in; with `fraction`, all projections of the families table, else PEFT's default."
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
    source: dict[str, Any] | None = field(
        default=None, metadata=_help("What the mask was: SHA-256, language, number of neurons; filled in.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type(NAME)
        if self.mask is not None and not isinstance(self.mask, NeuronSet):
            self.mask = _file(self.mask)
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        sources = [name for name in ("mask", "neurons", "fraction") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise NeuronSelectError(f"{' and '.join(sources)} are given: name the neurons in one way")
        for name in ("under", "gen", "seed"):
            _check_whole(name, getattr(self, name))
        if self.fraction is not None and (isinstance(self.fraction, str) or not 0 < self.fraction <= 1):
            raise NeuronSelectError(f"fraction={self.fraction!r}: expected a share, more than 0 and at most 1")
        _check_choice("bias", self.bias, BIASES)
        if self.whole and self.mask is None and self.indices is None:
            raise NeuronSelectError("whole=True completes the feed-forward neurons of a mask: give mask=")
        if self.control is not None:
            _check_choice("control", self.control, CONTROLS)
            if self.mask is None and self.indices is None:
                raise NeuronSelectError(
                    "control='random' draws as many neurons as a mask has: give mask=, or fraction="
                )
        if self.neurons is not None and (self.projections is not None or self.regions is not None):
            raise NeuronSelectError("neurons= names modules: projections= and regions= narrow mask= or fraction= only")
        if self.regions is None and (self.under is not None or self.gen is not None):
            raise NeuronSelectError("under= and gen= say how large the regions are: name some with regions=")
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
        return f"NeuronSelectConfig({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def to_dict(self) -> dict[str, Any]:
        """As PEFT has it; of a mask that is a `NeuronSet`, what `indices` and `source` say is all that is left."""
        said = super().to_dict()
        return {**said, "mask": None} if isinstance(self.mask, NeuronSet) else said

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes `adapter_config.json`, as PEFT does, and, of an adapter, the card beside it (`peft_plnd.card`).

        Raises:
            NeuronSelectError: if the mask is a `NeuronSet` and no adapter was made yet, so that nothing says which
                neurons these are.
        """
        if isinstance(self.mask, NeuronSet) and self.indices is None:
            raise NeuronSelectError(
                "mask= is a NeuronSet, which adapter_config.json cannot hold: save the adapter (get_peft_model first),"
                " or write the set with .save(…) and give mask= the file"
            )
        super().save_pretrained(save_directory, **kwargs)
        if self.indices is not None:
            mapped = kwargs.get("auto_mapping_dict") or self.auto_mapping
            write_card(save_directory, {**self.to_dict(), "auto_mapping": mapped})


class _Count(str):
    """Words in place of a long value, without quotation marks."""

    __repr__ = str.__str__


def _counted(indices: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    count = sum(len(values) for axes in indices.values() for values in axes.values())
    return _Count(f"<{count:,} neurons in {len(indices)} modules>")


def _file(mask: Any) -> str:
    """The file's name, as text."""
    if not isinstance(mask, str | os.PathLike):
        raise NeuronSelectError(f"mask={mask!r:.60}: expected the name of a neurons artifact, or a plnd.NeuronSet")
    return os.fspath(mask)


def _as_set(names: Iterable[str] | str | None) -> set[str] | str | None:
    return set(names) if isinstance(names, (list, tuple, set)) else names  # type: ignore[return-value]


def _check_whole(name: str, value: Any) -> None:
    """A number of blocks or a seed; as text it would be another number in `adapter_config.json`, or another draw."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise NeuronSelectError(f"{name}={value!r}: expected a whole number, 0 or more")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise NeuronSelectError(f"{name}={value!r}: expected {', '.join(map(repr, choices))}")
