"""Artifacts of the Hugging Face hub, by its own client, from a hub on this machine."""

from __future__ import annotations

import pytest

from handmade import importance_matrix, make_neurons, make_scores
from hub import COMMIT, commands, local_hub
from plnd.errors import ArtifactError, PLNDError
from plnd.io.hub import hub_errors, is_hub_file, local_file, parts_of


@pytest.mark.parametrize(
    "name, parts",
    [
        ("hf://user/repo/zh.safetensors", ("user/repo", "zh.safetensors", None)),
        ("hf://user/repo/sets/zh.safetensors@v1.0", ("user/repo", "sets/zh.safetensors", "v1.0")),
        ("hf://a.b/c-d/x@refs/pr/1", ("a.b/c-d", "x", "refs/pr/1")),
    ],
)
def test_names_have_three_parts(name, parts):
    """The repository, the file, and behind @ the revision."""
    assert is_hub_file(name) and parts_of(name) == parts


@pytest.mark.parametrize(
    "name", ["hf://", "hf://user", "hf://user/repo", "hf://user/repo/", "hf://user/repo/a@", "hf://user/repo/../a",
             "hf://user/repo//a", "hf://user/re po/a", "hf://user/repo/a@b@c"]
)  # fmt: skip
def test_other_names_are_refused(name):
    """Before anything is asked of the hub."""
    with pytest.raises(ArtifactError, match="expected hf://user/repo/FILE or hf://user/repo/FILE@revision"):
        local_file(name)


def test_files_of_this_machine_are_where_they_are(tmp_path):
    """A path is not looked at."""
    assert local_file(tmp_path / "x") == tmp_path / "x" and not is_hub_file("./hf:/x")


@pytest.mark.parametrize("error", [RuntimeError("Exceeded\n20 redirects"), ValueError("x" * 999), OSError("no route")])
def test_whatever_the_client_raises_is_one_line(error):
    """What it speaks HTTP with has errors of its own; a refusal of ours stays what it is."""
    with (
        pytest.raises(ArtifactError, match="^hf://a/b/c: the hub's client failed ") as caught,
        hub_errors("hf://a/b/c"),
    ):
        raise error
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    with pytest.raises(PLNDError, match="^mine$"), hub_errors("hf://a/b/c"):
        raise PLNDError("mine")


@pytest.mark.slow
def test_files_of_the_hub_stand_wherever_files_do(tmp_path):
    """Shown, combined and selected from, at a revision; read as strictly; in a line what is not there, or offline."""
    neurons, scores = make_neurons({"0.down_proj": [1, 2]}), make_scores(importance_matrix())
    with local_hub() as hub:
        whole = {"zh": neurons.to_bytes(), "zh.scores": scores.to_bytes()}
        hub.repositories["user/repo"] = {**whole, "cut": whole["zh"][:-1], "large": b"x"}
        hub.sizes["large"] = 2**33
        found = commands(
            tmp_path, hub.address,
            ["show", "hf://user/repo/zh"],
            ["show", f"hf://user/repo/zh@{COMMIT}"],
            ["select", "hf://user/repo/zh.scores@main", "--top-k", "2", "--output", "chosen"],
            ["combine", "hf://user/repo/zh", "--minus", "hf://user/repo/zh", "--output", "none"],
            ["show", "hf://user/repo/cut"],
            ["show", "hf://user/repo/large"],
            ["show", "hf://user/repo/missing"],
            ["show", "hf://user/repo/zh@v9"],
            ["show", "hf://user/other/zh"],
        )  # fmt: skip
        address = hub.address
    assert [status for status, _ in found] == [0, 0, 0, 0, 2, 2, 2, 2, 2]
    assert f"sha256 {neurons.digest}" in found[0][1] and found[1][1] == found[0][1]
    assert (tmp_path / "chosen").read_bytes() == scores.select(top_k=2).to_bytes()
    assert "0 of 88 neurons" in found[3][1]
    lines = [output.removeprefix("plnd show: ") for _, output in found[4:]]
    assert all(line.count("\n") == 1 for line in lines)
    assert lines[0].startswith("hf://user/repo/cut: not a whole safetensors file")
    assert lines[1].startswith("hf://user/repo/large: 8,589,934,592 bytes, expected an artifact, of at most")
    assert lines[2].startswith("hf://user/repo/missing: the repository has no such file")
    assert lines[3].startswith("hf://user/repo/zh@v9: the repository has no such revision")
    assert lines[4].startswith("hf://user/other/zh: no such repository on the hub, or no right to it")
    cached, absent = commands(tmp_path, address, ["show", "hf://user/repo/zh"], ["show", "hf://user/repo/new"])
    assert cached == found[0]
    assert absent[0] == 2 and "hf://user/repo/new: is not in the cache, and the hub cannot be reached" in absent[1]
