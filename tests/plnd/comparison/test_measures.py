"""What the arena measures of neurons, against plain loops over a tiny model in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plnd.comparison.documents import Document
from plnd.comparison.measures import (
    BINS,
    MEASURES,
    column_norms,
    histograms,
    measure,
    neuron_widths,
    overlap_coefficient,
)
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import FamilyError
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model

DOCUMENTS = [Document(0, [5, 9, 33, 7, 61, 4], 11), Document(1, [8, 3, 90, 11], 7), Document(2, [2, 44, 17, 6, 80], 9)]


def nats(model, ids: list[int]) -> torch.Tensor:
    """The document's loss, by the model's own."""
    tokens = torch.tensor([ids])
    return model(tokens, labels=tokens).loss * (len(ids) - 1)


def values(model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What enters every `down_proj`, and the activations, of one document: [seq, neurons] each."""
    layout, seen = Layout(model), {}
    handles = []
    for block in layout.blocks:
        down = layout.targets[f"{block.name}.down_proj"].module
        handles.append(down.register_forward_pre_hook(lambda m, a, n=block.name: seen.update({("h", n): a[0]})))
        act = block.at(block.stack.activation)
        handles.append(act.register_forward_hook(lambda m, a, o, n=block.name: seen.update({("x", n): o})))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    width = next(iter(neuron_widths(layout).values()))
    joined = [np.concatenate([seen[k, b.name].reshape(-1, width).numpy() for b in layout.blocks], 1) for k in "hx"]
    return joined[0], joined[1]


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "phi3"])
def test_means_over_tokens_are_those_of_a_loop(name):
    """In a batch, padded, whatever the lengths: activation, probability, value, size and square of every document."""
    model = tiny_model(name)
    found = measure(model, DOCUMENTS, 3)
    assert tuple(found) == MEASURES
    for row, document in enumerate(DOCUMENTS):
        h, x = values(model, document.ids)
        expected = {"value": h, "size": abs(h), "square": h**2, "activation": abs(x), "probability": x > 0}
        for measured, tokens in expected.items():
            np.testing.assert_allclose(found[measured][row], tokens.mean(0), rtol=2e-5, atol=1e-7, err_msg=measured)


def test_importance_is_that_of_detection():
    """Eq. 1 as `plnd.detect` has it, post-norms included."""
    model = tiny_model("gemma3_text")
    found = measure(model, DOCUMENTS, 2)["importance"]
    for row, document in enumerate(DOCUMENTS):
        scores = detect(model, [document.ids], DetectConfig(qk="off", min_length=1))
        expected = np.concatenate([scores.mean[name] for name in neuron_widths(Layout(model))])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_attribution_is_the_derivative_by_a_factor(name):
    """-attribution · ln 2 · bytes is dL/df at f = 1 of a factor f on the neuron, by central differences."""
    model, step = tiny_model(name), 1e-4
    document = DOCUMENTS[0]
    with KeepFloat64():
        found = measure(model, [document], 1)
    for block, target in enumerate(t for t in Layout(model).targets.values() if t.projection.name == "down_proj"):
        weight = target.stored.data.T if target.transposed else target.stored.data
        for neuron in (0, 7, 31):
            losses, column = [], weight[:, neuron].clone()
            with torch.no_grad(), KeepFloat64():
                for factor in (1 + step, 1 - step):
                    weight[:, neuron] = factor * column
                    losses.append(float(nats(model, document.ids)))
            weight[:, neuron] = column
            derivative = (losses[0] - losses[1]) / (2 * step)
            place = block * target.width + neuron
            attribution = -found["attribution"][0, place] * math.log(2) * document.size
            assert attribution == pytest.approx(derivative, rel=2e-4, abs=2e-6)
    assert (found["relevance"] >= np.abs(found["attribution"]) * (1 - 1e-6)).all()


def test_relevance_is_the_size_of_each_tokens_part():
    """Σ|h·g|, with g by autograd of a document that is alone and not padded."""
    model, document = tiny_model("qwen2"), DOCUMENTS[1]
    found = measure(model, DOCUMENTS, 3)
    inner = []
    handles = [
        target.module.register_forward_pre_hook(lambda m, a: inner.append(a[0]))
        for target in Layout(model).targets.values()
        if target.projection.name == "down_proj"
    ]
    gradients = torch.autograd.grad(nats(model, document.ids), inner)
    for handle in handles:
        handle.remove()
    unit = math.log(2) * document.size
    products = torch.cat([(h * g)[0] for h, g in zip(inner, gradients, strict=True)], -1).detach()
    np.testing.assert_allclose(found["relevance"][1], products.abs().sum(0) / unit, rtol=1e-4)
    np.testing.assert_allclose(found["attribution"][1], -products.sum(0) / unit, rtol=1e-3, atol=1e-6)


def test_measuring_leaves_no_trace():
    """No hook, no gradient, and parameters want gradients as before; also of a model whose parameters want none."""
    model = tiny_model("qwen2")
    first = next(model.parameters())
    first.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    found = measure(model.train(), DOCUMENTS, 2)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    frozen = measure(model.requires_grad_(False), DOCUMENTS, 2)
    np.testing.assert_array_equal(found["attribution"], frozen["attribution"])


def test_histograms_count_tokens_in_bins_of_the_own_scale():
    """Against numpy's; the first so many documents, then all; values beyond the last edges in the open bins."""
    model = tiny_model("llama")
    tokens = [values(model, document.ids)[0] for document in DOCUMENTS]
    scale = np.sqrt(np.mean(np.concatenate(tokens) ** 2, axis=0)) / 3  # small, so that some lie beyond
    found = histograms(model, DOCUMENTS, scale, [1, 3], 2)
    edges = np.concatenate([[-np.inf], np.arange(-32, 33) / 8, [np.inf]])
    for counts, seen in zip(found, (tokens[0], np.concatenate(tokens)), strict=True):
        assert counts.shape == (len(scale), BINS)
        for neuron in range(0, len(scale), 5):
            expected, _ = np.histogram(seen[:, neuron] / scale[neuron], edges)
            assert np.array_equal(counts[neuron], expected)
    assert found[-1][:, [0, -1]].sum() > 0


def test_overlap_coefficient_by_hand():
    """Shares of bins, whatever the numbers of tokens: the same distribution 1, disjoint ones 0, half and half 0.5."""
    own = np.array([[1, 1, 0, 0], [2, 2, 0, 0], [0, 4, 0, 0]])
    others = np.array([[5, 5, 0, 0], [0, 0, 3, 1], [0, 1, 1, 0]])
    assert overlap_coefficient(own, others).tolist() == [1, 0, 0.5]


def test_weight_magnitude_is_the_norm_of_columns():
    """Of the output column, also where the weight is stored transposed."""
    model = tiny_model("gpt2")
    weights = [block.mlp.c_proj.weight.detach() for block in model.transformer.h]  # [width, hidden]
    np.testing.assert_allclose(column_norms(Layout(model)), torch.cat(weights).norm(dim=1))


def test_models_without_dense_decoder_feed_forwards_are_refused():
    """Mixtures of experts, and models with an encoder."""
    with pytest.raises(FamilyError, match="dense feed-forwards, not experts"):
        measure(tiny_model("mixtral"), DOCUMENTS, 1)
    with pytest.raises(FamilyError, match="models of one decoder"):
        measure(tiny_model("t5"), DOCUMENTS, 1)
