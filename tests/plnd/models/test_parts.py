"""What one process has of a projection: its own numbers and the whole projection's, on every row of the table."""

from __future__ import annotations

import pytest
import torch

from plnd.errors import FamilyError, PLNDError
from plnd.models.layout import Layout, Target
from plnd.models.parts import Part, Parts, cut, cut_experts
from plnd.models.plan import distribution
from tiny import TINY, marked, tiny_model


def by_three(target: Target) -> list[Part]:
    """The parts of three processes, of which the last has fewer positions of the stored weight."""
    dim = (2 if target.projection.axis == "column" else 1) if target.experts else target.dim
    held = torch.arange(target.stored.shape[dim]).chunk(3)
    return [cut(target, held, rank) for rank in range(3)]


def stored_part(part: Part, target: Target) -> torch.Tensor:
    """What a process has of a stored weight of which `by_three` gives it some positions."""
    dim = (2 if target.projection.axis == "column" else 1) if target.experts else target.dim
    return target.stored.detach().chunk(3, dim)[part.rank]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3", "gpt2", "mixtral"])
def test_parts_make_up_the_whole(name):
    """Of every way to store a projection: the neurons of all processes are those of the whole, each once, and what each
    has of the stored weight, read at its own numbers, are their rows or columns."""
    for target in Layout(tiny_model(name)).targets.values():
        parts = by_three(target)
        assert sorted(torch.cat(parts[0].shares).tolist()) == list(range(target.width))
        rows = target.neurons_first(target.stored.detach())
        for part in parts:
            own = part.target.neurons_first(stored_part(part, target))
            numbers = torch.arange(part.target.width)
            assert torch.equal(own[part.target.position(numbers)], rows[target.position(part.neurons)])
            assert torch.equal(part.own(part.neurons), numbers)
        values = torch.arange(float(target.width)).expand(2, -1)
        assert torch.equal(parts[0].joined(values[:, part.neurons] for part in parts), values)
        indices = torch.arange(0, target.width, 3)
        found = torch.cat([part.neurons[part.own(indices)] for part in parts])
        assert torch.equal(found.sort().values, indices)


def test_whole_experts():
    """Of experts that are shared out whole, a process has all neurons of its own."""
    target = Layout(tiny_model("mixtral")).targets["0.gate_proj"]
    held = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    part = cut_experts(target, held, 1)
    assert part.neurons.tolist() == list(range(target.width // 2, target.width))
    assert (part.target.experts, part.target.width) == (2, target.width // 2)
    assert part.own(torch.tensor([0, target.width // 2 + 3])).tolist() == [3]


def test_a_process_without_neurons():
    """Has none of any."""
    target = Layout(tiny_model("llama")).targets["0.down_proj"]
    part = cut(target, [torch.arange(target.width), torch.arange(0)], 1)
    assert part.target.width == 0 and part.own(torch.tensor([1, 2])).tolist() == []


def test_a_whole_model_has_one_part():
    """Which is each projection itself."""
    layout = Layout(tiny_model("llama"))
    parts = Parts(layout)
    assert layout.group is None and parts.products("0.o_proj") is None
    for places in (parts.stored, parts.seen):
        assert [part.target for part in places.values()] == list(layout.targets.values())


WITHOUT_PLAN = (
    *("gpt2", "gptj", "falcon", "bloom", "xglm", "opt", "t5", "t5_gated"),
    *("gpt_oss", "hunyuan_v1_dense", "lfm2", "stablelm", "bamba", "falcon_h1", "gpt_bigcode"),
)


@pytest.mark.parametrize("name", marked(TINY))
def test_families_with_a_plan(monkeypatch, name):
    """transformers has one for Llama's kin, GPT-NeoX and mixtures; the others are refused by name."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = tiny_model(name)
    if name in WITHOUT_PLAN:
        with pytest.raises(FamilyError, match=f"model family {name!r}: transformers .* has no plan"):
            distribution(model)
        return
    if name == "gemma4_text":  # the modules of values, which would have to be gathered too, are not in its row
        with pytest.raises(FamilyError, match=r"block 0: 4 processes cannot share .* does not name its v_proj"):
            distribution(model)
        return
    found = distribution(model)
    assert found.tp_size == 4
    heads = model.config.get_text_config().num_key_value_heads if name != "gpt_neox" else 3
    if heads % 4:
        assert set(found.tp_plan.values()) == {"colwise_gather_output", "rowwise_split_input"}
        assert not any("mlp" in module for module in found.tp_plan)
    else:
        assert found.tp_plan == "auto"


def test_one_process_spreads_nothing(monkeypatch):
    """It is told how to start several."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(PLNDError, match="needs several processes, and there is one: torchrun"):
        distribution(tiny_model("llama"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FamilyError, match="'llama' has no experts to share"):
        distribution(tiny_model("llama"), experts=True)
