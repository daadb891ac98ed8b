"""What to tune: a mask's neurons, those that are named, or a random share, in a model that plnd knows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft_plnd.card import write_card
from peft_plnd.tuner.config import RowColumnConfig, check_choice, check_number
from peft_plnd.tuner.errors import NeuronSelectError
from plnd.neurons.neuron_set import NeuronSet

CONTROLS = ("random",)


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(repr=False)
class NeuronSelectConfig(RowColumnConfig):
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

    sources: ClassVar[tuple[str, ...]] = ("mask", *RowColumnConfig.sources)
    narrowing: ClassVar[tuple[str, ...]] = (
        *("whole", "control", "projections", "regions", "under", "gen", "source"),
        *RowColumnConfig.narrowing,
    )

    mask: str | NeuronSet | None = field(
        default=None,
        metadata=_help(
            "Neurons artifact, as written by `plnd select` or `plnd combine`: its file, or a `plnd.NeuronSet`, of"
            " which a saved adapter keeps the indices and, in `source`, the SHA-256."
        ),
    )
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
    source: dict[str, Any] | None = field(
        default=None, metadata=_help("What the mask was: SHA-256, language, number of neurons; filled in.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and not isinstance(self.mask, NeuronSet):
            self.mask = _file(self.mask)
        for name in ("under", "gen"):
            check_number(name, getattr(self, name))
        if self.whole and self.mask is None and self.indices is None:
            raise NeuronSelectError("whole=True completes the feed-forward neurons of a mask: give mask=")
        if self.control is not None:
            check_choice("control", self.control, CONTROLS)
            if self.mask is None and self.indices is None:
                raise NeuronSelectError(
                    "control='random' draws as many neurons as a mask has: give mask=, or fraction="
                )
        if self.neurons is not None and (self.projections is not None or self.regions is not None):
            raise NeuronSelectError("neurons= names modules: projections= and regions= narrow mask= or fraction= only")
        if self.regions is None and (self.under is not None or self.gen is not None):
            raise NeuronSelectError("under= and gen= say how large the regions are: name some with regions=")

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


def _file(mask: Any) -> str:
    """The file's name, as text."""
    if not isinstance(mask, str | os.PathLike):
        raise NeuronSelectError(f"mask={mask!r:.60}: expected the name of a neurons artifact, or a plnd.NeuronSet")
    return os.fspath(mask)
