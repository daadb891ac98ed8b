"""scripts/bench_tuner.py: each method trains what the table says, and the ratios are those of times and bytes."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peft_plnd import NeuronSelectConfig
from plnd.addresses import PROJECTIONS
from programs import run_script, script

bench_tuner = script("bench_tuner")
TOKENS = torch.arange(3, 11)[None]


def tiny_llama(dtype: torch.dtype = torch.float32, blocks: int = 2) -> LlamaForCausalLM:
    """A Llama in place of the one of 110 M parameters."""
    shape = dict(hidden_size=32, intermediate_size=200, num_hidden_layers=blocks, num_attention_heads=4)
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=32000)).to(dtype).train()


def test_masked_gradients_are_those_of_the_neurons():
    """What has a gradient after the mask is what neuron-select trains, and as many numbers, clipped with the others."""
    from peft import get_peft_model

    model, mask = bench_tuner.masked(tiny_llama(), 0.05)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in before.values()]).norm()
    mask()
    left = {name: p.grad for name, p in model.named_parameters() if p.grad.any()}
    assert {name.split(".")[-2] for name in left} <= set(PROJECTIONS)
    tuned = get_peft_model(tiny_llama(), NeuronSelectConfig(fraction=0.05))
    slots = sum((grad.any(1).sum() * grad.shape[1]) if name_is_row(name) else (grad.any(0).sum() * grad.shape[0])
                for name, grad in left.items())  # fmt: skip
    assert int(slots) == bench_tuner.trainable(tuned)
    for name, grad in left.items():
        kept = grad != 0
        torch.testing.assert_close(grad[kept], (before[name] / max(1.0, float(norm)))[kept], rtol=1e-4, atol=1e-9)


def name_is_row(name: str) -> bool:
    """Whether the neurons of a weight are its rows."""
    return name.split(".")[-2] not in ("o_proj", "down_proj")


@pytest.mark.parametrize("method", ["neuron-select 1.0%", "LoRA r=8", "SHiRA r=2", "masked full", "nothing trained"])
def test_a_step_moves_what_is_trained(method):
    """Weights that a method trains are other ones after a step, all others are what they were."""
    model = tiny_llama()
    step, count = bench_tuner.trainer(method, model, TOKENS, 2, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step()
    step()  # LoRA's first step moves one factor only
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (count > 0) == bool(moved) == (method != "nothing trained")
    assert moved <= trained
    assert not moved or {part for name in moved for part in name.split(".")} & set(PROJECTIONS)
    assert "model.embed_tokens.weight" not in moved


def test_shira_is_given_as_many_parameters(monkeypatch):
    """The rank is that at which SHiRA trains the number nearest to neuron-select's."""
    from peft import ShiraConfig, get_peft_model

    monkeypatch.setattr(bench_tuner, "llama_shape", tiny_llama)
    wanted = bench_tuner.trainable(get_peft_model(tiny_llama(), NeuronSelectConfig(fraction=0.05)))
    counts = {}
    for rank in range(1, 9):
        config = ShiraConfig(r=rank, target_modules=list(PROJECTIONS), random_seed=0)
        counts[rank] = bench_tuner.trainable(get_peft_model(tiny_llama(), config))
    assert bench_tuner.shira_rank(0.05) == min(counts, key=lambda rank: abs(counts[rank] - wanted))


def test_ratios_are_of_one_round():
    """The median of each round's own ratio, not the ratio of medians."""
    assert bench_tuner.ratio([1.0, 4.0, 90.0], [2.0, 4.0, 10.0]) == 1


def test_the_table(monkeypatch, capsys):
    """A row for each method, with its memory, and that over LoRA's and over masked training's."""
    memory = {"LoRA r=8": 40, "masked full": 160, "nothing trained": 20}
    monkeypatch.setattr(bench_tuner, "llama_shape", tiny_llama)
    monkeypatch.setattr(bench_tuner, "measured_peak", lambda method, *_: memory.get(method, 80) * 2**20)
    run_script("bench_tuner", "--rounds", 1, "--tokens", 8, "--rank", 2)
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("float32, 8 tokens, ") and header.split() == [
        *("trained", "s/step", "/LoRA", "/masked", "MiB", "/LoRA", "/masked")
    ]
    found = {re.split(r"\s{2,}", row)[0]: row.split()[-3:] for row in rows}
    assert list(found)[-3:] == ["LoRA r=8", "masked full", "nothing trained"] and len(found) == 6
    assert found["masked full"] == ["160", "4.00", "1.00"] and found["nothing trained"] == ["20", "0.50", "0.12"]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    """Training all parameters takes more beyond the model than training none: three numbers for each of 110 M."""
    nothing, full = (bench_tuner.measured_peak(name, "float32", 16, 8) for name in ("nothing trained", "masked full"))
    assert 0 < nothing < full and full - nothing > 2 * 4 * 100e6
