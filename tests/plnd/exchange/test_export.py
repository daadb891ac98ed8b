"""Export: the files hold exactly the masked model, all else in them is untouched, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from handmade import neurons_metadata
from plnd import NeuronSet, PLNDError, deactivated, export, intervened
from plnd.commands.main import main
from plnd.interventions import Intervention
from plnd.models.layout import Layout
from tiny import MASKED, SCALED, TINY, VARIANTS, marked, tiny_model


def every(model, step: int = 3, **changes) -> NeuronSet:
    """Every `step`-th neuron of every projection."""
    layout = Layout(model)
    indices = {name: np.arange(0, width, step, dtype=np.int32) for name, width in layout.widths.items()}
    zeros = {name: np.zeros(len(values), np.float32) for name, values in indices.items()}
    return NeuronSet(indices, zeros, neurons_metadata(model=layout.description(), **changes))


def saved(model, folder: Path, **options) -> Path:
    """The model as a sharded checkpoint, with other files beside it."""
    model.save_pretrained(folder, **{"max_shard_size": "20KB", **options})
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    return folder


def loaded(folder: Path, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """A checkpoint as plain transformers loads it."""
    model = kind.from_pretrained(folder, dtype="auto").eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the default one takes no odd widths in bfloat16
    return model


def logits(model) -> torch.Tensor:
    """What the model says of one batch."""
    ids = torch.arange(3, 25).view(2, 11)
    more = {"decoder_input_ids": ids + 1} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def refusal(source, neurons, output, **options) -> str:
    """What export says; nothing may be left behind."""
    output = Path(output)
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else None
    with pytest.raises(PLNDError) as caught:
        export(source, neurons, output, **options)
    assert before is None or sorted(output.parent.rglob("*")) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(scope="module")
def llama():
    """A tiny model."""
    return tiny_model("llama", torch.float32)


@pytest.fixture
def source(tmp_path, llama) -> Path:
    """Its checkpoint."""
    return saved(llama, tmp_path / "source")


# exactness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", marked(TINY | VARIANTS | MASKED | SCALED))
def test_an_export_is_the_masked_model(name, dtype, tmp_path):
    """Loaded by plain transformers, a sharded export gives the masked model's logits, bit for bit, in every family."""
    source = saved(tiny_model(name, dtype), tmp_path / "source", max_shard_size="5KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    model = loaded(source, type(tiny_model(name)))
    export(source, every(model), tmp_path / "out")
    exported = loaded(tmp_path / "out", type(model))
    plain = logits(model)
    with deactivated(model, every(model)):
        masked = logits(model)
    assert exported.dtype == dtype
    assert torch.equal(logits(exported), masked) and not torch.equal(masked, plain)


BY_STRUCTURE = ("mixtral",)
EVERY = [
    n if n in BY_STRUCTURE else pytest.param(n, marks=pytest.mark.slow)
    for n in sorted(TINY | VARIANTS | MASKED | SCALED)
]


@pytest.mark.parametrize("name", EVERY)
def test_an_export_is_the_scaled_model(name, tmp_path):
    """Bit for bit that of weights that are scaled in place, in bfloat16, experts and fused projections included."""
    source = saved(tiny_model(name, torch.bfloat16), tmp_path / "source", max_shard_size="5KB")
    model = loaded(source, type(tiny_model(name)))
    record = export(source, every(model), tmp_path / "out", intervention=Intervention("scale", factor=0.3))
    assert record["intervention"] == {"kind": "scale", "factor": 0.3}
    plain = logits(model)
    with intervened(model, every(model), kind="scale", factor=0.3, mode="weights"):
        scaled = logits(model)
    exported = logits(loaded(tmp_path / "out", type(model)))
    assert torch.equal(exported, scaled) and not torch.equal(exported, plain)


def constants(model) -> dict[str, np.ndarray]:
    """A number for every neuron."""
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=width) for name, width in Layout(model).widths.items()}


def with_biases(model) -> NeuronSet:
    """Every third neuron of the projections whose layers have one."""
    targets = Layout(model).targets
    neurons = every(model)
    kept = {
        name: v
        for name, v in neurons.indices.items()
        if not targets[name].experts and targets[name].plain.bias is not None
    }
    return NeuronSet(kept, neurons.importance, neurons.metadata)


BIASED = ("llama", "qwen2", "gpt2", "gptj", "gpt_neox", "falcon", "bloom", "xglm", "opt")


@pytest.mark.parametrize("kind", ["mean", "steer"])
@pytest.mark.parametrize("name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in BIASED])
def test_constants_go_into_biases(name, kind, tmp_path):
    """Where layers have some, an export gives the logits of hooks that put the constants in, rows and columns alike."""
    source = saved(tiny_model(name, torch.float32), tmp_path / "source", max_shard_size="5KB")
    model = loaded(source, type(tiny_model(name)))
    neurons, values = with_biases(model), constants(model)
    options = {"mean": {"means": values}, "steer": {"direction": values, "strength": 0.5}}[kind]
    export(source, neurons, tmp_path / "out", intervention=Intervention(kind, **options))
    plain = logits(model)
    with intervened(model, neurons, kind=kind, **options):
        expected = logits(model)
    exported = logits(loaded(tmp_path / "out", type(model)))
    torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(exported, plain, rtol=1e-2)


@pytest.mark.parametrize("size", ["1GB", pytest.param("5KB", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [n if n == "granite" else pytest.param(n, marks=pytest.mark.slow) for n in ("granite", "smollm3", "qwen3")]
)
def test_layers_get_the_biases_that_they_may_have(name, size, tmp_path):
    """Llama-like models whose configuration has a switch for them: logits as of hooks; all else is what it was."""
    source = saved(tiny_model(name, torch.float32), tmp_path / "source", max_shard_size=size)
    model = loaded(source, type(tiny_model(name)))
    neurons = every(model).restrict(projections=["q_proj", "o_proj"] if name == "qwen3" else None)
    values = constants(model)
    export(source, neurons, tmp_path / "out", intervention=Intervention("mean", means=values))
    with intervened(model, neurons, kind="mean", means=values):
        expected = logits(model)
    exported = loaded(tmp_path / "out", type(model))
    torch.testing.assert_close(logits(exported), expected, rtol=1e-5, atol=1e-5)
    before, after = tensors(source), tensors(tmp_path / "out")
    assert all(key.endswith(".bias") for key in after.keys() - before.keys()) and before.keys() < after.keys()
    assert exported.config.attention_bias and not model.config.attention_bias
    export(tmp_path / "out", every(model), tmp_path / "again")  # it is a checkpoint like any other
    if name == "qwen3":
        said = refusal(source, every(model), tmp_path / "no", intervention=Intervention("mean", means=values))
        assert "0.gate_proj: kind=mean makes a constant" in said


def test_a_constant_without_a_bias_is_refused_by_name(tmp_path):
    """A family without a switch for biases has none to fold into; nor have fused experts; nothing is written."""
    for name, what in (("mistral", "0.q_proj: .* its layer has no bias"), ("mixtral", "0.q_proj: .* no bias")):
        model = tiny_model(name, torch.float32)
        source = saved(model, tmp_path / name)
        said = refusal(
            source, every(model), tmp_path / "out", intervention=Intervention("mean", means=constants(model))
        )
        assert re.match(what, said)
    experts = every(model).restrict(projections=["down_proj"])
    said = refusal(source, experts, tmp_path / "out", intervention=Intervention("mean", means=constants(model)))
    assert "fused experts have none" in said


def test_what_holds_no_neuron_is_untouched(source, llama, tmp_path):
    """Other tensors keep their numbers, every file its header, and files beside the weights their bytes."""
    neurons = every(llama).restrict(projections=["down_proj"], where=lambda block, _: block == 1)
    record = export(source, neurons, tmp_path / "out")
    before, after = tensors(source), tensors(tmp_path / "out")
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"] and record["tensors"] == {"edited": 1, "all": len(before)}
    columns = neurons.indices["1.down_proj"]
    kept = np.setdiff1d(np.arange(40), columns)
    assert not after[changed[0]][:, columns].any()
    assert torch.equal(after[changed[0]][:, kept], before[changed[0]][:, kept])
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()
    for path in source.glob("*.safetensors"):
        length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert (tmp_path / "out" / path.name).read_bytes()[:length] == path.read_bytes()[:length]


def test_metadata_is_kept(llama, tmp_path):
    """The metadata of a weight file survives."""
    source = saved(llama, tmp_path / "source", max_shard_size="1GB")
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", {"format": "pt", "note": "mine"})
    export(source, every(llama), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt", "note": "mine"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_checkpoint_of_the_body_alone(name, tmp_path):
    """Names may lack the body's prefix, as those of the first GPT-2 checkpoints do."""
    model = tiny_model(name, torch.float32)
    source = saved(model, tmp_path / "source", max_shard_size="1GB")
    prefix = f"{model.base_model_prefix}."
    bare = {key.removeprefix(prefix): value for key, value in load_file(source / "model.safetensors").items()}
    assert not any(key.startswith(prefix) for key in bare)
    save_file(bare, source / "model.safetensors", {"format": "pt"})
    export(source, every(model), tmp_path / "out")
    with deactivated(model, every(model)):
        assert torch.equal(logits(loaded(tmp_path / "out", type(model))), logits(model))


@pytest.mark.parametrize("original", [True, False], ids=["per expert", "fused"])
def test_experts_in_both_layouts(original, tmp_path):
    """Experts may lie in the files one by one, as published, or fused, as in the model."""
    model = tiny_model("mixtral", torch.float32)
    source = saved(model, tmp_path / "source", save_original_format=original)
    assert any(".experts.0.w1.weight" in key for key in tensors(source)) == original
    neurons = every(model, step=5)
    export(source, neurons, tmp_path / "out")
    with deactivated(model, neurons):
        assert torch.equal(logits(loaded(tmp_path / "out", type(model))), logits(model))


def test_an_export_of_an_export(source, llama, tmp_path):
    """Both masks are zero in the second one, and its record holds the first one's."""
    first, second = every(llama).restrict(projections=["q_proj"]), every(llama).restrict(projections=["up_proj"])
    record = export(source, first, tmp_path / "one")
    assert export(tmp_path / "one", second, tmp_path / "two")["earlier"] == record
    export(source, first | second, tmp_path / "both")
    both, two = tensors(tmp_path / "both"), tensors(tmp_path / "two")
    assert all(torch.equal(both[key], two[key]) for key in both)


# what it writes, and where


def test_the_record(source, llama, tmp_path):
    """`plnd.json` says what was zeroed."""
    neurons = every(llama, language="zh")
    record = export(source, neurons, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "plnd.json").read_text()) == record
    assert record["mask"] == {
        "sha256": neurons.digest,
        "language": "zh",
        "neurons": len(neurons),
        "counts": neurons.counts(),
    }
    assert record["model"] == {"name": str(source), "revision": None} and record["earlier"] is None


def test_other_weights_are_left_out(source, llama, tmp_path):
    """Weights in other formats, and files that the index does not name, would still hold the neurons."""
    others = ["consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "sub/model.onnx"]
    for name in others:
        (source / name).write_bytes(b"weights")
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").write_text("")
    record = export(source, every(llama), tmp_path / "out")
    assert record["left_out"] == others
    assert not any((tmp_path / "out" / name).exists() for name in [*others, ".cache"])


def test_a_folder_is_replaced_only_if_told(source, llama, tmp_path):
    """An earlier export is replaced with `overwrite`; another folder never is."""
    out = tmp_path / "out"
    out.mkdir()
    export(source, every(llama), out)
    assert "holds an earlier export" in refusal(source, every(llama, 2), out)
    record = export(source, every(llama, 2), out, overwrite=True)
    assert json.loads((out / "plnd.json").read_text()) == record
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert "is not empty" in refusal(source, every(llama), tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "source"]


def test_the_checkpoint_itself_is_no_target(source, llama, tmp_path):
    """Neither the source nor a folder around it, nor a link to it, is written to."""
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path, tmp_path / "link"):
        assert "holds the checkpoint itself" in refusal(source, every(llama), target, overwrite=True)


def test_bad_places(source, llama, tmp_path):
    """A file, or a folder in none."""
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(source, every(llama), tmp_path / "file")
    assert "cannot be written (No such file or directory)" in refusal(source, every(llama), tmp_path / "no" / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_export_leaves_nothing(source, llama, tmp_path, monkeypatch, error):
    """Neither a half-written folder nor a temporary one; the earlier one stays."""
    export(source, every(llama), tmp_path / "out")
    before = tensors(tmp_path / "out")

    copies, copyfile = [], shutil.copyfile

    def fail_at_the_second(original, copy):
        copies.append(copy)
        if len(copies) == 2:
            raise error
        return copyfile(original, copy)

    monkeypatch.setattr(shutil, "copyfile", fail_at_the_second)
    with pytest.raises((PLNDError, KeyboardInterrupt)):
        export(source, every(llama, 2), tmp_path / "out", overwrite=True)
    assert len(copies) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert all(torch.equal(before[key], value) for key, value in tensors(tmp_path / "out").items())


def test_a_disk_without_room_is_refused_before_anything_is_written(source, llama, tmp_path, monkeypatch):
    """The weights' bytes must be free; just as many are enough."""
    needed, usage = sum(path.stat().st_size for path in source.glob("*.safetensors")), shutil.disk_usage(tmp_path)
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: usage._replace(free=free))
        if free < needed:
            said = f"{free:,} bytes are free there, but the weights need {needed:,}"
            assert said in refusal(source, every(llama), tmp_path / "out")
            assert [path.name for path in tmp_path.iterdir()] == ["source"]
        else:
            export(source, every(llama), tmp_path / "out")


def test_what_is_hidden_stays_behind(source, llama, tmp_path):
    """Histories and caches of the folder are no part of a model, and may hold its weights."""
    for name in (".git/objects/ab", ".cache", "code/.x"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("")
    (source / "code" / "x.py").write_text("")
    export(source, every(llama), tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert "code/x.py" in written and not any(part.startswith(".") for name in written for part in name.split("/"))


def test_all_weights_are_on_the_disk_before_the_folder_has_its_name(source, llama, tmp_path, monkeypatch):
    """A machine that loses its power leaves the earlier export or the new one: all that is new is forced first."""
    out, forced, fsync = tmp_path / "out", {}, os.fsync
    export(source, every(llama), out)

    def recorded(handle):
        forced[os.fstat(handle).st_ino] = json.loads((out / "plnd.json").read_text())["mask"]["neurons"]
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    few = every(llama, 2)
    export(source, few, out, overwrite=True)
    written = [out, *out.rglob("*")]
    assert len(written) > 5 and {forced[path.stat().st_ino] for path in written} == {len(every(llama))}
    assert forced[tmp_path.stat().st_ino] == len(few)  # then the folder around, which holds the name


def test_permissions_are_the_users(source, llama, tmp_path):
    """Files and folder have the usual permissions, not those of a temporary folder or of the source."""
    for path in source.glob("*.safetensors"):
        path.chmod(0o400)
    umask = os.umask(0o022)
    try:
        export(source, every(llama), tmp_path / "out")
    finally:
        os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o644} and (tmp_path / "out").stat().st_mode & 0o777 == 0o755


# names of the hub


def test_a_hub_name(source, llama, tmp_path, monkeypatch):
    """A hub name is looked up as transformers does, here in the local cache, and the record names the commit."""
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    source.rename(cached / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    record = export("some/model", every(llama), tmp_path / "out")
    assert record["model"] == {"name": "some/model", "revision": commit}


def test_no_such_model(llama, tmp_path):
    """A name that is neither a folder nor on the hub."""
    assert "no/such: neither a folder nor" in refusal("no/such", every(llama), tmp_path / "out")
    assert "a/b/c: neither a folder nor" in refusal("a/b/c", every(llama), tmp_path / "out")


# checkpoints that are refused


def edit_config(source: Path, **changes) -> None:
    """Changes fields of a checkpoint's configuration."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))


def test_another_model(source, tmp_path):
    """Neurons of another family."""
    assert "made for gpt2" in refusal(source, every(tiny_model("gpt2")), tmp_path / "out")


def test_a_quantised_checkpoint(source, llama, tmp_path):
    """One line names the method."""
    edit_config(source, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised (gptq)" in refusal(source, every(llama), tmp_path / "out")


def test_an_adapter(source, llama, tmp_path):
    """What transformers would load on top of the weights would not be masked."""
    (source / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(source, every(llama), tmp_path / "out")


def test_no_safetensors(source, llama, tmp_path):
    """A checkpoint in another format alone, and a folder without one."""
    for path in [*source.glob("*.safetensors"), source / "model.safetensors.index.json"]:
        path.unlink()
    assert "expected a checkpoint" in refusal(source, every(llama), tmp_path / "out")
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin: load it with transformers" in refusal(source, every(llama), tmp_path / "out")


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": {"a": 1}}'],
)
def test_a_bad_index(source, llama, tmp_path, index):
    """An index that is none, or that leads out of the folder."""
    (source / "model.safetensors.index.json").write_text(index)
    assert "not an index of safetensors files" in refusal(source, every(llama), tmp_path / "out")


def test_a_shard_that_is_missing_or_damaged(source, llama, tmp_path):
    """A shard cut short, one without a tensor that the index places there, one with another's, and none."""
    first, second = sorted(source.glob("*.safetensors"))[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])
    assert f"{first}: not a whole safetensors file" in refusal(source, every(llama), tmp_path / "out")
    first.write_bytes(whole)
    (key, *_), held = load_file(first), load_file(first)
    save_file({name: value for name, value in held.items() if name != key}, first)
    assert f"lacks {key}, which" in refusal(source, every(llama), tmp_path / "out")
    save_file(held | load_file(second), first)
    assert f"and again in {second.name}" in refusal(source, every(llama), tmp_path / "out")
    first.unlink()
    assert f"{first}: no such file, but" in refusal(source, every(llama), tmp_path / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda held, key: held.pop(key), "has no tensor for model.layers.1.mlp.up_proj.weight"),
        (lambda held, key: held.update({key: held[key][:-1].clone()}), "is [39, 24] in the checkpoint"),
        (lambda held, key: held.update({key: held[key].to(torch.int8)}), "is stored as I8"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_a_weight_that_is_not_as_the_model_has_it(llama, tmp_path, change, message):
    """A weight with neurons that is missing, of another shape, or packed, is named; one without neurons may be."""
    source = saved(llama, tmp_path / "source", max_shard_size="1GB")
    held = load_file(source / "model.safetensors")
    change(held, "model.layers.1.mlp.up_proj.weight")
    save_file(held, source / "model.safetensors", {"format": "pt"})
    assert message in refusal(source, every(llama), tmp_path / "out")
    export(source, every(llama).restrict(projections=["q_proj"]), tmp_path / "out")


def test_a_missing_expert(tmp_path):
    """A mixture of which one expert is not in the files is refused, not zeroed in part."""
    model = tiny_model("mixtral", torch.float32)
    source = saved(model, tmp_path / "source", max_shard_size="1GB")
    held = load_file(source / "model.safetensors")
    key = next(key for key in held if ".experts.1.w3." in key)
    save_file({name: value for name, value in held.items() if name != key}, source / "model.safetensors")
    assert ".experts.1.w3.weight, which the mask" in refusal(source, every(model), tmp_path / "out")


# the command line and memory


def test_command_line(source, llama, tmp_path, capsys):
    """The mask's own model is the default; what is written and left out is said."""
    (source / "pytorch_model.bin").write_bytes(b"")
    description = {**Layout(llama).description(), "name": str(source)}
    neurons = every(llama)
    digest = NeuronSet(neurons.indices, neurons.importance, neurons.metadata | {"model": description}).save(
        tmp_path / "mask"
    )
    command = ["export", "--mask", str(tmp_path / "mask"), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out'}: zeroed {len(neurons)} of ") and out.endswith(f"mask sha256 {digest}\n")
    assert hashlib.sha256((tmp_path / "mask").read_bytes()).hexdigest() == digest
    assert "warning: left out, as they still hold the neurons: pytorch_model.bin" in err
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "--overwrite"]) == 0
    neurons.save(tmp_path / "nameless")
    assert main(["export", "--mask", str(tmp_path / "nameless"), "--output", str(tmp_path / "new")]) == 2
    assert "give --model" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_weights(tmp_path):
    """A file of 400 MB is exported with less than 100 MB beyond what the libraries take."""
    code = """
import resource, sys
import plnd.exchange.export, plnd.models
source, mask, output = sys.argv[1:]
neurons = plnd.NeuronSet.load(mask)
plnd.models.loading.load_skeleton(source)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plnd.export(source, neurons, output)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    shape = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=190_000))
    model.save_pretrained(tmp_path / "source")
    assert (tmp_path / "source" / "model.safetensors").stat().st_size > 400e6
    every(model).save(tmp_path / "mask")
    arguments = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("source", "mask", "out"))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 100e6
