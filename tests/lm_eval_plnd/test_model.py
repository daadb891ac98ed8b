"""The harness model `plnd` is `hf` without the mask's neurons: nothing more, nothing less."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lm_eval_plnd.deactivations import NoDeactivation
from lm_eval_plnd.model import PLNDLM
from plnd.deactivation import deactivate, deactivated
from plnd.demo_data import demo_model
from plnd.errors import ModelMismatchError, PLNDError
from plnd.interventions import intervened, steered
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.references.config import ReferenceConfig
from plnd.references.run import Reference, reference

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


@pytest.fixture(scope="module")
def measured(base) -> Reference:
    """The reference of the base model over two languages of random tokens."""
    generator = np.random.default_rng(0)
    corpora = {x: [generator.integers(3, 90, 9).tolist() for _ in range(2)] for x in ("de", "en")}
    return reference(
        load_model(str(base), dtype="float32", device="cpu"), corpora, ReferenceConfig(max_length=64, min_length=4)
    )


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


def test_neurons_that_are_zero_anyway_change_nothing(base, tmp_path):
    """Without neurons that the model does not have, every number and every generated string is `hf`'s."""
    file = mask(base, tmp_path / "mask.safetensors")
    without = AutoModelForCausalLM.from_pretrained(base)
    deactivate(without, NeuronSet.load(file))
    without.save_pretrained(tmp_path / "without")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "without")
    pretrained = str(tmp_path / "without")
    assert answers(PLNDLM(pretrained, mask=file, **COMMON)) == answers(HFLM(pretrained, **COMMON))


@pytest.fixture
def loaded(base) -> LlamaForCausalLM:
    """A model object, as people load it once for many evaluations."""
    return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def only(request: str, lm) -> list:
    """One kind of request answered."""
    return getattr(lm, request)(REQUESTS[request])


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_masks_in_turn_on_one_loaded_model(base, loaded, tmp_path, mode):
    """On one model object every `PLNDLM` evaluates its own mask, whatever was made or used before, and `hf` none.

    The parameters are bit for bit what they were at every step, and no hook stays.
    """
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    files = [mask(base, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    alone = [only("loglikelihood", PLNDLM(str(base), mask=file, mode=mode, **COMMON)) for file in files]
    plain = only("loglikelihood", HFLM(str(base), **COMMON))
    assert alone[0] != alone[1] != plain != alone[0]
    common = {"batch_size": 2, "max_length": 64}
    first, second = (PLNDLM(loaded, mask=file, mode=mode, **common) for file in files)
    hf = HFLM(loaded, **common)
    for lm, expected in ((second, alone[1]), (hf, plain), (first, alone[0]), (second, alone[1]), (hf, plain)):
        assert only("loglikelihood", lm) == expected
        assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.modules())


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_are_unwrapped(base, loaded, tmp_path, wrap):
    """A model inside `DataParallel` or `torch.compile` answers as the model itself."""
    file = mask(base, tmp_path / "m.safetensors", seed=1)
    common = {"mask": file, "batch_size": 2, "max_length": 64}
    expected = only("loglikelihood", PLNDLM(loaded, **common))
    assert only("loglikelihood", PLNDLM(wrap(loaded), **common)) == expected


def test_a_pipeline_is_unwrapped(base, loaded, tmp_path):
    """So does the model of a transformers pipeline."""
    file = mask(base, tmp_path / "m.safetensors", seed=1)
    common = {"mask": file, "batch_size": 2, "max_length": 64}
    pipe = transformers.pipeline("text-generation", model=loaded, tokenizer=str(base))
    assert only("loglikelihood", PLNDLM(pipe, **common)) == only("loglikelihood", PLNDLM(loaded, **common))


def test_a_machine_without_a_gpu_needs_no_device(base, tmp_path):
    """`hf` by itself takes cuda for given."""
    lm = PLNDLM(str(base), mask=mask(base, tmp_path / "m.safetensors", seed=1), batch_size=1)
    assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_masks_in_turn_under_an_adapter(base, loaded, tmp_path):
    """Hooks of several masks do not pile up on a model with an adapter."""
    tuned = get_peft_model(loaded, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    tuned.eval()
    common = {"batch_size": 2, "max_length": 64, "tokenizer": str(base)}
    plain = only("loglikelihood", HFLM(tuned, **common))
    files = [mask(base, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    found = [only("loglikelihood", PLNDLM(tuned, mask=file, **common)) for file in (*files, *files)]
    assert found[:2] == found[2:] and found[0] != found[1] != plain
    assert only("loglikelihood", HFLM(tuned, **common)) == plain


def test_threads_take_turns_on_one_model(base, loaded, tmp_path):
    """Two threads with two masks on one model object: each gets its own mask's answers."""
    files = [mask(base, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    lms = [PLNDLM(loaded, mask=file, batch_size=2, max_length=64) for file in files]
    alone = [only("loglikelihood", lm) for lm in lms]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda n: only("loglikelihood", lms[n % 2]), range(6)))
    assert found == alone * 3


def test_threads_take_turns_on_a_model_with_and_without_an_adapter(base, loaded, tmp_path):
    """The model of an adapter that deactivates nothing waits for the mask on the model inside, and the reverse."""
    tuned = get_peft_model(loaded, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    common = {"batch_size": 2, "max_length": 64, "tokenizer": str(base)}
    whole = PLNDLM(tuned, peft=None, mask=mask(base, tmp_path / "2.safetensors", seed=2), **common)
    whole.source = NoDeactivation("none")
    lms = [PLNDLM(tuned, mask=mask(base, tmp_path / "1.safetensors", seed=1), **common), whole]
    alone = [only("loglikelihood", lm) for lm in lms]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda n: only("loglikelihood", lms[n % 2]), range(6)))
    assert found == alone * 3
    with deactivated(loaded, NeuronSet.load(tmp_path / "2.safetensors")), ThreadPoolExecutor(1) as threads:
        for lm in lms:
            error = threads.submit(only, "loglikelihood", lm).exception()
            assert isinstance(error, PLNDError) and "another thread (MainThread) works on this model" in str(error)


def test_nothing_is_drawn_for_a_mask_of_another_model(base, tmp_path, monkeypatch):
    """A small file that claims the widest projections is refused before a control is drawn among them."""
    model = Layout(AutoModelForCausalLM.from_pretrained(base)).description()
    wide = {**model, "widths": dict.fromkeys(model["widths"], 2**24)}
    neurons = {name: np.arange(2, dtype=np.int32) for name in wide["widths"]}
    importance = {name: np.ones(2, np.float32) for name in neurons}
    NeuronSet(neurons, importance, {**METADATA, "model": wide}).save(tmp_path / "wide.safetensors")
    monkeypatch.setattr(NeuronSet, "random_like", lambda *a: pytest.fail("drawn"))
    with pytest.raises(ModelMismatchError, match="has 16777216 neurons"):
        PLNDLM(str(base), mask=str(tmp_path / "wide.safetensors"), control="random", **COMMON)


def test_deactivated_is_how_requests_are_answered(base, loaded, tmp_path):
    """`lm.deactivated()` gives the masked model, nested or not, and takes the mask away after an exception, too."""
    file = mask(base, tmp_path / "mask.safetensors")
    lm, ids = PLNDLM(loaded, mask=file, batch_size=2), torch.arange(3, 23)[None]
    plain, call = loaded(ids).logits, lm._model_call(ids)
    with deactivated(loaded, NeuronSet.load(file)):
        expected = loaded(ids).logits
    with pytest.raises(KeyError), lm.deactivated() as model, lm.deactivated():
        assert torch.equal(model(ids).logits, expected)
        raise KeyError
    assert torch.equal(loaded(ids).logits, plain) and torch.equal(call, expected) and not torch.equal(plain, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_length": "x"}, "max_length=x: expected a whole number, 1 or more"),
        ({"max_length": 0}, "max_length=0: expected a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number, 1 or more"),
        ({"batch_size": -3}, "batch_size=-3: expected a whole number, 1 or more"),
        ({"prefix_token_id": "x"}, "prefix_token_id=x: expected a whole number, 0 or more"),
        ({"prefix_token_id": 10**8}, "prefix_token_id=100000000: token id 100000000, but the model's embedding has"),
    ],
)
def test_numbers_that_no_model_takes_are_refused(base, loaded, tmp_path, arguments, words):
    """A window without a token, a batch without a request, a first token without an embedding: one line, not later."""
    with pytest.raises(PLNDError, match=words):
        PLNDLM(loaded, mask=mask(base, tmp_path / "mask.safetensors"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"peft": "adapter"}, "peft= says how to load a model"),
        ({"parallelize": True}, "parallelize= says how to load"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16: the loaded model is in torch.float32"),
        ({"device": "cuda:0"}, "device=cuda:0: the loaded model is on cpu"),
        ({"attn_implementation": "eager"}, "unknown argument attn_implementation="),
    ],
)
def test_a_loaded_model_takes_no_word_on_how_to_load_it(base, loaded, tmp_path, arguments, words):
    """What `hf` would ignore, an adapter among it, is refused: the answers would be another model's."""
    with pytest.raises(PLNDError, match=words):
        PLNDLM(loaded, mask=mask(base, tmp_path / "mask.safetensors"), **arguments)


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


def rolling(lm) -> np.ndarray:
    """Log-likelihoods of running text."""
    return np.array(lm.loglikelihood_rolling(REQUESTS["loglikelihood_rolling"], disable_tqdm=True))


@pytest.mark.slow
def test_interventions_are_those_of_python(base, measured, tmp_path):
    """Every kind, with the numbers of `plnd.intervened` and `plnd.steered`, both together, and a digest of its own."""
    file = mask(base, tmp_path / "mask.safetensors")
    neurons, direction = NeuronSet.load(file), measured.direction("de")
    means, path = tmp_path / "means.safetensors", tmp_path / "de.direction.safetensors"
    measured.means.save(means)
    direction.save(path)
    model = load_model(str(base), dtype="float32", device="cpu")
    scale, half = dict(kind="scale", factor=0.5), dict(mask=file, intervene="scale", factor=0.5)
    cases = {
        "mean": (
            dict(mask=file, intervene="mean", means=means),
            [intervened(model, neurons, kind="mean", means=measured.means)],
        ),
        "control": (
            dict(mask=file, intervene="mean", means=str(means), control="random", seed=3),
            [intervened(model, neurons.random_like(3), kind="mean", means=measured.means)],
        ),
        "scale": (half, [intervened(model, neurons, **scale)]),
        "steer": (
            dict(mask=file, intervene="steer", steer=path, strength=3),
            [intervened(model, neurons, kind="steer", direction=direction, strength=3)],
        ),
        "blocks": (
            dict(steer=str(path), strength=2, blocks="1-2"),
            [steered(model, direction, strength=2, blocks=[1, 2])],
        ),
        "both": (dict(**half, steer=path), [intervened(model, neurons, **scale), steered(model, direction)]),
    }
    digests, plain = set(), rolling(HFLM(model, **COMMON, tokenizer=str(base)))
    for arguments, contexts in cases.values():
        lm = PLNDLM(**arguments, **COMMON)
        hf = HFLM(model, **COMMON, tokenizer=str(base))
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            expected = rolling(hf)
        np.testing.assert_allclose(rolling(lm), expected, rtol=1e-6)
        assert not np.allclose(expected, plain, rtol=1e-4)
        digests.add(lm.source.digest)
    assert len(digests) == len(cases)
    info = json.loads(json.dumps(lm.get_model_info()["plnd"]))
    assert (
        info["intervene"] == {"kind": "scale", "factor": 0.5} and info["steer"]["direction_sha256"] == direction.digest
    )
    assert lm.neurons == neurons


def test_steering_is_that_of_lm_evals_own_model(base, measured, tmp_path):
    """Of one direction, its `steered` model and ours answer alike, and otherwise than `hf`."""
    from lm_eval.models.hf_steered import SteeredModel

    measured.direction("de").save(tmp_path / "de.safetensors")
    measured.direction("de").save_steered(tmp_path / "de.pt", strength=1.5, blocks=[0, 2])
    theirs = SteeredModel(str(base), str(tmp_path / "de.pt"), **COMMON)
    ours = PLNDLM(steer=tmp_path / "de.safetensors", strength=1.5, blocks="0+2", **COMMON)
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad(), ours.deactivated():
        logits = ours.model(ids).logits
    assert torch.equal(logits, theirs.forward(ids).logits) and not torch.allclose(logits, theirs.model(ids).logits)
    found = answers(ours)
    assert found["generate_until"] == answers(theirs)["generate_until"]


INTERVENTIONS_REFUSED = {
    "intervene=mean needs means=FILE, from `plnd reference`: a mask carries none": {"intervene": "mean"},
    "intervene=scale needs factor=": {"intervene": "scale"},
    "intervene=steer needs steer=FILE": {"intervene": "steer"},
    "unknown intervene=double: expected one of zero, mean, scale, steer": {"intervene": "double"},
    "factor= goes with intervene=scale": {"factor": 2},
    "means= goes with intervene=mean": {"means": "x.safetensors", "intervene": "scale", "factor": 2},
    "factor=much: expected a number": {"intervene": "scale", "factor": "much"},
    "strength= and blocks= need steer=FILE": {"strength": 2},
    "no such file": {"steer": "absent.safetensors"},
    "kind=mean adds a constant": {"intervene": "mean", "means": True, "mode": "weights"},
}


@pytest.mark.parametrize("words", INTERVENTIONS_REFUSED)
def test_interventions_that_are_refused(base, measured, tmp_path, words):
    """One line: what is missing, unknown, or does not go together."""
    arguments = INTERVENTIONS_REFUSED[words]
    arguments = {**arguments, **({"means": measured.means} if arguments.get("means") is True else {})}
    with pytest.raises(PLNDError, match=words):
        PLNDLM(mask=mask(base, tmp_path / "mask.safetensors"), **arguments, **COMMON)


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


@pytest.mark.slow
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
        ([sys.executable, "-m", "lm_eval_plnd", "run"], "pretrained=x", "need mask=FILE"),
    ],
)
@pytest.mark.slow  # lm-eval's command line takes seconds to start
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


@pytest.mark.slow
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


WRONG = {
    "under=abc": ({"regions": "under", "under": "abc"}, "under=abc: expected a whole number, 0 or more"),
    "gen=1.5": ({"regions": "gen", "gen": 1.5}, "gen=1.5: expected a whole number"),
    "under=True": ({"regions": "under", "under": True}, "under=True: expected a whole number"),
    "seed=abc": ({"control": "random", "seed": "abc"}, "seed=abc: expected a whole number"),
    "seed=-1": ({"control": "random", "seed": -1}, "seed=-1: expected a whole number"),
    "seed alone": ({"seed": 3}, "seed= draws the neurons of control=random: give both or neither"),
    "regions=3": ({"regions": 3}, "regions=3: expected names joined by +"),
    "regions=": ({"regions": ""}, "regions= is empty"),
    "projections=": ({"projections": "down_porj"}, "unknown projection 'down_porj'"),
    "mask=5": ({"mask": 5}, "mask=5: expected the name of a file, or a NeuronSet"),
    "regoins=": ({"regoins": "under"}, "unknown argument regoins=: did you mean regions="),
    "max_lenght=": ({"max_lenght": 64}, "unknown argument max_lenght=: did you mean max_length="),
    "gne=": ({"gne": 2}, "cannot be loaded .*unexpected keyword argument 'gne'"),
    "pretrained=7": ({"pretrained": 7}, "pretrained=7: expected a folder or hub name, or a loaded model"),
    "trust_remote_code=None": ({"trust_remote_code": None}, "trust_remote_code=None: expected True or False"),
    "dtype": ({"dtype": "float99"}, "cannot be loaded"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_are_checked_by_name(base, tmp_path, name):
    """A value of another kind, or an argument that nobody knows, is one line that names it."""
    arguments, words = WRONG[name]
    with pytest.raises(PLNDError, match=words) as error:
        PLNDLM(**{"mask": mask(base, tmp_path / "mask.safetensors"), **COMMON, **arguments})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"regions": "under", "under": 0}, "none of its .* neurons is in regions=under"),
        ({"projections": "q_proj"}, "none of its .* neurons is in projections=q_proj"),
        ({"regions": "solve_attn", "under": 1, "gen": 1}, "none of its .* neurons is in regions=solve_attn"),
    ],
)
def test_a_choice_that_leaves_no_neuron_is_refused(base, tmp_path, arguments, words):
    """Nothing is left of the mask: refused, since the whole model's numbers would be recorded as the mask's."""
    whole = NeuronSet.load(mask(base, tmp_path / "mask.safetensors"))
    with pytest.raises(PLNDError, match=words):
        PLNDLM(mask=whole.restrict(projections=["down_proj"]), **arguments, **COMMON)
    with pytest.raises(PLNDError, match="it holds no neuron"):
        PLNDLM(mask=whole - whole, **COMMON)


@pytest.mark.parametrize("given", ["down_proj+q_proj", ["down_proj", "q_proj"]])
def test_projections_choose_among_the_mask(base, tmp_path, given):
    """`projections=` is `NeuronSet.restrict(projections=…)`, and recorded."""
    file = mask(base, tmp_path / "mask.safetensors")
    lm = PLNDLM(mask=file, projections=given, regions="under", under=2, **COMMON)
    regions = Regions(("under",), 2, 0)
    assert lm.neurons == NeuronSet.load(file).restrict(projections=["down_proj", "q_proj"], regions=regions)
    assert lm.get_model_info()["plnd"]["projections"] == "down_proj+q_proj"


def test_paths_are_names(base, tmp_path):
    """A mask and a model given as `Path` are those of the same name; the results name the file."""
    file = mask(base, tmp_path / "mask.safetensors")
    found, expected = PLNDLM(base, mask=Path(file), **COMMON), PLNDLM(str(base), mask=file, **COMMON)
    assert found.get_model_info()["plnd"] == expected.get_model_info()["plnd"]
    assert found.get_model_info()["plnd"]["mask"] == file
    assert only("loglikelihood", found) == only("loglikelihood", expected)


def moved(neurons: NeuronSet, **model) -> NeuronSet:
    """The same neurons with another description of their base model."""
    return NeuronSet(neurons.indices, neurons.importance, {**neurons.metadata, "model": {**neurons.model, **model}})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "runs/llama"}, r"in the folder runs/llama, which is not there \(seen from .*\): add pretrained="),
        ({"name": "/elsewhere/llama"}, "in the folder /elsewhere/llama, which is not there: add pretrained="),
        ({"name": "here", "hub": True}, "the hub's model here, but there is a folder of that name here"),
        ({"name": "here", "revision": "a" * 40}, "the hub's model here, but there is a folder"),
        ({"name": "org/absent", "hub": True}, "org/absent: cannot be loaded"),
        ({"name": None}, "does not name the model that it was made for: add pretrained="),
    ],
)
def test_base_models_that_are_not_here(base, tmp_path, monkeypatch, model, words):
    """A base model in a folder that is not there is one line, before its name is looked up on the hub; so is a hub
    name that a folder here would answer to.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").symlink_to(base)
    neurons = NeuronSet.load(mask(base, tmp_path / "mask.safetensors"))
    with pytest.raises(PLNDError, match=words) as error:
        PLNDLM(mask=moved(neurons, **model), **COMMON)
    assert len(str(error.value).splitlines()) == 1
    assert PLNDLM(str(base), mask=moved(neurons, **model), **COMMON).neurons == neurons


def test_relative_base_models_that_are_here(base, tmp_path, monkeypatch):
    """A mask of a folder by a relative name is evaluated where that folder is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").symlink_to(base)
    neurons = NeuronSet.load(mask(base, tmp_path / "mask.safetensors"))
    assert PLNDLM(mask=moved(neurons, name="here"), **COMMON).pretrained == "here"


def test_token_ids_beyond_the_embedding(base, tmp_path):
    """A tokenizer with more tokens than the model has rows is one line, not an index error or another row's numbers."""
    larger = AutoTokenizer.from_pretrained(base)
    larger.add_tokens(["zzz"])
    lm = PLNDLM(mask=mask(base, tmp_path / "mask.safetensors"), tokenizer=larger, **COMMON)
    known, unknown = [instance("loglikelihood", "a", " b")], [instance("loglikelihood", "a", " zzz")]
    assert len(lm.loglikelihood(known)) == 1
    words = f"token id {len(larger) - 1}, but the model's embedding has {len(larger) - 1} rows"
    with pytest.raises(PLNDError, match=words):
        lm.loglikelihood(unknown)
    with pytest.raises(PLNDError, match=words):
        lm.generate_until([instance("generate_until", "zzz", {"until": ["."], "max_gen_toks": 2})])
    with pytest.raises(PLNDError, match=words):
        lm.loglikelihood_rolling([instance("loglikelihood_rolling", "zzz")])


@pytest.mark.parametrize("source", ["mask", "peft", "roles"])
def test_results_are_in_the_base_models_folder(base, tmp_path, source):
    """Without `pretrained=` lm-eval's `--output_path` still gets a folder named after the base model (or the adapter,
    whose name lm-eval takes first), not six random letters; the arguments can be used again with another mask.
    """
    arguments: dict = {"dtype": "float32", "max_length": 64}
    file = mask(base, tmp_path / "mask.safetensors")
    if source == "mask":
        arguments["mask"] = file
    elif source == "peft":
        config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
        arguments["peft"] = str(tmp_path / "adapter")
    else:
        from plnd.roles.parallel import Parallel
        from plnd.roles.roles import find_roles

        ids = [[[3, 4, 5], [6, 7, 8]]]
        parallel = Parallel(("en", "de"), (("a", "b"),), source=None)
        find_roles(AutoModelForCausalLM.from_pretrained(base), parallel, ids, output=tmp_path / "x.roles.safetensors")
        arguments |= {"roles": str(tmp_path / "x.roles.safetensors"), "deactivate": "random", "share": 0.5}
    expected = str(tmp_path / "adapter") if source == "peft" else str(base)
    for _ in range(2):
        PLNDLM.create_from_arg_obj(arguments, {"device": "cpu", "batch_size": 2})
        tracker = EvaluationTracker(output_path=str(tmp_path / "results"))
        tracker.general_config_tracker.log_experiment_args("plnd", arguments, None, None, False)
        assert tracker.general_config_tracker.model_name == expected
    other = moved(NeuronSet.load(file), name=None)
    with pytest.raises(PLNDError, match="does not name the model"):
        PLNDLM.create_from_arg_obj({**{k: v for k, v in arguments.items() if k == "pretrained"}, "mask": other})


@pytest.mark.parametrize("name, value", [("batch_size", 2), ("device", "cpu")])
def test_an_argument_that_lm_eval_gives_as_well_is_refused(name, value):
    """As text and as a mapping, before the mask is opened; what lm-eval leaves open (None) may be given."""
    words = f"{name}={value} in model_args: lm-eval gives {name}=1 itself; take --{name}"
    with pytest.raises(PLNDError, match=words):
        PLNDLM.create_from_arg_obj({"mask": "absent", name: value}, {name: 1})
    with pytest.raises(PLNDError, match=words):
        PLNDLM.create_from_arg_string(f"mask=absent,{name}={value}", {name: 1})
    with pytest.raises(PLNDError, match="absent: no such file"):
        PLNDLM.create_from_arg_obj({"mask": "absent", name: value}, {name: None})
