"""From masks, names and shares to rows and columns of modules."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_plnd import NeuronSelectConfig
from plnd.errors import FamilyError, ModelMismatchError, PLNDError
from plnd.models.layout import Layout
from plnd.neurons.random_draw import draw
from tiny import tiny_model
from tuning import batch, fill, make_mask

FRACTION = {"fraction": 0.25, "seed": 1}


def indices_of(model, **arguments):
    """What a config chooses in a model."""
    return get_peft_model(model, NeuronSelectConfig(**arguments)).peft_config["default"].indices


def test_a_mask_is_its_neurons_in_storage(variant, tmp_path):
    """In every family, merging changes exactly the parameters that the core says belong to the neurons."""
    model = tiny_model(variant, torch.float64)
    neurons = make_mask(model, tmp_path / "mask.safetensors", experts=True)
    start = {name: p.clone() for name, p in model.named_parameters()}
    expected = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in start.items()}
    names = {p.data_ptr(): name for name, p in model.named_parameters()}
    for address, chosen in neurons.items():
        target = Layout(model).targets[address]
        for name in target.names:
            stored = getattr(target.plain, name)
            own = target.neurons_first(expected[names[stored.data_ptr()]])
            own[target.position(torch.from_numpy(chosen).long())] = True
    tuned = get_peft_model(model, NeuronSelectConfig(mask=tmp_path / "mask.safetensors", bias="selected"))
    fill(tuned)
    for name, merged in tuned.merge_and_unload().named_parameters():
        assert torch.equal(merged != start[name], expected[name]), name


def test_packed_experts_are_refused_before_anything_changes(tmp_path):
    """In one line that names the module and what to do; the model is as it was, and attention can be tuned."""
    model = tiny_model("mixtral")
    make_mask(model, tmp_path / "mask.safetensors", experts=True)
    experts = model.model.layers[1].mlp.experts
    packed = nn.Parameter(experts.gate_up_proj.data.to(torch.int8), requires_grad=False)
    experts.gate_up_proj = packed
    modules = [type(module) for module in model.modules()]
    for arguments in ({"mask": tmp_path / "mask.safetensors"}, {"fraction": 0.1}):
        with pytest.raises(PLNDError, match=r"layers\.1\.mlp\.experts \(\w+\) is not supported.*if they are dense"):
            get_peft_model(model, NeuronSelectConfig(**arguments))
        assert [type(module) for module in model.modules()] == modules
    attention = indices_of(model, mask=tmp_path / "mask.safetensors", projections=["q_proj", "o_proj"])
    assert len(attention) == 4


def test_a_choice_that_leaves_no_neuron_is_refused(tmp_path):
    """A mask with nothing in the chosen parts, or nothing at all, is one line of ours, not PEFT's word on modules."""
    model = tiny_model("llama")
    neurons = make_mask(model, tmp_path / "mask.safetensors")
    (neurons - neurons).save(tmp_path / "empty.safetensors")
    neurons.restrict(projections=["down_proj"]).save(tmp_path / "down.safetensors")
    for arguments in (
        {"mask": tmp_path / "empty.safetensors"},
        {"mask": tmp_path / "down.safetensors", "projections": ["q_proj"]},
    ):
        with pytest.raises(PLNDError, match="no neuron is left in the set, so there is nothing to train"):
            get_peft_model(model, NeuronSelectConfig(**arguments))


def test_a_mask_of_another_model_is_refused(tmp_path):
    """As everywhere in plnd."""
    make_mask(tiny_model("qwen2"), tmp_path / "mask.safetensors")
    with pytest.raises(ModelMismatchError, match="made for qwen2"):
        indices_of(tiny_model("llama"), mask=tmp_path / "mask.safetensors")


def test_a_mask_needs_a_model_that_says_what_it_is(tmp_path):
    """Not a part of one; and a family that the table lacks is refused as everywhere."""
    model = tiny_model("llama")
    make_mask(model, tmp_path / "mask.safetensors")
    with pytest.raises(ValueError, match="mask= needs a transformers model, not LlamaMLP: give neurons= instead"):
        indices_of(model.model.layers[0].mlp, mask=tmp_path / "mask.safetensors")
    stranger = tiny_model("gpt2")
    stranger.config.model_type = "unheard_of"
    with pytest.raises(FamilyError, match="unheard_of"):
        indices_of(stranger, mask=tmp_path / "mask.safetensors")


def test_regions_and_projections_narrow_a_mask(tmp_path):
    """As `plnd select` does with the same words."""
    make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    mask = {"mask": tmp_path / "mask.safetensors"}
    chosen = indices_of(tiny_model("llama"), **mask, regions="under", under=1, gen=1, projections=["o_proj", "q_proj"])
    assert set(chosen) == {"model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj"}
    assert [set(axes) for axes in chosen.values()] == [{"out"}, {"in"}]


def test_target_modules_exclude_modules_and_layers_narrow_too(tmp_path):
    """With PEFT's words: names, ends of names, regular expressions, numbers of blocks."""
    make_mask(tiny_model("llama"), tmp_path / "mask.safetensors")
    mask = {"mask": tmp_path / "mask.safetensors"}
    every = indices_of(tiny_model("llama"), **mask)
    assert len(every) == 14

    def names(**arguments):
        return set(indices_of(tiny_model("llama"), **mask, **arguments))

    assert names(target_modules=["q_proj"]) == {name for name in every if name.endswith("q_proj")}
    assert names(target_modules=r".*layers\.1.*down_proj") == {"model.layers.1.mlp.down_proj"}
    assert names(layers_to_transform=[0]) == names(layers_to_transform=0) == {n for n in every if ".0." in n}
    assert names(layers_to_transform=[1], layers_pattern="layers") == {n for n in every if ".1." in n}
    assert names(exclude_modules=["q_proj", "k_proj"]) == {n for n in every if n[-6:] not in ("q_proj", "k_proj")}
    assert names(target_modules="all-linear") == set(every)


def test_the_control_is_as_many_random_neurons_of_each_projection(tmp_path):
    """And those that `NeuronSet.random_like` draws with the seed."""
    model = tiny_model("llama")
    mask = make_mask(model, tmp_path / "mask.safetensors")
    chosen = indices_of(model, mask=tmp_path / "mask.safetensors", control="random", seed=5)
    drawn = dict(mask.random_like(5).items())
    assert chosen["model.layers.1.mlp.down_proj"] == {"in": drawn["1.down_proj"].tolist()}
    assert sum(len(v) for axes in chosen.values() for v in axes.values()) == len(mask)


def test_whole_neurons_are_trained_together(tmp_path):
    """Gate, up and down of every feed-forward neuron of the mask; the control has as many whole ones."""
    model = tiny_model("llama")
    mask = make_mask(model, tmp_path / "mask.safetensors").restrict(projections=["q_proj", "down_proj"])
    own = mask.indices["1.down_proj"].tolist()
    for control, expected in ((None, own), ("random", mask.random_like(3).indices["1.down_proj"].tolist())):
        found = indices_of(tiny_model("llama"), mask=mask, whole=True, control=control, seed=3)
        names = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
        assert [found[name] for name in names] == [{"out": expected}, {"out": expected}, {"in": expected}]
        assert len(found["model.layers.0.self_attn.q_proj"]["out"]) == len(mask.indices["0.q_proj"])
    with pytest.raises(PLNDError, match="whole=True completes the feed-forward neurons of a mask: give mask="):
        NeuronSelectConfig(fraction=0.1, whole=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_share_is_drawn_from_every_projection(name):
    """A quarter of each, reproducibly; another seed draws others; a subset of targets draws the same ones there."""
    layout = Layout(tiny_model(name))
    chosen = indices_of(tiny_model(name), **FRACTION)
    neurons = sum(len(v) for axes in chosen.values() for v in axes.values())
    assert neurons == sum(round(width / 4) for width in layout.widths.values())
    assert indices_of(tiny_model(name), **FRACTION) == chosen
    assert indices_of(tiny_model(name), fraction=0.25, seed=2) != chosen
    part = indices_of(tiny_model(name), **FRACTION, projections=["down_proj"])
    assert part.items() <= chosen.items() and part


def test_the_draw_is_the_same_everywhere():
    """That of `plnd.neurons.random_draw`, by the module's name outside the families table; at least one neuron."""
    chosen = indices_of(nn.Sequential(nn.Linear(4, 16)), **FRACTION, target_modules=["0"])
    assert chosen == {"0": {"out": draw(16, 4, 1, "0").tolist()}}
    one = indices_of(nn.Sequential(nn.Linear(4, 16)), fraction=0.001, seed=1, target_modules=["0"])
    assert one == {"0": {"out": draw(16, 1, 1, "0").tolist()}}


def test_a_model_outside_the_table_takes_names_and_shares():
    """Any linear layers: the output rows of what `target_modules` names, or neurons by hand."""

    def model():
        return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))

    chosen = indices_of(model(), **FRACTION, target_modules=["0"])
    assert {name: {axis: len(v) for axis, v in axes.items()} for name, axes in chosen.items()} == {"0": {"out": 5}}
    assert indices_of(model(), neurons={"2": {"in": [19, 0]}, "0": {"out": [], "in": [1]}}) == {
        "2": {"in": [0, 19]},
        "0": {"in": [1]},
    }


@pytest.mark.parametrize(
    "neurons, words",
    [
        ({"3": {"out": [0]}}, "neurons are named in '3', but the model has no such module"),
        ({"0": {"out": [4]}}, "0: 'out' holds 4, but the module has 4 features there"),
        ({"0": {"in": [-1]}}, "0: 'in' holds -1, but the module has 3 features there"),
        ({"0": {"out": [1, 1]}}, "0: 'out' names a neuron twice"),
        ({"0": {"rows": [1]}}, "0: unknown axis 'rows': expected 'out' (rows) or 'in' (columns)"),
        ({"0": {"out": [1.5]}}, "0: 'out' holds something that is not a whole number"),
        ({"1": {"out": [0]}}, "Target module 1 (ReLU) is not supported"),
    ],
)
@pytest.mark.parametrize("field", ["neurons", "indices"])
def test_neurons_that_do_not_fit_are_refused(field, neurons, words):
    """By hand or from a saved config, in one line, before a module is touched."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(ValueError) as caught:
        get_peft_model(model, NeuronSelectConfig(**{field: neurons}, target_modules=["0", "1", "3"]))
    assert words in str(caught.value)
    assert type(model[0]) is nn.Linear


def test_no_neurons_at_all_is_an_error_or_a_warned_random_draw():
    """Targets alone train a random 0.1 %, as other methods have a default, but not silently."""
    with pytest.raises(ValueError, match="no neurons named: give mask=, neurons=, or fraction= with seed="):
        indices_of(nn.Sequential(nn.Linear(3, 4)))
    with pytest.warns(UserWarning, match=r"training a random 0\.1% of the neurons"):
        assert len(indices_of(nn.Sequential(nn.Linear(3, 4)), target_modules=["0"])["0"]["out"]) == 1


def test_projections_need_a_model_of_the_table():
    """Elsewhere there are no projections to speak of."""
    with pytest.raises(ValueError, match="need a model of the families table"):
        indices_of(nn.Sequential(nn.Linear(3, 4)), **FRACTION, target_modules=["0"], projections=["q_proj"])


def test_the_mask_file_is_not_needed_again(tmp_path):
    """A saved adapter loads, and answers the same, when its mask is gone."""
    from peft import PeftModel

    make_mask(tiny_model("phi3"), tmp_path / "mask.safetensors")
    tuned = get_peft_model(tiny_model("phi3"), NeuronSelectConfig(mask=tmp_path / "mask.safetensors"))
    fill(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    (tmp_path / "mask.safetensors").unlink()
    again = PeftModel.from_pretrained(tiny_model("phi3"), tmp_path / "adapter")
    assert torch.equal(again(input_ids=batch()).logits, tuned(input_ids=batch()).logits)
    assert again.peft_config["default"].source["neurons"] == tuned.peft_config["default"].source["neurons"] > 0
