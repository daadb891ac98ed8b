"""The harness model `plnd` is `hf` without the mask's neurons: nothing more, nothing less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lm_eval_plnd.model import PLNDLM
from plnd.deactivation import deactivated
from plnd.demo_data import demo_model
from plnd.errors import ModelMismatchError, PLNDError
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.neurons.neuron_set import NeuronSet

TEXTS = ["Ein kleiner Satz.", "Another sentence, a little longer than the first.", "短句。"]
COMMON = {"device": "cpu", "dtype": "float32", "batch_size": 2, "max_length": 64}
METADATA = {
    "format": "plnd.neurons",
    "version": 1,
    "plnd": "0.1.0",
    "language": "xx",
    "corpus": {"source": None, "sha256": "", "documents": 1, "tokens": 1, "max_length": 1, "skipped": {}},
    "method": {"name": "test", "projections": []},
    "dtype": "float32",
    "rule": {"name": "test"},
    "scores_sha256": "",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random four-block Llama with the demo model's tokenizer, on disk."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def mask(base: Path, path: Path, share: float = 0.3, seed: int = 0) -> str:
    """A neurons artifact with a random share of every projection."""
    model = Layout(AutoModelForCausalLM.from_pretrained(base)).description()
    generator = np.random.default_rng(seed)
    indices = {a: np.flatnonzero(generator.random(w) < share).astype(np.int32) for a, w in model["widths"].items()}
    importance = {a: np.ones(len(v), dtype=np.float32) for a, v in indices.items()}
    NeuronSet(indices, importance, {**METADATA, "model": model}).save(path)
    return str(path)


def instance(kind: str, *arguments) -> Instance:
    """A request as lm-eval makes it."""
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


REQUESTS = {
    "loglikelihood": [instance("loglikelihood", t, " und weiter") for t in TEXTS],
    "loglikelihood_rolling": [instance("loglikelihood_rolling", t) for t in TEXTS],
    "generate_until": [
        instance("generate_until", t, {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}) for t in TEXTS
    ],
}


def answers(lm) -> dict:
    """Every kind of request answered."""
    return {kind: getattr(lm, kind)(requests) for kind, requests in REQUESTS.items()}


def test_empty_mask_is_exactly_hf(base, tmp_path):
    """With nothing to switch off, every number and every generated string is `hf`'s."""
    empty = mask(base, tmp_path / "empty.safetensors", share=0)
    assert answers(PLNDLM(mask=empty, **COMMON)) == answers(HFLM(str(base), **COMMON))


@pytest.mark.parametrize("mode", ["auto", "weights", "activations"])
def test_every_request_runs_masked(base, tmp_path, mode):
    """Log-likelihoods, rolling ones and generation are those of a model deactivated by hand, and differ from `hf`'s."""
    file = mask(base, tmp_path / "mask.safetensors")
    found = answers(PLNDLM(mask=file, mode=mode, **COMMON))
    plain = HFLM(str(base), **COMMON)
    with deactivated(plain.model, NeuronSet.load(file), mode="weights"):
        expected = answers(plain)
    unmasked = answers(plain)
    assert found["generate_until"] == expected["generate_until"] != unmasked["generate_until"]
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        np.testing.assert_allclose(np.array(found[kind], dtype=float), np.array(expected[kind], dtype=float), rtol=1e-5)
        assert not np.allclose(np.array(found[kind], dtype=float), np.array(unmasked[kind], dtype=float), rtol=1e-3)


def test_results_name_what_was_deactivated(base, tmp_path):
    """Digest, counts, regions, control and seed are in the model info, which is JSON."""
    file = mask(base, tmp_path / "mask.safetensors")
    lm = PLNDLM(mask=file, regions="under+gen", under=1, gen=1, control="random", seed=3, **COMMON)
    info = json.loads(json.dumps(lm.get_model_info()["plnd"]))
    neurons = NeuronSet.load(file).restrict(where=lambda block, _: block in (0, 3))
    assert info["mask_sha256"] == NeuronSet.load(file).digest
    given = {"regions": "under+gen", "under": 1, "gen": 1, "control": "random", "seed": 3}
    assert {name: info[name] for name in given} == given
    assert info["neurons"] == len(neurons) and info["counts"] == neurons.counts()
    assert lm.neurons == neurons.random_like(3) != neurons


def test_refusals(base, tmp_path):
    """Missing mask, another model, unknown words: an error before any weight is loaded or changed."""
    file = mask(base, tmp_path / "mask.safetensors")
    with pytest.raises(PLNDError, match="need mask=FILE"):
        PLNDLM(pretrained=str(base), **COMMON)
    with pytest.raises(PLNDError, match="no such file"):
        PLNDLM(mask=str(tmp_path / "absent.safetensors"), **COMMON)
    with pytest.raises(PLNDError, match="unknown control 'rnadom'"):
        PLNDLM(mask=file, control="rnadom", **COMMON)
    with pytest.raises(PLNDError, match="unknown region 'udner'"):
        PLNDLM(mask=file, regions="udner", **COMMON)
    with pytest.raises(PLNDError, match="regions under need under=N"):
        PLNDLM(mask=file, regions="under", **COMMON)
    with pytest.raises(ModelMismatchError, match="llama with 4 blocks"):
        PLNDLM(mask=file, pretrained=str(demo_model()), **COMMON)


def test_response_cache_keeps_masks_apart(base, tmp_path):
    """One cache file, several masks, the control and `hf`: nobody is served another's answers, everybody their own."""
    first = mask(base, tmp_path / "first.safetensors", seed=1)
    second = mask(base, tmp_path / "second.safetensors", seed=2)
    makers = {
        "hf": lambda: HFLM(str(base), **COMMON),
        "first": lambda: PLNDLM(mask=first, **COMMON),
        "second": lambda: PLNDLM(mask=second, **COMMON),
        "control": lambda: PLNDLM(mask=first, control="random", **COMMON),
        "part": lambda: PLNDLM(mask=first, regions="under", under=2, **COMMON),
    }
    alone = {name: answers(make()) for name, make in makers.items()}
    assert len({json.dumps(a) for a in alone.values()}) == len(makers)
    for turn in range(2):
        for name, make in makers.items():
            lm = make()
            if turn:  # everything is in the cache by now: the model itself must not be asked
                lm._model_call = lm._model_generate = None
            cached = CachingLM(lm, str(tmp_path / "cache.db"))
            found = {kind: getattr(cached, kind)(requests) for kind, requests in REQUESTS.items()}
            assert json.dumps(found) == json.dumps(alone[name]), (turn, name)
            cached.dbdict.close()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ([sys.executable, "-m", "lm_eval"], "mask=absent.safetensors", "absent.safetensors: no such file"),
        pytest.param(
            *([sys.executable, "-m", "lm_eval_plnd", "run"], "pretrained=x", "need mask=FILE"),
            marks=pytest.mark.slow,  # lm-eval's command line takes seconds to start
        ),
    ],
)
def test_command_line_says_one_line_and_exits_with_2(tmp_path, command, arguments, words):
    """Bad input on lm-eval's own command line is one line of ours, no traceback, status 2."""
    run = subprocess.run(
        [*command, "--model", "plnd", "--model_args", arguments, "--tasks", "plnd_text_en", "--include_path", TASKS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr
    (line,) = [x for x in run.stderr.splitlines() if x.startswith("lm_eval --model plnd: ")]
    assert words in line and run.stderr.rstrip().endswith(line)


TASKS = str(Path(__file__).resolve().parents[2] / "tasks")


def test_an_adapter_without_a_mask(tmp_path):
    """`peft=` alone evaluates a tuned adapter, also one of plnd's own method, on the base model that it names."""
    import peft_plnd

    config = peft_plnd.NeuronSelectConfig(fraction=0.05, init_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(load_model(str(demo_model()), dtype="float32", device="cpu"), config)
    tuned.save_pretrained(tmp_path)
    found = PLNDLM(peft=str(tmp_path), dtype="float32", device="cpu")
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(found.model(ids).logits, tuned(ids).logits)
    assert found.get_model_info()["plnd"]["neurons"] == 0
    code = f"from lm_eval_plnd.model import PLNDLM; PLNDLM(peft={str(tmp_path)!r}, device='cpu')"
    subprocess.run([sys.executable, "-c", code], check=True)  # where nobody else has imported peft_plnd
    with pytest.raises(PLNDError, match="go with mask="):
        PLNDLM(peft=str(tmp_path), control="random", device="cpu")
    with pytest.raises(PLNDError, match="absent: not a PEFT adapter"):
        PLNDLM(peft=str(tmp_path / "absent"), device="cpu")
