"""Which measure belongs to which method and scoring, and how to add one.

A measure is an object with a method `hooks(blocks)` (`plnd.detection.observer.Measure`): for each block it hooks
what it needs to see, and hands out one number per neuron and document with `block.emit(site, …)`. Its
other method, `run`, is one pass over a batch: `forward_pass` unless it needs more, as relevance does. An
`ObservedBlock` offers

- `after(projection, see)`: what a projection received and gave, [batch, seq, …], and `before`, which comes first;
- `documents(…)`: such tensors as each document's own tokens, [seq, …], without padding;
- `sum_over_experts(site, term)`: sums over the tokens that are routed to each fused expert;
- `AttentionTraces(block, measure)`: queries, keys, positions, norms and mask of each document as one `Attention`;
- `target`, `at`, `gain`, `stack`: weights, and what the families table says of the block.

This one measures the largest value that enters each column of `down_proj`:

    class LargestInput:
        run = staticmethod(forward_pass)

        def hooks(self, blocks):
            for block in blocks:
                if "down_proj" in block.projections and not block.stack.experts:
                    yield block.after("down_proj", functools.partial(self.measure, block))

        def measure(self, block, inner, output):
            block.emit("ffn", [h.abs().amax(0) for (h,) in block.documents(inner)])

To try it: `Observer(layout, LargestInput(), sink, spans)`. To make it a method: a name in `plnd.detection.config`, its
line in `measure_of` and, if it measures other neurons together than those of `plnd.detection.observer.SITES`, an entry
there. Every pass has to emit the same sites. Passes run without gradients
unless `run` wants them.
"""

from __future__ import annotations

from plnd.detection.config import DetectConfig
from plnd.detection.measures.activations import MeanActivation, active, size
from plnd.detection.measures.official import OfficialImportance
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.measures.relevance import Relevance
from plnd.detection.observer import Measure


def measure_of(config: DetectConfig) -> Measure:
    """What a run with these settings measures of every block."""
    if config.method == "activation":
        return MeanActivation(size)
    if config.method == "lape":
        return MeanActivation(active)
    if config.method == "relevance":
        return Relevance(config.measured_qk)
    measure = OfficialImportance if config.scoring == "official" else PaperImportance
    return measure(config.measured_qk)
