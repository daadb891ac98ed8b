"""The parts of a model that the PLND paper switches off separately (arXiv:2402.18815, section 3 and appendix G.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plnd.addresses import ATTENTION_PROJECTIONS
from plnd.errors import PLNDError
from plnd.numbers import is_whole

NAMES = ("under", "solve", "solve_attn", "solve_ffn", "gen")


@dataclass(frozen=True)
class Regions:
    """Some of the regions of a model that has `under` understanding blocks first and `gen` generation blocks last.

    Attributes:
        names: `under`, `gen`, `solve` (between them), `solve_attn`, `solve_ffn`.
        under: N1, the number of understanding blocks (the paper: 8 of 32 for Vicuna, 6 for Mistral).
        gen: N2, the number of generation blocks (2 and 3).
    """

    names: tuple[str, ...]
    under: int
    gen: int

    def __post_init__(self) -> None:
        _check_names(self.names)
        if not all(isinstance(n, int) and is_whole(n) and n >= 0 for n in (self.under, self.gen)):
            raise PLNDError(f"under={self.under!r}, gen={self.gen!r}: expected numbers of blocks, 0 or more")

    @classmethod
    def parse(cls, names: str | Iterable[str], under: int | None, gen: int | None) -> Regions:
        """From `"under+gen"` or `"under,solve_ffn"` and the two numbers, each to be given where the regions need it."""
        if isinstance(names, str):
            names = names.replace("+", ",").split(",")
        names = tuple(name.strip() for name in names if name.strip())
        _check_names(names)
        solve = any(name.startswith("solve") for name in names)
        for value, flag, needed in ((under, "under", "under" in names or solve), (gen, "gen", "gen" in names or solve)):
            if needed and value is None:
                raise PLNDError(f"regions {'+'.join(names)} need {flag}=N, the number of blocks of that region")
        return cls(names, 0 if under is None else under, 0 if gen is None else gen)

    def check(self, blocks: int) -> None:
        """Refuses numbers that do not fit into a model of `blocks` blocks."""
        if self.under + self.gen > blocks:
            raise PLNDError(f"under={self.under} and gen={self.gen} overlap: the model has {blocks} blocks")

    def contains(self, block: int, projection: str, blocks: int) -> bool:
        """Whether a projection of a block (counted from 0) lies in one of the regions."""
        if block < self.under:
            return "under" in self.names
        if block >= blocks - self.gen:
            return "gen" in self.names
        part = "solve_attn" if projection in ATTENTION_PROJECTIONS else "solve_ffn"
        return "solve" in self.names or part in self.names

    def description(self) -> dict:
        """For metadata."""
        return {"names": list(self.names), "under": self.under, "gen": self.gen}


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in NAMES:
            raise PLNDError(f"unknown region {name!r}: expected some of {', '.join(NAMES)}")
    if not names:
        raise PLNDError(f"no region named: expected some of {', '.join(NAMES)}")
