"""Learning rates of single neurons: as if each were a parameter of its own, and as important as the mask says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_plnd import NeuronSelectConfig, NeuronSelectLinear, importance_rates, scale_rates
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from tiny import tiny_model
from tuning import make_mask


@pytest.mark.parametrize(
    "kind, options",
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {}),
    ],
)
def test_rows_move_as_parameters_of_their_own_rates(kind, options):
    """Ten scheduled steps of a matrix with factors are those of its rows in groups of their own, decay included."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    factors = torch.tensor([[0.25], [1.0], [2.0]], dtype=torch.float64)
    whole, rows = nn.Parameter(start.clone()), [nn.Parameter(row.clone()) for row in start]
    together = kind([whole], lr=0.1, **options)
    apart = kind([{"params": [row], "lr": 0.1 * float(f)} for row, f in zip(rows, factors, strict=True)], **options)
    scale_rates(together, {whole: factors})
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in (together, apart)]
    for _ in range(10):
        gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        whole.grad = gradient.clone()
        for row, own in zip(rows, gradient, strict=True):
            row.grad = own.clone()
        for optimizer, schedule in zip((together, apart), schedules, strict=True):
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(whole.detach(), torch.stack([row.detach() for row in rows]), rtol=1e-12, atol=1e-14)


def test_factors_end_and_are_of_the_optimizer():
    """What `scale_rates` returns ends them; factors of a parameter that is not trained are refused."""
    parameter = nn.Parameter(torch.zeros(2, 1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    end = scale_rates(optimizer, {parameter: torch.tensor([[0.0], [3.0]])})
    parameter.grad = torch.ones(2, 1)
    optimizer.step()
    assert parameter.tolist() == [[0.0], [-3.0]]
    end()
    optimizer.step()
    assert parameter.tolist() == [[-1.0], [-4.0]]
    with pytest.raises(PLNDError, match="factors of parameters that the optimizer does not train"):
        scale_rates(optimizer, {nn.Parameter(torch.zeros(1)): torch.ones(1)})


def important(model, path) -> NeuronSet:
    """A mask whose neurons are of importance 1, 2, 3, …, by projection."""
    mask = make_mask(model, path)
    importance = {name: np.arange(1, len(v) + 1, dtype=np.float32) for name, v in mask.items()}
    return NeuronSet(mask.indices, importance, mask.metadata)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("power", [1.0, -0.5])
def test_factors_are_importances(name, power, tmp_path):
    """Every delta has a factor for each neuron: importance to the power, 1 on average in its projection."""
    model = tiny_model(name)
    mask = important(model, tmp_path / "mask.safetensors")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=mask, bias="selected"))
    factors = importance_rates(tuned, mask, power)
    assert factors.keys() == {p for p in tuned.parameters() if p.requires_grad}
    for parameter, factor in factors.items():
        assert torch.broadcast_shapes(factor.shape, parameter.shape) == parameter.shape
    layers = {name: layer for name, layer in tuned.named_modules() if isinstance(layer, NeuronSelectLinear)}
    down = next(layer for name, layer in layers.items() if name.endswith(("1.mlp.down_proj", "1.mlp.c_proj")))
    expected = torch.from_numpy(mask.importance["1.down_proj"]).double() ** power
    found = factors[down.neuron_select_in["default"]]
    torch.testing.assert_close(found.flatten().double(), expected / expected.mean(), rtol=1e-6, atol=0)
    values = next(layer for name, layer in layers.items() if name.endswith(("1.self_attn.v_proj", "1.attn.c_attn")))
    found = factors[values.neuron_select_out["default"]].flatten()[-len(mask.indices["1.v_proj"]) :]
    expected = torch.from_numpy(mask.importance["1.v_proj"]).double() ** power
    torch.testing.assert_close(found.double(), expected / expected.mean(), rtol=1e-6, atol=0)
    if values.neuron_select_bias:
        assert torch.equal(factors[values.neuron_select_bias["default"]][-len(found) :], found)


def test_sets_that_make_no_rates(tmp_path):
    """Another set than the adapter's, a random control, and a model without the adapter are one line each."""
    model = tiny_model("llama")
    mask = important(model, tmp_path / "mask.safetensors")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=mask))
    with pytest.raises(PLNDError, match="'default' trains neurons that the set does not have"):
        importance_rates(tuned, mask.top(3))
    with pytest.raises(PLNDError, match="a neuron of importance 0, of which no rate can be made"):
        importance_rates(tuned, NeuronSet(mask.indices, {a: 0 * v for a, v in mask.importance.items()}, mask.metadata))
    with pytest.raises(PLNDError, match="the model has no neuron-select adapter 'zh'"):
        importance_rates(tuned, mask, adapter_name="zh")
