"""What training a neuron-select adapter does to the weights."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_plnd import NeuronSelectConfig
from plnd.models.layout import Layout
from plnd.probing.float64 import KeepFloat64
from tiny import MASKED, SCALED, TINY, tiny_model
from tuning import batch, fill, loss_of, make_mask, steps

STORAGE = ("llama", "phi3", "gpt2", "bloom", "t5")  # plain with biases, fused, Conv1D, interleaved, two stacks
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
}


def selected(model, neurons):
    """For every parameter, by identity: 1 where it belongs to a neuron (the bias of a row too), 0 elsewhere."""
    kept = {id(parameter): torch.zeros_like(parameter) for parameter in model.parameters()}
    targets = Layout(model).targets
    for address, indices in neurons.items():
        target = targets[address]
        for name in target.names:
            own = kept[id(getattr(target.plain, name))]
            target.neurons_first(own)[target.position(torch.from_numpy(indices).long())] = 1
    return kept


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", STORAGE)
def test_training_deltas_is_full_training_with_masked_gradients(name, optimizer, tmp_path):
    """After 20 steps in float64 the merged weights equal those of full training to 1e-8, and no others have moved."""
    check_training(name, optimizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted((TINY | MASKED | SCALED).keys() - {*STORAGE}), indirect=True)
def test_every_other_row_trains_so(family, tmp_path):
    """The same of all rows, encoders and neurons of fused experts included, after three steps."""
    check_training(family, "sgd", tmp_path, count=3)


def check_training(name, optimizer, tmp_path, count=20):
    """Trains a mask's neurons as deltas, and in a copy with the gradients of all else zeroed."""
    model = tiny_model(name, torch.float64)
    neurons = make_mask(model, tmp_path / "mask.safetensors", experts=True)
    start, full = model.state_dict(), copy.deepcopy(model)
    start = {key: value.clone() for key, value in start.items()}
    tuned = get_peft_model(model, NeuronSelectConfig(mask=tmp_path / "mask.safetensors", bias="selected"))
    with KeepFloat64():
        trained = [p for p in tuned.parameters() if p.requires_grad]
        steps(tuned, trained, OPTIMIZERS[optimizer], count=count)
        full.requires_grad_(True)
        kept = selected(full, neurons)

        def mask_gradients():
            for parameter in full.parameters():
                if parameter.grad is not None:
                    parameter.grad *= kept[id(parameter)]

        steps(full, full.parameters(), OPTIMIZERS[optimizer], count=count, between=mask_gradients)
    merged = tuned.merge_and_unload().state_dict()
    moved = 0
    for key, expected in full.named_parameters():
        torch.testing.assert_close(merged[key], expected, rtol=0, atol=1e-8)
        others = kept[id(expected)] == 0
        assert torch.equal(merged[key][others], start[key][others])
        moved += int((merged[key] != start[key]).sum())
    assert moved > 500  # the comparison above is of weights that have moved


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_an_entry_on_a_row_and_a_column_belongs_to_the_row(optimizer):
    """Rows and columns of one layer train as the masked full layer does, each entry once."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 5)).double()
    full, rows, columns = copy.deepcopy(layer), [0, 3], [1, 2, 5]
    tuned = get_peft_model(layer, NeuronSelectConfig(neurons={"0": {"out": rows, "in": columns}}))
    kept = torch.zeros(5, 6, dtype=torch.float64).index_fill_(0, torch.tensor(rows), 1)
    kept.index_fill_(1, torch.tensor(columns), 1)
    runs = ((tuned, [p for p in tuned.parameters() if p.requires_grad]), (full, [full[0].weight]))
    for model, parameters in runs:
        optimiser = OPTIMIZERS[optimizer](parameters)
        for step in range(20):
            x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            (model(x).sin() ** 2).sum().backward()
            if model is full:
                full[0].weight.grad *= kept
            optimiser.step()
            optimiser.zero_grad()
    adapted = tuned.base_model.model[0]
    dead = adapted.neuron_select_in["default"].index_select(0, torch.tensor(rows))
    assert torch.equal(dead, torch.zeros_like(dead))
    merged = tuned.merge_and_unload()[0].weight
    torch.testing.assert_close(merged, full[0].weight, rtol=0, atol=1e-8)


def test_no_gradient_or_optimizer_state_exists_for_the_base(tmp_path):
    """Only deltas have gradients, and they are as small as the neurons are few."""
    model = tiny_model("llama", torch.float32)
    neurons = make_mask(model, tmp_path / "mask.safetensors", every=8)
    tuned = get_peft_model(model, NeuronSelectConfig(mask=tmp_path / "mask.safetensors"))
    loss_of(tuned, batch()).backward()
    with_gradient = {name for name, p in tuned.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all(".neuron_select_" in name for name in with_gradient)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    targets = Layout(tuned).targets
    each = {address: target.weight().shape[target.projection.axis == "row"] for address, target in targets.items()}
    assert trained == sum(len(indices) * each[address] for address, indices in neurons.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, tmp_path):
    """With activations recomputed, reentrant or not, the gradients are the same."""
    make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    gradients = []
    for checkpointing in (False, True):
        tuned = get_peft_model(
            tiny_model("llama", torch.float64), NeuronSelectConfig(mask=tmp_path / "mask.safetensors")
        )
        fill(tuned)
        tuned.train()
        if checkpointing:
            tuned.enable_input_require_grads()
            tuned.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss_of(tuned, batch()).backward()
        gradients.append({name: p.grad for name, p in tuned.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_compiled_model_trains_as_the_plain_one():
    """`torch.compile` takes rows, columns and biases, and a `Conv1D`, in one graph; loss and gradients are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Conv1D(4, 5))
    neurons = {"0": {"out": [0, 3], "in": [1, 5]}, "2": {"in": [2], "out": [1, 2]}}
    tuned = get_peft_model(model, NeuronSelectConfig(neurons=neurons, bias="selected"))
    fill(tuned)
    x, results = torch.randn(3, 7, 6), []
    for run in (tuned, torch.compile(tuned, backend="aot_eager", fullgraph=True)):
        loss = run(x).square().mean()
        loss.backward()
        results.append({"loss": loss, **{n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}})
        tuned.zero_grad()
    assert len(results[0]) == 1 + 6
    torch.testing.assert_close(results[1], results[0])


def test_deltas_stay_float32_over_a_bfloat16_base(tmp_path):
    """PEFT keeps deltas of a bfloat16 base in float32; forward passes, with autocast too, answer in bfloat16."""
    model = tiny_model("llama", torch.bfloat16)
    make_mask(model, tmp_path / "mask.safetensors")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=tmp_path / "mask.safetensors", bias="selected"))
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    fill(tuned)
    assert tuned(input_ids=batch()).logits.dtype == torch.bfloat16
    loss_of(tuned, batch()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained)


def test_autocast_over_a_float32_base(tmp_path):
    """Under bfloat16 autocast the adapter's part is computed in bfloat16 and close to the float32 one."""
    model = tiny_model("llama", torch.float32)
    make_mask(model, tmp_path / "mask.safetensors")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=tmp_path / "mask.safetensors"))
    fill(tuned, 0.02)
    exact = loss_of(tuned, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(tuned, batch())
    loss.backward()
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
