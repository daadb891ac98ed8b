"""The parallel closed forms against the sequential oracle, for every family, in float64."""

from __future__ import annotations

import re

import pytest
import torch

from plnd.addresses import split_address
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.observer import SITES, Observer
from plnd.detection.oracle import sequential
from plnd.models.families import FAMILIES
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import MASKED, SCALED, TINY, tiny_model

LENGTH = 11


def observe(model, ids, spans, qk, attention_mask=None, position_ids=None) -> dict[str, torch.Tensor]:
    """Importance by address, [documents, width]."""
    seen: dict[str, torch.Tensor] = {}
    layout = Layout(model)

    def sink(block, site, importance):
        for projection in SITES[site]:
            if f"{block}.{projection}" in layout.targets:
                seen[f"{block}.{projection}"] = importance

    observer = Observer(layout, PaperImportance(qk), sink, spans)
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    with torch.no_grad(), KeepFloat64(), observer.attached():
        layout.forward(ids, mask, **({} if position_ids is None else {"position_ids": position_ids}))
    return seen


def document(length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    """Random token ids, [length]."""
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest importance."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_family_has_a_tiny_model():
    """A new row of the table is tested by existing: it needs an entry here, or this fails."""
    assert {*TINY, *((MASKED | SCALED).keys() & FAMILIES.keys())} == set(FAMILIES)


def test_ffn_value_and_output_equal_the_oracle(variant):
    """FFN, V and O importances are the change of the sub-layer's contribution, to 1e-6 (observed: 1e-12)."""
    model, ids = tiny_model(variant), document()
    with KeepFloat64():
        found = observe(model, ids[None], [(0, LENGTH)], "off")
        for address, importance in found.items():
            expected = sequential(model, ids, address, at="sublayer")
            assert relative_error(importance[0], expected) < 1e-9, address
    assert found.keys() == {a for a in Layout(model).targets if not a.endswith((".q_proj", ".k_proj"))}


def test_ffn_importance_is_eq_1_of_the_block(variant):
    """Nothing follows the feed-forward sub-layer in a block, so its importance is eq. 1 itself.

    In Gemma 4 the gated inputs of each block follow, which add nothing here; its factor of the whole counts.
    """
    model, ids = tiny_model(variant), document()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".per_layer_projection.weight"):
                parameter.zero_()
    with KeepFloat64():
        found = observe(model, ids[None], [(0, LENGTH)], "off")
        for address in [a for a in found if a.endswith(("0.up_proj", "1.down_proj"))]:
            assert relative_error(found[address][0], sequential(model, ids, address, at="block")) < 1e-9


@pytest.mark.parametrize("projection", ["q_proj", "k_proj"])
def test_exact_equals_eq_10_by_brute_force(variant, projection):
    """Q and K `exact` are the change of the model's own attention probabilities, to 1e-6 (observed: 1e-12)."""
    model, ids = tiny_model(variant, attention="eager"), document()
    with KeepFloat64():
        found = observe(model, ids[None], [(0, LENGTH)], "exact")
        for address in [a for a in found if split_address(a)[1] == projection]:
            expected = sequential(model, ids, address, at="attention")
            assert relative_error(found[address][0], expected) < 1e-9, address


@pytest.mark.parametrize("projection", ["q_proj", "k_proj"])
@pytest.mark.slow
def test_first_order_converges_to_exact(family, projection):
    """The Jacobian's error is of first order: it shrinks with the logits' change, and is right in the limit."""
    errors = []
    for shrink in (1.0, 0.1, 0.01):
        model = tiny_model(family)
        with torch.no_grad():  # with a head norm the gain sets the logits, without one the rows do
            for target in Layout(model).targets.values():
                if target.projection.name in ("q_proj", "k_proj"):
                    for tensor in target.parameters():
                        tensor[target.position(torch.arange(target.width))] *= shrink
            offset = float(family.startswith(("gemma2", "gemma3", "qwen3_next", "qwen3_5")))
            for name, parameter in model.named_parameters():
                if re.search(r"(q|k|query|key)_(layer)?norm\.weight$", name):
                    parameter.add_(offset).mul_(shrink).sub_(offset)
        last = next(a for a in reversed(Layout(model).targets) if a.endswith(projection))
        exact = observe(model, document()[None], [(0, LENGTH)], "exact")[last][0]
        first = observe(model, document()[None], [(0, LENGTH)], "first_order")[last][0]
        errors.append(relative_error(first, exact))
    assert errors[2] < 1e-2 and errors[2] < errors[1] / 5 < errors[0]


@pytest.mark.parametrize("qk", ["exact", "first_order"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_do_not_change_a_document(family, qk, side):
    """A document's importance is the same alone, and in a padded batch with another document, on either side."""
    model = tiny_model(family)
    documents = [document(11, 1), document(7, 2)]
    alone = [observe(model, d[None], [(0, len(d))], qk) for d in documents]
    ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.long)
    spans = []
    for row, d in enumerate(documents):
        start = 11 - len(d) if side == "left" else 0
        spans.append((start, start + len(d)))
        ids[row, slice(*spans[-1])], mask[row, slice(*spans[-1])] = d, 1
    together = observe(model, ids, spans, qk, mask, (mask.cumsum(1) - 1).clamp_min(0))
    for address, importance in together.items():
        for row in range(2):
            assert relative_error(importance[row], alone[row][address][0]) < 1e-5, (address, row)


@pytest.mark.parametrize("qk", ["exact", "first_order"])
@pytest.mark.slow
def test_chunks_do_not_change_the_result(family, qk, monkeypatch):
    """Memory budgets cut the work into pieces; the sums stay the same."""
    model, ids = tiny_model(family), document()
    whole = observe(model, ids[None], [(0, LENGTH)], qk)
    monkeypatch.setattr("plnd.importance.memory.ROWS_BUDGET", 80)
    monkeypatch.setattr("plnd.importance.memory.CELLS_BUDGET", 40)
    pieces = observe(model, ids[None], [(0, LENGTH)], qk)
    for address, importance in whole.items():
        assert relative_error(pieces[address], importance) < 1e-9, address


def test_observing_leaves_the_model_as_it_was(family):
    """No hook, attribute or attention function stays behind, also when the pass fails."""
    model, ids = tiny_model(family), document()
    implementation, inputs = model.config._attn_implementation, {"input_ids": ids[None]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[None]
    before = model(**inputs).logits
    attributes = [set(vars(module)) for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        with Observer(Layout(model), PaperImportance("exact"), lambda *a: 1 / 0, [(0, LENGTH)]).attached():
            Layout(model).forward(ids[None], torch.ones_like(ids[None]))
    assert model.config._attn_implementation == implementation
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(**inputs).logits, before)
