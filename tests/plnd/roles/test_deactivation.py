"""Other neurons off in every row of a batch."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from plnd.errors import ModelMismatchError, PLNDError
from plnd.interventions import Intervention, intervened
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from plnd.roles.activations import feed_forward_widths
from plnd.roles.deactivation import Choice, deactivated_rows
from plnd.roles.parallel import Parallel
from plnd.roles.roles import ROLES, Roles, find_roles
from tiny import dense, logits, marked, tiny_model

FLOAT32, FLOAT64 = {"rtol": 1e-4, "atol": 1e-5}, {"rtol": 1e-12, "atol": 1e-12}
DENSE = marked(dense())


def drawn(widths: dict[str, int], rows: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """A random third of the neurons, another one for every row."""
    generator = np.random.default_rng(seed)
    return [{name: generator.random(width) < 0.3 for name, width in widths.items()} for _ in range(rows)]


def case(name: str, rows: int = 3):
    """A tiny model, inputs of one length, and neurons for each."""
    model = tiny_model(name, torch.float32 if name == "xglm" else torch.float64)
    ids = torch.randint(3, 97, (rows, 6), generator=torch.Generator().manual_seed(1))
    return model, ids, drawn(feed_forward_widths(Layout(model)), rows)


IN_FLOAT32 = ("xglm", "qwen3_5_text", "bamba")
"""What computes in single precision whatever the model's is: the latter two their linear attention, or recurrence."""


@pytest.mark.parametrize("name", DENSE)
def test_each_row_is_as_if_it_ran_alone(name):
    """A row's logits are, bit for bit, those of a batch in which every row has its neurons off."""
    model, ids, neurons = case(name)
    with torch.no_grad():
        with deactivated_rows(model, neurons):
            together = logits(model, ids)
        whole = logits(model, ids)
        for row, own in enumerate(neurons):
            with deactivated_rows(model, [own] * len(ids)):
                assert torch.equal(together[row], logits(model, ids)[row])
            with deactivated_rows(model, [own]):
                alone = logits(model, ids[row : row + 1])[0]
            torch.testing.assert_close(together[row], alone, **(FLOAT32 if name in IN_FLOAT32 else FLOAT64))
            assert not torch.allclose(together[row], whole[row], rtol=1e-3)
        assert torch.equal(whole, logits(model, ids))  # nothing remains


@pytest.mark.parametrize("kind", ["mean", "scale", "steer"])
def test_other_interventions(kind):
    """Each row is, bit for bit, that of a batch whose columns of `down_proj` are changed so by hooks."""
    model, ids, neurons = case("llama")
    layout, generator = Layout(model), np.random.default_rng(0)
    values = {name: generator.normal(size=width) for name, width in layout.widths.items()}
    options = {"mean": {"means": values}, "scale": {"factor": 1.7}, "steer": {"direction": values, "strength": 2}}[kind]
    with torch.no_grad():
        with deactivated_rows(model, neurons, Intervention(kind, **options)):
            together = logits(model, ids)
        for row, own in enumerate(neurons):
            indices = {f"{block}.down_proj": np.flatnonzero(v).astype(np.int32) for block, v in own.items()}
            zeros = {name: np.zeros(len(v), np.float32) for name, v in indices.items()}
            chosen = NeuronSet(indices, zeros, {"model": layout.description()})
            with intervened(model, chosen, kind=kind, mode="activations", **options):
                assert torch.equal(together[row], logits(model, ids)[row])
    with pytest.raises(PLNDError, match="0.down_proj: no values"):
        with deactivated_rows(model, neurons, Intervention("mean", means={})):
            pass


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt", "t5_gated"])
def test_it_is_a_zero_activation(name):
    """The result is that of weights whose columns of `down_proj` are zero."""
    model, ids, neurons = case(name, rows=1)
    with torch.no_grad():
        with deactivated_rows(model, neurons):
            found = logits(model, ids)
        for address, chosen in neurons[0].items():
            for tensor in Layout(model).targets[f"{address}.down_proj"].parameters():
                tensor[np.flatnonzero(chosen)] = 0
        torch.testing.assert_close(found, logits(model, ids), rtol=1e-10, atol=1e-10)


def test_padding_and_batch_order_do_not_matter():
    """With inputs of several lengths, padded on the left, in any order, each row has its own result."""
    model, ids, neurons = case("qwen3")
    lengths = [3, 6, 4]
    mask = torch.tensor([[0] * (6 - n) + [1] * n for n in lengths])

    def last(rows: list[int]) -> torch.Tensor:
        with torch.no_grad(), deactivated_rows(model, [neurons[row] for row in rows]):
            positions = (mask[rows].cumsum(1) - 1).clamp(min=0)
            return model(input_ids=ids[rows], attention_mask=mask[rows], position_ids=positions).logits[:, -1]

    together = last([0, 1, 2])
    for row, length in enumerate(lengths):
        with torch.no_grad(), deactivated_rows(model, [neurons[row]]):
            alone = model(input_ids=ids[row : row + 1, 6 - length :]).logits[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(last([2, 0, 1]), together[[2, 0, 1]], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation(beams):
    """Each generated continuation, greedy or by beam search, is that of its input alone."""
    model, ids, neurons = case("mistral")
    options = dict(max_new_tokens=6, do_sample=False, num_beams=beams, eos_token_id=None)
    with deactivated_rows(model, neurons):
        together = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert not torch.equal(together, plain)
    for row, own in enumerate(neurons):
        with deactivated_rows(model, [own]):
            alone = model.generate(ids[row : row + 1], attention_mask=torch.ones_like(ids[:1]), **options)
        assert together[row].tolist() == alone[0].tolist()


def test_refusals():
    """Neurons of another model, and batches of another size, are errors."""
    model, ids, neurons = case("llama")
    with pytest.raises(ModelMismatchError, match="block 0: roles of 7 neurons, but the model has 40"):
        with deactivated_rows(model, [{"0": np.zeros(7, dtype=bool)}]):
            pass
    with pytest.raises(ModelMismatchError, match="block 9: roles of 40 neurons, but the model has no such block"):
        with deactivated_rows(model, [{"9": np.zeros(40, dtype=bool)}]):
            pass
    with deactivated_rows(model, neurons), pytest.raises(PLNDError, match="a batch of 2 rows, but .* for 3"):
        model(input_ids=ids[:2])
    with pytest.raises(ZeroDivisionError):
        with deactivated_rows(model, neurons):
            raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def roles() -> Roles:
    """Roles of a tiny model in three examples."""
    inputs = torch.randint(3, 97, (3, 4, 5), generator=torch.Generator().manual_seed(2)).tolist()
    return find_roles(tiny_model("llama"), Parallel(list("abcd"), [["x"] * 4] * 3), inputs)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_and_its_control(roles, role):
    """The neurons of a role are the example's own; the control draws as many of each block, from all of it."""
    different = 0
    for example in range(3):
        own, codes = Choice(role).neurons(roles, example), roles.of(example)
        control = Choice(role, control="random", seed=1).neurons(roles, example)
        again = Choice(role, control="random", seed=1).neurons(roles, example)
        other = Choice(role, control="random", seed=2).neurons(roles, example)
        for block, chosen in own.items():
            np.testing.assert_array_equal(chosen, codes[block] == ROLES.index(role))
            np.testing.assert_array_equal(control[block], again[block])
            assert control[block].sum() == other[block].sum() == chosen.sum()
            different += not np.array_equal(control[block], chosen) and not np.array_equal(control[block], other[block])
    assert different


def test_random_shares(roles):
    """`random` draws the share of each block, anew for every example and seed, nested for growing shares."""
    draws = {share: Choice("random", share).neurons(roles, 0) for share in (0.05, 0.25, 0.75, 1)}
    for share, found in draws.items():
        assert {block: int(v.sum()) for block, v in found.items()} == {"0": round(40 * share), "1": round(40 * share)}
    assert not np.array_equal(draws[0.25]["0"], Choice("random", 0.25).neurons(roles, 1)["0"])
    assert not np.array_equal(draws[0.25]["0"], Choice("random", 0.25, seed=1).neurons(roles, 0)["0"])
    assert (draws[0.75]["0"] >= draws[0.25]["0"]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shared",), "unknown deactivate=shared: expected one of all_shared"),
        (("random",), "deactivate=random and share= belong together"),
        (("specific", 0.5), "deactivate=random and share= belong together"),
        (("random", -0.1), "share=-0.1"),
        (("random", 1.5), "share=1.5"),
        (("random", 0.5, "random"), "unknown control 'random'"),
        (("specific", None, "rnd"), "unknown control 'rnd'"),
    ],
)
def test_choices_that_make_no_sense(arguments, words):
    """One line each."""
    with pytest.raises(PLNDError, match=words):
        Choice(*arguments)


@pytest.mark.parametrize("part", [False, True])
def test_compiled_models_heed_it(part):
    """A model, or its feed-forward, that was compiled and run before has each row's own neurons off."""
    model, ids, neurons = case("llama")
    with torch.no_grad():
        with deactivated_rows(model, neurons):
            expected = logits(model, ids)
        whole = logits(model, ids)
        for block in model.model.layers:
            (block.mlp.down_proj if part else block.mlp).compile(backend="eager")
        torch.testing.assert_close(logits(model, ids), whole)
        with deactivated_rows(model, neurons):
            torch.testing.assert_close(logits(model, ids), expected)
        torch.testing.assert_close(logits(model, ids), whole)


def test_another_thread_is_refused():
    """Two threads cannot have neurons of one model off, batch by batch or for longer."""
    model, _, neurons = case("llama")
    said = []

    def other() -> None:
        try:
            with deactivated_rows(model, neurons):
                pass
        except PLNDError as error:
            said.append(str(error))

    with deactivated_rows(model, neurons):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and said[0].startswith("another thread")
