"""With the rest of the world: transformers, lm-evaluation-harness, Trainer, TRL and accelerate."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments

import peft_plnd
from peft_plnd import NeuronSelectConfig
from plnd.demo_data import demo_model
from plnd.models.layout import Layout
from plnd.models.loading import load_model, load_tokenizer
from tiny import tiny_model
from tuning import batch, fill, loss_of, make_mask


@pytest.fixture
def saved(tmp_path):
    """A tiny base model and an adapter of it on disk, and what the tuned model answers."""
    base = tiny_model("llama", torch.float32)
    base.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        NeuronSelectConfig(fraction=0.2, bias="selected", task_type="CAUSAL_LM"),
    ).eval()
    fill(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "base", tmp_path / "adapter", tuned(input_ids=batch()).logits


def logits(model):
    """Of one fixed batch."""
    with torch.no_grad():
        return model.eval()(input_ids=batch()).logits


def test_auto_classes_load_an_adapter_folder(saved):
    """`AutoPeftModelForCausalLM` and `AutoModelForCausalLM` find base and method in `adapter_config.json`."""
    _, adapter, expected = saved
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(adapter)), expected)


def test_transformers_own_adapter_methods(saved, tmp_path):
    """`load_adapter`, `add_adapter`, `set_adapter`, `disable_adapters`, `delete_adapter`, and saving again."""
    base, adapter, expected = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = logits(model)
    model.load_adapter(adapter, adapter_name="tuned")
    assert torch.equal(logits(model), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), plain)
    model.enable_adapters()
    model.add_adapter(NeuronSelectConfig(fraction=0.1), adapter_name="fresh")
    torch.testing.assert_close(logits(model), plain)
    model.set_adapter("tuned")
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)
    model.delete_adapter("tuned")
    assert "tuned" not in model.peft_config


def test_a_converted_adapter_of_a_transformers_model(saved, tmp_path):
    """`save_as_lora` takes a model that transformers loaded the adapter into."""
    base, adapter, expected = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(adapter)
    peft_plnd.save_as_lora(tmp_path / "lora", model)
    lora = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")
    torch.testing.assert_close(logits(lora), expected)


def trainer(folder, ids, **arguments):
    """A Trainer over fixed documents on a tiny model with an adapter, on the CPU, without shuffling."""
    tuned = get_peft_model(tiny_model("llama", torch.float32), NeuronSelectConfig(fraction=0.2))
    options = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True,
        save_steps=2, lr_scheduler_type="constant", disable_tqdm=True, **arguments,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return tuned, Trainer(tuned, options, train_dataset=rows)


def test_trainer_trains_saves_and_resumes(tmp_path):
    """A run that went on from its checkpoint ends where an uninterrupted one does; the base has not moved."""
    ids = batch(rows=8)
    whole, run = trainer(tmp_path / "whole", ids, max_steps=4)
    start = {n: p.clone() for n, p in whole.named_parameters()}
    run.train()
    part, run = trainer(tmp_path / "part", ids, max_steps=4)
    run.args.max_steps = 2
    run.train()
    resumed, run = trainer(tmp_path / "part", ids, max_steps=4)
    run.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)
        assert torch.equal(a, start[name]) == (".neuron_select_" not in name), name


def test_sft_trainer_takes_the_config(tmp_path):
    """TRL makes the adapter itself, from the config."""
    trl = pytest.importorskip("trl")
    model = load_model(str(demo_model()), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(demo_model()))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    datasets = pytest.importorskip("datasets")
    options = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True, max_length=16,
        bf16=False, disable_tqdm=True,
    )  # fmt: skip
    rows = datasets.Dataset.from_dict({"text": ["one short text", "and another one"]})
    run = trl.SFTTrainer(
        model, args=options, train_dataset=rows, processing_class=tokenizer,
        peft_config=NeuronSelectConfig(fraction=0.01, task_type="CAUSAL_LM"),
    )  # fmt: skip
    run.train()
    changed = [n for n, p in run.model.named_parameters() if p.requires_grad and p.abs().max() > 0]
    assert changed and all(".neuron_select_" in name for name in changed)


def train_with_accelerate(path):
    """Four steps of SGD on eight documents, two at a time over all processes; the first process saves the deltas."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    model = get_peft_model(tiny_model("llama", torch.float64), NeuronSelectConfig(fraction=0.2, bias="selected"))
    loader = DataLoader(batch(rows=8), batch_size=2 // accelerator.num_processes)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for ids in loader:
        accelerator.backward(loss_of(model, ids))
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.is_main_process:
        tuned = accelerator.unwrap_model(model)
        torch.save({n: p.detach() for n, p in tuned.named_parameters() if p.requires_grad}, path)


def test_one_and_two_processes_train_to_the_same_weights(tmp_path):
    """Data parallel on the CPU: twice half the batch is the batch."""
    from accelerate import debug_launcher

    train_with_accelerate(tmp_path / "one.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        debug_launcher(train_with_accelerate, args=(tmp_path / "two.pt",), num_processes=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one.keys() == two.keys() and max(v.abs().max() for v in one.values()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


def test_lm_eval_evaluates_a_tuned_adapter(tmp_path):
    """`--model hf` with `peft=` after the import: what the model in memory answers, not what the base does."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = get_peft_model(
        load_model(str(demo_model()), dtype="float32", device="cpu"), NeuronSelectConfig(fraction=0.01)
    )
    fill(model, 0.05)
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(demo_model()))
    ask = [Instance("loglikelihood", {}, ("A short", " text"), 0)]
    answers = [
        HFLM(pretrained=pretrained, tokenizer=tokenizer, device="cpu", batch_size=1, **more).loglikelihood(ask)[0][0]
        for pretrained, more in (
            (model, {}),
            (str(demo_model()), {"peft": str(tmp_path), "dtype": "float32"}),
            (str(demo_model()), {"dtype": "float32"}),
        )
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4) and abs(answers[2] - answers[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "new"), [("xlm-roberta", ["classifier"]), ("modernbert", ["head", "classifier"])])
def test_an_encoder_that_classifies(name, new, tmp_path):
    """A mask of the encoder that fills in trains in one that classifies sequences: only the mask's rows and columns and
    the new modules move, and the loaded adapter, on an encoder whose new modules are others, classifies as before."""
    encoder = tiny_model(name, torch.float32)
    encoder.save_pretrained(tmp_path / "encoder")
    neurons = make_mask(encoder, tmp_path / "mask.safetensors")

    def classifier(seed):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=3)

    config = NeuronSelectConfig(mask=tmp_path / "mask.safetensors", task_type="SEQ_CLS", modules_to_save=new)
    tuned = get_peft_model(classifier(0), config).train()
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = tuned(input_ids=batch(), labels=torch.tensor([0, 2])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    expected = logits(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(classifier(1), tmp_path / "adapter")
    assert torch.equal(logits(again), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    before, after = Layout(encoder).targets, Layout(merged).targets
    for address, target in after.items():
        moved = (target.weight() != before[address].weight()).any(int(target.projection.axis == "row"))
        assert set(moved.nonzero().flatten().tolist()) <= set(neurons.indices.get(address, ()))
    assert any(bool((t.weight() != before[a].weight()).any()) for a, t in after.items())
