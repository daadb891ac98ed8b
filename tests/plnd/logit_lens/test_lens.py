"""The logit lens against unembedding by hand, for every family; what it counts, and what it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import plnd
from plnd.errors import CorpusError, FamilyError, PLNDError
from plnd.logit_lens.language_id import NON_WORD
from plnd.logit_lens.lens import (
    HEADER,
    LensConfig,
    LensCounts,
    decode_tokens,
    lens,
    lens_panels,
    load_lens,
    mean_of_words,
    save_lens,
    token_texts,
)
from plnd.models.families import FAMILIES
from plnd.models.layout import Layout, attribute
from plnd.probing.float64 import KeepFloat64
from tiny import SCALED, TINY, VARIANTS, marked, tiny_model

TOP_K = 3
DOCUMENTS = [[1, 5, 9, 40, 41, 7, 33], [1, 60, 61], [1, 8, 90, 95, 3], [4]]


class ByNumber:
    """Calls a token by the rest of its number, whatever tokenizer said: an identifier of three languages."""

    name = "cld3"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def identify(self, text: str) -> str:
        """`en`, `zh`, `fr` or no word, in turn."""
        self.asked.append(text)
        return ("en", "zh", "fr", NON_WORD)[int(text.removeprefix("word")) % 4]


def words(size: int = 97) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` made-up words."""
    vocabulary = {f"word{n}": n for n in range(size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="word0")))


def by_hand(model, ids: list[int]) -> list[Counter]:
    """How often each token is among the top three of the hidden states that transformers itself gives out."""
    tokens = torch.tensor([ids])
    body, head = Layout(model).body, model.get_output_embeddings()
    further = {}
    if model.config.is_encoder_decoder:
        further["decoder_input_ids"] = torch.tensor([[0, *ids[:-1]]])
    with torch.no_grad():
        output = model(input_ids=tokens, output_hidden_states=True, **further)
        states = output.decoder_hidden_states if model.config.is_encoder_decoder else output.hidden_states
        places = []
        for hidden in states[:-1]:  # the last one is normed already, and becomes the model's own logits
            for path in Layout(model).family.final:
                hidden = attribute(body, path)(hidden) if attribute(body, path) is not None else hidden
            places.append(head(hidden))
        return [Counter(x[0].topk(TOP_K).indices.flatten().tolist()) for x in [*places, output.logits]]


@pytest.mark.parametrize("variant", marked(TINY | VARIANTS | SCALED, variants=True), indirect=True)
def test_counts_are_those_of_unembedding_by_hand(variant):
    """Every block of every family, with documents of different lengths in one padded batch."""
    model = tiny_model(variant)
    with KeepFloat64():
        found = decode_tokens(model, words(), DOCUMENTS, LensConfig(top_k=TOP_K))
        each = [by_hand(model, ids) for ids in DOCUMENTS]
    expected = [sum(counters, Counter()) for counters in zip(*each, strict=True)]
    config = model.config.get_text_config()
    prefix = "decoder." if config.is_encoder_decoder else ""
    names = [f"{prefix}{n}" for n in range(config.num_hidden_layers)]
    assert found.blocks == ("input", *names) and found.counts.shape == (1 + len(names), config.vocab_size)
    for counts, counter in zip(found.counts, expected, strict=True):
        assert {n: int(counts[n]) for n in np.flatnonzero(counts)} == counter
    assert (found.documents, found.positions) == (4, sum(map(len, DOCUMENTS)))
    assert (found.counts.sum(1) == found.positions * TOP_K).all()


def test_batches_do_not_matter(family, monkeypatch):
    """One by one, all together, or with few logits at a time: the same counts; so neither does padding."""
    model = tiny_model(family)
    with KeepFloat64():
        alone = decode_tokens(model, words(), DOCUMENTS, LensConfig(batch_size=1)).counts
        assert np.array_equal(decode_tokens(model, words(), DOCUMENTS, LensConfig(batch_size=3)).counts, alone)
        monkeypatch.setattr("plnd.logit_lens.lens.LOGITS_AT_ONCE", 200)
        assert np.array_equal(decode_tokens(model, words(), DOCUMENTS).counts, alone)


def test_a_wrong_row_is_refused(family, monkeypatch):
    """Without the final norm, or through it twice, the model's own logits do not come out: an error, no counts.

    OLMo's norm has no weights, so that twice is once.
    """
    model, row = tiny_model(family), FAMILIES[family]
    for final in ((), row.final * 2)[: 1 if family == "olmo" else 2]:
        monkeypatch.setitem(FAMILIES, family, replace(row, final=final))
        with pytest.raises(FamilyError, match="do not lead from the last block to the model's own logits"):
            decode_tokens(model, words(), DOCUMENTS)
    monkeypatch.setitem(FAMILIES, family, replace(row, final=("nothing",)))
    with pytest.raises(FamilyError, match="has no 'nothing', where the families table has it"):
        decode_tokens(model, words(), DOCUMENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "t5"])
def test_rounding_is_no_wrong_row(name, dtype):
    """The proof holds in the dtypes that models come in."""
    model = tiny_model(name, dtype)
    assert decode_tokens(model, words(), DOCUMENTS).counts.sum() == 3 * 10 * sum(map(len, DOCUMENTS))


def test_another_width_is_a_wrong_row(monkeypatch):
    """A module that does not even fit is told in the same words."""
    model = tiny_model("llama")
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], final=("norm", "layers.0.mlp.gate_proj")))
    with pytest.raises(FamilyError, match="do not lead from the last block .* correct `final` of the family's row"):
        decode_tokens(model, words(), DOCUMENTS)


def test_lens_labels_each_token_once():
    """Counts by label are sums over the vocabulary; the identifier sees each token's text one time."""
    model, identifier = tiny_model("llama"), ByNumber()
    decoded = decode_tokens(model, words(), DOCUMENTS)
    found = lens(model, words(), DOCUMENTS, "zh", identifier=identifier)
    assert sorted(identifier.asked) == sorted(f"word{n}" for n in np.flatnonzero(decoded.counts.any(0)))
    for label, residue in (("en", 0), ("zh", 1), ("fr", 2), (NON_WORD, 3)):
        column = found.tokens[:, found.decoded.index(label)]
        assert np.array_equal(column, decoded.counts[:, residue::4].sum(1))
    assert list(found.tokens.sum(0)) == sorted(found.tokens.sum(0), reverse=True)
    assert (found.language, found.identifier, found.top_k, found.documents) == ("zh", "cld3", 10, 4)
    assert plnd.lens is lens


def test_texts_and_limits():
    """Texts go through the tokenizer; documents without tokens are left out; limits are limits."""
    model = tiny_model("llama")
    texts = ["word5", "", "word9", "word7"]
    expected = decode_tokens(model, words(), [[5], [9]])
    found = decode_tokens(model, words(), (text for text in texts), LensConfig(max_documents=2, max_length=3))
    assert found.documents == 2 and np.array_equal(found.counts, expected.counts)
    assert decode_tokens(model, words(), DOCUMENTS, LensConfig(max_length=2)).positions == 7


def test_the_model_is_left_as_it_was():
    """No hook stays behind, and a model in training goes on training."""
    model = tiny_model("gpt2").train()
    decode_tokens(model, words(), DOCUMENTS)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_token_texts():
    """Special tokens and numbers without a token have no text; broken UTF-8 is the replacement character."""
    pieces = ["▁the", "ing", "<0xE4>", "<0x41>", "<s>", "<unused0>"]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("<unused0>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    assert list(token_texts(tokenizer, range(8))) == [" the", "ing", "\ufffd", "A", "", "<unused0>", "", ""]


def counts(identifier: str, language: str, tokens: dict[str, list[int]]) -> LensCounts:
    """Counts made by hand, of ten tokens in each of two places."""
    table = np.array(list(tokens.values())).T
    return LensCounts("m", language, identifier, 5, 1, 2, ("input", "0"), tuple(tokens), table)


ZH = counts("cld3", "zh", {"en": [1, 6], "zh": [4, 2], "zh-Latn": [1, 0], "fr": [2, 1], NON_WORD: [2, 1]})


def test_shares():
    """Shares of all tokens, counted by hand: English, the documents' language, the others, no words."""

    def rounded(one: LensCounts) -> dict[str, list[float]]:
        shares = one.shares()
        assert sum(shares.values()) == pytest.approx([1, 1])
        return {name: share.round(9).tolist() for name, share in shares.items()}

    assert rounded(ZH) == {
        "English": [0.1, 0.6],
        "own language": [0.5, 0.2],
        "other languages": [0.2, 0.1],
        NON_WORD: [0.2, 0.1],
    }
    english = rounded(replace(ZH, language="en"))
    assert list(english) == ["English", "other languages", NON_WORD] and english["other languages"] == [0.7, 0.3]
    scripts = {"Latin": [1, 6], "Han": [4, 2], "Katakana": [1, 1], "other": [2, 0], NON_WORD: [2, 1]}
    assert rounded(counts("script", "zh", scripts)) == {
        "Latin script": [0.1, 0.6],
        "own script": [0.4, 0.2],
        "other scripts": [0.3, 0.1],
        NON_WORD: [0.2, 0.1],
    }
    assert rounded(counts("script", "ja", scripts))["own script"] == [0.5, 0.3]
    assert list(rounded(counts("script", "de", scripts))) == ["Latin script", "other scripts", NON_WORD]


def test_share_of_words():
    """English among words of any language, and among those of some languages, as the paper's code counts."""
    assert ZH.share_of_words("en") == pytest.approx([1 / 8, 6 / 9])
    assert ZH.share_of_words("zh") == pytest.approx([5 / 8, 2 / 9])
    assert ZH.share_of_words("en", among=("en", "zh")) == pytest.approx([1 / 6, 6 / 8])
    assert ZH.share_of_words("ru", among=("en", "zh")) == pytest.approx([0, 0])
    assert np.isnan(counts("cld3", "zh", {NON_WORD: [10, 10]}).share_of_words("en")).all()


def test_mean_of_words():
    """Figure 1: English among the words of English and of all documents' languages, mean over those but English."""
    ru = counts("cld3", "ru", {"en": [2, 0], "zh": [0, 4], "ru": [6, 4], "fr": [2, 1], NON_WORD: [0, 1]})
    en = counts("cld3", "en", {"en": [10, 10]})
    expected = [(1 / 6 + 2 / 8) / 2, (6 / 8 + 0 / 8) / 2]
    assert mean_of_words([ZH, ru]) == pytest.approx(expected)
    assert mean_of_words([ZH, en, ru]) == pytest.approx(expected)
    assert mean_of_words([ZH, ru], "zh") == pytest.approx([(5 / 6 + 0) / 2, (2 / 8 + 4 / 8) / 2])
    panels = lens_panels([ZH, ru])
    assert list(panels) == ["words, mean of zh, ru (by cld3)", "zh (by cld3)", "ru (by cld3)"]
    assert panels["words, mean of zh, ru (by cld3)"]["not English"] == pytest.approx(100 - 100 * np.array(expected))
    assert list(lens_panels([ZH, replace(ZH, identifier="script")])) == ["zh (by cld3)", "zh (by script)"]
    with pytest.raises(PLNDError, match="expected counts of one model by one identifier"):
        mean_of_words([ZH, replace(ru, identifier="script")])
    for one in (en, counts("script", "de", {"Latin": [10, 10]})):
        with pytest.raises(PLNDError, match="expected documents in a language that is told from English"):
            mean_of_words([one])


def test_the_csv_keeps_everything(tmp_path):
    """What is written is read again; labels that do not occur in a block have no row."""
    other = replace(ZH, language="ru", identifier="script", decoded=("Latin", "Han", "Greek", "Thai", NON_WORD))
    save_lens([ZH, other], tmp_path / "lens.csv")
    lines = (tmp_path / "lens.csv").read_text().splitlines()
    assert lines[0] == ",".join(HEADER) and lines[1] == "m,zh,cld3,5,1,2,input,en,1" and len(lines) == 1 + 2 * 9
    read = load_lens(tmp_path / "lens.csv")
    assert [one.language for one in read] == ["zh", "ru"]
    for one, expected in zip(read, (ZH, other), strict=True):
        assert {**vars(one), "tokens": 0, "decoded": 0} == {**vars(expected), "tokens": 0, "decoded": 0}
        for label, column in zip(expected.decoded, expected.tokens.T, strict=True):
            assert np.array_equal(one.tokens[:, one.decoded.index(label)], column)
    save_lens(read, tmp_path / "again.csv")
    assert load_lens(tmp_path / "again.csv")[0].decoded == read[0].decoded


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", ",".join(HEADER) + "\nm,zh,cld3,5,1,2,input,en,x\n", ",".join(HEADER) + "\nm,zh\n"]
)
def test_other_tables_are_refused(tmp_path, text):
    """Another table, and one whose numbers do not sum up, in one line."""
    (tmp_path / "lens.csv").write_text(text)
    with pytest.raises(PLNDError, match="lens.csv: not a table of `plnd lens --csv`"):
        load_lens(tmp_path / "lens.csv")
    save_lens([replace(ZH, positions=3)], tmp_path / "lens.csv")
    with pytest.raises(PLNDError, match="not a table of .*a block does not have positions · top_k tokens"):
        load_lens(tmp_path / "lens.csv")
    with pytest.raises(PLNDError, match="absent.csv: cannot be read"):
        load_lens(tmp_path / "absent.csv")


def test_wrong_input():
    """One line for each."""
    model = tiny_model("llama", torch.float32)
    for options, message in (
        ({"top_k": 0}, "top_k=0: expected 1 or more"),
        ({"top_k": 98}, "top_k=98: the model has 97 tokens; use at most that"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"max_documents": 0}, "max_documents=0: expected 1 or more"),
        ({"max_length": 4096}, "max_length=4096: the model has 2048 positions; use at most that"),
    ):
        with pytest.raises(PLNDError, match=f"^{message}$"):
            decode_tokens(model, words(), DOCUMENTS, LensConfig(**options))
    with pytest.raises(PLNDError, match="pass plnd.read_documents"):
        decode_tokens(model, words(), "word1 word2")
    with pytest.raises(CorpusError, match="no document with a token"):
        decode_tokens(model, words(), ["", []])
    with pytest.raises(PLNDError, match="unknown identifier 'langid'"):
        lens(model, words(), DOCUMENTS, "zh", identifier="langid")


def test_numbers_that_are_not_finite():
    """They have no order: an error says where, in the logits of the first document or in a block of a later one."""
    model = tiny_model("llama", torch.float32)
    weight = model.model.embed_tokens.weight.data
    weight[60] = torch.nan
    with pytest.raises(PLNDError, match="^input: a hidden state in torch.float32 is not finite; try another --dtype$"):
        decode_tokens(model, words(), DOCUMENTS)
    weight[5] = torch.nan
    with pytest.raises(PLNDError, match="^the model's logits in torch.float32 are not finite; try another --dtype$"):
        decode_tokens(model, words(), DOCUMENTS)
