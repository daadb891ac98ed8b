"""The routing artifact: numbers compared on paper, bytes that are read with every field checked, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import plnd
from plnd.commands.main import main
from plnd.errors import ArtifactError, PLNDError
from plnd.references.config import ReferenceConfig
from plnd.references.routing import Preference, Routing
from plnd.references.routing_run import routing
from tiny import tiny_model

WIDTHS, UNITS = {"0.down_proj": 8, "3.down_proj": 8}, {"0.down_proj": 4, "3.down_proj": 4}
MODEL = {"name": "m", "revision": None, "model_type": "mixtral", "blocks": 4, "widths": WIDTHS, "units": UNITS}
TOKENS = {
    "zh": {"0": [10, 10, 0, 0], "3": [6, 4, 8, 2]},
    "en": {"0": [5, 5, 5, 5], "3": [5, 5, 5, 5]},
    "ru": {"0": [0, 10, 5, 5], "3": [2, 8, 6, 4]},
}
"""Of ten tokens of each language, each of which goes to two experts of the four of blocks 0 and 3."""


def by_hand(tokens=TOKENS, chosen=2, **changes) -> Routing:
    """Weights are half a token's for each."""
    corpus = {"source": None, "sha256": "0" * 64, "documents": 1, "tokens": 10, "max_length": 9, "skipped": {}}
    said = {"format": "plnd.routing", "version": 1, "plnd": "0.1.0", "model": MODEL, "dtype": "float32"}
    said |= {"corpora": dict.fromkeys(tokens, corpus), "chosen": {"0": chosen, "3": chosen}} | changes
    counts = {x: {b: np.array(v, np.int64) for b, v in of.items()} for x, of in tokens.items()}
    return Routing(counts, {x: {b: v / 2 for b, v in of.items()} for x, of in counts.items()}, said)


def test_which_experts_take_more_of_a_language():
    """Zh sends all its tokens to expert 0 of block 0, en half of its, ru none; expert 1 takes as much of ru."""
    found = by_hand()
    assert found.languages == ["en", "ru", "zh"]
    assert found.preferring("zh") == [
        Preference("0", 0, 1.0, 0.5, 0.5),
        Preference("3", 2, 0.8, 0.6, 0.5),
        Preference("3", 0, 0.6, 0.5, 0.5),
    ]
    assert found.preferring("zh", times=2) == [Preference("0", 0, 1.0, 0.5, 0.5)]
    assert [(one.block, one.expert) for one in found.preferring("ru")] == [("3", 1)]
    assert [(one.block, one.expert) for one in found.preferring("en")] == [("3", 3)]
    with pytest.raises(PLNDError, match="no routing of 'de': languages are en, ru, zh"):
        found.preferring("de")
    with pytest.raises(PLNDError, match="routing of zh alone"):
        by_hand({"zh": TOKENS["zh"]}).preferring("zh")


def test_experts_that_a_language_goes_to_as_neurons(tmp_path, monkeypatch, capsys):
    """Expert 0 of block 0 is neurons 0 and 1 of eight; by command, too, and what is not of routing is refused."""
    found = by_hand()
    zh = found.select("zh")
    assert {a: v.tolist() for a, v in zh.items()} == {"0.down_proj": [0, 1]}
    assert zh.importance["0.down_proj"].tolist() == [0.5, 0.5]
    assert zh.metadata.units.members == {"0": [0]} and zh.metadata.scores_sha256 == found.digest
    assert found.select("zh", times=1, count=2).metadata.units.members == {"0": [0], "3": [2]}
    monkeypatch.chdir(tmp_path)
    found.save("routing.safetensors")
    command = "select routing.safetensors --unit expert --language zh --times 1 --count 2 --output zh.safetensors"
    assert main(command.split()) == 0
    assert plnd.load("zh.safetensors") == found.select("zh", times=1, count=2)
    assert "2 whole experts" in capsys.readouterr().out
    for wrong in ("--times 3", "--language de", "--top-k 1", "--unit head", "--times 0.5", "--pool max"):
        assert main([*command.split(), *wrong.split()]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_how_far_apart_languages_are():
    """In block 0 zh and en differ by (5 + 5 + 5 + 5) / 2 of 20, in block 3 by (1 + 1 + 3 + 3) / 2."""
    distances = by_hand().distances()
    assert distances["en", "zh"] == pytest.approx((10 / 20 + 4 / 20) / 2)
    assert distances["ru", "zh"] == pytest.approx((10 / 20 + 6 / 20) / 2)
    apart = by_hand({"zh": {"0": [10, 10, 0, 0], "3": [10, 10, 0, 0]}, "en": {"0": [0, 0, 10, 10], "3": [0, 0, 9, 11]}})
    assert apart.distances() == {("en", "zh"): pytest.approx(1.0)}


def test_artifact(tmp_path):
    """What is read is what was written, by any reader; equal numbers are equal bytes; a flipped bit is refused."""
    path, found = tmp_path / "routing.safetensors", by_hand()
    assert found.save(path) == found.digest == by_hand().digest
    read = plnd.load(path)
    assert isinstance(read, Routing) and read.metadata == Routing.load(path).metadata
    assert all(np.array_equal(read.tokens[x][b], TOKENS[x][b]) for x in TOKENS for b in ("0", "3"))
    assert all(np.array_equal(read.weights[x][b], np.array(TOKENS[x][b]) / 2) for x in TOKENS for b in ("0", "3"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="checksum"):
        Routing.load(path)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"chosen": 3}, "en/0.tokens are not 3 of each of 10"),
        ({"tokens": {"zh": {"0": [25, -5, 0, 0], "3": [5, 5, 5, 5]}}}, "zh/0.tokens are not 2 of each"),
        ({"tokens": {"zh": {"0": [10, 10, 0], "3": [5, 5, 5, 5]}}}, r"of shape \[3\], expected I64 of shape \[4\]"),
        ({"model": {**MODEL, "units": {}}}, "metadata names block '0', which has no experts"),
        ({"version": 2}, "upgrade plnd"),
    ],
)
def test_what_no_pass_can_give_is_refused(tmp_path, wrong, words):
    """Counts that do not add up, other shapes, blocks without experts: in one line."""
    by_hand(**wrong).save(tmp_path / "wrong.safetensors")
    with pytest.raises(ArtifactError, match=words):
        plnd.load(tmp_path / "wrong.safetensors")


@pytest.mark.slow
def test_command(tmp_path, small_model, monkeypatch, capsys):
    """`plnd routing` is the call; show prints the same table; verify knows it; a dense model is refused before all."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    model = tiny_model("mixtral", torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained("mixture")
    tokenizer.save_pretrained("mixture")
    texts = {"zh": ["a b c d e f", "g h"], "en": ["ten green bottles"]}
    for language, lines in texts.items():
        Path(f"{language}.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in lines), encoding="utf-8")
    command = "routing --model mixture --corpus zh=zh.jsonl en=en.jsonl --min-length 1 --device cpu"
    assert main([*command.split(), "--output", "routing.safetensors", "--csv", "routing.csv", "--top", "2"]) == 0
    printed = capsys.readouterr().out
    expected = routing(model, texts, ReferenceConfig(min_length=1), tokenizer=tokenizer)
    read = Routing.load("routing.safetensors")
    assert all(np.array_equal(read.tokens[x][b], expected.tokens[x][b]) for x in texts for b in ("0", "1"))
    assert read.metadata.corpora["zh"].source == "zh.jsonl"
    with open("routing.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 4 * 2
    assert (
        sum(int(row["tokens"]) for row in rows if row["language"] == "zh") == 2 * 2 * read.metadata.corpora["zh"].tokens
    )
    assert main(["show", "routing.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "2 blocks in which every token goes to 2 of 4 experts" in printed and "en     zh" in shown
    assert set(printed.splitlines()[1:]) <= set(shown.splitlines())
    assert main(["verify", "routing.safetensors", "--model", "mixture"]) == 0
    capsys.readouterr()
    for model_folder, flags in ((small_model, []), ("mixture", ["--top", "0"])):
        line = ["routing", "--model", model_folder, "--corpus", "zh=zh.jsonl", "--output", "x.safetensors", *flags]
        assert main(line) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
