"""Parts, merged in any order, are the scores of the run without shards, bit for bit; wrong parts are one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save

import killed
from detecting import BAD, CONFIG, Stopped, interrupted, some_documents
from handmade import rechecked
from plnd.any_artifact import load
from plnd.deactivation import deactivated
from plnd.detection.config import SCORINGS
from plnd.detection.part import Part, merge
from plnd.detection.run import detect, detect_shard
from plnd.errors import ArtifactError, CorpusError, PLNDError
from plnd.io.corpus import Sections
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from tiny import tiny_model

SMALL = replace(CONFIG, batch_size=2, qk="off")


def documents() -> list[list[int]]:
    """Of several lengths, in six windows; two are too short, and two have a token that `model` does not know."""
    texts = some_documents([4 + n % 9 for n in range(45)], seed=2)
    texts[3], texts[30] = [5], [6, 7]
    texts[10][1] = texts[31][2] = BAD
    return texts


def model(family: str = "llama", **options) -> torch.nn.Module:
    """A tiny one in float32 that gives one token no finite embedding."""
    made = tiny_model(family, torch.float32, **options)
    with torch.no_grad():
        made.get_input_embeddings().weight[BAD] = torch.inf
    return made


def in_parts(count: int, texts=None, config=SMALL, of=None) -> list[Part]:
    """All parts of a run, in no order."""
    of, texts = of or model(), documents() if texts is None else texts
    parts = [detect_shard(of, texts, f"{n + 1}/{count}", config, source="here") for n in range(count)]
    random.Random(count).shuffle(parts)
    return parts


@pytest.fixture(scope="module")
def seven() -> list[Part]:
    """The parts of seven shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plnd.detection.run.WINDOW", 4)
        return in_parts(7)


@pytest.fixture
def windows(monkeypatch) -> None:
    """Of four batches, each of which is a checkpoint."""
    monkeypatch.setattr("plnd.detection.run.WINDOW", 4)
    monkeypatch.setattr("plnd.detection.run.CHECKPOINT_SECONDS", 0)


def test_parts_make_the_scores_of_one_run(windows, seven, tmp_path):
    """Merged from files: numbers, counts, digests and skipped documents are those of one run, in the same file."""
    one = detect(model(), documents(), SMALL, source="here")
    assert one.metadata.corpus.skipped == {"shorter than 4 tokens": [3, 30], "non-finite importance": [10, 31]}
    sizes = [part.metadata.corpus.documents for part in seven]
    assert sum(sizes) == one.metadata.corpus.documents == 41 and min(sizes) >= 3
    for part in seven:
        part.save(tmp_path / f"{part.shard.number}.part")
    merge(sorted(tmp_path.glob("*.part"))).save(tmp_path / "merged")
    one.save(tmp_path / "one")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "one").read_bytes()


def test_more_shards_than_batches(windows):
    """Those without a document write a part, too, which says so; merged, nothing is missing."""
    texts = some_documents([9, 4, 12, 7, 9])
    parts = in_parts(6, texts)
    assert sorted(part.metadata.corpus.documents for part in parts) == [0, 0, 0, 1, 2, 2]
    assert merge(parts).digest == detect(model(), texts, SMALL, source="here").digest


def test_the_first_documents_only(windows):
    """`max_documents` are those of the whole corpus."""
    config = replace(SMALL, max_documents=21)
    assert merge(in_parts(3, config=config)).digest == detect(model(), documents(), config, source="here").digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *({"method": method, "scoring": scoring} for method in SCORINGS for scoring in SCORINGS[method]),
        {"qk": "exact"},
        {"epsilon": 0.05},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_method(windows, settings):
    """Whatever is measured, and with a rule that is known ahead, whose parts each find other rows dead."""
    config, texts = replace(CONFIG, batch_size=2, qk="first_order"), documents()
    config = replace(config, **settings)
    whole = model("llama")
    expected = detect(whole, texts, config, source="here")
    assert merge(in_parts(4, texts, config, whole)).digest == expected.digest


@pytest.mark.slow
def test_every_family(windows, variant):
    """For every row of the table."""
    texts, whole = some_documents([5 + n % 6 for n in range(18)]), tiny_model(variant)
    config = replace(CONFIG, batch_size=2, qk="first_order")
    expected = detect(whole, texts, config, source="here")
    assert merge(in_parts(3, texts, config, whole)).digest == expected.digest


@pytest.mark.parametrize("after", [0, 9, 30, 44])
def test_a_shard_that_was_interrupted_goes_on(windows, seven, tmp_path, after):
    """Resumed, it writes the part that it would have written."""
    path = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        detect_shard(model(), interrupted(documents(), after), "3/7", SMALL, source="here", checkpoint=path)
    assert path.exists() == (after >= 9)
    found = detect_shard(model(), documents(), "3/7", SMALL, source="here", checkpoint=path, resume=True)
    (expected,) = (part for part in seven if part.shard.number == 3)
    assert found.to_bytes() == expected.to_bytes()


def test_another_shard_does_not_go_on(windows, tmp_path):
    """The checkpoint of one shard is none of another's."""
    path = tmp_path / "checkpoint"
    detect_shard(model(), documents(), "3/7", SMALL, checkpoint=path)
    with pytest.raises(PLNDError, match="made with another model or settings"):
        detect_shard(model(), documents(), "4/7", SMALL, checkpoint=path, resume=True)


@pytest.mark.slow
def test_shards_that_are_killed_and_shards_on_more_threads(tmp_path):
    """Seven processes in random order, some killed with kill -9 and resumed, one on two threads: the same file."""
    subprocess.run([sys.executable, killed.__file__, tmp_path], check=True, cwd=Path(__file__).parents[3])
    said = json.loads((tmp_path / "killed.json").read_text())
    assert len(said["killed"]) == 3 and said["resumed"] == said["killed"]
    merge(sorted(tmp_path.glob("*.part"))[::-1]).save(tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "one").read_bytes()


# sections


def test_a_corpus_in_sections(windows):
    """A shard opens the sections that it reads and no other; numbers of skipped documents run on; the digest is one."""
    texts = documents()
    opened: list[int] = []

    def section(number: int, documents: list) -> Callable:
        return lambda: opened.append(number) or iter(documents)

    cuts = [slice(0, 9), slice(9, 9), slice(9, 32), slice(32, 45)]
    corpus = Sections([section(number, texts[cut]) for number, cut in enumerate(cuts)])
    one = detect(model(), corpus, SMALL, source="here")
    assert opened == [0, 1, 2, 3]
    assert one.metadata.corpus.skipped == {"shorter than 4 tokens": [3, 30], "non-finite importance": [10, 31]}
    assert one.metadata.corpus.sha256 != detect(model(), texts, SMALL).metadata.corpus.sha256
    parts = []
    for number, read in enumerate([[0], [1], [2], [3], [0]]):
        opened.clear()
        parts.append(detect_shard(model(), corpus, f"{number + 1}/5", SMALL, source="here"))
        assert opened == read
    assert merge(parts[::-1]).digest == one.digest


def test_the_first_documents_of_sections(windows):
    """`max_documents` are counted from the beginning: then every shard reads what one run reads."""
    texts, config = documents(), replace(SMALL, max_documents=20)
    corpus = Sections([lambda: iter(texts[:20]), lambda: iter(texts[20:])])
    parts = [detect_shard(model(), corpus, f"{n}/2", config) for n in (1, 2)]
    assert merge(parts).digest == detect(model(), texts, config).digest


# what is refused


def test_wrong_parts(windows, seven):
    """Missing, twice, or of another run: one line that names the part and says what differs."""

    def refusal(parts) -> str:
        with pytest.raises(PLNDError) as caught:
            merge(parts)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def other(of=None, texts=None, **settings) -> str:
        part = detect_shard(of or model(), texts or documents(), "1/7", replace(SMALL, **settings), source="here")
        return refusal([*parts[1:], part])

    parts = sorted(seven, key=lambda part: part.shard.number)
    advice = "; merge the parts of one run"
    assert refusal([]) == "no parts, expected all those of one run"
    assert refusal(parts[0]) == f"{parts[0]}: one part, expected a list of all of them"
    assert refusal(parts[2:]) == "shard 1/7, 2/7: no part of it; detect it, and merge all 7 parts"
    assert refusal([*parts, parts[3]]) == "part 4/7: shard 4/7, and so is part 4/7; give each once"
    half = detect_shard(model(), documents()[:8], "2/2", SMALL)
    assert refusal([parts[0], half]) == f"part 2/2: one of 2 shards, but part 1/7 of 7{advice}"
    assert other(language="ru") == f"part 1/7: language is 'ru', but 'xx' in part 2/7{advice}"
    assert other(batch_size=3).startswith("part 1/7: method.batch_size is 3, but 2 in part 2/7")
    assert other(epsilon=0.5).startswith("part 1/7: method.epsilon is 0.5, but None in part 2/7")
    assert other(of=model().double()).startswith("part 1/7: dtype is 'float64', but 'float32' in part 2/7")
    assert other(of=model("qwen2")).startswith("part 1/7: model.model_type is 'qwen2', but 'llama' in part 2/7")
    assert other(of=model(seed=1)).startswith("part 1/7: the digest of the model's weights is '")
    assert other(texts=documents()[::-1]).startswith("part 1/7: the digest of the corpus is '")
    assert other(texts=documents()[:-1]).startswith("part 1/7: the number of documents in the corpus is 44, but 45 in")
    newer = Part(parts[0].metadata.replaced(plnd="0.0.0"), parts[0].totals)
    assert refusal([newer, *parts[1:]]).startswith("part 2/7: plnd's version is '")


def test_a_mask_that_was_on(windows, seven):
    """A part of the model with neurons off is none of the model's with all on."""
    whole = model()
    neurons = NeuronSet({"0.up_proj": np.array([3], dtype=np.int32)}, {"0.up_proj": np.ones(1, dtype=np.float32)},
                        {"model": detect(whole, documents(), SMALL).metadata.model})  # fmt: skip
    with deactivated(whole, neurons, mode="activations"):
        part = detect_shard(whole, documents(), "1/7", SMALL, source="here")
    with pytest.raises(PLNDError, match="part 1/7: deactivated is .*, but None in part"):
        merge([*(part for part in seven if part.shard.number > 1), part])


def test_a_part_is_no_scores(seven, tmp_path):
    """Wherever scores or neurons are read, a part is refused by name, with what to do."""
    path = tmp_path / "zh.part"
    seven[0].save(path)
    for read in (Scores.load, NeuronSet.load, load):
        with pytest.raises(ArtifactError) as caught:
            read(path)
        wording = f"a part of scores (shard {seven[0].shard}); merge first: plnd merge PART… --output F"
        assert str(caught.value) == f"{path}: {wording}"
    scores = merge(seven)
    scores.save(path)
    with pytest.raises(ArtifactError, match="holds 'plnd.scores', expected a part"):
        merge([path])


def test_nothing_to_score(windows, tmp_path):
    """Where no document is long enough every shard says so; where none gives finite numbers, the merge does."""
    with pytest.raises(CorpusError, match=r"corpus: no document to score among 2 \(2 shorter than 4 tokens, 0 with"):
        detect_shard(model(), [[5], [6]], "1/2", SMALL)
    with pytest.raises(CorpusError, match=r"here: no document to score among 3 \(1 shorter than 4 tokens, 2 with"):
        merge(in_parts(2, [[5], [BAD] * 9, [BAD] * 4]))
    (empty,) = in_parts(1, [[5], [BAD] * 9])
    empty.save(tmp_path / "empty.part")
    assert Part.load(tmp_path / "empty.part").metadata == empty.metadata


@pytest.mark.parametrize(
    "change, wording",
    [
        (lambda said, values: said.update(version=2), "format version 2, but this plnd reads up to 1"),
        (lambda said, values: said.pop("sites"), "metadata field sites is missing"),
        (lambda said, values: said["shard"].update(number=9), "metadata says shard 9/7"),
        (lambda said, values: said["sections"].append(said["sections"][0]), " read sections [0, 0] of 1"),
        (lambda said, values: said["sections"][0].update(number=1), " read sections [1] of 1"),
        (lambda said, values: said["sections"][0]["short"].update(count=0), "counts 0 skipped documents and names"),
        (lambda said, values: said["sites"][0].update(width=3), "neurons, but 'o_proj' has others"),
        (lambda said, values: said["sites"].pop(), "values of shape [8, "),
        (lambda said, values: said["sites"].append(said["sites"][0]), "metadata names sites twice, or others than"),
        (lambda said, values: said["method"].pop("min_length"), "metadata does not say min_length"),
        (lambda said, values: said["corpus"].update(documents=0), "0 documents and "),
        (lambda said, values: values.__setitem__((0, 3), -1), "values that are negative or not finite"),
        (lambda said, values: values.__setitem__((3, 3), np.nan), "values that are negative or not finite"),
        (lambda said, values: values.__setitem__((1, 3), 0.5), "ranks that no neuron can have"),
        (lambda said, values: values.__setitem__((1, 3), 1e9), "ranks that no neuron can have"),
    ],
    ids=[
        "newer",
        "a field",
        "shard",
        "twice",
        "section",
        "count",
        "width",
        "sites",
        "site twice",
        "min_length",
        "documents",
        "negative",
        "nan",
        "half a rank",
        "rank",
    ],
)
def test_damaged_parts(seven, tmp_path, change, wording):
    """What cannot be is refused in one line with the file's name."""
    path = tmp_path / "zh.part"
    seven[0].save(path)
    with safe_open(path, framework="np") as stream:
        values, said = stream.get_tensor("values"), json.loads(stream.metadata()["plnd"])
    change(said, values)
    path.write_bytes(rechecked(save({"values": values}, metadata={"plnd": json.dumps(said, separators=(",", ":"))})))
    with pytest.raises(ArtifactError) as caught:
        merge([path])
    assert str(caught.value).startswith(f"{path}: ") and wording in str(caught.value)


def test_a_part_in_one_line(seven):
    """Its `repr` says which shard it is and of how many documents."""
    assert repr(seven[0]).startswith(f"Part({seven[0].shard} over {seven[0].metadata.corpus.documents} documents, ")
