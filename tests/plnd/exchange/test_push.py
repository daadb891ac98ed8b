"""`plnd push`: through huggingface_hub's own client to a hub on this machine; and the card."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from handmade import MODEL, importance_matrix, make_neurons, make_scores
from hub import commands, local_hub
from plnd.errors import PLNDError
from plnd.exchange.push import BEGIN, END, MAX_EVALUATION, card_of, push, read_artifacts

HUB = {**MODEL, "hub": True, "revision": "c" * 40}
NEURONS = make_neurons({"0.down_proj": [1, 2]}, model=HUB)
SCORES = make_scores(importance_matrix(), model=HUB)


def test_the_card_says_what_the_files_are():
    """Library, base model, language, rule, numbers, digests, how to use them, and the evaluation."""
    card = ModelCard(card_of({"zh.n": NEURONS, "zh.s": SCORES}, "user/repo", "| a | b |", None))
    said = card.data.to_dict()
    assert (said["library_name"], said["base_model"], said["language"]) == ("plnd", "made/by-hand", ["zh"])
    assert "| zh.n | neurons | zh | 2 of 88 neurons (2.273%) | top_k 2 | 3 |" in card.text
    assert f"`{NEURONS.digest}`" in card.text and f"`{SCORES.digest}`" in card.text
    assert "mask=hf://user/repo/zh.n" in card.text and "## Evaluation\n\n| a | b |" in card.text


def test_a_folder_is_no_base_model_of_the_hub():
    """A set of a model in a folder names none in the metadata, which the hub would look for."""
    folder = make_neurons({"0.down_proj": [1]}, model={**MODEL, "name": "/models/mine", "hub": False})
    card = ModelCard(card_of({"zh": folder}, "u/r", None, None))
    assert "base_model" not in card.data.to_dict() and "`mine`" in card.text and "/models" not in card.text


def test_what_people_wrote_in_the_card_stays():
    """Metadata, too; the part of plnd is written anew."""
    first = card_of({"zh": NEURONS}, "u/r", None, "---\nlicense: mit\n---\n# Mine\n")
    assert "# Mine" in first and first.index(END) < first.index("# Mine")
    again = card_of({"en": NEURONS}, "u/r", None, first.replace("# Mine", "# Mine, changed"))
    assert again.count(BEGIN) == 1 and "# Mine, changed" in again and "| en | neurons" in again
    assert "| zh | neurons" not in again and ModelCard(again).data.license == "mit"


def test_a_card_that_cannot_be_read_is_one_line():
    """Broken YAML in the repository, which somebody wrote there."""
    with pytest.raises(
        PLNDError, match=r"u/r: the metadata of its README.md cannot be read \(.*\); mend it there"
    ) as caught:
        card_of({"zh": NEURONS}, "u/r", None, "---\na: [\n---\n# Mine\n")
    assert "\n" not in str(caught.value)


def test_a_text_that_is_too_large_for_a_card_is_one_line(tmp_path):
    """It is not read to its end, if it has one."""
    NEURONS.save(tmp_path / "zh")
    (tmp_path / "text").write_bytes(b"x" * (MAX_EVALUATION + 1))
    with pytest.raises(PLNDError, match="is larger than 65,536 bytes, expected at most that"):
        push([tmp_path / "zh"], "u/r", evaluation=tmp_path / "text")


def test_what_is_no_artifact_of_one_model_is_refused(tmp_path):
    """Before the hub is asked."""
    NEURONS.save(tmp_path / "a")
    make_neurons({"0.down_proj": [1]}, model={**MODEL, "name": "another/model"}).save(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"no artifact")
    for files, words in (
        (["a", "b"], "artifacts of 2 models, expected one"),
        (["a", "a"], "each of another name"),
        (["c"], "not a whole safetensors file"),
    ):
        with pytest.raises(PLNDError, match=words):
            read_artifacts([tmp_path / file for file in files])


@pytest.mark.slow
def test_what_is_pushed_can_be_read(tmp_path):
    """The files byte for byte, the card, with the account's token; a second push changes what it brings alone."""
    NEURONS.save(tmp_path / "zh.safetensors")
    SCORES.save(tmp_path / "zh.scores.safetensors")
    (tmp_path / "ablation.md").write_text("measured")
    with local_hub() as hub:
        found = commands(
            tmp_path, hub.address,
            ["push", "zh.safetensors", "user/repo", "--evaluation", "ablation.md"],
            ["show", "hf://user/repo/zh.safetensors"],
            ["push", "zh.scores.safetensors", "user/repo"],
            ["push", "zh.safetensors", "no-repository"],
        )  # fmt: skip
        files = hub.repositories["user/repo"]
        assert hub.tokens == {"Bearer secret"}
    assert [status for status, _ in found] == [0, 0, 0, 2], found
    assert "user/repo/commit/" in found[0][1] and NEURONS.digest in found[1][1]
    assert "expected hf://user/repo/FILE" in found[3][1]
    assert files["zh.safetensors"] == (tmp_path / "zh.safetensors").read_bytes()
    assert files["zh.scores.safetensors"] == (tmp_path / "zh.scores.safetensors").read_bytes()
    assert b"library_name: plnd" in files["README.md"] and b"scores (plnd)" in files["README.md"]
