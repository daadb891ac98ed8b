"""What detectors measure: of every feed-forward neuron in every document a few numbers.

A neuron is a column of `down_proj`, which stands for its rows of `gate_proj` and `up_proj`. With x the activation
(output of the non-linearity), h the value that enters the column (x times the up projection, where there is a gate), g
the derivative of the document's loss with respect to it, sums and means over the document's tokens:

| measure | a document's number | unit |
|---|---|---|
| `importance` | eq. 1 of the PLND paper | of the hidden states |
| `activation` | mean of abs x | of x |
| `probability` | share of tokens with x > 0 | 1 |
| `value`, `size`, `square` | mean of h, of abs h, of h² | of h |
| `attribution` | -Σ h·g | bits per byte |
| `relevance` | Σ abs(h·g) | bits per byte |

The loss is the sum of the next-token losses; one backward pass gives g of all neurons. Multiplied by a factor f at
every token, a neuron changes the loss by Σ h·g a unit of f at f = 1, so `attribution` is to first order what the loss
rises by when the neuron is zeroed (attribution patching, Nanda 2023, with a baseline of zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from plnd.comparison.documents import Document
from plnd.detection.config import DetectConfig
from plnd.detection.documents import batched
from plnd.detection.measures.choice import measure_of
from plnd.detection.measures.relevance import loss_slopes, without_parameter_gradients
from plnd.detection.observer import Observer
from plnd.errors import FamilyError, PLNDError
from plnd.models.batches import padded
from plnd.models.layout import Block, Layout
from plnd.models.running import hooked, measured

MEASURES = ("importance", "activation", "probability", "value", "size", "square", "attribution", "relevance")
REACH, STEPS = 4.0, 8
"""Histograms of values in units of a neuron's scale: from -REACH to REACH in bins of 1 / STEPS, and two open ones."""
BINS = int(2 * REACH * STEPS) + 2


def feed_forward_blocks(layout: Layout) -> list[Block]:
    """The blocks of a decoder, all of whose feed-forwards are dense.

    Raises:
        FamilyError: if the model has an encoder, or is a mixture of experts.
    """
    if getattr(layout.model.config, "is_encoder_decoder", False):
        raise FamilyError(f"model family {layout.family.name!r}: the arena compares on models of one decoder")
    layout.check_predicts("the arena")
    blocks = [block for block in layout.blocks if block.stack.activation is not None]
    if any(block.stack.experts for block in blocks):
        raise FamilyError(f"model family {layout.family.name!r}: the arena compares dense feed-forwards, not experts")
    return blocks


def neuron_widths(layout: Layout) -> dict[str, int]:
    """Address of each block's `down_proj` to its number of neurons: their order in every vector of the comparison."""
    return {
        f"{block.name}.down_proj": layout.widths[f"{block.name}.down_proj"] for block in feed_forward_blocks(layout)
    }


def measure(
    model: nn.Module, documents: Sequence[Document], batch_size: int, *, progress: str | None = None
) -> dict[str, np.ndarray]:
    """All `MEASURES` of some documents.

    Args:
        model: a decoder with dense feed-forwards.
        documents: in any order; of at least two tokens.
        batch_size: of them in one pass.
        progress: title of a bar.

    Returns:
        Measure to [documents, neurons] float32.

    Raises:
        FamilyError: if the model is another one.
        PLNDError: if a number is not finite.
    """
    layout = Layout(model)
    with measured(layout.model, [block.module for block in layout.blocks]):
        found = _importances(layout, documents, batch_size)
        found |= _with_gradients(layout, documents, batch_size, progress)
    for name, values in found.items():
        wrong = np.flatnonzero(~np.isfinite(values).all(1))
        if len(wrong):
            raise PLNDError(
                f"{name} of document {documents[wrong[0]].number} is not finite: use --dtype bfloat16 or float32"
            )
    return {name: found[name] for name in MEASURES}


def histograms(
    model: nn.Module, documents: Sequence[Document], scale: np.ndarray, ends: Sequence[int], batch_size: int
) -> np.ndarray:
    """How often each neuron's value h lies in each bin, in the first so many documents.

    Args:
        model: as for `measure`.
        documents: in order.
        scale: of every neuron, [neurons], the unit of the bins; where it is 0, so must the values be.
        ends: numbers of documents, ascending.
        batch_size: documents in one pass.

    Returns:
        [ends, neurons, BINS] int32, counts of tokens.
    """
    layout = Layout(model)
    widths, counts, start = neuron_widths(layout), [], 0
    units = dict(zip(widths, np.split(scale, np.cumsum(list(widths.values()))[:-1]), strict=True))
    total = {name: torch.zeros(width * BINS, dtype=torch.long) for name, width in widths.items()}

    def see(name: str, values: Tensor, mask: Tensor) -> None:
        tokens = values.detach()[mask].cpu().to(torch.float64)  # [tokens, width]
        unit = torch.from_numpy(np.where(units[name] > 0, units[name], 1.0))
        bins = ((tokens / unit + REACH) * STEPS).floor().clamp(-1, BINS - 2).long() + 1
        places = bins + torch.arange(len(unit)) * BINS
        total[name] += torch.bincount(places.flatten(), minlength=len(total[name]))

    blocks = [block.module for block in layout.blocks]
    with torch.no_grad(), measured(layout.model, blocks), ExitStack() as stack:
        masks: list[Tensor] = []
        for block in feed_forward_blocks(layout):
            stack.callback(_before_down(layout, block, lambda n, h: see(n, _shaped(h, masks[-1]), masks[-1].cpu())))
        for end in ends:
            for batch in batched(documents[start:end], batch_size):
                ids, mask = padded([document.ids for document in batch])
                masks[:] = [mask.bool().to(layout.input_device)]
                layout.forward(ids.to(layout.input_device), mask.to(layout.input_device))
            counts.append(np.concatenate([total[name].view(-1, BINS).int().numpy() for name in widths]))
            start = end
    return np.stack(counts)


def overlap_coefficient(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Σ min(p, q) over the bins of two distributions: 1 where they agree, 0 where they have no bin in common.

    Args:
        own: counts, [neurons, bins].
        others: counts of the others together, [neurons, bins].

    Returns:
        [neurons] float64.
    """
    p, q = (counts / counts.sum(-1, keepdims=True) for counts in (own, others))
    return np.minimum(p, q).sum(-1)


def column_norms(layout: Layout) -> np.ndarray:
    """L2 norm of every neuron's column of `down_proj`, [neurons] float64: the same whatever the language."""
    weights = (layout.targets[name].weight().detach() for name in neuron_widths(layout))
    return np.concatenate([weight.double().norm(dim=0).cpu().numpy() for weight in weights])


# passes


def _batches(documents: Sequence[Document], batch_size: int) -> Iterator[list[int]]:
    """Numbers of documents of like lengths."""
    yield from batched(sorted(range(len(documents)), key=lambda n: -len(documents[n].ids)), batch_size)


def _importances(layout: Layout, documents: Sequence[Document], batch_size: int) -> dict[str, np.ndarray]:
    """Eq. 1, as `plnd.detect` measures it."""
    widths, seen = neuron_widths(layout), {}

    def receive(block: Any, site: str, importance: Tensor) -> None:
        if site == "ffn":
            seen[f"{block}.down_proj"] = importance.cpu().float()

    observer = Observer(layout, measure_of(DetectConfig(qk="off")), receive)
    values = np.empty((len(documents), sum(widths.values())), dtype=np.float32)
    with observer.attached():
        for rows in _batches(documents, batch_size):
            ids, mask = padded([documents[n].ids for n in rows])
            observer.spans = [(0, len(documents[n].ids)) for n in rows]
            layout.forward(ids.to(layout.input_device), mask.to(layout.input_device))
            values[rows] = torch.cat([seen[name] for name in widths], dim=1).numpy()
    return {"importance": values}


def _with_gradients(
    layout: Layout, documents: Sequence[Document], batch_size: int, progress: str | None
) -> dict[str, np.ndarray]:
    """Everything else, from one forward and one backward pass."""
    widths, model = neuron_widths(layout), layout.model
    shape = (len(documents), sum(widths.values()))
    found = {name: np.empty(shape, dtype=np.float32) for name in MEASURES if name != "importance"}
    with ExitStack() as stack:
        stack.enter_context(hooked(model))
        stack.enter_context(without_parameter_gradients(model))
        activations: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for block in feed_forward_blocks(layout):
            stack.callback(_after_gate(layout, block, activations.__setitem__))
            stack.callback(_before_down(layout, block, values.__setitem__))
        with tqdm(total=len(documents), unit=" documents", desc=progress, disable=progress is None) as bar:
            for rows in _batches(documents, batch_size):
                ids, mask = (x.to(layout.input_device) for x in padded([documents[n].ids for n in rows]))
                seen = torch.ones_like(mask)  # see `padded`
                with torch.enable_grad():
                    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
                    gradients = loss_slopes(logits, ids, mask, [values[name] for name in widths])
                unit = torch.tensor([math.log(2) * documents[n].size for n in rows])[:, None]
                parts: list[dict[str, Tensor]] = []
                for name, gradient in zip(widths, gradients, strict=True):
                    parts.append(_summed(activations[name], values[name], gradient, mask, unit))
                for measure_name in found:
                    found[measure_name][rows] = torch.cat([part[measure_name] for part in parts], dim=1).numpy()
                activations.clear()
                values.clear()
                bar.update(len(rows))
    return found


def _summed(x: Tensor, h: Tensor, gradient: Tensor, mask: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """The measures of one block, each [documents, width] on the CPU.

    Args:
        x: activations, [documents, seq, width] or flattened.
        h: values, likewise.
        gradient: of the values, likewise.
        mask: [documents, seq].
        unit: nats of one bit per byte of each document, [documents, 1].
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    x, h, gradient = (_shaped(values.detach().to(dtype), mask) for values in (x, h, gradient))
    tokens = mask[..., None].to(h.device, dtype)
    product, lengths = h * gradient * tokens, tokens.sum(1)
    means = {"activation": x.abs(), "probability": (x > 0).to(dtype), "value": h, "size": h.abs(), "square": h.square()}
    result = {name: ((values * tokens).sum(1) / lengths).cpu() for name, values in means.items()}
    result["attribution"] = -product.sum(1).cpu() / unit.to(dtype)
    result["relevance"] = product.abs().sum(1).cpu() / unit.to(dtype)
    return result


def _shaped(values: Tensor, mask: Tensor) -> Tensor:
    """[documents, seq, width] also of what a model has flattened."""
    return values.reshape(*mask.shape, values.shape[-1])


def _after_gate(layout: Layout, block: Block, see: Callable[[str, Tensor], Any]) -> Callable[[], None]:
    """Shows a block's activations, under the address of its `down_proj`, until the returned function is called."""
    names = [projection.name for projection in block.stack.projections]
    gate = layout.targets[f"{block.name}.{'gate_proj' if 'gate_proj' in names else 'up_proj'}"]
    activation, name = block.activation, f"{block.name}.down_proj"

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        with torch.no_grad():
            see(name, activation(gate.select(output.detach())))

    return gate.module.register_forward_hook(hook).remove


def _before_down(layout: Layout, block: Block, see: Callable[[str, Tensor], Any]) -> Callable[[], None]:
    """Shows what enters `down_proj`, as something that has a gradient where gradients are on."""
    target = layout.targets[f"{block.name}.down_proj"]

    def hook(module: nn.Module, args: tuple) -> tuple[Any, ...]:
        values = args[0]
        if torch.is_grad_enabled() and not values.requires_grad:
            values = values.detach().requires_grad_()
        see(target.name, values)
        return (values, *args[1:])

    return target.module.register_forward_pre_hook(hook).remove


def pooled_scale(measured: Mapping[str, Mapping[str, np.ndarray]], tokens: Mapping[str, np.ndarray]) -> np.ndarray:
    """Every neuron's own scale: the root of the mean of h² over the tokens of all languages together, [neurons].

    Args:
        measured: language to measure to [documents, neurons].
        tokens: language to the documents' numbers of tokens, [documents].
    """
    return np.sqrt(pooled_mean(measured, tokens, "square"))


def pooled_mean(
    measured: Mapping[str, Mapping[str, np.ndarray]], tokens: Mapping[str, np.ndarray], name: str
) -> np.ndarray:
    """The mean of a measure over the tokens of all languages together, [neurons] float64."""
    values = np.concatenate([measures[name] for measures in measured.values()]).astype(np.float64)
    return np.average(values, axis=0, weights=np.concatenate([tokens[language] for language in measured]))
