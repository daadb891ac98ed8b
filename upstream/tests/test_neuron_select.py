# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# This test file is for tests specific to neuron-select.

import json

import pytest
import torch
from torch import nn

from peft import NeuronSelectConfig, PeftModel, get_peft_model
from peft.tuners.neuron_select import NeuronSelectLinear


NEURONS = {"lin0": {"out": [0, 3, 19], "in": [1, 2, 9]}, "lin1": {"in": [0, 5, 13]}}


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, X):
        return self.lin1(torch.relu(self.lin0(X)))


def mlp():
    torch.manual_seed(0)
    return MLP().double()


def chosen(weight, axes):
    """Where the neurons of a module are in its weight"""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[axes.get("out", [])] = True
    mask[:, axes.get("in", [])] = True
    return mask


class TestNeuronSelect:
    @pytest.fixture
    def X(self):
        torch.manual_seed(1)
        return torch.randn(8, 10, dtype=torch.float64)

    def train(self, model, X, steps=5):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            for name, parameter in model.named_parameters():
                if not isinstance(model, PeftModel) and parameter.grad is not None:
                    axes = NEURONS.get(name.rpartition(".")[0], {})
                    parameter.grad *= chosen(parameter, axes) if parameter.dim() == 2 else 0
            optimizer.step()
        return model

    def test_training_is_that_of_masked_gradients(self, X):
        # training the deltas is training the weights, with the gradient zeroed outside of the neurons
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS), autocast_adapter_dtype=False)
        tuned = self.train(model, X).merge_and_unload()
        expected = self.train(mlp(), X)
        for found, wanted in zip(tuned.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)

    def test_merging_changes_the_neurons_and_nothing_else(self):
        base = mlp()
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS, init_weights=False))
        merged = model.merge_and_unload()
        for name, axes in NEURONS.items():
            old, new = base.get_submodule(name).weight, merged.get_submodule(name).weight
            assert torch.equal(old != new, chosen(old, axes))

    def test_unmerging_is_bit_for_bit(self):
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS, init_weights=False))
        before = model.base_model.model.lin0.base_layer.weight.clone()
        model.merge_adapter()
        assert not torch.equal(model.base_model.model.lin0.base_layer.weight, before)
        model.unmerge_adapter()
        assert torch.equal(model.base_model.model.lin0.base_layer.weight, before)

    def test_selected_biases(self, X):
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS, bias="selected"))
        model.base_model.model.lin0.neuron_select_bias["default"].data.fill_(1)
        difference = model.merge_and_unload().lin0.bias - mlp().lin0.bias
        assert difference.nonzero().flatten().tolist() == NEURONS["lin0"]["out"]

    def test_saved_adapter_has_its_indices(self, X, tmp_path):
        model = get_peft_model(mlp(), NeuronSelectConfig(fraction=0.3, target_modules=["lin0"], init_weights=False))
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert list(saved["indices"]) == ["lin0"] and len(saved["indices"]["lin0"]["out"]) == 6
        loaded = PeftModel.from_pretrained(mlp(), tmp_path)
        assert isinstance(loaded.base_model.model.lin0, NeuronSelectLinear)
        torch.testing.assert_close(loaded.eval()(X), model.eval()(X))

    def test_draws_are_the_same_everywhere(self):
        config = NeuronSelectConfig(fraction=0.2, seed=7, target_modules=["lin0", "lin1"])
        model = get_peft_model(mlp(), config)
        assert model.peft_config["default"].indices == {"lin0": {"out": [0, 2, 7, 8]}, "lin1": {"out": [1]}}

    def test_weighted_adapters_add_up(self, X):
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS, init_weights=False), adapter_name="a")
        other = NeuronSelectConfig(fraction=0.5, target_modules=["lin0"], init_weights=False)
        model.add_adapter("b", other)
        model.add_weighted_adapter(["a", "b"], [0.5, -2.0], "both")
        deltas = {n: model.base_model.model.lin0.get_delta_weight(n) for n in ("a", "b", "both")}
        torch.testing.assert_close(deltas["both"], 0.5 * deltas["a"] - 2.0 * deltas["b"])

    def test_every_row_has_its_adapter(self):
        model = get_peft_model(mlp(), NeuronSelectConfig(neurons=NEURONS, init_weights=False), adapter_name="a").eval()
        X = torch.randn(2, 3, 10, dtype=torch.float64)
        mixed = model(X, adapter_names=["__base__", "a"])
        torch.testing.assert_close(mixed[1:], model(X[1:]))
        with model.disable_adapter():
            torch.testing.assert_close(mixed[:1], model(X[:1]))

    @pytest.mark.parametrize(
        "arguments, words",
        [
            ({"neurons": NEURONS, "fraction": 0.1}, "neurons and fraction are given"),
            ({"fraction": 1.5}, "expected a share"),
            ({"fraction": 0.1, "bias": "some"}, "expected 'none', 'selected', 'all', 'neuron_select_only'"),
        ],
    )
    def test_contradictions_raise(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            NeuronSelectConfig(**arguments)

    @pytest.mark.parametrize(
        "neurons, words",
        [
            ({"lin0": {"out": [20]}}, "lin0: 'out' holds 20, but the module has 20 features there"),
            ({"lin7": {"out": [0]}}, "neurons are named in 'lin7', but the model has no such module"),
            ({"lin0": {"out": [1, 1]}}, "names a neuron twice"),
        ],
    )
    def test_wrong_neurons_raise_before_the_model_is_touched(self, neurons, words):
        model = mlp()
        with pytest.raises(ValueError, match=words):
            get_peft_model(model, NeuronSelectConfig(neurons=neurons))
        assert type(model.lin0) is nn.Linear
