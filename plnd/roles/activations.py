"""What the feed-forward neurons of a model do on given inputs: their activations and what weighs their value vectors.

The activation of a neuron is the output right after the non-linearity (section 3.1 of arXiv:2406.09265); in a gated
feed-forward that is the gate's. The coefficient is what multiplies the neuron's value vector, its column of
`down_proj`: the activation itself, or in a gated feed-forward the activation times the up projection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plnd.errors import FamilyError, PLNDError
from plnd.models.batches import padded
from plnd.models.layout import Block, Layout, Target
from plnd.models.running import hooked

Tokens = Literal["last", "all"]
TOKENS = ("last", "all")


def feed_forward_blocks(layout: Layout) -> list[Block]:
    """The blocks of a model that have a feed-forward, in order: those of an encoder before those of its decoder.

    Raises:
        FamilyError: if the feed-forward is a mixture of experts, where a neuron acts on the tokens that are routed to
            its expert and on no others.
    """
    blocks = [block for block in layout.blocks if block.stack.activation is not None]
    if any(block.stack.experts for block in blocks):
        raise FamilyError(
            f"model family {layout.family.name!r} is a mixture of experts: roles are defined for dense feed-forwards,"
            " in which every neuron sees every token"
        )
    return blocks


def feed_forward_widths(layout: Layout) -> dict[str, int]:
    """Number of feed-forward neurons of every block that has some, in order."""
    return {block.name: layout.widths[f"{block.name}.down_proj"] for block in feed_forward_blocks(layout)}


@dataclass
class Watch:
    """Reads activations off a model while it runs, between `attached()` and its exit.

    Attributes:
        layout: the model.
        tokens: `last`, the last token of each input; `all`, the largest activation over its tokens, which is above a
            threshold if any token's is.
        coefficients: whether to read the last token's coefficients too.
    """

    layout: Layout
    tokens: Tokens = "last"
    coefficients: bool = False
    _mask: Tensor = field(init=False)
    _seen: dict[str, Tensor] = field(init=False, default_factory=dict)
    _weights: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise PLNDError(f"unknown tokens {self.tokens!r}: expected one of {', '.join(TOKENS)}")
        self.blocks = feed_forward_blocks(self.layout)
        self.widths = feed_forward_widths(self.layout)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place and gradients off; on exit the model is as it was.

        Raises:
            FamilyError: if a block's non-linearity is neither a function of torch nor a module of its own.
        """
        modules = {block.name: self._non_linearity(block) for block in self.blocks}
        times = Counter(map(id, modules.values()))
        for name, module in modules.items():
            if module is not None and (not isinstance(module, nn.Module) or times[id(module)] > 1):
                raise FamilyError(
                    f"block {name}: its non-linearity is not a module of its own, so it cannot be watched"
                )
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(hooked(self.layout.model))
            for block in self.blocks:
                module, hook = modules[block.name], self._activation_hook(block.name)
                if module is None:  # of a function the argument can be watched
                    module, hook = self._argument(block).module, self._before_function(block, hook)
                stack.callback(module.register_forward_hook(hook).remove)
                if self.coefficients:
                    down = self.layout.targets[f"{block.name}.down_proj"].module
                    stack.callback(down.register_forward_pre_hook(self._coefficient_hook(block.name)).remove)
            yield

    def read(self, inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """One forward pass over a batch of inputs.

        A decoder with an encoder reads its start token alone, at which it makes its first prediction.

        Args:
            inputs: token ids of each input, at least one each.
        Returns:
            Activations and coefficients (None unless wanted), both [inputs, neurons of all blocks] on the CPU, in the
            model's dtype but at least float32.
        Raises:
            PLNDError: if an activation is not finite.
        """
        ids, mask = padded(inputs)
        self._seen, self._weights = {}, {}
        device = self.layout.input_device
        self._forward(ids.to(device), mask.bool().to(device))
        missing = [block.name for block in self.blocks if block.name not in self._seen]
        if missing:
            raise FamilyError(f"block {missing[0]}: its non-linearity did not run, so its neurons cannot be watched")
        activations = self._joined(self._seen)
        if not bool(torch.isfinite(activations).all()):
            raise PLNDError("activations are not finite: use --dtype bfloat16 or float32")
        return activations, self._joined(self._weights) if self.coefficients else None

    def _forward(self, ids: Tensor, mask: Tensor) -> None:
        self._mask = mask
        config = self.layout.model.config
        if not getattr(config, "is_encoder_decoder", False):
            self.layout.forward(ids, mask.long())
            return
        body: Any = self.layout.body
        encoded = body.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        start = torch.full_like(ids[:, :1], config.decoder_start_token_id or 0)
        self._mask = torch.ones_like(start, dtype=torch.bool)
        body.get_decoder()(
            input_ids=start, encoder_hidden_states=encoded, encoder_attention_mask=mask.long(), use_cache=False
        )

    def _joined(self, parts: dict[str, Tensor]) -> Tensor:
        joined = torch.cat([parts[block.name].cpu() for block in self.blocks], dim=-1)
        return joined.to(torch.promote_types(joined.dtype, torch.float32))

    @staticmethod
    def _non_linearity(block: Block) -> Any:
        """What should be a module; None where the model calls a function of torch."""
        path = block.stack.activation
        assert path is not None
        return None if path.startswith("torch.") else block.at(path)

    def _argument(self, block: Block) -> Target:
        """The projection whose rows go through the non-linearity."""
        return self.layout.targets.get(f"{block.name}.gate_proj") or self.layout.targets[f"{block.name}.up_proj"]

    def _before_function(self, block: Block, see: Callable) -> Callable:
        activation, argument = block.activation, self._argument(block)
        return lambda module, args, output: see(module, args, activation(argument.select(output)))

    def _activation_hook(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if output.shape[-1] != self.widths[name]:
                raise FamilyError(f"block {name}: {output.shape[-1]} activations of {self.widths[name]} neurons")
            self._seen[name] = self._last(output) if self.tokens == "last" else self._largest(output)

        return hook

    def _coefficient_hook(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            self._weights[name] = self._last(args[0])

        return hook

    def _by_input(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[inputs, seq, width], which some models flatten, and which of the tokens are real."""
        mask = self._mask.to(values.device)
        return values.reshape(*mask.shape, values.shape[-1]), mask

    def _last(self, values: Tensor) -> Tensor:
        values, mask = self._by_input(values)
        return values[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]

    def _largest(self, values: Tensor) -> Tensor:
        values, mask = self._by_input(values)
        return values.masked_fill(~mask[..., None], -torch.inf).amax(1)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive examples.

    Attributes:
        start: number of the first one.
        activations: [examples, languages, neurons of all blocks], at least float32, on the CPU.
        coefficients: the same, of the last token; None unless they were wanted.
    """

    start: int
    activations: Tensor
    coefficients: Tensor | None


def read_chunks(
    watch: Watch, examples: Sequence[Sequence[Sequence[int]]], batch_size: int, *, progress: bool = False
) -> Iterator[Chunk]:
    """Activations of parallel examples, `batch_size` of them at a time, so that memory does not grow with their number.

    The inputs of a chunk are sorted by length before they are put into batches: little is padded.

    Args:
        watch: attached to the model.
        examples: for each example, for each language, the token ids.
        batch_size: inputs in one forward pass.
        progress: whether to draw a bar.
    """
    from tqdm import tqdm

    languages = len(examples[0])
    with tqdm(total=len(examples) * languages, unit=" inputs", disable=not progress) as bar:
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            inputs = [ids for example in some for ids in example]
            order = sorted(range(len(inputs)), key=[len(ids) for ids in inputs].__getitem__)
            kept: list[Tensor] = []
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                read = [part for part in watch.read([inputs[n] for n in rows]) if part is not None]
                if not kept:
                    kept = [part.new_empty(len(inputs), part.shape[-1]) for part in read]
                for whole, part in zip(kept, read, strict=True):
                    whole[rows] = part
                bar.update(len(rows))
            shaped = [whole.unflatten(0, (len(some), languages)) for whole in kept]
            yield Chunk(start, shaped[0], shaped[1] if watch.coefficients else None)


def block_slices(widths: dict[str, int]) -> dict[str, slice]:
    """Where each block's neurons lie among those of all blocks."""
    ends = accumulate(widths.values())
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
