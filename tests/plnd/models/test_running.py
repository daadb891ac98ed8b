"""One model in several threads, in copies, and in contexts that end anywhere: right, or refused in one line."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from plnd.comparison.documents import Document
from plnd.comparison.measures import measure
from plnd.deactivation import active, deactivated
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import PLNDError
from plnd.inspection.run import inspect_neurons
from plnd.interventions import intervened
from plnd.logit_lens.lens import decode_tokens
from plnd.models.layout import Layout
from plnd.models.running import editing, hooked, lease, replaces, replacing
from plnd.neurons.neuron_set import NeuronSet
from plnd.roles.deactivation import deactivated_rows
from plnd.roles.parallel import Parallel
from plnd.roles.roles import find_roles
from tiny import tiny_model

IDS = torch.arange(3, 19)[None]
DOCUMENTS = [[3 + (7 * n + k) % 90 for k in range(4 + n % 3)] for n in range(18)]
"""More than are read before the first pass."""
CONFIG = DetectConfig(min_length=1, max_length=16, batch_size=1)


@pytest.fixture
def model():
    """A tiny Llama in float32."""
    return tiny_model("llama", torch.float32)


def a_set(model: Any, start: int = 0) -> NeuronSet:
    """Every third neuron of every projection."""
    layout = Layout(model)
    indices = {name: np.arange(start, width, 3, dtype=np.int32) for name, width in layout.widths.items()}
    importance = {name: np.ones(len(v), np.float32) for name, v in indices.items()}
    return NeuronSet(indices, importance, {"model": layout.description()})


def means(model: Any) -> dict[str, np.ndarray]:
    """A mean for every neuron."""
    return {name: np.full(width, 0.1) for name, width in Layout(model).widths.items()}


def in_thread(work: Callable[[], Any]) -> Any:
    """What work gives in another thread, or the error that it raises there."""
    said: list[Any] = []

    def run() -> None:
        try:
            said.append(work())
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return said[0]


def meanwhile(works: Iterable[Callable[[], Any]], said: list[Any]) -> Iterator[list[int]]:
    """Documents, between two passes of which another thread tries its own."""
    return changing(17, lambda: said.extend(map(in_thread, works)))


def changing(at: int, change: Callable[[], Any]) -> Iterator[list[int]]:
    """Documents, at one of which something else happens."""
    for n, ids in enumerate(DOCUMENTS):
        if n == at:
            change()
        yield ids


def looks(model: Any) -> dict[str, Callable[[], Any]]:
    """Everything that reads numbers off a model, and everything that changes it."""
    neurons, zero = a_set(model), [{}] * len(IDS)
    parallel = Parallel(["a", "b"], [["x", "y"]])
    documents = [Document(n, ids, 4) for n, ids in enumerate(DOCUMENTS)]
    return {
        "detect": lambda: detect(model, DOCUMENTS, CONFIG),
        "lens": lambda: decode_tokens(model, None, DOCUMENTS),
        "neuron": lambda: inspect_neurons(model, None, ["0.down_proj.1"], {"a": DOCUMENTS}),
        "roles": lambda: find_roles(model, parallel, [[[5, 6], [7]]]),
        "arena": lambda: measure(model, documents, 2),
        "deactivated": lambda: deactivated(model, neurons).__enter__(),
        "activations": lambda: deactivated(model, neurons, mode="activations").__enter__(),
        "zero": lambda: intervened(model, neurons).__enter__(),
        "mean": lambda: intervened(model, neurons, kind="mean", means=means(model)).__enter__(),
        "rows": lambda: deactivated_rows(model, zero).__enter__(),
        "a pass": lambda: model(IDS),
        "generate": lambda: model.generate(IDS, max_new_tokens=2),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two scores are bit for bit equal."""
    return one.to_bytes() == other.to_bytes()


def test_what_another_thread_may_do_to_a_model_that_is_measured(model):
    """Nothing: each way is refused in one line; the numbers are those of a model alone, which is left as it was."""
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before, state = detect(model, DOCUMENTS, CONFIG), copy.deepcopy(model.state_dict())
    works, said = looks(model), []
    assert same(detect(model, meanwhile(works.values(), said), CONFIG), before)
    for name, error in zip(works, said, strict=True):
        assert isinstance(error, PLNDError) and len(str(error).splitlines()) == 1, (name, error)
        assert str(error).startswith("another thread (MainThread) works on this model"), name
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa" and not active(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_another_thread_may_do_to_a_model_that_is_changed(model):
    """Nothing but passes, which are those of the changed model: the thread that streams a generation is such a one."""
    neurons = a_set(model)
    for context in (deactivated(model, neurons), intervened(model, neurons, kind="mean", means=means(model))):
        with context:
            expected = model(IDS).logits
            for name, work in looks(model).items():
                found = in_thread(work)
                if name == "a pass":
                    assert torch.equal(found.logits, expected)
                elif name != "generate":
                    assert isinstance(found, PLNDError) and "another thread (MainThread)" in str(found), name


def open_ended(model: Any, neurons: NeuronSet) -> Iterator[int]:
    """A generator whose context is open between two steps."""
    with deactivated(model, neurons):
        yield 0
        yield 1


@pytest.mark.parametrize("at", [0, pytest.param(17, marks=pytest.mark.slow)])
def test_neurons_that_go_off_or_come_back_while_a_model_is_measured(model, at):
    """By a context that is opened, closed, or collected meanwhile, in any thread: refused, and never half a number."""
    neurons = a_set(model)
    opened: list[Any] = []

    def collect() -> None:
        generator = open_ended(model, neurons)
        next(generator)
        held: list[Any] = [generator]
        held.append(held)  # which only the collector ends

    def collected() -> None:
        in_thread(gc.collect)

    for before, change in (
        (None, lambda: opened.append(deactivated(model, neurons)) or opened[-1].__enter__()),
        (None, lambda: opened.append(intervened(model, neurons, kind="mean", means=means(model)))
         or opened[-1].__enter__()),
        (collect, collected),
    ):  # fmt: skip
        if before:
            gc.disable()
            before()
        try:
            with pytest.raises(PLNDError, match="were switched off, replaced or given back while|block 0: "):
                detect(model, changing(at, change), CONFIG)
        finally:
            gc.enable()
        while opened:
            opened.pop().__exit__(None, None, None)
        assert not active(model)


def test_contexts_that_are_collected_in_another_thread(model):
    """The neurons come back, bit for bit, and the model is free for whoever comes next."""
    state, first, second = copy.deepcopy(model.state_dict()), a_set(model), a_set(model, 1)
    held = [open_ended(model, first), open_ended(model, second), open_ended(model, first)]
    for generator in held:
        next(generator)
    assert len(active(model)) == 3
    held.append(held)
    del held, generator
    in_thread(gc.collect)
    assert not active(model) and all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert in_thread(lambda: deactivated(model, first).__enter__()) is model


def test_a_thread_that_has_ended_keeps_nothing(model):
    """Whoever comes next has the model, and can end what was left open; a third one waits for it as for anyone."""
    left = in_thread(lambda: lease(model))
    release = lease(model)
    assert "another thread" in str(in_thread(lambda: lease(model)))
    release()
    left()
    in_thread(lambda: lease(model))()


def test_an_error_inside_gives_the_model_back(model):
    """Whoever had it: others may work on it, no value counts as replaced any more, and the collector goes on."""
    for context in (hooked(model), replacing(model), editing()):
        with pytest.raises(KeyError), context:
            raise KeyError
        assert gc.isenabled() and not replaces(model)
        in_thread(lambda: lease(model))()


def test_models_that_share_parts_count_as_one(model):
    """A body in two models, one parameter in two, an adapter around a model: refused while the other's are off."""
    neurons = a_set(model)
    body, tied = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    body.model = model.model
    tied.model.layers[0].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    viewed = tiny_model("llama", torch.float32)
    viewed.model.layers[0].mlp.down_proj.weight.data = model.model.layers[0].mlp.down_proj.weight.data
    apart = tiny_model("llama", torch.float32)
    expected = apart(IDS).logits
    with deactivated(model, neurons):
        for other in (body, tied, viewed):
            for work in (partial(detect, other, DOCUMENTS, CONFIG), deactivated(other, neurons).__enter__):
                with pytest.raises(
                    PLNDError, match="LlamaForCausalLM, on whose neurons thread MainThread works, shares"
                ):
                    work()
            assert "shares modules or weights" in str(in_thread(partial(detect, other, DOCUMENTS, CONFIG)))
        with deactivated(apart, neurons):
            pass
    assert torch.equal(apart(IDS).logits, expected)
    tuned = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    with deactivated(tuned, neurons):
        assert "another thread" in str(in_thread(lambda: deactivated(tuned.get_base_model(), neurons).__enter__()))


def test_models_with_one_configuration(model):
    """Its attention is set there: of the two only one is measured at a time, and the other's passes are right."""
    other = type(model)(model.config).eval()
    assert other.config is model.config
    expected, said = other(IDS).logits, []
    detect(model, meanwhile([lambda: other(IDS).logits, lambda: detect(other, DOCUMENTS, CONFIG)], said), CONFIG)
    assert torch.equal(said[0], expected) and model.config._attn_implementation == "sdpa"
    assert "shares its configuration with one that is being measured (by thread MainThread)" in str(said[1])


def test_copies_and_pickles(model):
    """Of a model whose neurons are off they keep them off; one made while the original is measured is refused."""
    neurons, made = a_set(model), []
    for mode in ("weights", "activations"):
        with deactivated(model, neurons, mode=mode):
            expected = model(IDS).logits
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert all(torch.equal(found(IDS).logits, expected) for found in copies)
    detect(model, changing(17, lambda: made.append(copy.deepcopy(model))), CONFIG)
    with pytest.raises(PLNDError, match="this model is a copy, made while the original was measured"):
        made[0](IDS)


def test_a_model_is_not_measured_while_its_values_are_replaced(model):
    """The artifact would not say so; inside the measurement of another kind, or of another model, nothing is lost."""
    with (
        intervened(model, a_set(model), kind="mean", means=means(model)),
        pytest.raises(PLNDError, match="values of the model's neurons are replaced"),
    ):
        detect(model, DOCUMENTS, CONFIG)
    with pytest.raises(PLNDError, match="LlamaForCausalLM is being measured"):
        detect(model, changing(3, lambda: detect(model, DOCUMENTS, CONFIG)), CONFIG)


@pytest.mark.slow
def test_threads_that_all_want_one_model(model):
    """Whatever four threads do to it in any order: a number is the right one or none, and the model is as it was."""
    state = copy.deepcopy(model.state_dict())
    sets = [a_set(model, start) for start in range(3)]
    expected, off = detect(model, DOCUMENTS[:2], CONFIG), []
    for neurons in sets:
        with deactivated(model, neurons):
            off.append(model(IDS).logits)
    wrong: list[str] = []
    done = {"right": 0, "refused": 0}

    def run(seed: int) -> None:
        draw = random.Random(seed)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            number = draw.randrange(4)
            try:
                if number == 3:
                    right = same(detect(model, DOCUMENTS[:2], CONFIG), expected)
                else:
                    generator = open_ended(model, sets[number])
                    next(generator)
                    right = torch.equal(model(IDS).logits, off[number])
                    if draw.random() < 0.5:
                        generator.close()
                    held = [generator]
                    held.append(held)
                    del held, generator
                    gc.collect()
                done["right"] += right
                wrong.extend([] if right else [f"{number} of thread {seed}"])
            except PLNDError as error:
                assert len(str(error).splitlines()) == 1
                done["refused"] += 1

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong and done["right"] and done["refused"], (wrong, done)
    assert not active(model) and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
