"""One pass over corpora of some languages: to which experts the router of every block sends their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plnd.deactivation import what_is_off
from plnd.errors import FamilyError, PLNDError
from plnd.io.corpus import Sections
from plnd.io.metadata import ROUTING, RoutingMetadata
from plnd.models.batches import padded
from plnd.models.layout import Block, Layout
from plnd.models.running import measured
from plnd.references.config import ReferenceConfig
from plnd.references.reading import read_corpora
from plnd.references.routing import Routing
from plnd.version import __version__


@torch.no_grad()
def routing(
    model: nn.Module,
    corpora: Mapping[str, Iterable[str | Sequence[int]] | Sections],
    config: ReferenceConfig | None = None,
    *,
    tokenizer: Any = None,
    sources: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Routing:
    """How often, and with what weight, the tokens of some languages go to each expert: one pass over their corpora.

    Counted is what enters the experts, as the model's own router gives it, whatever it does to come to it; experts that
    all tokens go through have no router and are left out. It costs a forward pass without the head.

    Args:
        model: a transformers model of a known family with experts; its weights may be packed.
        corpora: language to texts, or token ids as the model takes them; read once, in order, streamed.
        config: which of them.
        tokenizer: for texts; by default the one saved with the model.
        sources: language to where its documents come from, for the metadata.
        progress: show a bar.

    Raises:
        FamilyError: if the model's family is unknown, has no experts, or hands them something else.
        CorpusError: if no document of a language is long enough.
        PLNDError: if there is no language, a weight is not finite, or another thread works on the model.
    """
    config, layout = config or ReferenceConfig(), Layout.of_all(model)
    counter = _Counter(layout, check_experts(layout))
    with measured(layout.model, [block.module for block in layout.blocks]), counter.attached():
        said = read_corpora(
            layout, corpora, config, counter.run, tokenizer=tokenizer, sources=sources, progress=progress
        )
    metadata = {
        "format": ROUTING,
        "version": 1,
        "plnd": __version__,
        "model": layout.description(),
        "corpora": said,
        "dtype": str(layout.model.dtype).removeprefix("torch."),
        "chosen": counter.chosen,
        **({"deactivated": off} if (off := what_is_off(layout.model)) else {}),
    }
    for language, weights in counter.weights.items():
        for block, values in weights.items():
            if not np.isfinite(values).all():
                raise PLNDError(f"{language}: router weights of block {block} are not finite: use --dtype float32")
    return Routing(counter.tokens, counter.weights, RoutingMetadata.of(metadata))


def check_experts(layout: Layout) -> list[Block]:
    """The blocks in which a router sends tokens to experts.

    Raises:
        FamilyError: if there are none.
    """
    blocks = [block for block in layout.blocks if block.stack.experts]
    if not blocks:
        raise FamilyError(
            f"model family {layout.family.name!r} has no experts, so that nothing is routed (`plnd families` says which"
            " are mixtures)"
        )
    return blocks


class _Counter:
    """Counts, during passes, what enters experts.

    Attributes:
        tokens, weights: as of `Routing`.
        chosen: block to how many experts a token goes to.
    """

    def __init__(self, layout: Layout, blocks: list[Block]) -> None:
        self.layout, self.blocks = layout, blocks
        self.experts = {block.name: layout.units[f"{block.name}.down_proj"] for block in blocks}
        self.tokens: dict[str, dict[str, np.ndarray]] = {}
        self.weights: dict[str, dict[str, np.ndarray]] = {}
        self.chosen: dict[str, int] = {}
        self.language, self.mask, self.seen = "", torch.ones(0, dtype=torch.bool), set[str]()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place."""
        with ExitStack() as stack:
            for block in self.blocks:
                experts: nn.Module = block.at(block.stack.experts)  # type: ignore[arg-type]
                stack.callback(experts.register_forward_pre_hook(self._entering(block), with_kwargs=True).remove)
            yield

    def run(self, language: str, documents: list[list[int]]) -> None:
        """One pass over a batch of a language."""
        ids, mask = padded(documents)
        self.language, self.mask, self.seen = language, mask.flatten().bool(), set()
        device = self.layout.input_device
        self.layout.forward(ids.to(device), mask.to(device))
        missing = next((block.name for block in self.blocks if block.name not in self.seen), None)
        if missing is not None:
            raise FamilyError(f"block {missing} ran without its experts, so that what is routed cannot be counted")

    def _entering(self, block: Block) -> Callable:
        def count(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            index, weights = self._checked(block, given)
            self.seen.add(block.name)
            self.chosen[block.name] = index.shape[1]
            chosen, weight = index[self.mask].flatten(), weights[self.mask].flatten().double()
            length = self.experts[block.name]
            self._add(self.tokens, block.name, torch.bincount(chosen, minlength=length))
            self._add(self.weights, block.name, torch.bincount(chosen, weight, minlength=length))

        return count

    def _checked(self, block: Block, given: list[Any]) -> tuple[Tensor, Tensor]:
        """The experts of each token and their weights, [tokens, experts per token], on the CPU."""
        shapes = [tuple(x.shape) for x in given if isinstance(x, Tensor)]
        fits = len(shapes) == 3 and len(shapes[1]) == 2 and shapes[1] == shapes[2] and shapes[1][0] == len(self.mask)
        if not fits or given[1].is_floating_point() or not given[2].is_floating_point():
            raise FamilyError(
                f"block {block.name}: its experts receive {shapes}, expected the hidden states of {len(self.mask)}"
                " tokens, and the experts and weights of each"
            )
        return given[1].cpu(), given[2].cpu()

    def _add(self, sums: dict[str, dict[str, np.ndarray]], block: str, values: Tensor) -> None:
        own = sums.setdefault(self.language, {})
        own[block] = own.get(block, 0) + values.numpy()
