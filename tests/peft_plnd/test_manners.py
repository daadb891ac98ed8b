"""What PEFT's own methods do, or why this one does not: adapters by row, tied embeddings, hotswapping, FSDP, DPO."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from peft_plnd import NeuronSelectConfig
from plnd.demo_data import demo_model
from plnd.errors import PLNDError
from plnd.models.loading import load_model, load_tokenizer
from tiny import tiny_model
from tuning import batch, fill, loss_of


def two_adapters(name: str = "llama", **arguments):
    """A tiny model with random adapters `a` and `b` of other neurons."""
    model = get_peft_model(tiny_model(name), NeuronSelectConfig(fraction=0.2, seed=1, **arguments), adapter_name="a")
    model.add_adapter("b", NeuronSelectConfig(fraction=0.1, seed=2, **arguments))
    for seed, adapter in enumerate(("a", "b")):
        model.set_adapter(adapter)
        fill(model, seed=seed)
    return model.eval()


@torch.no_grad()
def answers(model, ids, **arguments):
    """Logits."""
    return model(input_ids=ids, **arguments).logits


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_every_row_has_its_adapter(name):
    """`adapter_names`: a batch of several adapters, and of the base model, is each row with its own."""
    model, ids = two_adapters(name, bias="selected"), batch(rows=4)
    names = ["b", "__base__", "a", "b"]
    found = answers(model, ids, adapter_names=names)
    for row, adapter in enumerate(names):
        if adapter == "__base__":
            with model.disable_adapter():
                expected = answers(model, ids[row : row + 1])
        else:
            model.set_adapter(adapter)
            expected = answers(model, ids[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-12, atol=1e-12)
    model.set_adapter("a")
    assert not torch.equal(answers(model, ids), found) and torch.equal(found, answers(model, ids, adapter_names=names))


def test_rows_that_cannot_have_adapters_are_refused():
    """Unknown names, another number of rows, training, beams, merged adapters: one line; the next pass is as ever."""
    model, ids = two_adapters(), batch(rows=2)
    before = answers(model, ids)
    for names, words in ((["a", "c"], "non-existing adapter\\(s\\): c"), (["a"], "names 1 adapters, and a layer")):
        with pytest.raises(PLNDError, match=words):
            answers(model, ids, adapter_names=names)
        assert torch.equal(answers(model, ids), before)
    with pytest.raises(PLNDError, match="goes with one beam and sequence"):
        model.generate(input_ids=ids, adapter_names=["a", "b"], num_beams=2)
    with pytest.raises(PLNDError, match="when the model is in training mode"):
        model.train()(input_ids=ids, adapter_names=["a", "b"])
    model.eval().merge_adapter()
    with pytest.raises(PLNDError, match="when there are merged adapters"):
        answers(model, ids, adapter_names=["a", "b"])


def test_tied_embeddings_are_one_copy(tmp_path):
    """`ensure_weight_tying`: input and output embeddings in `modules_to_save` train as one, and are loaded as one."""
    base = tiny_model("qwen2", torch.float32)
    base.save_pretrained(tmp_path / "base")
    neurons = {"fraction": 0.1, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = get_peft_model(base, NeuronSelectConfig(**neurons, task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model, batch()).backward()
    optimizer.step()

    def embeddings(tuned):
        inner = tuned.get_base_model()
        both = inner.get_input_embeddings(), inner.get_output_embeddings()
        return [module.modules_to_save["default"].weight for module in both]

    first, last = embeddings(model)
    assert first is last and not torch.equal(first, base.get_input_embeddings().original_module.weight)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    first, last = embeddings(loaded)
    assert first is last and torch.equal(answers(loaded.eval(), batch()), answers(model.eval(), batch()))


def test_neurons_of_a_tied_output_embedding_are_not_tied():
    """An adapter of `lm_head` has no counterpart in the embedding, which is a table and no linear layer: refused."""
    config = NeuronSelectConfig(neurons={"lm_head": {"out": [1, 2]}}, ensure_weight_tying=True)
    with pytest.raises(PLNDError, match="lm_head, tied to the input embedding, which is no linear layer"):
        get_peft_model(tiny_model("qwen2"), config)


def test_hotswapping_is_pefts_lora_only(tmp_path):
    """PEFT swaps LoRA alone, and says so: neurons of another set have other shapes. The model is as it was."""
    model = get_peft_model(tiny_model("llama"), NeuronSelectConfig(fraction=0.1, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    before = answers(model, batch())
    with pytest.raises(ValueError, match=r"Hotswapping only supports .*LORA but NEURON_SELECT was passed"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    assert torch.equal(answers(model, batch()), before)


def test_a_model_in_zero_3s_parts_is_refused():
    """Neurons are chosen in whole matrices: DeepSpeed's mark on a parameter is one line, with what to do."""
    model = tiny_model("llama")
    model.lm_head.weight.ds_id = 0
    with pytest.raises(PLNDError, match=r"lm_head.weight is spread .*ZeRO-3.*\(before TrainingArguments"):
        get_peft_model(model, NeuronSelectConfig(fraction=0.1))
    assert not any(".neuron_select_" in name for name, _ in model.named_parameters())


def test_mixed_models_take_pefts_own_methods_only():
    """PEFT's list of methods that one `PeftMixedModel` can hold is fixed, and it says so."""
    base = tiny_model("llama")
    with pytest.raises(ValueError, match="'NEURON_SELECT' is not compatible with the `PeftMixedModel`"):
        get_peft_model(base, NeuronSelectConfig(fraction=0.1), mixed=True)
    assert not any(".neuron_select_" in name for name, _ in base.named_parameters())


@pytest.mark.slow
def test_a_compiled_language_model_is_one_graph():
    """A whole Llama with an adapter compiles without a break, and answers as it does uncompiled."""
    model = get_peft_model(tiny_model("llama", torch.float32), NeuronSelectConfig(fraction=0.2, bias="selected"))
    fill(model)
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(answers(compiled, batch()), answers(model, batch()))


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from peft import get_peft_model
from peft_plnd import NeuronSelectConfig
from tiny import tiny_model
from tuning import batch, loss_of

torch.set_num_threads(1)
dist.init_process_group("gloo")
model = get_peft_model(tiny_model("llama", torch.float64), NeuronSelectConfig(fraction=0.2, bias="selected"))
for layer in model.get_base_model().model.layers:
    fully_shard(layer)
fully_shard(model)
parameters = [p for p in model.parameters() if p.requires_grad]
assert all(isinstance(p, DTensor) for p in model.parameters())
optimizer = torch.optim.AdamW(parameters, lr=0.01)
for step in range(3):
    ids = batch(step, rows=2)[dist.get_rank() : dist.get_rank() + 1]
    loss_of(model, ids).backward()
    optimizer.step()
    optimizer.zero_grad()
whole = {n: p.full_tensor().detach() for n, p in model.named_parameters() if p.requires_grad}
if dist.get_rank() == 0:
    torch.save(whole, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fsdp_trains_to_the_weights_of_one_process(tmp_path):
    """FSDP2 (`fully_shard`) over two processes, base weights and deltas both in shards: the steps of one process."""
    model = get_peft_model(tiny_model("llama", torch.float64), NeuronSelectConfig(fraction=0.2, bias="selected"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(3):
        loss_of(model, batch(step, rows=2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    (tmp_path / "train.py").write_text(SHARDED)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "train.py"), str(tmp_path / "sharded.pt")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "sharded.pt", weights_only=True)
    expected = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and max(float(v.abs().max()) for v in found.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_dpo_trainer_takes_the_config(tmp_path):
    """TRL's DPO makes the adapter itself, compares with the model without it, and trains nothing but deltas."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    model = load_model(str(demo_model()), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(demo_model()))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options = trl.DPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=1, report_to=[], use_cpu=True, max_length=16,
        bf16=False, disable_tqdm=True, gradient_checkpointing=False, learning_rate=0.01,
    )  # fmt: skip
    rows = datasets.Dataset.from_dict({"prompt": ["one"] * 2, "chosen": [" short text"] * 2, "rejected": [" two"] * 2})
    run = trl.DPOTrainer(
        model, args=options, train_dataset=rows, processing_class=tokenizer,
        peft_config=NeuronSelectConfig(fraction=0.01, task_type="CAUSAL_LM"),
    )  # fmt: skip
    run.train()
    changed = [n for n, p in run.model.named_parameters() if p.requires_grad and p.abs().max() > 0]
    assert changed and all(".neuron_select_" in name for name in changed)
