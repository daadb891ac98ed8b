"""Relevance: how much the loss hangs on what a neuron says, to first order (gradient × activation).

With v[t] the value of a neuron at token t (what leaves its row of `q_proj`, `k_proj` or `v_proj`, or enters its column
of `o_proj` or `down_proj`) and g[t] the derivative with respect to it of the document's loss, the sum of its next-token
losses in nats, the relevance is Σ_t |v[t]·g[t]| divided by the number of tokens. Multiplied by a factor f at token t
alone, the neuron changes the loss by v[t]·g[t] a unit of f at f = 1: so this is how much the loss would move if each
token lost the neuron by itself, whichever way (attribution patching, Nanda 2023, with a baseline of zero; Molchanov et
al. 2019 weigh neurons by it for pruning). Importance (eq. 1 of arXiv:2402.18815) says how much a block's output would
change; relevance how much of that reaches the prediction, in one unit over the whole model.

One forward and one backward pass, with the memory that a backward pass through the activations takes, and all logits of
a batch, once; no parameter gets a gradient. A feed-forward neuron is measured at its column of `down_proj`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from plnd.detection.config import QK
from plnd.detection.observer import Handle, ObservedBlock
from plnd.errors import FamilyError
from plnd.models.layout import Layout, Target

ROWS = 16
"""Tokens whose logits are widened to float32 at once: they stay in a cache."""


@dataclass
class _Value:
    """Values of neurons in the pass at hand: a site of a block, and how they are read from what a module passes on."""

    block: ObservedBlock
    site: str
    select: Callable[[Tensor], Tensor]
    passed: list[Tensor]  # by the module, one tensor for all that read it


class Relevance:
    """Σ|value · gradient| per token of all neurons of a decoder.

    Args:
        qk: `off` leaves the rows of `q_proj` and `k_proj` out.
    """

    def __init__(self, qk: QK) -> None:
        self.rows = ("v_proj",) if qk == "off" else ("q_proj", "k_proj", "v_proj")
        self.values: list[_Value] = []

    def hooks(self, blocks: Iterable[ObservedBlock]) -> Iterator[Handle]:
        """See `Measure`.

        Raises:
            FamilyError: if the model has fused experts, which compute in slices of one module, an encoder, or no head.
        """
        self.values = []
        for block in blocks:
            _check_predicts(block.observer.layout.model)
            if block.stack.experts:
                raise FamilyError(
                    f"block {block.name}: relevance is measured of dense feed-forwards, not of experts: use"
                    " --method plnd"
                )
            yield from self._columns(block)
            yield from self._rows(block)

    def run(self, layout: Layout, input_ids: Tensor, attention_mask: Tensor) -> None:
        """One pass of the whole model over a batch, forward and back.

        Args:
            layout: the model.
            input_ids: [batch, seq].
            attention_mask: [batch, seq], 1 for tokens and 0 for padding.
        Raises:
            FamilyError: if a projection's module runs more than once in a pass, or not at all.
        """
        for value in self.values:
            value.passed.clear()  # of a pass that did not end
        with torch.enable_grad(), without_parameter_gradients(layout.model):
            seen = torch.ones_like(attention_mask)  # see `padded`
            logits = layout.model(input_ids=input_ids, attention_mask=seen, use_cache=False).logits
            passed = {id(x): x for value in self.values for x in value.passed}
            slopes = loss_slopes(logits, input_ids, attention_mask, list(passed.values()))
            gradients = dict(zip(passed, slopes, strict=True))
        for value in self.values:
            if len(value.passed) != 1:
                raise FamilyError(
                    f"block {value.block.name}: the module of {value.site} ran {len(value.passed)} times in a pass, so"
                    " that its neurons have no value of their own: use --method plnd"
                )
            tensor = value.passed[0]
            products = value.select(tensor.detach()).float() * value.select(gradients[id(tensor)]).float()
            documents = value.block.documents(products.abs())
            value.block.emit(value.site, [x.mean(0) for (x,) in documents])
        for value in self.values:
            value.passed.clear()

    def _columns(self, block: ObservedBlock) -> Iterator[Handle]:
        sites = {"o_proj": "output", "down_proj": "ffn"}
        for projection in (name for name in sites if name in block.projections):
            passed: list[Tensor] = []
            self.values.append(_Value(block, sites[projection], lambda x: x, passed))
            module = block.target(projection).module
            yield module.register_forward_pre_hook(lambda _, args, passed=passed: (_kept(args[0], passed), *args[1:]))

    def _rows(self, block: ObservedBlock) -> Iterator[Handle]:
        sites = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
        seen: dict[nn.Module, list[Tensor]] = {}  # projections that are fused share what their module gives
        for projection in (name for name in self.rows if block.has(name)):
            target: Target = block.target(projection)
            if target.module not in seen:
                passed = seen[target.module] = []
                yield target.module.register_forward_hook(lambda _, args, output, passed=passed: _kept(output, passed))
            self.values.append(_Value(block, sites[projection], target.select, seen[target.module]))


def _check_predicts(model: PreTrainedModel) -> None:
    if getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
        raise FamilyError(
            f"{type(model).__name__} predicts no next tokens of a text, whose loss relevance is about: load a decoder"
            " with its language-model head, or use --method plnd"
        )


def _kept(values: Tensor, passed: list[Tensor]) -> Tensor:
    """What a module passes on, kept as something that has a gradient."""
    if not torch.is_grad_enabled():
        return values
    if values.requires_grad:
        passed.append(values)
        return values
    passed.append(values.detach().requires_grad_())
    return passed[-1].clone()  # a model may write into what it gets, which a leaf does not allow


def next_token_nats(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The sum of each document's next-token losses, [documents], at least float32.

    Args:
        logits: [documents, seq, vocabulary].
        input_ids: [documents, seq].
        attention_mask: 1 for tokens and 0 for padding, [documents, seq].
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = _next_tokens(logits, input_ids, attention_mask)
    nats = torch.cat([cross_entropy(x.to(dtype), wanted, reduction="none") for x, wanted in parts])
    return nats.view(logits.shape[:2]).sum(1)


def loss_slopes(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor, values: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Derivatives of the sum of all next-token losses, in nats, with respect to values inside the model.

    The derivatives with respect to the logits take the logits' place, a few tokens at a time: with a vocabulary of
    262,144 the logits of eight documents of 512 tokens are 4 GiB in float32, and there are no copies of them. Logits
    that are a view (of a model that is spread over processes) stay as they are, and are there twice.

    Args:
        logits: [documents, seq, vocabulary], of a pass with gradients; overwritten unless they are a view.
        input_ids: [documents, seq].
        attention_mask: 1 for tokens and 0 for padding, [documents, seq].
        values: what the logits were computed from.

    Returns:
        For each of the values a tensor of its shape.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    slopes = logits.detach().clone() if logits._is_view() else logits.detach()
    for part, wanted in _next_tokens(slopes, input_ids, attention_mask):
        with torch.enable_grad():
            wide = part.detach().to(dtype).requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(wide, wanted, reduction="sum"), wide)
        part.copy_(slope)
    return torch.autograd.grad(logits, list(values), slopes)


def _next_tokens(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few tokens' logits, [tokens, vocabulary], and what follows each, [tokens]: -100 where nothing does.

    One dimension of tokens: over another one than the last losses are slower to sum, and less exact.
    """
    known = (attention_mask[:, 1:] * attention_mask[:, :-1]).to(logits.device)  # what is predicted, from a token
    targets = input_ids[:, 1:].to(logits.device).masked_fill(known == 0, -100)
    targets = pad(targets, (0, 1), value=-100)  # the last token predicts nothing
    for document, following in zip(logits, targets, strict=True):
        yield from zip(document.split(ROWS), following.split(ROWS), strict=True)


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[Any]:
    """A backward pass that keeps no more than the activations need."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
