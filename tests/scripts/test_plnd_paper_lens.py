"""scripts/plnd_paper.py: figures 1 and 7 from `plnd lens --csv`, table 7, and the stability of neuron sets."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pictures import curves, drawn
from plnd import DetectConfig, load_model, read_documents
from plnd.demo_data import demo_corpus, demo_model
from plnd.detection.stability import measure_stability
from plnd.logit_lens.lens import LensCounts, lens_panels, save_lens
from plnd.models.loading import load_tokenizer
from programs import run_script

CORPORA = demo_corpus("detect") / "corpora"
ZH = LensCounts(
    *("models/m", "zh", "cld3", 5, 1, 2, ("input", "0"), ("en", "zh", "fr", "non-word")),
    np.array([[1, 5, 2, 2], [6, 2, 1, 1]]),
)
RU = replace(ZH, language="ru", decoded=("en", "ru", "zh", "non-word"), tokens=np.array([[2, 6, 0, 2], [0, 4, 4, 2]]))


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def percents(path: Path) -> dict[tuple[str, str], list[float]]:
    """Panel and curve to values per block."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in table(path):
        found.setdefault((row["panel"], row["curve"]), []).append(float(row["percent"]))
    return found


def test_figure1(tmp_path, capsys):
    """English in the words, mean over languages, counted by hand; drawn is a panel for each language."""
    save_lens([ZH], tmp_path / "zh.csv")
    save_lens([RU], tmp_path / "ru.csv")
    with drawn() as figures:
        run_script("plnd_paper", "figure1", tmp_path / "zh.csv", tmp_path / "ru.csv", "--output", tmp_path / "f")
    found = percents(tmp_path / "f.csv")
    english = [100 * (1 / 6 + 2 / 8) / 2, 100 * (6 / 8 + 0) / 2]
    assert found["words, mean, by cld3", "English"] == pytest.approx(english)
    assert found["words, mean, by cld3", "not English"] == pytest.approx([100 - x for x in english])
    for name, values in lens_panels([ZH])["zh (by cld3)"].items():
        assert found["zh, by cld3", name] == pytest.approx(values)
    assert {row["block"] for row in table(tmp_path / "f.csv")} == {"input", "0"}
    shown = curves(figures[0])
    panels = {f"{language}, by cld3" for language in ("Chinese", "Russian")}
    assert shown.keys() == {(panel, name) for panel in panels for name in ("English", "not English")}
    assert figures[0].axes[0].get_ylabel() == "share (%)"
    for name in ("English", "not English"):
        mean = [sum(values) / 2 for values in zip(*(shown[panel, name] for panel in panels), strict=True)]
        assert mean == pytest.approx(found["words, mean, by cld3", name])
    assert "words, mean, by cld3, %" in capsys.readouterr().out


def test_figure1_of_two_models(tmp_path):
    """As in the paper, one panel for each model; by script, German has no mean to be in."""
    german = replace(ZH, model="n", language="de", identifier="script", decoded=("Latin", "Han", "other", "non-word"))
    save_lens([ZH, german], tmp_path / "all.csv")
    run_script("plnd_paper", "figure1", tmp_path / "all.csv", "--output", tmp_path / "f")
    panels = {panel for panel, _ in percents(tmp_path / "f.csv")}
    assert panels == {"words, mean, m, by cld3", "zh, m, by cld3", "de, n, by script"}


def test_figure7(tmp_path):
    """English, Chinese and the others in the words, counted by hand."""
    save_lens([ZH, RU], tmp_path / "all.csv")
    run_script("plnd_paper", "figure7", tmp_path / "all.csv", "--output", tmp_path / "f", "--language", "zh")
    found = percents(tmp_path / "f.csv")
    english, chinese = [100 * 5 / 24, 37.5], [100 * 5 / 12, 37.5]
    assert found["words, mean, by cld3", "English"] == pytest.approx(english)
    assert found["words, mean, by cld3", "zh"] == pytest.approx(chinese)
    rest = [100 - sum(x) for x in zip(english, chinese, strict=True)]
    assert found["words, mean, by cld3", "others"] == pytest.approx(rest)
    with pytest.raises(SystemExit):
        run_script("plnd_paper", "figure7", tmp_path / "all.csv", "--output", tmp_path / "f", "--language", "en")


def test_table7(tmp_path, capsys):
    """Words counted by hand; with a model its tokens, too; the first documents only, if so asked."""
    (tmp_path / "en.txt").write_text("A cat sat.\nA dog\nthe end\n")
    (tmp_path / "all.txt").write_text("a cat a dog\nthe cat the\nbird a\n")
    arguments = (tmp_path / "en.txt", "--reference", tmp_path / "all.txt", "--languages", "en")
    limit = ("--max-documents", "2")
    run_script("plnd_paper", "table7", *arguments, "--output", tmp_path / "t", *limit, "--model", demo_model())
    words, tokens = table(tmp_path / "t.csv")
    assert [words[x] for x in ("language", "unit", "documents", "corpus", "vocabulary", "covered")] == [
        *("en", "words", "2", "4", "3", "2")
    ]
    assert (float(words["share"]), float(words["running"])) == pytest.approx((2 / 3, 6 / 9))
    assert tokens["unit"] == "tokens" and 0 < float(tokens["share"]) <= 1
    assert "66.7%" in capsys.readouterr().out


def test_stability(tmp_path, capsys):
    """The table is what `measure_stability` says, and the suggestion is printed."""
    rule = ("--top-k", "9", "--projections", "down_proj,o_proj", "--qk", "off")
    limits = ("--max-documents", "5", "--max-length", "16", "--min-length", "8", "--every", "2", "--dtype", "float32")
    arguments = (CORPORA / "zh.jsonl", "--languages", "zh", "--model", demo_model(), *rule, *limits, "--device", "cpu")
    run_script("plnd_paper", "stability", *arguments, "--output", tmp_path / "s", "--jaccard", "0.1")
    config = DetectConfig("zh", qk="off", max_documents=5, max_length=16, min_length=8)
    model, tokenizer = load_model(str(demo_model()), dtype="float32", device="cpu"), load_tokenizer(str(demo_model()))
    documents = read_documents(CORPORA / "zh.jsonl")
    options = {"top_k": 9, "projections": ["down_proj", "o_proj"]}
    found = measure_stability(model, documents, config, every=2, tokenizer=tokenizer, **options)
    rows = table(tmp_path / "s.csv")
    assert [int(row["documents"]) for row in rows] == [2, 4, 5] == found.documents.tolist()
    assert [int(row["neurons"]) for row in rows] == found.neurons.tolist()
    assert [float(row["jaccard"]) for row in rows] == found.jaccard.tolist()
    assert "from 2 of 5 documents on the set stays at 0.1 or above" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "s.svg").read_text()
    run_script("plnd_paper", "stability", *arguments, "--output", tmp_path / "s", "--jaccard", "0.999")
    assert "the corpus is too small to say" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("figure1 zh.json --output f", "zh.json: not a table of `plnd lens --csv`"),
        ("table7 a b --reference c --languages en --output t", "2 corpora, 1 references, 1 languages: expected one"),
        ("stability a b --languages en --model m --top-k 1 --output t", "2 corpora and 1 languages: expected one"),
    ],
)
def test_wrong_inputs(tmp_path, monkeypatch, capsys, arguments, message):
    """One line, status 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zh.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit) as end:
        run_script("plnd_paper", *arguments.split())
    assert end.value.code == 2 and message in capsys.readouterr().err
