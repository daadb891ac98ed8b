"""A run that was killed goes on from its checkpoint to the same bytes, or says in one line why it cannot."""

from __future__ import annotations

import copy
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from detecting import BAD, MANY, SMALL, Stopped, interrupted, leave_a_checkpoint, some_documents
from handmade import make_neurons
from plnd.deactivation import deactivated
from plnd.detection.checkpoint import Checkpoint, fingerprint
from plnd.detection.run import detect, detect_shard
from plnd.errors import PLNDError
from plnd.io import artifact
from plnd.models.layout import Layout
from tiny import tiny_model


@pytest.mark.parametrize("after", [0, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("bad", [False, True], ids=["all scored", "some skipped"])
def test_a_resumed_run_gives_the_same_file(tmp_path, eager_checkpoints, after, bad):
    """Interrupted anywhere and resumed, detection writes byte for byte what it would have written at once."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    documents = [[5], MANY[1], [BAD] * 6, *MANY[3:8], [BAD] * 4, MANY[9]] if bad else MANY
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.inf
    expected = detect(model, documents, SMALL, source="here")
    assert expected.metadata["corpus"]["skipped"] == (
        {"shorter than 4 tokens": [0], "non-finite importance": [2, 8]} if bad else {}
    )
    leave_a_checkpoint(model, path, documents, after)
    assert path.exists() == (after >= 4 + bad)
    again = detect(model, iter(documents), SMALL, source="here", checkpoint=path, resume=True)
    assert again.save(tmp_path / "again") == expected.save(tmp_path / "expected")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_finished_run_leaves_its_checkpoint(tmp_path, eager_checkpoints):
    """Until the scores are saved nothing is lost: what a last window's checkpoint covers is not scored again."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    documents = some_documents([8] * 8)
    scores = detect(model, documents, SMALL, checkpoint=path)
    model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    assert detect(model, documents, SMALL, checkpoint=path, resume=True).digest == scores.digest


def test_a_run_can_be_interrupted_again_and_again(tmp_path, eager_checkpoints):
    """Each resumed run goes on from the last one's checkpoint."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    expected = detect(model, MANY, SMALL).digest
    for after in (5, 6, 9):
        with pytest.raises(Stopped):
            detect(model, interrupted(MANY, after), SMALL, checkpoint=path, resume=True)
    assert detect(model, MANY, SMALL, checkpoint=path, resume=True).digest == expected


def test_a_resumed_run_does_not_score_again(tmp_path, eager_checkpoints):
    """What the checkpoint covers is read and compared, and goes through the model no more."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    passes = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    leave_a_checkpoint(model, path)
    assert len(passes) == 8
    detect(model, MANY, SMALL, checkpoint=path, resume=True)
    handle.remove()
    assert len(passes) == 10


def test_without_resume_the_run_starts_again(tmp_path, eager_checkpoints):
    """A checkpoint that is there is not used unless it is asked for."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    other = some_documents([8] * 5, seed=9)
    assert detect(model, other, SMALL, checkpoint=path).digest == detect(model, other, SMALL).digest


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    """`--resume` may be given always."""
    model = tiny_model("llama", torch.float32)
    for path in (None, tmp_path / "checkpoint"):
        found = detect(model, MANY, SMALL, checkpoint=path, resume=True)
        assert found.digest == detect(model, MANY, SMALL).digest


def test_a_checkpoint_is_a_minute_apart(tmp_path):
    """By default a run of a second writes none: the fixture above is what makes the other tests see one."""
    leave_a_checkpoint(tiny_model("llama"), tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "documents",
    [
        [MANY[1], MANY[0], *MANY[2:]],
        MANY[:8][::-1],
        [d[:-1] for d in MANY],
        MANY[:7],
        MANY[:4],
        [],
        [MANY[0] + MANY[1], *MANY[2:]],
    ],
    ids=["two swapped", "reversed", "cut", "one fewer", "shorter", "empty", "joined"],
)
def test_resume_with_another_corpus_is_refused(tmp_path, eager_checkpoints, documents):
    """What was scored must be what is read now, all of it and in the same order."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    before = path.read_bytes()
    with pytest.raises(PLNDError) as caught:
        detect(model, documents, SMALL, checkpoint=path, resume=True)
    assert str(caught.value) == f"{path}: the corpus has changed since; start again without --resume"
    assert path.read_bytes() == before


def test_resume_with_a_corpus_that_grew(tmp_path, eager_checkpoints):
    """New documents behind those that were scored are scored with them."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path, after=8)
    more = [*MANY, *some_documents(seed=5)]
    found = detect(model, more, SMALL, checkpoint=path, resume=True)
    assert found.digest == detect(model, more, SMALL).digest


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2},
        {"max_length": 8},
        {"min_length": 5},
        {"qk": "exact"},
        {"language": "yy"},
        {"max_documents": 10},
        {"epsilon": 0.1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_resume_with_other_settings_is_refused(tmp_path, eager_checkpoints, settings):
    """Every setting must be what it was."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    with pytest.raises(PLNDError) as caught:
        detect(model, MANY, replace(SMALL, **settings), checkpoint=path, resume=True)
    wording = f"{path}: made with another model or settings; repeat them, or start again without --resume"
    assert str(caught.value) == wording


@pytest.mark.parametrize("change", ["family", "dtype", "name", "weights"])
def test_resume_with_another_model_is_refused(tmp_path, eager_checkpoints, change):
    """Another family, another dtype, a model from another place or with other weights cannot go on."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    other = tiny_model("qwen2" if change == "family" else "llama", seed=int(change == "weights"))
    if change == "dtype":
        other = other.float()
    if change == "name":
        other.config._name_or_path = "elsewhere"
    with pytest.raises(PLNDError, match="made with another model or settings"):
        detect(other, MANY, SMALL, checkpoint=path, resume=True)


def test_resume_as_another_part_or_with_neurons_off_is_refused(tmp_path, eager_checkpoints):
    """Also where weights and settings are the same: a shard reads other documents, activations are others."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    with pytest.raises(PLNDError, match="made with another model or settings"):
        detect_shard(model, MANY, "1/2", SMALL, checkpoint=path, resume=True)
    neurons = make_neurons({"0.down_proj": [1]}, model=Layout(model).description())
    with deactivated(model, neurons, mode="activations"), pytest.raises(PLNDError, match="made with another model or"):
        detect(model, MANY, SMALL, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "place, value", [("plnd.detection.checkpoint.__version__", "0.0.0"), ("plnd.detection.run.WINDOW", 2)]
)
def test_resume_with_another_plnd_is_refused(tmp_path, eager_checkpoints, monkeypatch, place, value):
    """Another version may compute something else, and another number of batches in a window cuts elsewhere."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    monkeypatch.setattr(place, value)
    with pytest.raises(PLNDError, match="made with another model or settings"):
        detect(model, MANY, SMALL, checkpoint=path, resume=True)


def test_fingerprint_sees_a_neuron():
    """Each row, each column and each entry of a vector counts; equal weights give one fingerprint."""
    model = torch.nn.Linear(80, 70)
    original = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == original
    with torch.no_grad():
        for part in (*model.weight, *model.weight.T, *model.bias.split(1)):
            before = part.clone()
            part.zero_()
            assert fingerprint(model) != original
            part.copy_(before)
    assert fingerprint(model) == original
    assert fingerprint(model.bfloat16()) != original


def test_a_checkpoint_of_before_is_one_line(tmp_path, eager_checkpoints):
    """A checkpoint without a checksum says that it is one of an earlier plnd's, and what to do."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    path.write_bytes(_made_anew(path.read_bytes(), checksum=False))
    with pytest.raises(PLNDError) as caught:
        detect(model, MANY, SMALL, checkpoint=path, resume=True)
    expected = "a checkpoint without checksum, of an earlier plnd; delete it to start again"
    assert str(caught.value) == f"{path}: {expected}"


def test_any_flipped_byte_of_a_checkpoint_is_one_line(tmp_path, eager_checkpoints):
    """Ten bytes of each part, the length, the header and the numbers, and the last; none starts a wrong run."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    data, chance = path.read_bytes(), random.Random(0)
    begin = 8 + int.from_bytes(data[:8], "little")
    parts = range(8), range(8, begin), range(begin, len(data))
    for place in [*(chance.choice(part) for part in parts for _ in range(10)), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(PLNDError, match="delete it to start again$") as caught:
            Checkpoint.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(data)
    assert Checkpoint.load(path).windows == 2


def _made_anew(data: bytes, without: str = "", checksum: bool = True, **values: np.ndarray) -> bytes:
    """A checkpoint whose header lacks a field, or that has other tensors, and a checksum that is right."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        stream = artifact.Opened(Path(file.name))
        record = {name: value for name, value in stream.metadata.items() if name not in (without, artifact.CHECKSUM)}
        values = values or {"values": stream.get_tensor("values")}
    text = artifact.checked_text(record) if checksum else (artifact.to_json(record), b"")
    return artifact.encoded(values, *text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"nonsense" * 9,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 3],
        lambda data: save({"x": np.zeros(1)}),
        lambda data: save({"x": np.zeros(1)}, metadata={"plnd": "{"}),
        lambda data: save({"x": np.zeros(1)}, metadata={"plnd": "[]"}),
        lambda data: _made_anew(data, **{"0.ffn.minimum": np.zeros(40, np.float32)}),
        lambda data: _made_anew(data, values=np.zeros((8, 3))),
        lambda data: _made_anew(data, "settings"),
        lambda data: _made_anew(data, "bad"),
    ],
    ids="empty nonsense cut cut_short other not_JSON no_object sites shape settings bad".split(),
)
def test_damaged_checkpoint_is_one_line(tmp_path, eager_checkpoints, damage):
    """A checkpoint that is not whole says so and what to do, and starts nothing."""
    model, path = tiny_model("llama"), tmp_path / "checkpoint"
    leave_a_checkpoint(model, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PLNDError) as caught:
        detect(model, MANY, SMALL, checkpoint=path, resume=True)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a whole checkpoint (") and "\n" not in message
    assert message.endswith("); delete it to start again")
