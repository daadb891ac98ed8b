"""The two file formats: what is written can be read again, byte for byte; what is not whole is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import threading
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from handmade import MODEL, make_neurons, make_scores, neurons_metadata, rechecked, scores_metadata
from plnd.addresses import PROJECTIONS
from plnd.any_artifact import load
from plnd.commands.main import main
from plnd.errors import ArtifactError, PLNDError
from plnd.io.artifact import opened
from plnd.io.files import check_writable, file_digest, write_bytes
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores

NEURONS = make_neurons({"0.q_proj": [0, 3], "1.down_proj": [2, 5, 7]})
IMPORTANCE = {name: np.arange(3 * w).reshape(3, w) * 7 % 12 for name, w in MODEL["widths"].items()}
SCORES = make_scores(IMPORTANCE)
BEFORE = make_scores(IMPORTANCE, version=1, method={"name": "plnd", "projections": list(PROJECTIONS), "qk": "exact"})
"""The same in format version 1, as plnd wrote it before the logs."""
CHECKED = {
    "neurons": make_neurons({"0.q_proj": [0, 3], "1.down_proj": [2, 5, 7]}, version=2),
    "scores": make_scores({name: IMPORTANCE[name] for name in ("0.k_proj", "1.k_proj")}, version=3),
}
"""Artifacts of the versions that are written, which have a checksum."""


def tensors_of(neurons: NeuronSet) -> dict[str, np.ndarray]:
    """The tensors of a neurons artifact."""
    return {**neurons.indices, **{f"{name}.importance": values for name, values in neurons.importance.items()}}


def scores_tensors(scores: Scores) -> dict[str, np.ndarray]:
    """The tensors of a scores artifact."""
    parts = {"min": scores.minimum, "mean": scores.mean, "worst_rank": scores.worst_rank}
    parts |= {} if scores.mean_log is None else {"mean_log": scores.mean_log, "std_log": scores.std_log}
    return {f"{name}.{part}": values for part, vectors in parts.items() for name, values in vectors.items()}


def write(path: Path, tensors: dict[str, np.ndarray], metadata: Any) -> Path:
    """A safetensors file with whatever is asked for; metadata that is no text becomes JSON."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata, sort_keys=True)
    path.write_bytes(save(tensors, metadata={"plnd": text}))
    return path


def refusal(path: Path, read=load) -> str:
    """What the reader says, after the file's name; it must be one line."""
    with pytest.raises(ArtifactError) as caught:
        read(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# round trips


def test_neurons_round_trip(tmp_path):
    """What was saved is what is loaded: indices, importance and metadata, with their types."""
    digest = NEURONS.save(tmp_path / "zh.safetensors")
    again = NeuronSet.load(tmp_path / "zh.safetensors")
    assert again == NEURONS and again.metadata == NEURONS.metadata
    for name, values in NEURONS.importance.items():
        assert np.array_equal(again.importance[name], values) and again.importance[name].dtype == np.float32
    assert digest == file_digest(tmp_path / "zh.safetensors") == NEURONS.digest == again.digest


def test_scores_round_trip(tmp_path):
    """All five vectors of every projection survive, and so does the metadata."""
    digest = SCORES.save(tmp_path / "zh.scores.safetensors")
    again = Scores.load(tmp_path / "zh.scores.safetensors")
    for part in ("minimum", "mean", "worst_rank", "mean_log", "std_log"):
        before, after = getattr(SCORES, part), getattr(again, part)
        assert before.keys() == after.keys()
        assert all(np.array_equal(v, after[n]) and v.dtype == after[n].dtype for n, v in before.items())
    assert again.metadata == SCORES.metadata
    assert digest == file_digest(tmp_path / "zh.scores.safetensors") == SCORES.digest == again.digest


def test_scores_of_version_1_are_read(tmp_path):
    """Byte for byte what was read is written again: a file of before stays what it is, under the digest that names it.

    Sets that are selected from it are those of the newer scores.
    """
    digest = BEFORE.save(tmp_path / "old")
    again = Scores.load(tmp_path / "old")
    assert (again.metadata.version, again.mean_log, again.std_log) == (1, None, None)
    assert again.save(tmp_path / "again") == digest == file_digest(tmp_path / "old")
    for rule in ({"top_k": 2}, {"epsilon": 3}, {"fraction": 0.3}):
        old, new = again.select(**rule), SCORES.select(**rule)
        assert old == new and old.metadata.version == new.metadata.version == 2
        assert NeuronSet.load(saved(old, tmp_path / "set")).metadata.scores_sha256 == digest


def saved(artifact: NeuronSet | Scores, path: Path) -> Path:
    """The file of an artifact."""
    artifact.save(path)
    return path


@pytest.mark.parametrize("version, logs", [(1, True), (2, False)])
def test_logs_are_those_of_the_version(version, logs):
    """Scores that a file of their version could not hold are refused where they are made."""
    more = (SCORES.mean_log, SCORES.std_log) if logs else ()
    vectors = (SCORES.minimum, SCORES.mean, SCORES.worst_rank)
    with pytest.raises(PLNDError) as caught:
        Scores(*vectors, scores_metadata(version=version), *more)
    assert str(caught.value) == (
        f"scores of format version {version}: mean_log and std_log are there from version 2 on, and only then"
    )


def test_load_takes_either_artifact(tmp_path):
    """`load` gives what the file says it is."""
    NEURONS.save(tmp_path / "neurons"), SCORES.save(tmp_path / "scores")
    assert isinstance(load(tmp_path / "neurons"), NeuronSet) and isinstance(load(tmp_path / "scores"), Scores)


def test_empty_set_round_trip(tmp_path):
    """A set without neurons is an artifact too."""
    make_neurons({}).save(tmp_path / "empty.safetensors")
    assert len(NeuronSet.load(tmp_path / "empty.safetensors")) == 0


# bytes


@pytest.mark.parametrize("artifact", [NEURONS, SCORES], ids=["neurons", "scores"])
def test_same_content_gives_same_bytes(artifact, tmp_path):
    """Neither the time nor the order of dictionaries shows in a file."""

    def backwards(value):
        return {k: backwards(value[k]) for k in reversed(list(value))} if isinstance(value, Mapping) else value

    twin = type(artifact)(*(backwards(getattr(artifact, name)) for name in artifact.__dataclass_fields__))
    assert list(twin.metadata.model.widths) != list(artifact.metadata.model.widths)
    paths = [tmp_path / name for name in ("first", "second", "twin")]
    for path, item in zip(paths, (artifact, artifact, twin), strict=True):
        item.save(path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_other_content_gives_other_bytes():
    """One neuron, one importance or one word of metadata more changes the digest."""
    others = [
        make_neurons({"0.q_proj": [0, 3], "1.down_proj": [2, 5]}),
        make_neurons({"0.q_proj": [0, 3], "1.down_proj": [2, 5, 7]}, {"0.q_proj": [9, 9], "1.down_proj": [1, 2, 3]}),
        make_neurons({"0.q_proj": [0, 3], "1.down_proj": [2, 5, 7]}, language="en"),
    ]
    assert len({NEURONS.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    "artifact, digest",
    [
        (NEURONS, "c7cb5d1e9195d715acc164421bd803871670e35399a57e37d41c2f2ad2fa7677"),
        (SCORES, "8c0d6f27cbde724936d5d35e4b890b281dfb5ec31149b8db869382bb78b85e3d"),
        (BEFORE, "05ac643c96cfa480b75ccd605a0b3272607f909b95e6ec726a7f877d505407c6"),
        (CHECKED["neurons"], "7eb2a3d82acabfd41efdcfe117eb1f2cd98531a29563cbc8b83b1b2c1bb76fb5"),
        (CHECKED["scores"], "0dd13526eed1cee8bee08cb030665124870b2fbb6bf5b44b3db2a709db739187"),
    ],
    ids=["neurons of version 1", "scores of version 2", "scores of version 1", "neurons", "scores"],
)
def test_golden_bytes(artifact, digest):
    """The format has not changed; whoever changes it must raise `newest`, and say so in the changelog."""
    assert artifact.digest == digest


def test_metadata_is_one_key_of_sorted_json(tmp_path):
    """The header holds the single key `plnd`, whose JSON is sorted and compact."""
    NEURONS.save(tmp_path / "zh.safetensors")
    data = (tmp_path / "zh.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    text = header["__metadata__"]["plnd"]
    assert list(header["__metadata__"]) == ["plnd"]
    assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


# writing


def test_written_file_respects_the_umask(tmp_path):
    """The permissions are those of any file that the user writes, not those of a private temporary file."""
    before = os.umask(0o027)
    try:
        write_bytes(b"x", tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """A write that fails before its end changes nothing and leaves no temporary file."""
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_bytes("not bytes", tmp_path / "file")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_successful_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    """The new content is there, alone."""
    (tmp_path / "file").write_bytes(b"old")
    write_bytes(b"new", tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("attempt", [check_writable, lambda path: NEURONS.save(path)], ids=["check", "save"])
@pytest.mark.parametrize(
    "target, wording",
    [
        ("missing/file", "cannot be written (No such file or directory)"),
        ("file/below", "cannot be written (Not a directory)"),
        ("folder", "is a folder, expected the name of a file to write"),
        ("/proc/plnd", "cannot be written"),  # a folder that nobody can write to, root included
    ],
)
def test_target_that_cannot_be_written_is_one_line(tmp_path, attempt, target, wording):
    """A missing, unwritable or occupied target is refused by name, before long work and after it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(PLNDError) as caught:
        attempt(tmp_path / target)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / target}: {wording}") and "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_check_writable_leaves_nothing(tmp_path):
    """The check writes no file, and leaves an old one as it is."""
    (tmp_path / "old").write_bytes(b"old")
    check_writable(tmp_path / "old"), check_writable(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_bytes() == b"old"


# strictness: files


def test_missing_file_and_folder(tmp_path):
    """What is not there, or no file, is called that."""
    assert refusal(tmp_path / "nothing") == "no such file, expected a plnd artifact"
    assert refusal(tmp_path) == "is a folder, expected a plnd artifact"
    assert refusal(tmp_path / ("long" * 100)) == "no such file, expected a plnd artifact"


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"plnd" * 100, b"\xff" * 64, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 9) + b"{"]
)
def test_random_bytes(tmp_path, data):
    """Bytes that are no safetensors file are refused as that."""
    (tmp_path / "file").write_bytes(data)
    said = refusal(tmp_path / "file")
    assert said.startswith("not a whole safetensors file (") or "not one of plnd's" in said


@pytest.mark.parametrize("kept", [4, 8, 100, -1], ids=lambda kept: f"first {kept} bytes")
@pytest.mark.parametrize("artifact", [NEURONS, SCORES], ids=["neurons", "scores"])
def test_truncated_file(tmp_path, artifact, kept):
    """A file that lost its end is refused, also by a single byte."""
    artifact.save(tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:kept])
    assert refusal(tmp_path / "file").startswith("not a whole safetensors file (")
    assert refusal(tmp_path / "file").endswith("); copy or make it again")


def test_other_safetensors_file(tmp_path):
    """A model's weights are recognised as not being an artifact."""
    (tmp_path / "model.safetensors").write_bytes(save({"weight": np.zeros(3, np.float32)}, metadata={"format": "pt"}))
    expected = "a safetensors file, but not one of plnd's: it has no 'plnd' metadata"
    assert refusal(tmp_path / "model.safetensors") == expected
    (tmp_path / "model.safetensors").write_bytes(save({"weight": np.zeros(3, np.float32)}))
    assert refusal(tmp_path / "model.safetensors") == expected


def test_scores_for_neurons_and_the_reverse(tmp_path):
    """The reader says which of the two it was given and which command makes the other."""
    NEURONS.save(tmp_path / "neurons"), SCORES.save(tmp_path / "scores")
    said = refusal(tmp_path / "scores", NeuronSet.load)
    assert said == "holds 'plnd.scores', expected neurons (from `plnd select` or `plnd combine`)"
    assert refusal(tmp_path / "neurons", Scores.load) == "holds 'plnd.neurons', expected scores (from `plnd detect`)"


# strictness: metadata

NESTED = json.loads("[" * 17 + "]" * 17)


@pytest.mark.parametrize(
    "text, wording",
    [
        ("{", "its 'plnd' metadata is not JSON (Expecting property name enclosed in double quotes"),
        ("[" * 100_000, "its 'plnd' metadata is not JSON (nested too deeply); the file is damaged"),
        ("9" * 5_000, "its 'plnd' metadata is not JSON (Exceeds the limit (4300"),
        (
            json.dumps(neurons_metadata()).replace("{", '{"version": 1, ', 1),
            "its 'plnd' metadata is not JSON (key 'version' is there twice); the file is damaged",
        ),
        (
            json.dumps(neurons_metadata()).replace('"widths": {', '"widths": {"0.q_proj": 7, '),
            "its 'plnd' metadata is not JSON (key '0.q_proj' is there twice); the file is damaged",
        ),
        ("[]", "its 'plnd' metadata is not an object; the file is damaged"),
        (neurons_metadata(more=NESTED), "metadata is nested too deeply; the file is damaged"),
        (neurons_metadata(more=float("nan")), "its 'plnd' metadata is not JSON (NaN is no JSON); the file is damaged"),
        (
            json.dumps(neurons_metadata(more=1)).replace('"more": 1', '"more": [1e999]'),
            "metadata holds a number that is not finite; the file is damaged",
        ),
        (
            neurons_metadata(language="\ud800"),
            "its 'plnd' metadata is not JSON (half a surrogate pair, which is no text)",
        ),
        (
            neurons_metadata(**{"\udfff": 1}),
            "its 'plnd' metadata is not JSON (half a surrogate pair, which is no text)",
        ),
        (neurons_metadata(format="plnd.other"), "holds 'plnd.other', expected neurons"),
        (neurons_metadata(format=["x"] * 99), "holds ['x', 'x',"),
        (neurons_metadata(version=3), "format version 3, but this plnd reads up to 2: upgrade plnd"),
        (neurons_metadata(version=3, model=None), "format version 3, but this plnd reads up to 2: upgrade plnd"),
        (neurons_metadata(version=0), "format version 0, expected 1 to 2"),
        (neurons_metadata(version=2), "metadata has no checksum, as version 2 has; the file is damaged"),
        (neurons_metadata(version=2, checksum=7), "its content is not that of its checksum; the file is damaged"),
        (neurons_metadata(checksum="0" * 64), "its content is not that of its checksum; the file is damaged"),
        (neurons_metadata(version=1.0), "metadata field version is 1.0, expected int"),
        (neurons_metadata(version=True), "metadata field version is True, expected int"),
        (neurons_metadata(version=-1), "metadata field version is -1, expected int"),
        (neurons_metadata(language=7), "metadata field language is 7"),
        (neurons_metadata(corpus=[]), "metadata field corpus is [], expected an object"),
        (neurons_metadata(rule={}), "metadata field rule.name is missing"),
        (neurons_metadata(operands={}), "metadata field operands is {}, expected a list"),
        (neurons_metadata(operands=[{"operation": 1}]), "metadata field operands.operation is 1, expected str"),
        (neurons_metadata(operands=[{"operation": "minus", "neurons": "many"}]), "metadata field operands.neurons is"),
    ],
)
def test_metadata_that_is_not_plain(tmp_path, text, wording):
    """Metadata that is not JSON, could not be written again, is newer, or has a field of the wrong type is refused."""
    said = refusal(write(tmp_path / "file", tensors_of(NEURONS), text))
    assert said.startswith(wording) and len(said) < 200


def test_nesting_up_to_the_limit_is_read(tmp_path):
    """The negative of the case above: depth alone is no damage."""
    write(tmp_path / "file", tensors_of(NEURONS), neurons_metadata(more=NESTED[0][0]))
    assert load(tmp_path / "file") == NEURONS


def _fields(record: dict, path: tuple[str, ...] = ()):
    """The paths of all required fields."""
    for name, value in record.items():
        yield (*path, name)
        if isinstance(value, dict) and name not in ("widths", "skipped", "rule"):
            yield from _fields(value, (*path, name))


OPTIONAL = {("method", "qk")}  # of the method's own settings only name and projections are promised


@pytest.mark.parametrize("metadata, tensors, read", [
    (neurons_metadata, tensors_of(NEURONS), NeuronSet.load), (scores_metadata, scores_tensors(SCORES), Scores.load)
], ids=["neurons", "scores"])  # fmt: skip
def test_every_field_is_required_and_typed(tmp_path, metadata, tensors, read):
    """Each field in turn, missing or of a type that it never has, is named by its path."""
    fields = [f for f in _fields(metadata()) if f not in OPTIONAL]
    assert len(fields) >= 21
    for *parents, name in fields:
        where = ".".join([*parents, name])
        for change in ("missing", "wrong"):
            changed = metadata()
            record = changed
            for parent in parents:
                record = record[parent]
            if change == "missing":
                del record[name]
            else:
                record[name] = 0.5
            said = refusal(write(tmp_path / "file", tensors, changed), read)
            if name == "format":
                assert said.startswith(f"holds {'None' if change == 'missing' else '0.5'}, expected ")
            else:
                found = "is missing" if change == "missing" else "is 0.5"
                assert said.startswith(f"metadata field {where} {found}"), said


def _model(**changes: Any) -> dict[str, Any]:
    return neurons_metadata(model={**neurons_metadata()["model"], **changes})


def _widths(**changes: Any) -> dict[str, Any]:
    return _model(
        widths={**neurons_metadata()["model"]["widths"], **{k.replace("__", "."): v for k, v in changes.items()}}
    )


@pytest.mark.parametrize(
    "metadata, wording",
    [
        (_widths(__q_proj=6), "metadata names '.q_proj', which a model of 2 blocks does not have"),
        (_widths(**{"2.q_proj": 6}), "metadata names '2.q_proj', which a model of 2 blocks does not have"),
        (_widths(**{"-1.q_proj": 6}), "metadata names '-1.q_proj', which"),
        (_widths(**{"01.q_proj": 6}), "metadata names '01.q_proj', which"),
        (_widths(**{"٣.q_proj": 6}), "metadata names '٣.q_proj', which"),
        (_widths(**{"0.qproj": 6}), "metadata names '0.qproj', which"),
        (_widths(**{"0.mlp.q_proj": 6}), "metadata names '0.mlp.q_proj', which"),
        (_widths(**{"0.q_proj\n": 6}), "metadata names '0.q_proj\\n', which"),
        (_widths(**{"9" * 400 + ".q_proj": 6}), "metadata names '999"),
        (_widths(**{"0.q_proj": 0}), "metadata gives 0.q_proj 0 neurons"),
        (_widths(**{"0.q_proj": 2**31 - 1}), "metadata gives 0.q_proj 2147483647 neurons, expected 1 to 16777216"),
        (_widths(**{"0.q_proj": True}), "metadata field model.widths['0.q_proj'] is True, expected int"),
        (_widths(**{"0.q_proj": "6"}), "metadata field model.widths['0.q_proj'] is '6', expected int"),
        (_model(blocks=0), "metadata gives 0 blocks and 14 widths"),
        (_model(blocks=10**18), "metadata gives 1000000000000000000 blocks and 14 widths"),
        (_model(widths={}), "metadata gives 2 blocks and 0 widths"),
    ],
)  # fmt: skip
def test_impossible_widths(tmp_path, metadata, wording):
    """A width of a block or projection that cannot exist, or of no neuron, is refused."""
    assert refusal(write(tmp_path / "file", tensors_of(NEURONS), metadata)).startswith(wording)


def test_versions_of_scores(tmp_path):
    """Scores of the next version, or of none, are refused; so are those of 2 without logs, or of 1 with."""
    tensors, old = scores_tensors(SCORES), scores_tensors(BEFORE)
    said = [
        refusal(write(tmp_path / "file", vectors, scores_metadata(version=version)))
        for vectors, version in ((tensors, 4), (tensors, 0), (old, 2), (tensors, 1))
    ]
    assert said == [
        "format version 4, but this plnd reads up to 3: upgrade plnd",
        "format version 0, expected 1 to 3",
        "tensor '0.down_proj.mean_log' is missing",
        "tensor '0.down_proj.mean_log' is not expected",
    ]


def test_fewer_skipped_than_named(tmp_path):
    """A count of skipped documents below the number of those that are named contradicts them; a larger one does not."""
    corpus = {**scores_metadata()["corpus"], "skipped": {"short": [1, 4]}}
    for count in (1, 2, 3):
        changed = scores_metadata(corpus={**corpus, "skipped_counts": {"short": count}})
        path = write(tmp_path / "file", scores_tensors(SCORES), changed)
        if count < 2:
            assert refusal(path) == "metadata counts 1 skipped documents (short) and names more"
        else:
            assert load(path).metadata.corpus.counts_skipped() == {"short": count}


def test_unknown_scored_projection(tmp_path):
    """A method that scored what plnd does not know, or nothing, is refused."""
    changed = scores_metadata(method={"name": "plnd", "projections": ["q_proj", "x_proj"]})
    said = refusal(write(tmp_path / "file", scores_tensors(SCORES), changed))
    assert said.startswith("metadata names a projection 'x_proj', expected some of q_proj, k_proj,")
    changed = scores_metadata(method={"name": "plnd", "projections": []})
    said = refusal(write(tmp_path / "file", scores_tensors(SCORES), changed))
    assert said == "metadata says that no projection was scored"


# strictness: tensors

Q = "0.q_proj"  # indices 0 and 3 of 6 neurons


@pytest.mark.parametrize(
    "changes, wording",
    [
        ({Q: np.array([0, 6], np.int32)}, "0.q_proj holds 6, out of range for 6 neurons"),
        ({Q: np.array([-1, 3], np.int32)}, "0.q_proj holds -1, out of range for 6 neurons"),
        ({Q: np.array([3, 0], np.int32)}, "the indices of 0.q_proj are not ascending"),
        ({Q: np.array([3, 3], np.int32)}, "the indices of 0.q_proj are not ascending"),
        ({Q: np.array([0, 3], np.int64)}, "tensor '0.q_proj' is I64, expected I32 or F32"),
        ({Q: np.array([0, 3], np.float32)}, "0.q_proj is float32 of 1 dimensions, expected a vector of int32"),
        ({Q: np.array([[0, 3]], np.int32)}, "0.q_proj is int32 of 2 dimensions, expected a vector of int32"),
        ({Q: np.array(3, np.int32)}, "0.q_proj is int32 of 0 dimensions, expected a vector of int32"),
        ({Q: None}, "tensor '0.q_proj' is missing"),
        ({f"{Q}.importance": None}, "tensor '0.q_proj.importance' is missing"),
        ({f"{Q}.importance": np.ones(2, np.float64)}, "tensor '0.q_proj.importance' is F64, expected I32 or F32"),
        ({f"{Q}.importance": np.ones(2, np.int32)}, "0.q_proj.importance is int32 of shape [2], expected float32 of"),
        ({f"{Q}.importance": np.ones(3, np.float32)}, "0.q_proj.importance is float32 of shape [3], expected float32 of"
         " shape [2]"),
        ({f"{Q}.importance": np.ones((2, 1), np.float32)}, "0.q_proj.importance is float32 of shape [2, 1], expected"),
        ({f"{Q}.importance": np.array([1, np.nan], np.float32)}, "0.q_proj.importance holds values that are negative or"
         " not finite"),
        ({f"{Q}.importance": np.array([np.inf, 1], np.float32)}, "0.q_proj.importance holds values that are negative"),
        ({f"{Q}.importance": np.array([-1, 1], np.float32)}, "0.q_proj.importance holds values that are negative"),
        ({"2.q_proj": np.array([0], np.int32)}, "tensor '2.q_proj' is not expected"),
        ({"line\nbreak": np.array([0], np.int32)}, "tensor 'line\\nbreak' is not expected"),
        ({".importance": np.ones(1, np.float32)}, "tensor '.importance' is not expected"),
    ],
)  # fmt: skip
def test_neurons_with_a_wrong_tensor(tmp_path, changes, wording):
    """Indices and importances of another dtype, shape, order or range are refused, and so is a missing companion."""
    tensors = {name: v for name, v in {**tensors_of(NEURONS), **changes}.items() if v is not None}
    assert refusal(write(tmp_path / "file", tensors, neurons_metadata()), NeuronSet.load).startswith(wording)


def test_dtype_that_numpy_does_not_have(tmp_path):
    """A tensor of bfloat16 is refused for its dtype, not called damaged."""
    header = json.dumps({
        "__metadata__": {"plnd": json.dumps(neurons_metadata())},
        Q: {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }).encode()  # fmt: skip
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert refusal(tmp_path / "file") == "tensor '0.q_proj' is BF16, expected I32 or F32"


@pytest.mark.parametrize(
    "changes, wording",
    [
        ({f"{Q}.min": None}, "tensor '0.q_proj.min' is missing"),
        ({f"{Q}.worst_rank": None}, "tensor '0.q_proj.worst_rank' is missing"),
        ({"0.q_proj": np.zeros(1, np.int32)}, "tensor '0.q_proj' is not expected"),
        ({f"{Q}.min": np.ones(5, np.float32)}, "0.q_proj.min is float32 of shape [5], expected float32 of shape [6]"),
        ({f"{Q}.mean": np.full(6, np.nan, np.float32)}, "0.q_proj.mean holds values that are negative or not finite"),
        ({f"{Q}.mean": np.full(6, -1, np.float32)}, "0.q_proj.mean holds values that are negative or not finite"),
        ({f"{Q}.min": SCORES.mean[Q] + 1}, "0.q_proj has a minimum above its mean"),
        ({f"{Q}.mean_log": None}, "tensor '0.q_proj.mean_log' is missing"),
        ({f"{Q}.mean_log": np.ones(5, np.float32)}, "0.q_proj.mean_log is float32 of shape [5], expected float32 of"),
        ({f"{Q}.mean_log": np.ones(6, np.int32)}, "0.q_proj.mean_log is int32 of shape [6], expected float32 of shape"),
        ({f"{Q}.mean_log": np.full(6, -np.inf, np.float32)}, "0.q_proj.mean_log holds values that are not finite"),
        ({f"{Q}.std_log": np.full(6, np.nan, np.float32)}, "0.q_proj.std_log holds values that are negative or not"),
        ({f"{Q}.std_log": np.full(6, -1, np.float32)}, "0.q_proj.std_log holds values that are negative or not finite"),
        ({f"{Q}.worst_rank": np.full(6, 6, np.int32)}, "0.q_proj.worst_rank holds 6, out of range for 6 neurons"),
        ({f"{Q}.worst_rank": np.zeros(5, np.int32)}, "0.q_proj.worst_rank has 5 entries, expected 6"),
        ({f"{Q}.worst_rank": np.zeros(6, np.float32)}, "0.q_proj.worst_rank is float32 of 1 dimensions, expected a"),
    ],
)
def test_scores_with_a_wrong_tensor(tmp_path, changes, wording):
    """Scores of another dtype, shape or range are refused, and so are missing and additional ones."""
    tensors = {name: v for name, v in {**scores_tensors(SCORES), **changes}.items() if v is not None}
    assert refusal(write(tmp_path / "file", tensors, scores_metadata()), Scores.load).startswith(wording)


# whatever the bytes are

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def survives(path: Path, capsys) -> None:
    """The file is read to what can be written again, or refused in one line, from Python and by `plnd show`."""
    try:
        artifact = load(path)
    except ArtifactError as error:
        assert len(str(error).splitlines()) == 1
        expected = 2
    else:
        artifact.save(path.with_suffix(".again"))
        assert load(path.with_suffix(".again")).digest == artifact.digest
        expected = 0
    for arguments in (["show", str(path)], ["show", "--json", str(path)]):
        capsys.readouterr()
        assert main(arguments) == expected
        out, err = capsys.readouterr()
        assert (len(err.splitlines()), bool(out)) == ((1, False) if expected else (0, True))


@FUZZ
@given(data=st.binary(max_size=200), framed=st.booleans())
def test_fuzz_random_bytes(tmp_path, capsys, data, framed):
    """Random bytes, with and without a safetensors frame around them, never give anything but one line."""
    path = tmp_path / "fuzz"
    path.write_bytes(struct.pack("<Q", len(data)) + data if framed else data)
    survives(path, capsys)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """A few byte flips, insertions, deletions and cuts, mostly in the header."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(damaged) - 1)))
        match draw(st.sampled_from(["flip", "insert", "delete", "cut", "number"])):
            case "flip" if damaged:
                damaged[at] ^= draw(st.integers(1, 255))
            case "insert":
                damaged[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del damaged[at : at + draw(st.integers(1, 8))]
            case "cut":
                del damaged[at:]
            case "number":
                damaged[at : at + 1] = draw(st.sampled_from([b"0", b"9", b"-", b"1e9", b'"', b"}", b"[", b"\\"]))
    return bytes(damaged)


@pytest.mark.parametrize("artifact", [NEURONS, BEFORE, *CHECKED.values()], ids=["neurons 1", "scores 1", *CHECKED])
@FUZZ
@given(data=st.data())
def test_fuzz_damaged_bytes(artifact, tmp_path, capsys, data):
    """A valid file with bytes changed, added or lost is read to a valid object or refused in one line."""
    artifact.save(tmp_path / "valid")
    (tmp_path / "fuzz").write_bytes(data.draw(damaged((tmp_path / "valid").read_bytes())))
    survives(tmp_path / "fuzz", capsys)


def _places(value: Any, path: tuple = ()):
    """Every place in nested JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


OPERAND = {"operation": "minus", "language": "en", "neurons": 3, "sha256": "2" * 64}


@pytest.mark.parametrize("metadata, tensors", [
    (neurons_metadata(operands=[OPERAND]), tensors_of(NEURONS)), (scores_metadata(), scores_tensors(SCORES))
], ids=["neurons", "scores"])  # fmt: skip
@FUZZ
@given(data=st.data())
def test_fuzz_metadata(metadata, tensors, tmp_path, capsys, data):
    """Any JSON in any place of the metadata is read to a valid object or refused in one line."""
    metadata = json.loads(json.dumps(metadata))
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from([p for p in _places(metadata) if p]))
        record = metadata
        for parent in parents:
            record = record[parent]
        match data.draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case "delete":
                del record[last]
            case "add" if isinstance(record, dict):
                record[data.draw(st.text(st.characters(), max_size=8))] = data.draw(ANYTHING)
            case _:
                record[last] = data.draw(ANYTHING)
        if not metadata:
            break
    survives(write(tmp_path / "fuzz", tensors, metadata), capsys)


ARRAYS = st.builds(
    lambda dtype, shape, fill: np.full(shape, fill, dtype),
    st.sampled_from(["int32", "float32", "int64", "uint8", "float64", "bool"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple) | st.sampled_from([(6,), (4,), (8,)]),
    st.sampled_from([0, 1, 5]),
)


@pytest.mark.parametrize("metadata, tensors", [
    (neurons_metadata(), tensors_of(NEURONS)), (scores_metadata(), scores_tensors(SCORES))
], ids=["neurons", "scores"])  # fmt: skip
@FUZZ
@given(data=st.data())
def test_fuzz_tensors(metadata, tensors, tmp_path, capsys, data):
    """Tensors swapped, renamed, removed or replaced by any array give a valid object or one line."""
    tensors = dict(tensors)
    names = st.sampled_from(sorted(tensors))
    for _ in range(data.draw(st.integers(1, 2))):
        one, other = data.draw(names), data.draw(names)
        match data.draw(st.sampled_from(["swap", "replace", "rename", "remove"])):
            case "swap" if one in tensors and other in tensors:
                tensors[one], tensors[other] = tensors[other], tensors[one]
            case "replace":
                tensors[one] = data.draw(ARRAYS)
            case "rename" if one in tensors:
                tensors[data.draw(st.text(max_size=6))] = tensors.pop(one)
            case _:
                tensors.pop(one, None)
    survives(write(tmp_path / "fuzz", tensors, metadata), capsys)


def test_fuzz_reaches_both_ends(tmp_path, capsys):
    """The check above can tell: an untouched file passes as valid, and an exception of another kind would show."""
    NEURONS.save(tmp_path / "valid")
    survives(tmp_path / "valid", capsys)
    with pytest.raises(TypeError):
        survives(None, capsys)  # type: ignore[arg-type]
    assert hashlib.sha256((tmp_path / "valid").read_bytes()).hexdigest() == NEURONS.digest


def test_a_file_that_is_replaced_meanwhile_is_one_file(tmp_path):
    """Metadata and tensors are of one state, however often another process puts another file in the place."""
    path, stop = tmp_path / "n.safetensors", threading.Event()
    both = [make_neurons({"1.down_proj": rows}, language=x) for x, rows in (("en", (0, 1)), ("zh", (6, 7)))]
    both[0].save(path)

    def replace() -> None:
        while not stop.is_set():
            for neurons in both:
                neurons.save(path)

    writer = threading.Thread(target=replace, daemon=True)
    writer.start()
    try:
        loaded = [NeuronSet.load(path).digest for _ in range(400)]
    finally:
        stop.set()
        writer.join()
    assert set(loaded) == {neurons.digest for neurons in both}


# one file, in one state, and no more of it than it may have


@pytest.mark.parametrize("kind", CHECKED)
@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_refused(tmp_path, kind, step):
    """Wherever in the file it is: length, header, metadata, padding, numbers; the file as it was is read."""
    path = saved(CHECKED[kind], tmp_path / "file")
    data = path.read_bytes()
    assert load(path).digest == hashlib.sha256(data).hexdigest()
    for bit in range(0, 8 * len(data), step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refusal(path)


@pytest.mark.parametrize("kind", CHECKED)
def test_the_checksum_is_what_the_readme_says(kind):
    """SHA-256 of the file with zeros for its own digits, under which another value would be refused."""
    data = CHECKED[kind].to_bytes()
    assert rechecked(data) == data and rechecked(data.replace(b"zh", b"en")) != data


def test_a_checksum_that_stands_elsewhere_too_is_refused(tmp_path):
    """Zeros for it would stand there as well, so that the file had one checksum and two contents."""
    path = saved(CHECKED["neurons"], tmp_path / "file")
    data = path.read_bytes()
    (said,) = re.findall(rb'(?<=\\"checksum\\":\\")[0-9a-f]{64}', data)
    blank = data.replace(said, b"0" * 64)  # which are in the metadata as the corpus's digest, too
    assert blank.count(b"0" * 64) == 2
    path.write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode()))
    with pytest.raises(ArtifactError, match="its content is not that of its checksum"):
        load(path)


def test_scores_of_before_stay_what_they_are_and_what_is_made_of_sets_is_new(tmp_path):
    """A file of version 1 or 2 has the digest that names it, also when it is saved again; a set made of it is new."""
    for artifact in (NEURONS, SCORES):
        path = saved(artifact, tmp_path / "file")
        assert load(path).metadata.version < artifact.metadata.newest and load(path).digest == file_digest(path)
    assert (NEURONS | NEURONS).metadata.version == NEURONS.random_like(0).metadata.version == 2


def test_a_file_that_becomes_shorter_or_other_while_it_is_read(tmp_path):
    """What is written into a file that is open is one line, where a mapped file would end the process."""
    path = saved(CHECKED["scores"], tmp_path / "file")
    for change in (lambda: os.truncate(path, 100), lambda: path.write_bytes(b"x" * 10**5)):
        saved(CHECKED["scores"], path)
        with opened(path) as stream:
            name = stream.keys()[0]
            stream.get_tensor(name)
            time.sleep(0.02)  # beyond the grain of the file system's clock
            change()
            with pytest.raises(ArtifactError) as caught:
                stream.get_tensor(name)
        assert str(caught.value) == f"{path}: was written to while it was read; copy or make it again"


def test_files_are_closed_when_they_are_read(tmp_path):
    """Not when the collector comes by; whole ones and those that are refused. What reads on afterwards is one line."""
    path = saved(CHECKED["scores"], tmp_path / "file")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    before = sorted(os.listdir("/dev/fd"))
    with opened(path) as stream:
        assert len(os.listdir("/dev/fd")) == len(before) + 1
    with pytest.raises(ArtifactError) as caught, opened(tmp_path / "cut"):
        pass
    assert sorted(os.listdir("/dev/fd")) == before and caught.value
    with pytest.raises(ArtifactError, match="cannot be read"):
        stream.get_tensor(stream.keys()[0])


def test_a_pipe_is_no_artifact(tmp_path):
    """It is refused, and not waited for."""
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "no such file, expected a plnd artifact"


def sparse(path: Path, metadata: dict, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """A file of a few blocks on the disk, whose header claims tensors of any size."""
    header, end = {"__metadata__": {"plnd": json.dumps(metadata)}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path


@pytest.mark.parametrize(
    "tensors, wording",
    [
        ({"x": ("F32", [2**29], 2**31)}, "tensor 'x' is not expected"),
        ({Q: ("I32", [2**29], 2**31)}, "tensor '0.q_proj' is of shape [536870912], of 6 neurons"),
        (
            {f"{Q}.importance": ("F32", [2**29, 1], 2**31)},
            "tensor '0.q_proj.importance' is of shape [536870912, 1], of",
        ),
        ({Q: ("U8", [2**31], 2**31)}, "tensor '0.q_proj' is U8, expected I32 or F32"),
        ({Q: ("I32", [2**63 - 1] * 64, 8)}, "not a whole safetensors file (tensor '0.q_proj' of shape"),
    ],
)
def test_tensors_that_nothing_has_a_place_for_are_not_read(tmp_path, tensors, wording):
    """Two GiB of holes are refused for what the header says, and take no memory."""
    path = sparse(tmp_path / "file", neurons_metadata(), tensors)
    tracemalloc.start()
    try:
        assert refusal(path).startswith(wording)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inner", ["[],", "1,", "{},"])
def test_metadata_of_millions_of_values_is_refused(tmp_path, inner):
    """Text that would become hundreds of times its size in memory is not parsed."""
    text = "[" + inner * (5 * 10**6) + "0]"
    said = refusal(write(tmp_path / "file", {}, '{"format": "plnd.neurons", "more": ' + text + "}"))
    assert said.startswith("not a whole safetensors file (more than 4194304 values)")


def test_a_header_of_any_size_is_not_read(tmp_path):
    """A length that a header cannot have, in a file that is long enough for it."""
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", 2**31) + b"{}")
    os.truncate(path, 2**32)
    assert refusal(path).startswith("not a whole safetensors file (a header of 2147483648 bytes in a file of")
