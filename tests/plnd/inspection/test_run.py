"""Neurons' profiles against values computed one document and one neuron at a time, for every family; refusals."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

import plnd
from handmade import make_neurons, make_scores
from plnd.errors import CorpusError, ModelMismatchError, PLNDError
from plnd.inspection.choice import site_of
from plnd.inspection.config import InspectConfig
from plnd.inspection.run import inspect_neurons
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model

CORPORA = {
    "one": [[3, 5, 9, 40, 41, 7, 33], [6, 60, 61], [8, 17, 90, 95, 3], [4]],
    "two": [[11, 12, 13, 14], [20, 21, 60, 22, 23, 24]],
}
CONFIG = InspectConfig(contexts=3, batch_size=3, around=2, written=4)


def words(size: int = 97) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` made-up words."""
    vocabulary = {f"word{n}": n for n in range(size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="word0")))


def some_neurons(layout: Layout) -> list[str]:
    """One neuron of each projection, in the first and in the last block that has it."""
    places: dict[str, list[str]] = {}
    for address in layout.widths:
        places.setdefault(address.rpartition(".")[2], []).append(address)
    chosen = dict.fromkeys(address for found in places.values() for address in (found[0], found[-1]))
    return [f"{address}.{(5 * n + 3) % layout.widths[address]}" for n, address in enumerate(chosen)]


def by_hand(model, layout: Layout, name: str, ids: list[int]) -> np.ndarray:
    """A neuron's value at each token of one document, from the input of the module that holds its weight, [tokens]."""
    address, _, number = name.rpartition(".")
    address, index = site_of(address), int(number)
    target, arrived = layout.targets[address], []
    handle = target.plain.register_forward_pre_hook(lambda _, args: arrived.append(args))
    tokens = torch.tensor([ids])
    further = {"decoder_input_ids": torch.tensor([[0, *ids[:-1]]])} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=tokens, use_cache=False, **further)
    finally:
        handle.remove()
    (args,) = arrived
    if target.experts is not None:
        return routed_by_hand(target.plain, *args, index, target.width // target.experts)
    inner = args[0].reshape(len(ids), -1)
    if target.projection.axis == "column":
        return inner[:, index].numpy()
    bias = getattr(target.plain, "bias", None)
    added = 0 if bias is None else bias[target.storage(torch.tensor([index]))]
    return (inner @ target.weight()[index] + added).numpy()


def routed_by_hand(experts, hidden, chosen, shares, index: int, each: int) -> np.ndarray:
    """Of an expert's neuron: what enters its column at the tokens that are routed there, 0 at all others."""
    expert, row = divmod(index, each)
    weight, bias = experts.gate_up_proj[expert], getattr(experts, "gate_up_proj_bias", {expert: None})[expert]
    inner = experts._apply_gate(linear(hidden, weight if bias is None else weight.T, bias))[:, row]
    return inner.where((chosen == expert).any(-1), 0).numpy()


def expected_places(values: list[np.ndarray], skipped: int, count: int) -> list[tuple[int, int, float]]:
    """Document, position and value of the largest sizes: the best of each document, then what is left."""
    every = [
        (-abs(value), document, position, value)
        for document, vector in enumerate(values)
        for position, value in enumerate(vector)
        if position >= skipped and value
    ]
    best = [min(of) for d in range(len(values)) if (of := [one for one in every if one[1] == d])]
    best = sorted(best)[:count]
    rest = islice((one for one in sorted(every) if one not in best), count - len(best))
    return [one[1:] for one in sorted([*best, *rest])]


@torch.no_grad()
@pytest.mark.slow
def test_values_and_peaks_are_those_of_each_document_alone(variant):
    """Every projection of every family: means, shares and tokens of largest value, though documents are padded."""
    model = tiny_model(variant)
    layout = Layout(model)
    names = some_neurons(layout)
    with KeepFloat64():
        found = inspect_neurons(model, words(), names, CORPORA, config=CONFIG)
        values = {
            (name, language): [by_hand(model, layout, name, ids) for ids in documents]
            for name in names
            for language, documents in CORPORA.items()
        }
    assert [neuron.name for neuron in found.neurons] == names
    for neuron in found.neurons:
        shifted = model.config.is_encoder_decoder and neuron.address.startswith("decoder.")
        shifted = shifted and not neuron.address.endswith((".cross.k_proj", ".cross.v_proj"))
        largest = max(np.abs(v[int(shifted) :]).max(initial=0) for lan in CORPORA for v in values[neuron.name, lan])
        assert largest == 0 or 0.39 * largest < neuron.large <= largest / 2
        for one in neuron.languages:
            mine = values[neuron.name, one.language]
            together = np.concatenate([vector[int(shifted) :] for vector in mine])
            np.testing.assert_allclose(one.mean, together.mean(), rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(one.mean_size, np.abs(together).mean(), rtol=1e-6, atol=1e-12)
            if largest:
                share = (np.abs(together).astype(np.float32) >= np.float32(neuron.large)).mean()
                assert one.large == pytest.approx(share)
            expected = expected_places(mine, int(shifted), CONFIG.contexts)
            assert [(f.document, f.position) for f in one.firings] == [place[:2] for place in expected]
            np.testing.assert_allclose([f.value for f in one.firings], [place[2] for place in expected], rtol=1e-6)
            for firing in one.firings:
                ids = CORPORA[one.language][firing.document]
                ids = [0, *ids[:-1]] if shifted else ids
                assert firing.token.strip() == f"word{ids[firing.position]}"
                assert firing.token_id == ids[firing.position]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt", "t5"])
def test_batches_do_not_matter(name):
    """One by one or all together, in whatever company: the same profiles, to rounding."""
    model = tiny_model(name)
    names = some_neurons(Layout(model))
    with KeepFloat64():
        alone, together = (
            inspect_neurons(model, words(), names, CORPORA, config=InspectConfig(contexts=3, batch_size=size))
            for size in (1, 8)
        )
    for one, other in zip(alone.neurons, together.neurons, strict=True):
        for first, second in zip(one.languages, other.languages, strict=True):
            assert first.mean == pytest.approx(second.mean, rel=1e-6, abs=1e-12) and first.large == second.large
            assert [(f.document, f.position) for f in first.firings] == [
                (f.document, f.position) for f in second.firings
            ]
    assert alone.corpora == together.corpora


def test_what_a_tokenizer_adds_does_not_count():
    """The beginning of a text is read, but no neuron fires on it; given as ids, it is a token like others."""
    tokenizer = words()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="word1 $A", special_tokens=[("word1", 1)], pair="word1 $A $B"
    )
    text = "word7 word8 word9"
    assert tokenizer(text)["input_ids"] == [1, 7, 8, 9]
    model, names = tiny_model("llama"), ["0.down_proj.3", "0.k_proj.2"]
    found = inspect_neurons(model, tokenizer, names, {"text": [text], "ids": [[1, 7, 8, 9]]}, config=CONFIG)
    assert (found.corpora["text"].tokens, found.corpora["ids"].tokens) == (3, 4)
    for neuron in found.neurons:
        text_values, id_values = ({f.position: f.value for f in one.firings} for one in neuron.languages)
        assert 0 not in text_values and text_values.keys() <= {1, 2, 3}
        assert all(id_values.get(place, value) == value for place, value in text_values.items())


def test_a_set_gives_its_most_important_neurons_once():
    """Rows and columns of one feed-forward neuron are one entry, in the order of importance, up to `top`."""
    model = tiny_model("llama")
    indices = {"1.gate_proj": [4, 5], "1.up_proj": [4], "1.down_proj": [4, 6], "0.o_proj": [2]}
    importance = {"1.gate_proj": [7.0, 1.0], "1.up_proj": [7.0], "1.down_proj": [7.0, 3.0], "0.o_proj": [5.0]}
    neurons = make_neurons(indices, importance, model=Layout(model).description())
    found = inspect_neurons(model, words(), neurons, CORPORA, config=InspectConfig(top=3))
    shown = [(one.name, one.importance, one.also) for one in found.neurons]
    also = ("1.up_proj.4", "1.down_proj.4")
    assert shown == [("1.gate_proj.4", 7.0, also), ("0.o_proj.2", 5.0, ()), ("1.down_proj.6", 3.0, ())]
    assert (found.language, found.sha256, found.chosen_from) == ("zh", neurons.digest, 6)


def test_importance_by_language_is_the_scores_mean():
    """With scores, importance is read from them, where there are some; without, the mean size on the documents."""
    model = tiny_model("llama")
    description = Layout(model).description()
    values = {"0.down_proj": np.arange(80, dtype=np.float32).reshape(2, 40)}
    scores = {"one": make_scores(values, model=description, language="one")}
    names = ["0.down_proj.7", "0.o_proj.1"]
    found = inspect_neurons(model, words(), names, CORPORA, scores=scores, config=CONFIG)
    assert found.measure == "importance"
    assert [found.by_language(one) for one in found.neurons] == [{"one": 27.0, "two": None}, {"one": None, "two": None}]
    plain = inspect_neurons(model, words(), names, CORPORA, config=CONFIG)
    assert plain.measure == "mean |value|"
    assert plain.by_language(plain.neurons[0]) == {one.language: one.mean_size for one in plain.neurons[0].languages}


def test_the_model_is_left_as_it_was():
    """Hooks, watches, mode, experts' implementation and weights are those of before, also after an error."""
    model = tiny_model("mixtral").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def traces() -> tuple:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, [sorted(vars(m)) for m in model.modules()], model.training, dict(vars(model.config))

    before = traces()
    inspect_neurons(model, words(), ["0.down_proj.3"], CORPORA, config=CONFIG)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(torch.inf)
    with pytest.raises(PLNDError, match="1.q_proj: a value is not finite|logits in torch.float64 are not finite"):
        inspect_neurons(model, words(), ["1.q_proj.3"], CORPORA, config=CONFIG)
    model.load_state_dict(state)
    assert traces() == before


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"neurons": ["9.down_proj.0"]}, PLNDError, "'9.down_proj.0': the model has no such projection"),
        ({"neurons": ["0.down_proj.40"]}, PLNDError, "expected a number from 0 to 39 after 0.down_proj"),
        ({"neurons": ["0.down_proj.-1"]}, PLNDError, "expected a number from 0 to 39"),
        ({"neurons": "0.down_proj.1"}, PLNDError, "expected a set of neurons, or a list of names"),
        ({"neurons": []}, PLNDError, "no neuron is named"),
        ({"neurons": make_neurons({"0.down_proj": [1]})}, ModelMismatchError, "neurons: made for a model whose"),
        ({"corpora": {}}, PLNDError, "no corpus"),
        ({"corpora": {"en": "a text"}}, PLNDError, "documents are texts or lists of token ids"),
        ({"corpora": {"en": []}}, CorpusError, "en: no document with a token in the corpus"),
        ({"corpora": {"en": [[500]]}}, PLNDError, "document 0 of the corpus of en: token id 500"),
        ({"config": InspectConfig(max_length=10**6)}, PLNDError, "positions; use at most that"),
    ],
)
def test_what_makes_no_sense_is_refused(change, error, said):
    """In one line, before a model is changed."""
    given = {"neurons": ["0.down_proj.1"], "corpora": CORPORA, "config": CONFIG, **change}
    with pytest.raises(error, match=said):
        inspect_neurons(tiny_model("llama"), words(), given.pop("neurons"), given.pop("corpora"), **given)


@pytest.mark.parametrize(
    "language, changes, said",
    [
        ("three", {"language": "three"}, "scores of three, but there is no corpus of it"),
        ("one", {"language": "two"}, "the scores of one were made of documents in two"),
        ("two", {"language": "two", "method": {"name": "lape", "projections": ["down_proj"]}}, "method is plnd in"),
        (
            "two",
            {"language": "two", "dtype": "bfloat16"},
            "dtype is float32 in the scores of one and bfloat16 in those",
        ),
    ],
)
def test_scores_that_do_not_belong_are_refused(language, changes, said):
    """Scores of a language without a corpus, of another language, or made so that their numbers do not compare."""
    model = tiny_model("llama")
    values = {"0.down_proj": np.ones((2, 40))}
    made = {"model": Layout(model).description()}
    scores = {"one": make_scores(values, language="one", **made), language: make_scores(values, **made, **changes)}
    with pytest.raises(PLNDError, match=said):
        inspect_neurons(model, words(), ["0.down_proj.1"], CORPORA, scores=scores, config=CONFIG)


def test_settings_below_one_are_refused():
    """No number of the configuration can be 0."""
    with pytest.raises(PLNDError, match="contexts=0: expected 1 or more"):
        InspectConfig(contexts=0)


def test_public_names():
    """The call and its settings are plnd's."""
    assert plnd.inspect_neurons is inspect_neurons and plnd.InspectConfig is InspectConfig
