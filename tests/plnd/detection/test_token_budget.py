"""`batch_size=auto`: as many tokens in a pass as fit, fewer when they did not, and the numbers of any other size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from detecting import CONFIG, selected, some_documents
from plnd.detection import token_budget
from plnd.detection.documents import Document
from plnd.detection.run import detect
from plnd.detection.token_budget import TokenBudget
from plnd.errors import PLNDError
from plnd.models.layout import Layout
from tiny import TINY, VARIANTS, tiny_model

AUTO = replace(CONFIG, qk="first_order", batch_size="auto")
DOCUMENTS = some_documents([4 + n % 9 for n in range(18)], seed=2)


class Card:
    """What a card of a given size does to a model: passes of more tokens end as PyTorch says that memory has ended."""

    def __init__(self, model, module, tokens: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.tokens, self.error = tokens, error
        self.passes: list[int] = []
        self.handles = [
            model.model.layers[0].register_forward_pre_hook(
                lambda _, args: self.passes.append(args[0][..., 0].numel())
            ),
            module.register_forward_hook(self.fill),
        ]

    def fill(self, *_: object) -> None:
        """At a place in the midst of a pass."""
        if self.passes[-1] > self.tokens:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def remove(self) -> None:
        """Gives the model back."""
        for handle in self.handles:
            handle.remove()


def test_batches_hold_what_fits():
    """All documents, in order; as many tokens as the budget has, padding counted; one document at least."""
    documents = [Document(n, [5] * length) for n, length in enumerate((30, 9, 8, 8, 3, 3, 3, 3, 2, 1))]
    batches = list(TokenBudget(20).batches(documents))
    assert [[len(d.ids) for d in batch] for batch in batches] == [[30], [9, 8], [8, 3], [3, 3, 3, 2, 1]]
    assert [d for batch in batches for d in batch] == documents
    assert [len(batch) for batch in TokenBudget(20, document=2).batches(documents)] == [1, 1, 2, 4, 2]


def test_half_is_half_and_one_document_is_the_least():
    """Of a batch that did not fit half as many documents are tried; of one document nothing is left to try."""
    documents = [Document(n, [5] * 10) for n in range(8)]
    budget = TokenBudget(1000, document=0.3)
    for expected in (4, 2, 1):
        budget.halve(next(budget.batches(documents)))
        assert [len(batch) for batch in budget.batches(documents)] == [expected] * (8 // expected)
    with pytest.raises(PLNDError, match="out of memory with one document of 10 tokens: give a smaller --max-length"):
        budget.halve(documents[:1])


def test_the_budget_follows_what_is_free(monkeypatch):
    """Half the memory, half the tokens; never more than pays; relevance, which keeps all blocks, has fewer."""
    layout, found = Layout(tiny_model("llama", torch.float32)), {}
    for free in (2**20, 2**21, 2**40):
        monkeypatch.setattr(token_budget, "free_memory", lambda device, free=free: free)
        found[free] = TokenBudget.of(layout, AUTO).tokens
    assert found[2**21] == pytest.approx(2 * found[2**20], abs=1) and found[2**20] > 1
    assert found[2**40] == token_budget.MOST["cpu"]
    monkeypatch.setattr(token_budget, "free_memory", lambda device: 2**20)
    assert TokenBudget.of(layout, replace(AUTO, method="relevance")).tokens < found[2**20] / 1.5
    monkeypatch.setattr(token_budget, "free_memory", lambda device: None)
    assert "not known" in TokenBudget.of(layout, AUTO).why


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TINY, *VARIANTS])
def test_every_family_has_a_budget(name):
    """What the estimate reads of a configuration is there in every row of the families table."""
    assert TokenBudget.of(Layout(tiny_model(name)), AUTO).tokens == token_budget.MOST["cpu"]


@pytest.mark.parametrize("method", ["plnd", pytest.param("relevance", marks=pytest.mark.slow)])
def test_memory_that_ends_changes_no_number(method, capsys):
    """Passes that end in the midst of a block are done again in halves: every document counts once, as in any batch."""
    model, config = tiny_model("llama"), replace(AUTO, method=method)
    expected = detect(model, DOCUMENTS, replace(config, batch_size=3))
    layer = model.model.layers[1]
    for module in (layer.self_attn, layer.mlp.up_proj):
        card = Card(model, module, tokens=60)
        found = detect(model, DOCUMENTS, config, progress=True)
        card.remove()
        said = capsys.readouterr().err
        assert "up to 8,192 tokens in a forward pass" in said and "out of memory: going on with up to" in said
        assert card.passes[0] == 18 * 12 and all(passed <= 60 for passed in card.passes[3:])
        assert found.metadata.corpus.documents == len(DOCUMENTS) and found.metadata.method["batch_size"] == "auto"
        assert selected(found) == selected(expected)
        for name in expected.minimum:
            for ours, theirs in ((found.minimum, expected.minimum), (found.mean, expected.mean)):
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_many_documents_pass_at_once_and_change_nothing():
    """Without a lack of memory all documents of a window are one pass, and the scores are those of any batch size."""
    model = tiny_model("llama")
    card = Card(model, model.model.layers[1], tokens=10**6)
    found = detect(model, DOCUMENTS, AUTO)
    card.remove()
    assert card.passes == [18 * 12]
    assert selected(found) == selected(detect(model, DOCUMENTS, replace(AUTO, batch_size=1)))


def test_what_is_not_for_want_of_memory_is_raised():
    """Another error ends the run; so does a lack of memory where the batch size was given, or one document is left."""
    model = tiny_model("llama")
    for config, tokens, error, said in (
        (AUTO, 60, ZeroDivisionError, "CUDA"),
        (replace(AUTO, batch_size=3), 10, torch.OutOfMemoryError, "CUDA"),
        (AUTO, 5, PLNDError, "one document of 12 tokens"),
    ):
        card = Card(model, model.model.layers[1].mlp, tokens, torch.OutOfMemoryError if error is PLNDError else error)
        with pytest.raises(error, match=said):
            detect(model, DOCUMENTS, config)
        card.remove()


def test_models_through_which_batches_pass_together_are_refused(small_model):
    """Blockwise a number is needed, in one line."""
    import plnd

    with pytest.raises(PLNDError, match="batch_size=auto: this model is blockwise, .* give a number"):
        detect(plnd.blockwise_model(small_model), DOCUMENTS, AUTO)


def test_an_offloaded_model_has_what_is_free_where_it_runs():
    """Of its parameters, which are nowhere between passes, nothing is known; it is not taken for an accelerator's."""
    model = tiny_model("llama")
    plain = TokenBudget.of(Layout(model), AUTO)
    cpu_offload(model, execution_device="cpu")
    assert TokenBudget.of(Layout(model), AUTO).tokens <= token_budget.MOST["cpu"] and plain.why.endswith("free")
