"""The arena from end to end on a model of two blocks: what is in its tables is what the sets do; a run goes on."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from plnd import NeuronSet, deactivated, intervened, load_model
from plnd.commands.main import main
from plnd.comparison.config import ArenaConfig
from plnd.comparison.run import arena
from plnd.comparison.tables import table
from plnd.demo_data import demo_corpus
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.io.inputs import sealed, unsealed
from plnd.models.layout import Layout
from plnd.models.loading import load_tokenizer

LANGUAGES = ("en", "zh", "ru")
SIZES = dict(documents=2, samples=2, held_out=2, max_length=34, count=6, draws=2)
DETECTORS = "plnd-contrast,overlap,weight"


def texts(half: str) -> dict[str, list[str]]:
    """The demo's documents."""
    return {x: list(read_documents(str(demo_corpus(half) / "corpora" / f"{x}.jsonl"))) for x in LANGUAGES}


@pytest.fixture(scope="module")
def loaded(small_model):
    """Model and tokenizer."""
    return load_model(small_model, dtype="float32", device="cpu"), load_tokenizer(small_model)


@pytest.fixture(scope="module")
def ran(loaded, tmp_path_factory):
    """A comparison of three detectors with a curve, and its folder."""
    folder = tmp_path_factory.mktemp("arena")
    config = ArenaConfig(**SIZES, detectors=DETECTORS, curve="languages")
    model, tokenizer = loaded
    return arena(model, texts("detect"), texts("evaluate"), config, output=folder, tokenizer=tokenizer), folder


def rows(path) -> list[dict[str, str]]:
    """Of a table."""
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_curves_show_their_intervals(ran, tmp_path):
    """The picture of a curve holds the numbers of `curves.csv`; ends that are infinite are left out."""
    pytest.importorskip("matplotlib")
    from pictures import drawn
    from plnd.comparison.pictures import plot_comparison

    comparison, folder = ran
    with drawn() as figures:
        plot_comparison(comparison, tmp_path)
    wanted, seen = rows(folder / "curves.csv"), 0
    for axis in figures[1].axes:
        assert axis.get_xlabel() == "other languages"
        of_kind = [row for row in wanted if f"{row['ablation']} ablation" == axis.get_title()]
        detectors = list(dict.fromkeys(row["detector"] for row in of_kind))
        for detector, (line, _, (ends,)) in zip(detectors, axis.containers, strict=True):
            own = [row for row in of_kind if row["detector"] == detector]
            for at, value, end, row in zip(line.get_xdata(), line.get_ydata(), ends.get_segments(), own, strict=True):
                numbers = [float(row[f"own/others{part}"]) for part in ("", "_low", "_high")]
                assert at == pytest.approx(float(row["languages"]))
                if all(map(math.isfinite, numbers)):
                    assert [value, *end[:, 1]] == pytest.approx(numbers)
                    seen += 1
    assert seen > 3


def bits_per_byte(model, tokenizer, language: str) -> float:
    """Of the last two documents, one at a time, by the model's own loss."""
    nats = size = 0.0
    for text in texts("evaluate")[language][-2:]:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:33]
        tokens = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            nats += float(model(tokens, labels=tokens).loss) * len(ids)
        size += len(tokenizer.decode(ids, skip_special_tokens=True).encode())
    return nats / math.log(2) / size


@pytest.mark.slow
def test_changes_are_what_the_saved_sets_do(loaded, ran):
    """Zero ablation and random controls of a saved set, evaluated anew one document at a time."""
    model, tokenizer = loaded
    _, folder = ran
    found = {
        (r["detector"], r["ablation"], r["sample"], r["set"], r["language"]): r for r in rows(folder / "changes.csv")
    }
    assert len(found) == 3 * 2 * 2 * 3 * 3
    plain = {language: bits_per_byte(model, tokenizer, language) for language in LANGUAGES}
    for detector in ("plnd-contrast", "weight"):
        neurons = NeuronSet.load(folder / "sets" / f"1.{detector}.zh.safetensors")
        assert {name for name, count in neurons.counts().items() if count} == {"down_proj"}
        with deactivated(model, neurons):
            for language in ("zh", "ru"):
                change = bits_per_byte(model, tokenizer, language) - plain[language]
                row = found[detector, "zero", "1", "zh", language]
                assert float(row["change"]) == pytest.approx(change, abs=2e-6) and int(row["neurons"]) == len(neurons)
        random = []
        for seed in (1000, 1001):
            with deactivated(model, neurons.random_like(seed)):
                random.append(bits_per_byte(model, tokenizer, "zh") - plain["zh"])
        assert float(found[detector, "zero", "1", "zh", "zh"]["random"]) == pytest.approx(np.mean(random), abs=2e-6)
        assert found[detector, "zero", "1", "zh", "ru"]["random"] == ""


@pytest.mark.slow
def test_mean_ablation_takes_the_means_of_all_languages_together(loaded, ran):
    """Over all tokens of the sample's detection documents, watched one document at a time."""
    model, tokenizer = loaded
    _, folder = ran
    inner: dict[str, list[torch.Tensor]] = {}
    handles = [
        target.module.register_forward_pre_hook(lambda m, a, n=name: inner.setdefault(n, []).append(a[0][0]))
        for name, target in Layout(model).targets.items()
        if name.endswith("down_proj")
    ]
    for language in LANGUAGES:
        for text in texts("detect")[language][2:4]:  # sample 1
            with torch.no_grad():
                model(torch.tensor([tokenizer(text, truncation=True, max_length=34)["input_ids"]]))
    for handle in handles:
        handle.remove()
    means = {name: torch.cat(parts).mean(0).numpy() for name, parts in inner.items()}
    neurons = NeuronSet.load(folder / "sets" / "1.overlap.zh.safetensors")
    plain = bits_per_byte(model, tokenizer, "ru")
    with intervened(model, neurons, kind="mean", means=means):
        change = bits_per_byte(model, tokenizer, "ru") - plain
    key = ("overlap", "mean", "1", "zh", "ru")
    (row,) = [r for r in rows(folder / "changes.csv") if tuple(r[k] for k in list(r)[:5]) == key]
    assert float(row["change"]) == pytest.approx(change, abs=2e-6)


def test_tables_agree_with_each_other(ran):
    """The mean over languages is that of the changes; each line has its interval; settings name the documents."""
    comparison, folder = ran
    lines = {(r["detector"], r["ablation"], r["language"]): r for r in rows(folder / "comparison.csv")}
    assert len(lines) == 3 * 2 * (1 + 3)
    changes = rows(folder / "changes.csv")
    own = [
        float(r["change"])
        for r in changes
        if (r["detector"], r["ablation"]) == ("weight", "zero") and r["set"] == r["language"]
    ]
    assert float(lines["weight", "zero", "mean"]["own"]) == pytest.approx(np.mean(own), abs=1e-9)
    assert lines["plnd-contrast", "zero", "mean"]["p_corrected"] == "" != lines["weight", "zero", "mean"]["p_corrected"]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["documents"]["samples"][1]["zh"]["documents"] == [2, 3] and settings["neurons"] == 6
    points = rows(folder / "curves.csv")
    of_weight = [r for r in points if (r["detector"], r["ablation"]) == ("weight", "zero")]
    assert [(r["curve"], r["documents"], r["languages"]) for r in of_weight] == [
        ("languages", "2", "1"),
        ("languages", "2", "2"),
    ]
    printed = table(comparison)
    assert "zero ablation" in printed and "mean ablation" in printed and printed.count("plnd-contrast") == 3


@pytest.mark.slow
def test_a_folder_goes_on(loaded, ran, tmp_path):
    """What is there is taken as it is, what is missing is made again to the same bytes, further detectors join."""
    model, tokenizer = loaded
    _, folder = ran
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".safetensors")}
    lost = folder / "results" / "1.overlap.mean.json"
    lost.unlink()
    kept = folder / "results" / "0.weight.zero.json"
    kept.write_text(sealed({x: {**found, "neurons": 5} for x, found in unsealed(json.loads(kept.read_text())).items()}))
    config = ArenaConfig(**SIZES, detectors="overlap,weight,lape", ablations="mean,zero", curve="documents")
    again = arena(model, texts("detect"), texts("evaluate"), config, output=folder, tokenizer=tokenizer)
    assert lost.read_bytes() == before[lost]
    assert again.outcomes["weight", "zero"].neurons.tolist()[0] == [5, 5, 5]
    assert ("lape", "mean") in again.outcomes and again.reference == "overlap"
    assert [point.documents for point, _ in again.curves["documents"]["lape", "zero"]] == [1, 2]
    kept.write_bytes(before[kept])


def test_another_model_in_the_same_place_is_refused(loaded, ran):
    """Weights or a configuration that changed since are another comparison, though name, blocks and widths agree."""
    model, tokenizer = loaded
    config = ArenaConfig(**SIZES)
    weights, scaled = copy.deepcopy(model), copy.deepcopy(model)
    weights.lm_head.weight.data[0] += 1
    scaled.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    for other in (weights, scaled):
        with pytest.raises(PLNDError, match="holds another comparison, whose weights is .* choose another folder"):
            arena(other, texts("detect"), texts("evaluate"), config, output=ran[1], tokenizer=tokenizer)


@pytest.mark.parametrize("change", [dict(max_length=33), dict(count=7), dict(documents=1)])
def test_other_settings_in_a_folder_are_refused(loaded, ran, change):
    """They would mix numbers that cannot be compared."""
    model, tokenizer = loaded
    config = ArenaConfig(**{**SIZES, **change})
    with pytest.raises(PLNDError, match="holds another comparison, whose .* choose another folder"):
        arena(model, texts("detect"), texts("evaluate"), config, output=ran[1], tokenizer=tokenizer)


@pytest.mark.slow
def test_damaged_files_of_a_folder_are_one_line(loaded, ran, tmp_path):
    """Whatever is wrong with a step that is there is said, with its file, before it counts: nothing is taken for it."""
    model, tokenizer = loaded
    folder = tmp_path / "arena"
    shutil.copytree(ran[1], folder)
    result, measures = folder / "results" / "0.weight.zero.json", folder / "measures" / "0.en.npz"
    config = ArenaConfig(**SIZES, detectors=DETECTORS, curve="languages")
    halves = texts("detect"), texts("evaluate")

    def refused(path: Path, data: bytes) -> str:
        before = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(PLNDError) as caught:
            arena(model, *halves, config, output=folder, tokenizer=tokenizer)
        path.write_bytes(before)
        line = str(caught.value)
        assert line.startswith(f"{path}: ") and "\n" not in line
        return line

    whole = unsealed(json.loads(result.read_text()))
    fewer, shorter = copy.deepcopy(whole), copy.deepcopy(whole)
    fewer["zh"]["controls"].pop()
    shorter["zh"]["nats"]["en"].pop()
    text = result.read_text()
    for data, problem in (
        (b"{", "not JSON"),
        (text.rstrip()[:-1].encode() + b', "zh": 0}', "'zh' is there twice"),
        (b"[]", "a JSON list, expected an object"),
        (b'{"en": 0}', "delete it"),
        (text.replace('"neurons": 6', '"neurons": 5').encode(), "the checksum is of something else"),
        (json.dumps(fewer).encode(), "another number of controls"),
        (json.dumps(shorter).encode(), "1 numbers, expected 2"),
    ):
        line = refused(result, data)
        assert problem in line and line.endswith("; delete it, and it is made again")
    assert "not JSON" in refused(folder / "settings.json", b"{")
    assert "delete it" in refused(folder / "results" / "plain.json", b"{}")
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        before = weight.clone()
        weight.add_(1)
        with pytest.raises(PLNDError, match="holds another comparison, whose weights is"):
            arena(model, *halves, config, output=folder, tokenizer=tokenizer)
        weight.copy_(before)
    result.unlink()  # so that measures are read
    arrays = dict(np.load(measures))
    objects, other = io.BytesIO(), io.BytesIO()
    np.savez(objects, **{**arrays, "value": np.array([None])})
    np.savez_compressed(other, **{**arrays, "value": np.zeros((2, 10**7), np.float32)})
    for data, problem in (
        (measures.read_bytes()[:-9], "damaged ("),
        (objects.getvalue(), "value is object of shape (1,)"),
        (other.getvalue(), "value is float32 of shape (2, 10000000)"),
    ):
        assert problem in refused(measures, data)


@pytest.mark.slow
def test_the_command(small_model, tmp_path, capsys):
    """All detectors, the table on the screen and pictures in the folder; one folder of corpora is cut in two."""
    pytest.importorskip("matplotlib")
    sizes = (
        "--documents",
        "2",
        "--samples",
        "1",
        "--held-out",
        "2",
        "--max-length",
        "34",
        "--count",
        "5",
        "--draws",
        "1",
    )
    places = (
        "--corpora",
        str(demo_corpus("detect") / "corpora"),
        "--languages",
        "en,zh",
        "--output",
        str(tmp_path / "o"),
    )
    assert main(["arena", "--model", small_model, "--device", "cpu", *sizes, *places, "--curve", "neurons"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ArenaConfig().listed("detectors"))
    assert {path.name for path in (tmp_path / "o").glob("*.png")} == {"arena.png", "curve-neurons.png"}
    held_out = json.loads((tmp_path / "o" / "settings.json").read_text())["documents"]["held_out"]
    first = len(list(read_documents(str(demo_corpus("detect") / "corpora" / "en.jsonl")))) // 2
    assert held_out["en"]["documents"][-1] == first - 1


def test_bad_input_is_one_line(tmp_path, capsys):
    """Before a model is loaded."""
    assert main(["arena", "--languages", "en,en", "--output", str(tmp_path)]) == 2
    assert "languages en, en: expected each once" in capsys.readouterr().err
    assert main(["arena", "--corpora", "a", "b", "c"]) == 2
    assert "3 corpora: expected one folder, or one for detection and one for evaluation" in capsys.readouterr().err
