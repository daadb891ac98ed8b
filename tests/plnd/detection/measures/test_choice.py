"""Measures are composed: each names a setting, sees what it asks for, and leaves the rest of the model alone."""

from __future__ import annotations

import functools
import re
import textwrap
from dataclasses import replace

import pytest
import torch

from detecting import some_documents
from plnd.detection.config import SCORINGS, DetectConfig
from plnd.detection.measures import choice
from plnd.detection.measures.activations import MeanActivation, active, size
from plnd.detection.measures.choice import measure_of
from plnd.detection.measures.official import OfficialImportance
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.measures.relevance import Relevance
from plnd.detection.measures.traces import AttentionTraces
from plnd.detection.observer import SITES, Observer, forward_pass
from plnd.errors import FamilyError
from plnd.importance.attention import rotated
from plnd.models.batches import padded
from plnd.models.families import FAMILIES
from plnd.models.layout import Layout
from tiny import tiny_model

DOCUMENTS = some_documents((4, 9, 7))
"""The first is not the longest: what is read of it alone would not do for the others."""


def emitted(model, measure) -> dict[str, torch.Tensor]:
    """What a measure hands out for `DOCUMENTS`, padded into one batch: "block.site" to [documents, width]."""
    layout, seen = Layout(model), {}
    observer = Observer(layout, measure, lambda block, site, x: seen.update({f"{block}.{site}": x}))
    observer.spans = [(0, len(document)) for document in DOCUMENTS]
    with observer.attached():
        observer.run(*padded(DOCUMENTS))
    return seen


MEASURES = {
    ("plnd", "paper"): PaperImportance,
    ("plnd", "official"): OfficialImportance,
    ("relevance", "paper"): Relevance,
    ("activation", "paper"): MeanActivation,
    ("lape", "paper"): MeanActivation,
}


def test_every_setting_has_its_measure():
    """Each method with each of its scorings is measured by its own class, and no setting is without one."""
    pairs = {(method, scoring) for method, scorings in SCORINGS.items() for scoring in scorings}
    assert pairs == set(MEASURES)
    for (method, scoring), kind in MEASURES.items():
        assert type(measure_of(DetectConfig(method=method, scoring=scoring))) is kind
    assert measure_of(DetectConfig(method="activation")) == MeanActivation(size)
    assert measure_of(DetectConfig(method="lape")) == MeanActivation(active)
    for qk in ("exact", "first_order", "off"):
        assert measure_of(DetectConfig(qk=qk)).qk == qk
    assert measure_of(DetectConfig(method="relevance", qk="off")).rows == ("v_proj",)


def test_the_measure_of_the_docstring_measures():
    """The example that tells how to add a measure runs as it is printed, without padding in what it counts."""
    example = re.search(r"\n    class LargestInput:\n(?:    .*\n|\n(?=    ))+", choice.__doc__)
    assert example is not None
    names = {"functools": functools, "forward_pass": forward_pass}
    exec(textwrap.dedent(example[0]), names)
    model, inputs = tiny_model("llama", torch.float32), {}
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: inputs.update(inner=args[0]))
    found = emitted(model, names["LargestInput"]())
    assert found.keys() == {"0.ffn", "1.ffn"}
    for row, document in enumerate(DOCUMENTS):
        assert torch.equal(found["1.ffn"][row], inputs["inner"][row, : len(document)].abs().amax(0))


@pytest.mark.parametrize(
    ("measure", "sites"),
    [
        (PaperImportance("exact"), ("query", "key", "value", "output", "ffn")),
        (PaperImportance("off"), ("value", "output", "ffn")),
        (OfficialImportance("exact"), ("query", "key", "value", "output", "up")),
        (MeanActivation(size), ("ffn",)),
        (Relevance("first_order"), ("query", "key", "value", "output", "ffn")),
    ],
    ids=["paper", "paper off", "official", "activation", "relevance"],
)
@pytest.mark.parametrize("name", ["phi3", "mixtral"])
def test_a_measure_emits_its_sites(name, measure, sites):
    """Once for each block, as wide as the projections that share the site; a measure can be attached again."""
    if name == "mixtral" and isinstance(measure, Relevance):
        pytest.skip("relevance is not measured of experts")
    model = tiny_model(name, torch.float32)
    widths = Layout(model).widths
    for _ in range(2):
        found = emitted(model, measure)
        assert found.keys() == {f"{block}.{site}" for block in (0, 1) for site in sites}
        for address, importance in found.items():
            block, site = address.split(".")
            assert importance.shape == (len(DOCUMENTS), widths[f"{block}.{SITES[site][-1]}"])


class Nothing:
    """A measure that looks at nothing."""

    run = staticmethod(forward_pass)

    def hooks(self, blocks):
        """No hook."""
        return iter(())


class Queries:
    """A measure that keeps the traces of all documents."""

    run = staticmethod(forward_pass)

    def __init__(self):
        self.traces = []

    def hooks(self, blocks):
        """Those of attention."""
        for block in blocks:
            yield from AttentionTraces(block, self.keep).hooks()

    def keep(self, trace):
        """No importance of anything."""
        self.traces.append(trace)
        return torch.zeros(1), torch.zeros(1)


def test_what_is_not_asked_for_is_not_watched():
    """Without attention or experts to watch, a model runs with its own functions for them."""
    model, seen = tiny_model("mixtral", torch.float32), []
    experts = model.model.layers[0].mlp.experts  # observed ones need a watch to call
    experts.register_forward_pre_hook(lambda module, args: seen.append(model.config._attn_implementation))
    own = model.config._attn_implementation
    emitted(model, Nothing())
    emitted(model, PaperImportance("exact"))
    assert seen[0] == own != seen[1]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gptj", "bloom", "t5_gated", "phi3", "falcon"])
def test_a_trace_is_a_document_without_padding(name):
    """What enters the scalar product is made of the document's own queries and keys, and its mask hides no token."""
    measure, model = Queries(), tiny_model(name)
    emitted(model, measure)
    blocks = Layout(model).blocks
    assert len(measure.traces) == len(DOCUMENTS) * len(blocks)
    for index, trace in enumerate(measure.traces):
        length = len(DOCUMENTS[index % len(DOCUMENTS)])
        assert trace.query.shape[1] == trace.key.shape[1] == length
        if trace.mask is not None:
            seen = trace.mask if trace.mask.dtype == torch.bool else trace.mask > -torch.inf
            assert seen.shape[-2:] == (length, length) and seen.diagonal(dim1=-2, dim2=-1).all()
        for x, entered, norm in (
            (trace.query, trace.query_rotated, trace.query_norm),
            (trace.key, trace.key_rotated, trace.key_norm),
        ):
            torch.testing.assert_close(entered, rotated(x, norm, trace.rotary), rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_every_trace_is_held_to_the_model(name, monkeypatch):
    """Whatever a measure does with a trace: a row that says something else of attention is refused."""
    row = FAMILIES[name]
    stacks = tuple(replace(stack, rotation=None) for stack in row.stacks)
    monkeypatch.setitem(FAMILIES, name, replace(row, stacks=stacks))
    with pytest.raises(FamilyError, match=f"^block 0: attention is not what the families table says of {name}"):
        emitted(tiny_model(name, torch.float32), Queries())
