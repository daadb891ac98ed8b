"""`plnd neuron` from files to table, JSON and page; what it refuses, before a model's weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from handmade import make_neurons, make_scores
from plnd.commands.main import main
from plnd.models.layout import Layout
from plnd.models.loading import load_skeleton

TEXTS = {
    "zh": ["天地玄黄，宇宙洪荒。", "日月盈昃，辰宿列张。"],
    "en": ["<b>The</b> house & the\x1b[31m garden.", "A second text of some length."],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer of bytes, saved."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = dict(vocab_size=260, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6)
    LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, max_position_embeddings=256)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def here(model, tmp_path, monkeypatch) -> Path:
    """A folder with corpora, a set of neurons and scores of the model."""
    monkeypatch.chdir(tmp_path)
    for language, texts in TEXTS.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        Path(f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    description = Layout(load_skeleton(str(model))).description()
    indices = {"0.down_proj": [3], "1.v_proj": [5], "1.q_proj": [2], "1.up_proj": [7]}
    importance = {"0.down_proj": [9], "1.v_proj": [8], "1.q_proj": [7], "1.up_proj": [1]}
    make_neurons(indices, importance, model=description).save("zh.safetensors")
    values = {f"{block}.{name}": np.arange(120.0).reshape(3, 40) for block in range(2) for name in ("down_proj",)}
    for language in TEXTS:
        make_scores(values, model=description, language=language).save(f"{language}.scores.safetensors")
    return tmp_path


def run(line: str) -> int:
    """The exit status of a command line."""
    try:
        return main(line.split())
    except SystemExit as stop:
        return int(stop.code or 0)


CORPORA = "--corpus zh=zh.jsonl en=en.jsonl --device cpu"


def test_table_json_and_page_tell_the_same(here, model, capsys):
    """The set's most important neurons, on the set's own model, with importance from scores."""
    scores = "--scores zh=zh.scores.safetensors en=en.scores.safetensors"
    assert run(f"neuron zh.safetensors {CORPORA} {scores} --top 3 --contexts 2 --json n.json --html n.html") == 0
    out = capsys.readouterr().out
    found = json.loads(Path("n.json").read_text(encoding="utf-8"))
    names = [f"{neuron['address']}.{neuron['index']}" for neuron in found["neurons"]]
    assert names == ["0.down_proj.3", "1.v_proj.5", "1.q_proj.2"] and found["chosen_from"] == 4
    assert (found["model"], found["language"], found["measure"]) == (str(model), "zh", "importance")
    assert found["neurons"][0]["languages"][0]["importance"] == 43.0  # mean of 3, 43 and 83
    assert found["corpora"]["zh"] == {"documents": 2, "tokens": 60}
    page = Path("n.html").read_text(encoding="utf-8")
    for neuron in found["neurons"]:
        name = f"{neuron['address']}.{neuron['index']}"
        assert name in page and f"\n{name}   importance" in out
        for one in neuron["languages"]:
            assert len(one["firings"]) == 2
            text = TEXTS[one["language"]]
            for firing in one["firings"]:
                assert firing["before"] + firing["token"] + firing["after"] in text[firing["document"]]
                if one["language"] == "zh":
                    assert f"<mark>{firing['token']}</mark>" in page
    assert "n.json: 3 neurons; sha256 " in out and "n.html: 3 neurons; sha256 " in out
    assert "\x1b" not in out + page and "<b>The" not in page


def test_named_neurons_need_no_set(here, model, capsys):
    """With a model; their values are what a pass of the model has, and without scores the mean size is shown."""
    assert run(f"neuron --model {model} --neuron 1.down_proj.39 0.o_proj.1 {CORPORA} --json n.json") == 0
    found = json.loads(Path("n.json").read_text(encoding="utf-8"))
    assert found["sha256"] is None and found["measure"] == "mean |value|"
    assert [neuron["importance"] for neuron in found["neurons"]] == [None, None]
    loaded = LlamaForCausalLM.from_pretrained(model)
    kept = []
    loaded.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0][0, :, 39]))
    ids = [*TEXTS["zh"][0].encode()]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    with torch.no_grad():
        loaded(torch.tensor([tokenizer(TEXTS["zh"][0])["input_ids"]]))
    best = next(f for f in found["neurons"][0]["languages"][0]["firings"] if f["document"] == 0)
    assert len(kept[0]) == len(ids) and best["position"] == int(kept[0].abs().argmax())
    assert best["value"] == pytest.approx(float(kept[0][best["position"]]), rel=1e-4)
    assert load_file(model / "model.safetensors").keys()  # the model's files are as they were
    assert "1.down_proj.39" in capsys.readouterr().out


def test_a_set_gives_the_model_of_named_neurons(here, capsys):
    """`--neuron` beside a set shows those, of the set's model."""
    assert run(f"neuron zh.safetensors --neuron 0.k_proj.3 {CORPORA} --max-documents 1") == 0
    out = capsys.readouterr().out
    assert "\n0.k_proj.3   value: output row of k_proj" in out and "0.down_proj.3" not in out
    assert "zh: 1 documents, 30 tokens" in out


@pytest.mark.parametrize(
    "line, said",
    [
        (f"neuron {CORPORA}", "nothing to show: give a neurons artifact, or name neurons with --neuron, and --model"),
        (f"neuron --neuron 0.down_proj.1 {CORPORA}", "nothing to show"),
        (f"neuron zh.safetensors {CORPORA} --neuron 0.down_proj.40", "expected a number from 0 to 39"),
        ("neuron zh.safetensors --corpus zh.jsonl", "--corpus zh.jsonl: expected LANGUAGE=FILE"),
        ("neuron zh.safetensors --corpus zh=", "--corpus zh=: expected LANGUAGE=FILE"),
        ("neuron zh.safetensors --corpus zh=none.jsonl", "none.jsonl"),
        (f"neuron zh.safetensors {CORPORA} --scores ru=zh.scores.safetensors", "scores of ru, but there is no corpus"),
        (f"neuron zh.safetensors {CORPORA} --scores en=zh.scores.safetensors", "scores of en were made of documents"),
        (f"neuron zh.safetensors {CORPORA} --scores zh=a zh=b", "--scores: zh is there 2 times, expected once"),
        (f"neuron zh.scores.safetensors {CORPORA}", "expected"),
        (f"neuron zh.safetensors {CORPORA} --top 0", "top=0: expected 1 or more"),
        (f"neuron zh.safetensors {CORPORA} --html no/where.html", "no/where.html: cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(here, capsys, monkeypatch, line, said):
    """Exit status 2, before a model's weights are loaded."""
    monkeypatch.setattr("plnd.models.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    assert run(line) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and err.startswith("plnd neuron: ")
