"""Relevance: held to finite differences of the loss, and to a model that is asked for its gradients by hand."""

from __future__ import annotations

import pytest
import torch

from detecting import some_documents
from plnd.detection.config import DetectConfig
from plnd.detection.measures.relevance import Relevance, loss_slopes, next_token_nats
from plnd.detection.observer import Observer
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.models.batches import padded
from plnd.models.families import FAMILIES
from plnd.models.layout import Layout
from tiny import TINY, marked, tiny_model

DOCUMENTS = some_documents((9, 5))
ENCODERS = ("t5", "t5_gated", "mt5", "umt5")
DENSE = marked(x for x in TINY if x not in ENCODERS and not any(stack.experts for stack in FAMILIES[x].stacks))


def relevances(model, documents=DOCUMENTS, qk="first_order") -> dict[str, torch.Tensor]:
    """Of one batch: "block.site" to [documents, width]."""
    layout, seen = Layout(model), {}
    observer = Observer(layout, Relevance(qk), lambda block, site, x: seen.update({f"{block}.{site}": x}))
    observer.spans = [(0, len(document)) for document in documents]
    with observer.attached():
        observer.run(*padded(documents))
    return seen


def loss_with_factors(model, projection: str, neuron: int, factors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The document's loss where a neuron's value at every token is multiplied by `factors`, [seq]."""
    target = Layout(model).targets[projection]

    def scaled(values):
        factor = torch.ones_like(values.reshape(-1, values.shape[-1]))  # some models flatten batch and tokens
        column = torch.arange(factor.shape[1])
        if not projection.endswith(("o_proj", "down_proj")):
            column = target.select(column)
        factor = factor.index_put((torch.arange(len(ids)), column[neuron]), factors)
        return values * factor.reshape(values.shape)

    if projection.endswith(("o_proj", "down_proj")):
        handle = target.module.register_forward_pre_hook(lambda module, args: (scaled(args[0]), *args[1:]))
    else:
        handle = target.module.register_forward_hook(lambda module, args, output: scaled(output))
    with handle:
        logits = model(ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, :-1]
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].sum()


SITES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ffn": "down_proj"}


@pytest.mark.parametrize("name", DENSE)
def test_relevance_is_what_the_loss_moves_by_at_each_token(name):
    """The mean over tokens of |dL/df|, f a factor on the neuron at that token alone."""
    dtype = torch.float32 if name == "xglm" else torch.float64  # transformers' attention for it has no float64
    model, ids = tiny_model(name, dtype), torch.tensor(DOCUMENTS[0])
    found, widths = relevances(model, DOCUMENTS[:1]), Layout(model).widths
    for site, projection in SITES.items():
        blocks = [block for block in range(4) if f"{block}.{projection}" in widths]  # hybrids have some without
        if not blocks:
            assert (name, projection) == ("gemma4_text", "v_proj")
            continue
        for block, neuron in ((blocks[0], widths[f"{blocks[0]}.{projection}"] - 1), (blocks[-1], 5)):
            factors = torch.ones(len(ids), dtype=dtype, requires_grad=True)
            loss = loss_with_factors(model, f"{block}.{projection}", neuron, factors, ids)
            (slopes,) = torch.autograd.grad(loss, factors)
            expected = float(slopes.abs().mean())
            assert float(found[f"{block}.{site}"][0, neuron]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_slopes_are_those_of_the_loss():
    """The same by finite differences, without any gradient; the model computes parts in float32."""
    model, ids, step = tiny_model("llama"), torch.tensor(DOCUMENTS[0]), 1e-2
    found = relevances(model, DOCUMENTS[:1])
    for site, projection in SITES.items():
        slopes = []
        for token in range(len(ids)):
            change = torch.zeros(len(ids), dtype=torch.float64)
            change[token] = step
            with torch.no_grad():
                above, below = (loss_with_factors(model, f"1.{projection}", 2, 1 + x, ids) for x in (change, -change))
            slopes.append(float(above - below) / (2 * step))
        expected = sum(map(abs, slopes)) / len(slopes)
        assert float(found[f"1.{site}"][0, 2]) == pytest.approx(expected, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slopes_need_no_copy_of_the_logits(dtype):
    """To the bit those of the summed loss, padding left out; written over the logits, which are not there twice."""
    ids, mask = torch.randint(9, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[1, 15:] = 0
    values, weight = torch.randn(2, 20, 4, dtype=dtype, requires_grad=True), torch.randn(4, 9, dtype=dtype)
    logits = values @ weight
    (expected,) = torch.autograd.grad(next_token_nats(logits, ids, mask).sum(), values, retain_graph=True)
    before = logits.detach().clone()
    (found,) = loss_slopes(logits, ids, mask, [values])
    assert torch.equal(found, expected) and not found[1, 14:].any()
    assert not torch.isclose(logits, before).all() and not logits[:, -1].any()


class Gathered(torch.autograd.Function):
    """A view that a function of one's own gives, as tensor parallel does of logits: nothing is written over it."""

    @staticmethod
    def forward(ctx, x):  # noqa: D102
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):  # noqa: D102
        return slope


def test_slopes_of_logits_that_are_a_view():
    """The same, and the logits are left as they were."""
    ids, mask = torch.randint(9, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    values, weight = torch.randn(2, 20, 4, requires_grad=True), torch.randn(4, 9)
    logits = Gathered.apply(values @ weight)
    before = logits.detach().clone()
    (expected,) = torch.autograd.grad(next_token_nats(logits, ids, mask).sum(), values, retain_graph=True)
    (found,) = loss_slopes(logits, ids, mask, [values])
    assert torch.equal(found, expected) and torch.equal(logits, before)


@pytest.mark.parametrize("name", ["llama", "phi3", "falcon", "gemma2"])
def test_padding_and_batch_do_not_change_a_document(name):
    """Each document of a batch has the relevances that it has alone, also where padding is longer than a window."""
    model = tiny_model(name)
    together = relevances(model)
    for row, document in enumerate(DOCUMENTS):
        for address, alone in relevances(model, [document]).items():
            torch.testing.assert_close(together[address][row], alone[0], rtol=1e-5, atol=1e-8)


def test_the_model_is_left_alone():
    """Parameters have no gradient afterwards, and want one if they did before."""
    model = tiny_model("llama", torch.float32)
    frozen = next(model.parameters()).requires_grad_(False)
    kept = []  # by the pass, of weights: their gradients would need it
    model.lm_head.register_forward_hook(lambda module, args, output: kept.append(module.weight.requires_grad))
    relevances(model)
    assert kept == [False]
    assert all(parameter.grad is None for parameter in model.parameters())
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(wanting) == len(list(model.parameters())) - 1 and not frozen.requires_grad


def test_detect_measures_it():
    """Scores of all projections, a feed-forward neuron's number in its row and column; without Q and K if asked."""
    model = tiny_model("llama", torch.float32)
    config = DetectConfig(language="xx", method="relevance", min_length=4, batch_size=2)
    scores = detect(model, DOCUMENTS, config)
    assert scores.metadata.method.name == "relevance" and len(scores.metadata.method.projections) == 7
    expected = sum(relevances(model, [document])["0.ffn"][0] * len(document) for document in DOCUMENTS)
    mean = torch.from_numpy(scores.mean["0.down_proj"])
    torch.testing.assert_close(mean, expected / sum(map(len, DOCUMENTS)), rtol=1e-4, atol=1e-9, check_dtype=False)
    assert (scores.mean["0.up_proj"] == scores.mean["0.down_proj"]).all()
    without = detect(model, DOCUMENTS, DetectConfig(language="xx", method="relevance", min_length=4, qk="off"))
    assert {"q_proj", "k_proj"}.isdisjoint(without.metadata.method.projections)


def test_a_module_that_two_blocks_share_is_refused():
    """Its neurons have two values in a pass; one of them would be silently left out."""
    model = tiny_model("llama", torch.float32)
    model.model.layers[1].mlp.down_proj = model.model.layers[0].mlp.down_proj
    with pytest.raises(FamilyError, match="of ffn ran 2 times in a pass"):
        relevances(model)


@pytest.mark.parametrize("name", ["t5_gated", "mixtral"])
def test_what_has_no_relevance_is_refused(name):
    """Encoders and experts, before the first document."""
    with pytest.raises(FamilyError, match="use --method plnd"):
        detect(tiny_model(name, torch.float32), DOCUMENTS, DetectConfig(method="relevance", min_length=4))


def test_an_epsilon_says_nothing_of_relevance():
    """What eq. 2 will keep is no property of relevances."""
    with pytest.raises(PLNDError, match="epsilon= says ahead"):
        DetectConfig(method="relevance", epsilon=0.1)
