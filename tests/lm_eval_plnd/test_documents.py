"""Every request runs without its own document's neurons, whatever batch it comes in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from lm_eval_plnd.documents import in_one_line
from lm_eval_plnd.model import PLNDLM
from plnd.demo_data import demo_model
from plnd.errors import ModelMismatchError, PLNDError
from plnd.io.files import file_digest
from plnd.models.loading import load_model, load_tokenizer
from plnd.roles.deactivation import Choice, deactivated_rows
from plnd.roles.parallel import Parallel
from plnd.roles.roles import Roles, find_roles

PROMPTS = [
    ["A cat sat on the mat.", "Eine Katze sass auf der Matte."],
    ["Two dogs", "Zwei Hunde"],
    ["The capital of France is a large city, and its name is", "Die Hauptstadt von Frankreich heisst"],
    ["One more", "Zwei Hunde"],  # the German prompt of another example
    ["The last of all", "Das letzte"],
]
TASKS = ["toy_en", "toy_de"]
COMMON = {"device": "cpu", "dtype": "float64", "max_length": 64}


@pytest.fixture(scope="module", params=["llama", pytest.param("t5", marks=pytest.mark.slow)])
def base(request, tmp_path_factory) -> Path:
    """A random model with the demo model's tokenizer, on disk."""
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    common = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    if request.param == "llama":
        shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        model = LlamaForCausalLM(LlamaConfig(**common, **shape, initializer_range=0.4, max_position_embeddings=128))
    else:
        shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
        model = T5ForConditionalGeneration(T5Config(**common, **shape, initializer_factor=1.0))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def roles(base) -> str:
    """Roles of the toy tasks' documents, whose numbers differ by language."""
    path = base / "toy.roles.safetensors"
    documents = [[n, 9 - n] for n in range(len(PROMPTS))]
    parallel = Parallel(["en", "de"], PROMPTS, tasks=TASKS, documents=documents)
    find_roles(
        load_model(str(base), dtype="float64"), parallel, parallel.token_ids(load_tokenizer(str(base))), output=path
    )
    return str(path)


def requests(kind: str, base: Path) -> list[Instance]:
    """Requests of both tasks: two continuations of every prompt, or two lengths of generation."""
    found = []
    for example, row in enumerate(PROMPTS):
        for place, text in enumerate(row):
            for idx in range(2):
                argument = [" und", " a longer end"][idx]
                if kind == "generate_until":
                    argument = {"until": ["\n"], "max_gen_toks": 3 + 2 * idx, "do_sample": False}
                    if base.name.startswith("t5"):  # lm-eval adds the length of the batch's longest context to it
                        argument["max_length"] = 5 + 2 * idx
                number = example if place == 0 else 9 - example
                found.append(Instance(kind, {}, (text, argument), idx, metadata=(TASKS[place], number, 1)))
    return found


def alone(base: Path, roles: str, choice: Choice, kind: str) -> list:
    """Each request by itself, in lm-eval's own model, under hooks set by hand."""
    lm, found = HFLM(str(base), batch_size=1, **COMMON), []
    opened = Roles.load(roles)
    for n, request in enumerate(requests(kind, base)):
        with deactivated_rows(lm.model, [choice.neurons(opened, n // 4)]):
            found += getattr(lm, kind)([request], disable_tqdm=True)
    return found


def same(kind: str, found: list, expected: list) -> bool:
    """Equal text, or log-likelihoods equal up to rounding."""
    if kind == "generate_until":
        return found == expected
    return np.allclose(np.array(found, dtype=float), np.array(expected, dtype=float), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("generate_until", {"deactivate": "all_shared"}),
        ("loglikelihood", {"deactivate": "all_shared"}),
        ("loglikelihood", {"deactivate": "specific", "control": "random", "seed": 3}),
        ("loglikelihood", {"deactivate": "random", "share": 0.75}),
    ],
)
def test_a_batch_is_each_example_alone(base, roles, kind, options):
    """Any batch size, any order of requests: each answer is that of its document by itself."""
    choice = Choice(options["deactivate"], options.get("share"), options.get("control"), options.get("seed", 0))
    expected = alone(base, roles, choice, kind)
    assert not same(kind, getattr(HFLM(str(base), batch_size=4, **COMMON), kind)(requests(kind, base)), expected)
    for size, seed in ((3, 0), (64, 1)):
        lm = PLNDLM(roles=roles, batch_size=size, **options, **COMMON)
        order = np.random.default_rng(seed).permutation(len(expected))
        found = getattr(lm, kind)([requests(kind, base)[n] for n in order])
        assert same(kind, found, [expected[n] for n in order])
        assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_nothing_switched_off_is_exactly_hf(base, roles):
    """With a share of 0 every answer is that of lm-eval's own model."""
    lm = PLNDLM(roles=roles, deactivate="random", share=0, batch_size=4, **COMMON)
    for kind in ("loglikelihood", "generate_until"):
        some = requests(kind, base)[:6]
        assert same(kind, getattr(lm, kind)(some), getattr(HFLM(str(base), batch_size=4, **COMMON), kind)(some))


def test_what_is_too_long_loses_its_beginning_as_in_hf(base, roles):
    """Of a request that does not fit, the same tokens are read as in lm-eval's own model."""
    short, some = {**COMMON, "max_length": 8}, requests("loglikelihood", base)
    found = PLNDLM(roles=roles, deactivate="random", share=0, batch_size=4, **short).loglikelihood(some)
    assert same("loglikelihood", found, HFLM(str(base), batch_size=4, **short).loglikelihood(some))
    assert not same("loglikelihood", found, HFLM(str(base), batch_size=4, **COMMON).loglikelihood(some))


@pytest.mark.slow
def test_automatic_batch_size(base, roles):
    """`batch_size=auto` finds a size with nothing switched off, and then changes no answer."""
    for kind in ("loglikelihood", "generate_until"):
        some = requests(kind, base)[:6]
        lm = PLNDLM(roles=roles, deactivate="all_shared", batch_size="auto", max_batch_size=4, **COMMON)
        fixed = PLNDLM(roles=roles, deactivate="all_shared", batch_size=2, **COMMON)
        assert same(kind, getattr(lm, kind)(some), getattr(fixed, kind)(some))


def test_one_document_with_two_prompts_like_another(base, roles):
    """Two documents that ask the same in one language keep their own neurons: told apart by their number."""
    lm, own = PLNDLM(roles=roles, deactivate="non_activated", batch_size=8, **COMMON), []
    for number in (8, 6):  # the same German prompt, of examples 1 and 3
        request = Instance("loglikelihood", {}, ("Zwei Hunde", " und"), 0, metadata=("toy_de", number, 1))
        own += lm.loglikelihood([request])
    both = [
        Instance("loglikelihood", {}, ("Zwei Hunde", " und"), 0, metadata=("toy_de", number, 1)) for number in (8, 6)
    ]
    found = lm.loglikelihood(both)
    assert same("loglikelihood", found, own) and abs(found[0][0] - found[1][0]) > 1e-4


def test_documents_without_roles_are_errors(base, roles):
    """Another task, document or prompt is refused; nothing runs with all its neurons in silence."""
    lm = PLNDLM(roles=roles, deactivate="all_shared", batch_size=2, **COMMON)
    for task, number, text, words in (
        ("other", 0, PROMPTS[0][0], "task other: the artifact has no roles"),
        ("toy_en", 7, "New prompt", "document 7: no roles for it among the artifact's 5 examples"),
        ("toy_en", 0, "Example. A cat sat on the mat.", "asked with another prompt"),
        (None, None, PROMPTS[0][0], "task None"),
    ):
        for kind, argument in (("loglikelihood", " x"), ("generate_until", {"until": ["\n"], "max_gen_toks": 2})):
            with pytest.raises(PLNDError, match=words):
                getattr(lm, kind)([Instance(kind, {}, (text, argument), 0, metadata=(task, number, 1))])
    with pytest.raises(PLNDError, match="not for running text"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("text",), 0, metadata=("toy_en", 0, 1))])


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_another_order_in_a_batch_is_noticed(base, roles, kind, monkeypatch):
    """Were lm-eval to put a batch's rows in another order, no answer would be given."""

    class Backwards(Collator):
        def get_batched(self, *args, **kwargs):
            return (batch[::-1] for batch in super().get_batched(*args, **kwargs))

    lm = PLNDLM(roles=roles, deactivate="all_shared", batch_size=2, **COMMON)
    monkeypatch.setattr("lm_eval.models.huggingface.Collator", Backwards)
    with pytest.raises(PLNDError, match="in another order"):
        getattr(lm, kind)(requests(kind, base))


def test_a_call_of_the_model_outside_a_batch_is_noticed(base, roles):
    """Were lm-eval to run the model on rows that no request is known for, it would not run with all its neurons."""
    lm = PLNDLM(roles=roles, deactivate="all_shared", batch_size=2, **COMMON)
    with pytest.raises(PLNDError, match="in another order"):
        lm._model_call(torch.tensor([[5, 6]]))


def test_results_say_what_was_switched_off(base, roles):
    """Artifact, role, control and, after an evaluation, how many neurons of how many examples."""
    lm = PLNDLM(roles=roles, deactivate="specific", control="random", seed=2, batch_size=4, **COMMON)
    before = lm.get_model_info()["plnd"]
    assert before["evaluated"] == {"examples": 0, "neurons": None, "of": Roles.load(roles).total, "share": None}
    lm.loglikelihood(requests("loglikelihood", base))
    info = json.loads(json.dumps(lm.get_model_info()["plnd"]))
    given = {
        "roles": roles,
        "roles_sha256": file_digest(roles),
        "deactivate": "specific",
        "control": "random",
        "seed": 2,
    }
    assert {name: info[name] for name in given} == given and info["languages"] == ["en", "de"]
    opened = Roles.load(roles)
    mean = np.mean([(opened.codes([n]) == 2).sum() for n in range(5)])
    assert info["evaluated"]["examples"] == 5 and info["evaluated"]["neurons"] == pytest.approx(mean)
    assert info["evaluated"]["share"] == pytest.approx(opened.shares()["specific"] / 100)


@pytest.mark.slow
def test_other_interventions_by_role(base, roles):
    """A factor of one is `hf`, of zero is deactivation; results say which."""
    some = requests("loglikelihood", base)
    plain = PLNDLM(roles=roles, deactivate="random", share=0, batch_size=4, **COMMON).loglikelihood(some)
    role = {"roles": roles, "deactivate": "all_shared", "batch_size": 4}
    off = PLNDLM(**role, **COMMON).loglikelihood(some)
    scaled = {f: PLNDLM(**role, intervene="scale", factor=f, **COMMON) for f in (0, 1, 3)}
    assert scaled[3].get_model_info()["plnd"]["intervene"] == {"kind": "scale", "factor": 3.0}
    found = {factor: lm.loglikelihood(some) for factor, lm in scaled.items()}
    assert same("", found[0], off) and same("", found[1], plain)
    assert not same("", found[3], off) and not same("", found[3], plain)


def test_refusals(base, roles, tmp_path):
    """Arguments that contradict each other are one-line errors, before a model is loaded."""
    for arguments, words in (
        ({"roles": roles}, "roles= needs deactivate=, one of all_shared, partial_shared, specific, non_activated"),
        ({"roles": roles, "deactivate": "shared"}, "unknown deactivate=shared"),
        ({"roles": roles, "deactivate": "specific", "mask": "x.safetensors"}, "mask= and roles= both say"),
        ({"roles": roles, "deactivate": "specific", "regions": "under", "under": 1}, "go with mask="),
        ({"roles": roles, "deactivate": "specific", "mode": "weights"}, "go with mask="),
        ({"mask": "x.safetensors", "deactivate": "specific"}, "need roles=FILE"),
        ({"mask": "x.safetensors", "share": 0.5}, "need roles=FILE"),
        ({"roles": str(tmp_path / "absent"), "deactivate": "specific"}, "no such file"),
    ):
        with pytest.raises(PLNDError, match=words):
            PLNDLM(**arguments, **COMMON)
    with pytest.raises(ModelMismatchError, match="roles: made for"):
        PLNDLM(roles=roles, deactivate="specific", pretrained=str(demo_model()), **COMMON)
    with pytest.raises(PLNDError, match="leave it out"):
        CachingLM(PLNDLM(roles=roles, deactivate="specific", **COMMON), str(tmp_path / "cache.db"))


def test_errors_during_an_evaluation_are_one_line_too(capsys):
    """Where lm-eval's command line runs, a document without roles ends it with one line and status 2."""

    def refuse() -> None:
        raise PLNDError("no roles")

    from lm_eval import _cli  # that it is loaded says nothing: it must be what called

    with pytest.raises(PLNDError):
        in_one_line(refuse)
    command_line = dict(vars(_cli), call=in_one_line, refuse=refuse)
    with pytest.raises(SystemExit) as end:
        exec("call(refuse)", command_line)
    assert end.value.code == 2 and capsys.readouterr().err == "lm_eval --model plnd: no roles\n"
