"""Loading: which class makes a model, whose code may run, and where an artifact's base model is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    ViTConfig,
)

from handmade import MODEL, make_neurons
from plnd.commands.main import main
from plnd.deactivation import deactivated
from plnd.demo_data import demo_model
from plnd.detection.run import DetectConfig, detect
from plnd.errors import PLNDError
from plnd.logit_lens.lens import decode_tokens
from plnd.model_description import base_model
from plnd.models.layout import Layout
from plnd.models.loading import load_model, load_skeleton, load_tokenizer, model_class
from plnd.neurons.neuron_set import NeuronSet
from plnd.roles.parallel import Parallel
from plnd.roles.roles import find_roles
from tiny import tiny_model

TEXT = dict(
    vocab_size=16000,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
EYES = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A random vision-language model around a Llama, outside `AutoModelForCausalLM`, on disk."""
    path = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**EYES, projection_dim=16), text_config=LlamaConfig(**TEXT), image_token_id=15999
    )
    LlavaForConditionalGeneration(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), AutoModelForCausalLM),
        (T5Config(), AutoModelForSeq2SeqLM),
        (BartConfig(), AutoModelForSeq2SeqLM),
        (BartConfig(is_encoder_decoder=False), AutoModelForCausalLM),
        (LlamaConfig(is_encoder_decoder=True), AutoModelForCausalLM),  # a field alone makes no encoder
        (Gemma3Config(), AutoModelForCausalLM),
        (LlavaConfig(), AutoModelForImageTextToText),
        (ViTConfig(), None),
    ],
)
def test_the_class_that_has_the_model(config, expected):
    """A configuration goes to the auto class that knows it; one of both to that of both, if any."""
    assert model_class(config) is expected


def test_vision_language_models_from_the_command_line(llava, tmp_path, monkeypatch):
    """`detect`, `select`, `export` and `lm_eval --model plnd` on a LLaVA say what the same calls in Python say."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lm_eval_plnd.model import PLNDLM

    monkeypatch.chdir(tmp_path)
    text = "Ein kleiner Satz, und noch einer, und dann noch ein dritter, der lang genug ist, um gezählt zu werden. " * 2
    Path("de.txt").write_text(text)
    common = f"--model {llava} --language de --corpus de.txt --output de.scores --dtype float32 --device cpu"
    assert main(f"detect {common}".split()) == 0
    assert main("select de.scores --fraction 0.1 --output de.safetensors".split()) == 0
    assert main("export --mask de.safetensors --output without".split()) == 0
    found = NeuronSet.load("de.safetensors")
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    scores = detect(model, [text], DetectConfig(language="de"), tokenizer=load_tokenizer(str(llava)))
    assert found == scores.select(fraction=0.1)
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=("Ein Satz", " und noch einer"), idx=0)]
    lm = PLNDLM(mask="de.safetensors", device="cpu", dtype="float32", max_length=64)
    plain = HFLM(model, tokenizer=load_tokenizer(str(llava)), max_length=64)
    assert type(lm.model) is type(model)
    ids, exported = torch.arange(3, 23)[None], LlavaForConditionalGeneration.from_pretrained("without")
    with deactivated(model, found):
        assert torch.equal(exported(input_ids=ids).logits, model(input_ids=ids).logits)
        assert lm.loglikelihood(requests) == plain.loglikelihood(requests)


def test_gemma3_with_eyes(tmp_path):
    """The text model inside a vision-language Gemma 3 is that of its row; the class is the whole model's."""
    config = Gemma3Config(text_config=Gemma3TextConfig(**TEXT, head_dim=8), vision_config=SiglipVisionConfig(**EYES))
    config.save_pretrained(tmp_path)
    skeleton = load_skeleton(str(tmp_path))
    assert type(skeleton).__name__ == "Gemma3ForConditionalGeneration"
    description = Layout(skeleton).description()
    assert (description["model_type"], description["blocks"]) == ("gemma3_text", 2)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

open({ran!r}, "w").close()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A checkpoint whose configuration and model need the Python file beside it, which leaves a mark when it runs."""
    path = tmp_path / "own"
    path.mkdir()
    (path / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    maps = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = {**LlamaConfig(**TEXT).to_dict(), "model_type": "own", "architectures": ["OwnModel"], "auto_map": maps}
    (path / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(path)
    return path


def test_a_models_own_code_runs_only_when_told(own, tmp_path, capsys, monkeypatch):
    """Without the flag every command refuses in one line, asks nothing and runs nothing; with it, the code runs."""
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    make_neurons({"0.q_proj": [0]}, model={**MODEL, "name": str(own)}).save(tmp_path / "x.safetensors")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("Some words, and some more of them.")
    for command in (
        "detect --model own --language x --corpus x.txt --output x.scores --min-length 1",
        "lens --model own --language x --corpus x.txt",
        "convert own/own.py --model own --output x.safetensors",
        "roles --model own --parallel x.jsonl --output x.roles",
        "verify x.safetensors --model own",
        "neuron x.safetensors --model own --corpus x=x.txt",
    ):
        Path("x.jsonl").write_text('{"a": "b", "c": "d"}\n')
        assert main(command.split()) == 2
        err = capsys.readouterr().err
        assert "own: needs Python code that comes with the model" in err and len(err.splitlines()) == 1
    for load in (load_model, load_skeleton):
        with pytest.raises(PLNDError, match="runs only if you trust it"):
            load("own")
        with pytest.raises(PLNDError, match="trust_remote_code=None: expected True or False"):
            load("own", trust_remote_code=None)
    assert not (tmp_path / "ran").exists()
    assert type(load_skeleton("own", trust_remote_code=True)).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()


def test_an_artifact_cannot_allow_code(own, tmp_path, monkeypatch):
    """A mask of a model with its own code is refused in one line, whatever its metadata says."""
    from lm_eval_plnd.model import PLNDLM

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = load_model(str(demo_model()), dtype="float32", device="cpu")
    scores = detect(model, [list(range(3, 60))], DetectConfig(language="x"))
    found = scores.select(fraction=0.01)
    description = {**found.model, "name": str(own), "trust_remote_code": True}
    mask = NeuronSet(
        found.indices, found.importance, {**found.metadata, "model": description, "trust_remote_code": True}
    )
    with pytest.raises(PLNDError, match="needs Python code that comes with the model"):
        PLNDLM(mask=mask, device="cpu")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(PLNDError, match="cannot be loaded"):  # it has no weights; its configuration was made
        PLNDLM(mask=mask, device="cpu", trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_the_revision_of_a_hub_model_is_recorded(tmp_path, monkeypatch):
    """A model from the hub's cache is described as the hub's, with its commit; a mask of it loads that one again."""
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--org--tiny"
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    LlamaConfig(**TEXT).save_pretrained(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    description = Layout(load_skeleton("org/tiny")).description()
    assert (description["name"], description["hub"], description["revision"]) == ("org/tiny", True, commit)
    assert base_model(description, "x", "y") == ("org/tiny", commit)


def test_a_folder_is_described_as_one(tmp_path, monkeypatch):
    """By whatever name it was given; a model that was never on a disk has no name."""
    AutoConfig.for_model("llama", **TEXT).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "./tiny", str(tmp_path / "tiny")):
        description = Layout(load_skeleton(name)).description()
        assert (description["name"], description["revision"]) == (name, None) and "hub" not in description
        assert base_model(description, "x", "y") == (name, None)
    assert "hub" not in Layout(tiny_model("llama")).description()


def test_a_path_inside_the_package(tmp_path, capsys):
    """`plnd:…`, which settings of experiments know, is answered with the folder, by Python and the command line."""
    words = f"expected the path itself: {demo_model()}"
    with pytest.raises(PLNDError, match="^plnd:polyglot-9m: paths with plnd: are for settings") as caught:
        load_model("plnd:polyglot-9m")
    assert str(caught.value).endswith(words)
    corpus = tmp_path / "a.txt"
    corpus.write_text("a document")
    assert main(f"detect --model plnd:polyglot-9m --corpus {corpus} --language en --output {tmp_path}/o".split()) == 2
    assert "settings of experiments" in capsys.readouterr().err


def test_token_ids_beyond_the_embedding_are_one_line():
    """Detection, the lens and roles name the document and the token; short documents count, too."""
    model, words = tiny_model("llama"), "document 1 of the corpus: token id 97, but the model's embedding has 97 rows"
    documents = [list(range(40)), [5, 97, 6]]
    with pytest.raises(PLNDError, match=words):
        detect(model, documents)
    with pytest.raises(PLNDError, match=words):
        decode_tokens(model, None, documents)
    with pytest.raises(PLNDError, match="example 1: token id 97"):
        find_roles(model, Parallel(("a", "b"), (("x", "y"),) * 2), [[[1], [2]], [[3], [97]]])
