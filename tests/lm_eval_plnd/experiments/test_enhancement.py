"""Figure 4 and Table 6: what is trained, on which documents, and that the numbers are those of the trained models."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import lm_eval_plnd.experiments
from lm_eval_plnd.experiments.changes import Folder
from lm_eval_plnd.experiments.conditions import Setting
from lm_eval_plnd.experiments.enhancement import Tuning, tunings, write_documents
from lm_eval_plnd.experiments.gains import gain
from lm_eval_plnd.experiments.run import experiment, load_tasks
from lm_eval_plnd.experiments.settings import load_settings
from plnd.demo_data import demo_corpus
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from programs import run_script

TEXT = {
    "task": "plnd_text_{language}",
    "metadata": {"data_dir": "plnd:corpus/evaluate", "text_documents": "all"},
    "model": {"max_length": 64, "add_bos_token": False},
    "limit": 2,
}
SETTINGS = Path(lm_eval_plnd.experiments.__file__).parent / "settings_files"
FEW = {"documents": [2], "compared": 3, "max_length": 16, "batch_size": 2}
TINY = {"tasks": {"text": TEXT}, "experiments": ["figure4", "table6"], "enhancement": {**FEW, "low": ["zh"]}}


def names(settings) -> list[str]:
    """What is trained."""
    return [tuning.name for tuning in tunings(settings)]


def test_what_is_trained(tiny):
    """Figure 4: a language's neurons on every number of documents, all else on one; Table 6: all on that one, once."""
    enhancement = {"documents": [100, 800], "compared": 400, "high": ["de"], "low": ["zh"]}
    settings = tiny(enhancement=enhancement, experiments=["figure4", "table6"], seeds=[0, 1])
    one = [f"tuned.de.{n}.r0.neurons" for n in (100, 400, 800)] + [
        f"tuned.de.400.r0.{state}" for state in ("random", "lora", "full")
    ]
    assert names(settings)[:6] == one and names(settings)[6:12] == [name.replace("r0", "r1") for name in one]
    assert names(settings)[12:16] == [f"tuned.zh.400.r0.{state}" for state in ("neurons", "random", "lora", "full")]
    assert names(tiny(experiments=["table5"], tasks={"reading": "r_{language}"} | {"generation": "g_{language}"})) == []


def test_items_are_the_papers_that_there_are(tiny):
    """Of the four benchmarks those among the tasks; without any of them the text, else beside them."""
    tasks = {"generation": "g_{language}", "reasoning": {"task": "m_{language}", "languages": ["en", "zh"]}}
    settings = tiny(tasks={**tasks, "text": TEXT}, experiments=["figure4"], enhancement={"high": ["de", "zh"]})
    assert settings.experiments == {"figure4": ["reasoning", "generation"]}
    by_language = {tuning.language: tuning.tasks(settings) for tuning in tunings(settings)}
    assert by_language["de"] == {
        "generation": {"en": "g_en", "de": "g_de"},
        "text": {"en": "plnd_text_en", "de": "plnd_text_de"},
    }
    assert by_language["zh"]["reasoning"] == {"en": "m_en", "zh": "m_zh"}
    assert tiny(**TINY).experiments == {"figure4": ["text"], "table6": ["text"]}


@pytest.mark.parametrize(
    ("name", "models"),
    [("mistral-7b-v0.1", 153), ("gemma-3-270m", 18), ("qwen2.5-coder-0.5b", 18)],
)
def test_the_settings_that_come_with_plnd(name, models):
    """As many models as their comments say: of Mistral (5 × 7 + 4 × 4) × 3 seeds."""
    settings = load_settings(SETTINGS / f"{name}-enhancement.yaml")
    assert len(tunings(settings)) == models


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"enhancement": {"low": ["vi"]}}, "enhancement.low: vi is not among de, zh"),
        (
            {"enhancement": {}, "experiments": {"table6": "reading"}},
            "enhancement.low: none of the paper's is among languages",
        ),
        ({"enhancement": {"states": ["lore"]}}, "enhancement.states: unknown 'lore', expected some of neurons, random"),
        ({"enhancement": {"rates": {"lora": 0.0}}}, "enhancement.rates.lora: found 0.0, expected more than 0"),
        ({"enhancement": {"pool": 399}}, "enhancement.pool: found 399, expected at least 800"),
        ({"enhancement": {"neurons": "some"}}, "enhancement.neurons: unknown 'some'"),
        ({"enhancement": {"corpus": "a.txt"}}, "enhancement.corpus: 'a.txt' is one for all languages"),
        ({"enhancement": {"epoch": 2}}, "enhancement.epoch: unknown, expected some of documents, compared"),
        ({"model": {"pretrained": "m"}}, "model.dtype: found none, expected bfloat16 or float32"),
        ({"model": {"pretrained": "m", "dtype": "float32", "peft": "x"}}, "model.peft: a model with it is not trained"),
        (
            {"model": {"pretrained": "m", "dtype": "float32", "device": "cuda:1"}},
            "model.device: found cuda:1, expected",
        ),
    ],
)
def test_refusals(tiny, changes, line):
    """One line with the field, before anything is loaded."""
    tasks = {"reading": "r_{language}"}
    with pytest.raises(PLNDError) as caught:
        tiny(**{"tasks": tasks, "experiments": {"figure4": "reading", "table6": "reading"}, **changes})
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_documents_are_drawn(tiny, tmp_path):
    """At random by the seed; a larger draw holds the smaller one; what is evaluated is not drawn; too few are told."""
    corpus = tmp_path / "zh.jsonl"
    settings = tiny(**{**TINY, "tasks": {"text": {**TEXT, "metadata": {"data_dir": str(tmp_path)}}}})
    (tmp_path / "corpora").mkdir()
    texts = [f"document {n}" for n in range(40)]
    for language in ("en", "de", "zh"):
        path = tmp_path / "corpora" / f"{language}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = settings.model_copy(update={"corpus": str(tmp_path / "corpora" / "{language}.jsonl")})
    tasks = load_tasks(settings)
    evaluated = {document["text"] for document in tasks["plnd_text_zh"].eval_docs}
    assert len(evaluated) == 20

    def drawn(documents: int, seed: int) -> list[str]:
        write_documents(settings, Tuning((), "neurons", "zh", documents, seed), tasks, corpus)
        return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]

    few, many, other = drawn(5, 0), drawn(12, 0), drawn(5, 1)
    assert len(set(many)) == 12 and set(few) < set(many) and set(other) != set(few)
    assert not evaluated & {*many, *other}
    with pytest.raises(
        PLNDError, match="20 of its first 10000 documents are not evaluated, and 21 are to be trained on"
    ):
        drawn(21, 0)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A finished experiment: Chinese by all states, German by its neurons alone, on two and three documents."""
    folder = tmp_path_factory.mktemp("enhancement") / "run"
    experiment(
        tiny(**{**TINY, "enhancement": {**TINY["enhancement"], "high": ["zh"], "rates": {"lora": 0.05}}}), folder
    )
    return folder


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_a_run(finished, tmp_path, capsys):
    """Every state is trained and evaluated; tables have the runs' own numbers; what is missing is redone."""
    rows = table(finished / "enhancement.csv")
    trained = {row["setting"]: row for row in rows}
    assert list(trained) == [
        *("tuned.zh.2.r0.neurons", "tuned.zh.3.r0.neurons"),
        *(f"tuned.zh.3.r0.{state}" for state in ("random", "lora", "full")),
    ]
    neurons, random = trained["tuned.zh.3.r0.neurons"], trained["tuned.zh.3.r0.random"]
    assert neurons["parameters"] == random["parameters"] != trained["tuned.zh.3.r0.full"]["parameters"]
    mask = NeuronSet.load(finished / "neurons" / "zh.all.safetensors")
    assert neurons["mask_sha256"] == mask.digest and (neurons["steps"], random["steps"]) == ("2", "2")
    deltas = load_file(finished / "tuned" / "tuned.zh.3.r0.neurons" / "adapter_model.safetensors")
    assert sum(values.size for values in deltas.values()) == int(neurons["parameters"])
    assert not list((finished / "tuned" / "tuned.zh.3.r0.full").glob("*.safetensors"))  # the model itself is not kept
    folder = Folder(finished)
    moved = gain(folder, ["text"], "lora", 3, ["zh"])
    values = folder.documents(Tuning((), "lora", "zh", 3, 0), "text", "zh")
    assert moved.value == pytest.approx(values.mean()) and moved.change.value != 0
    assert moved.original == pytest.approx(folder.documents(Setting(()), "text", "zh").mean())
    for name in ("figure4", "table6"):
        run_script("plnd_paper", name, finished, "--output", tmp_path / name, "--plot", tmp_path / f"{name}.svg")
    shown = {(r["state"], r["documents"], r["in"]): float(r["value"]) for r in table(tmp_path / "figure4.csv")}
    assert shown["lora", "3", "its own language"] == pytest.approx(moved.value)
    assert {(r["state"], r["in"]) for r in table(tmp_path / "table6.csv")} >= {("random", "zh"), ("full", "en")}
    assert (tmp_path / "figure4_english.svg").is_file() and (tmp_path / "table6_text.svg").is_file()
    queries = demo_corpus("detect") / "corpora" / "{language}.jsonl"
    options = ("--output", tmp_path / "figure3", "--queries", queries, "--max-documents", 3)
    run_script("plnd_paper", "figure3", finished, *options)
    counts = [(float(row["active"]), int(row["neurons"])) for row in table(tmp_path / "figure3.csv")]
    assert 0 < sum(active for active, _ in counts) < sum(size for _, size in counts)
    assert all(active <= size for active, size in counts) and (tmp_path / "figure3_set.svg").is_file()
    before = (finished / "enhancement.csv").read_bytes()
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "samples" / "tuned.zh.3.r0.random.json").unlink()
    experiment(folder.settings, copy)
    assert (copy / "enhancement.csv").read_bytes() == before  # the missing one was trained again, to the same numbers
