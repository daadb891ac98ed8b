"""One pass over corpora of some languages: what every neuron's value is on average, and what leaves every block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plnd.deactivation import what_is_off
from plnd.errors import PLNDError
from plnd.io.corpus import Sections
from plnd.io.metadata import DIRECTION, MEANS, DirectionMetadata, MeansMetadata
from plnd.models.batches import padded
from plnd.models.layout import Layout, Target
from plnd.models.running import measured
from plnd.references.config import ReferenceConfig
from plnd.references.direction import Direction
from plnd.references.means import Means
from plnd.references.reading import read_corpora
from plnd.version import __version__


@dataclass
class Sums:
    """Sums over the tokens of one language's documents.

    Attributes:
        values: address to the sums of its neurons' values, [width], and block to that of what leaves it, [hidden],
            float64.
        documents, tokens: how many they are of.
        corpus: what was read, for the metadata.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    documents: int = 0
    tokens: int = 0
    corpus: dict[str, Any] = field(default_factory=dict)

    def mean(self, name: str) -> Tensor:
        """Over the tokens."""
        return self.values[name] / self.tokens


@dataclass(frozen=True)
class Reference:
    """What a model does on average on the corpora of some languages.

    Attributes:
        languages: language to the sums over its tokens.
        layout: of the model.
        deactivated: what of it was switched off.
    """

    languages: Mapping[str, Sums]
    layout: Layout
    deactivated: Sequence[Mapping[str, Any]] = ()

    @property
    def means(self) -> Means:
        """Of every neuron, over all tokens of all languages together."""
        sums, tokens = list(self.languages.values()), sum(each.tokens for each in self.languages.values())
        found = {
            name: _float32(torch.stack([each.values[name] for each in sums]).sum(0) / tokens)
            for name in sums[0].values
            if name in self.layout.targets
        }
        return Means(found, MeansMetadata.of(self._said(MEANS)))

    def direction(self, language: str) -> Direction:
        """From the mean of all other languages to this one's.

        Raises:
            PLNDError: if the language was not read, or no other was.
        """
        others = [name for name in self.languages if name != language]
        if language not in self.languages or not others:
            raise PLNDError(
                f"direction of {language}: corpora of {', '.join(self.languages)}, expected one of it and of another"
            )
        own = self.languages[language]
        found = {
            name: _float32(own.mean(name) - torch.stack([self.languages[x].mean(name) for x in others]).mean(0))
            for name in own.values
        }
        hookpoints = {name: hookpoint for name, hookpoint, _ in _blocks(self.layout)}
        said = self._said(DIRECTION) | {
            "language": language,
            "against": others,
            "hidden": len(found[next(iter(hookpoints))]),
            "modules": hookpoints,
        }
        blocks = {name: found.pop(name) for name in hookpoints}
        return Direction(blocks, found, DirectionMetadata.of(said))

    def _said(self, form: str) -> dict[str, Any]:
        return {
            "format": form,
            "version": 1,
            "plnd": __version__,
            "model": self.layout.description(),
            "corpora": {language: sums.corpus for language, sums in self.languages.items()},
            "dtype": str(self.layout.model.dtype).removeprefix("torch."),
            **({"deactivated": list(self.deactivated)} if self.deactivated else {}),
        }


@torch.no_grad()
def reference(
    model: nn.Module,
    corpora: Mapping[str, Iterable[str | Sequence[int]] | Sections],
    config: ReferenceConfig | None = None,
    *,
    tokenizer: Any = None,
    sources: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Reference:
    """What every neuron's value, and what leaves every block, is on average: one pass over corpora of some languages.

    Beyond the model's own forward pass (without its head) this adds up what every projection gives or gets.

    Args:
        model: a transformers model of a known family.
        corpora: language to texts, or token ids as the model takes them; read once, in order, streamed.
        config: which of them.
        tokenizer: for texts; by default the one saved with the model.
        sources: language to where its documents come from, for the metadata.
        progress: show a bar.

    Returns:
        The sums, of which `.means` are the means artifact and `.direction(language)` a direction.

    Raises:
        FamilyError: if the model's family is unknown.
        CorpusError: if no document of a language is long enough.
        PLNDError: if there is no language, a sum is not finite, or another thread works on the model.
    """
    config, layout = config or ReferenceConfig(), Layout.of_all(model)
    found: dict[str, Sums] = {}
    with measured(layout.model, [block.module for block in layout.blocks]), _Adder(layout).attached() as adder:

        def run(language: str, documents: list[list[int]]) -> None:
            adder.sums = found.setdefault(language, Sums())
            adder.run(documents)

        said = read_corpora(layout, corpora, config, run, tokenizer=tokenizer, sources=sources, progress=progress)
    for language, sums in found.items():
        wrong = next((name for name, values in sums.values.items() if not bool(torch.isfinite(values).all())), None)
        if wrong is not None:
            raise PLNDError(f"{language}: values of {wrong} are not finite: use --dtype bfloat16 or float32")
        sums.corpus = said[language]
    return Reference(found, layout, what_is_off(layout.model))


class _Adder:
    """Adds up, during passes, what projections give or get and what leaves blocks.

    Attributes:
        sums: to which.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.sums, self.mask = layout, Sums(), torch.ones(0)

    @contextmanager
    def attached(self) -> Iterator[_Adder]:
        """Hooks in place."""
        with ExitStack() as stack:
            for target in self.layout.targets.values():
                if target.experts is not None:
                    continue
                if target.projection.axis == "row":
                    hook = target.module.register_forward_hook(self._leaving(target))
                else:
                    hook = target.module.register_forward_pre_hook(self._entering(target))
                stack.callback(hook.remove)
            for name, _, module in _blocks(self.layout):
                stack.callback(module.register_forward_hook(self._after(name)).remove)
            yield self

    def run(self, documents: Sequence[Sequence[int]]) -> None:
        """One pass over a batch."""
        ids, mask = padded(documents)
        self.mask, device = mask.flatten(), self.layout.input_device
        self.layout.forward(ids.to(device), mask.to(device))
        self.sums.documents += len(documents)
        self.sums.tokens += int(self.mask.sum())

    def _leaving(self, target: Target) -> Callable:
        return lambda module, args, output: self._add(target.name, target.select(output))

    def _entering(self, target: Target) -> Callable:
        return lambda module, args: self._add(target.name, args[0])

    def _after(self, name: str) -> Callable:
        return lambda module, args, output: self._add(name, output[0] if isinstance(output, tuple) else output)

    def _add(self, name: str, values: Tensor) -> None:
        """Takes in values, [batch, seq, …] or [batch * seq, …]."""
        values = values.reshape(len(self.mask), -1)
        kept = values.to(torch.promote_types(values.dtype, torch.float32))
        if not bool(self.mask.all()):
            kept = kept.masked_fill((self.mask == 0).to(kept.device)[:, None], 0)
        total = kept.sum(0, dtype=torch.float64)
        before = self.sums.values.get(name)
        self.sums.values[name] = total if before is None else before + total


def _blocks(layout: Layout) -> Iterator[tuple[str, str, nn.Module]]:
    """Name of every block, its module's name below the model's body, and the module; cross-attention is no block."""
    names = {id(module): name for name, module in layout.model.base_model.named_modules()}
    for block in layout.blocks:
        if not block.name.endswith(".cross"):
            yield block.name, names[id(block.module)], block.module


def _float32(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.float32)
