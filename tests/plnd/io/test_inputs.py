"""What the numbers of a folder depend on, and JSON with a checksum."""

from __future__ import annotations

import json

import pytest

from plnd.errors import PLNDError
from plnd.io.inputs import UNKNOWN, check_inputs, path_digest, sealed, unsealed


def test_other_inputs_are_refused(tmp_path):
    """The first run writes them down; equal ones go on, and a value, a name more or a name less are another run."""
    path = tmp_path / "inputs.json"
    check_inputs(path, {"a": 1, "b": [2.5, None]}, "run", begun=False)
    before = path.read_bytes()
    check_inputs(path, {"b": (2.5, None), "a": 1}, "run")
    for other in ({"a": 2, "b": [2.5, None]}, {"a": 1}, {"a": 1, "b": [2.5, None], "c": 0}):
        with pytest.raises(PLNDError, match="another run, whose [abc] is .* and not .*; choose another folder"):
            check_inputs(path, other, "run")
    assert json.loads(path.read_bytes()) == json.loads(before)


def test_what_cannot_be_told_is_not_compared(tmp_path):
    """A model that is gone, or came later, refuses nothing; what was known stays known."""
    path = tmp_path / "inputs.json"
    check_inputs(path, {"model": UNKNOWN}, "run")
    check_inputs(path, {"model": "a"}, "run")
    check_inputs(path, {"model": UNKNOWN}, "run")
    with pytest.raises(PLNDError, match="whose model is 'a' and not 'b'"):
        check_inputs(path, {"model": "b"}, "run")


def test_damage_and_folders_of_before_are_told(tmp_path):
    """A file that is no object is one line; numbers whose inputs nobody wrote down are a warning."""
    path = tmp_path / "inputs.json"
    with pytest.warns(UserWarning, match="begun by an earlier plnd, so that changes of model go unseen"):
        check_inputs(path, {"model": "a"}, "run", begun=True)
    path.write_text('{"a\\nb": 1}')
    with pytest.raises(PLNDError, match=r"whose 'a\\nb' is 1 and not None") as caught:
        check_inputs(path, {}, "run")
    assert "\n" not in str(caught.value)
    path.write_text("[]")
    with pytest.raises(PLNDError, match=r"inputs.json: a JSON list, expected an object"):
        check_inputs(path, {"model": "a"}, "run")


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path):
    """Whatever changes it changes the digest; with endings, other files do not count; nothing there is unknown."""
    folder = tmp_path / "model"
    assert path_digest(folder) == UNKNOWN
    (folder / "below").mkdir(parents=True)
    digests = [path_digest(folder)]
    for name, text in (("a.json", "1"), ("a.json", "2"), ("below/b.json", "1"), ("c.md", "1")):
        (folder / name).write_text(text)
        digests.append(path_digest(folder))
    (folder / "a.json").rename(folder / "b.json")
    digests.append(path_digest(folder))
    assert len(set(digests)) == len(digests)
    before = path_digest(folder, (".json",))
    (folder / "c.md").write_text("2")
    (folder / "below/b.json").write_text("2")
    assert path_digest(folder, (".json",)) == before != path_digest(folder / "b.json")


def test_sealed_json(tmp_path):
    """Any number that changes is seen, numbers stay as they were; what earlier releases wrote has no checksum."""
    value = {"nats": {"zh": [0.1 + 0.2, float("nan")]}, "count": 3}
    line = sealed(value)
    assert repr(unsealed(json.loads(line))) == repr(value) and line.count("\n") == 1
    assert unsealed({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="the checksum is of something else"):
        unsealed(json.loads(line.replace('"count": 3', '"count": 4')))
