"""`plnd roles`: from JSON lines and from lm-eval tasks, to an artifact that an evaluation of these tasks accepts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_plnd.model import PLNDLM
from lm_eval_plnd.parallel_tasks import named_tasks, parallel_tasks
from lm_eval_plnd.task_folder import tasks_folder
from plnd.commands.main import main
from plnd.demo_data import demo_model
from plnd.errors import CorpusError
from plnd.roles.roles import ROLES, Roles

LANGUAGES = ("en", "de", "zh")
XNLI = ",".join(f"plnd_ranked_xnli_{language}" for language in LANGUAGES)
CAPITALS = {f"Q{n}": {x: (f"land {n} {x}", f"city {n} {x}") for x in LANGUAGES} for n in range(12)}


def put(path: Path, rows) -> None:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four pairs of XNLI, and capitals of which each language lacks another and has its own order."""
    folder = tmp_path_factory.mktemp("data")
    labels = ["entailment", "neutral", "contradiction", "neutral"]
    for place, language in enumerate(LANGUAGES):
        pairs = [
            {"premise": f"{language} {n}.", "hypothesis": f"no {n}", "label": label} for n, label in enumerate(labels)
        ]
        for split in ("dev", "test"):
            put(folder / "xnli" / f"xnli_{split}_{language}.jsonl", pairs)
        facts = [
            {
                "sub_uri": item,
                "obj_uri": "Q",
                "sub_label": names[language][0],
                "obj_label": names[language][1],
                "lineid": 0,
            }
            for item, names in CAPITALS.items()
            if item != f"Q{place}"
        ]
        code = {"zh": "zh-hans"}.get(language, language)
        put(folder / "fact_probing" / "tuples" / f"{code}.jsonl", facts[:: -1 if place else 1])
    return folder


def run(*arguments: str) -> int:
    """`plnd roles` on the demo's model."""
    return main(["roles", "--model", str(demo_model()), "--device", "cpu", "--dtype", "float32", *arguments])


def evaluate(lm, tasks, data, **options) -> dict:
    """lm-eval's own results."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={"data_dir": str(data)})
    return simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=False, **options)


def test_from_tasks_to_an_evaluation(data, tmp_path, capsys):
    """Roles of lm-eval's prompts serve lm-eval, with the same documents and no others."""
    output, table, scores, plot = (tmp_path / name for name in ("x.safetensors", "x.csv", "scores.csv", "x.svg"))
    metadata = json.dumps({"data_dir": str(data)})
    options = ["--thresholds", "0,0.1", "--csv", str(table), "--attribution", str(scores), "--plot", str(plot)]
    assert run("--tasks", XNLI, "--metadata", metadata, "--limit", "3", "--output", str(output), *options) == 0
    assert "3 examples in en, de, zh" in capsys.readouterr().out
    roles = Roles.load(output)
    assert roles.tasks == XNLI.split(",") and roles.metadata["documents"] == [[n] * 3 for n in range(3)]
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 2 * 8 and {row["threshold"] for row in rows} == {"0.0", "0.1"}
    for row in rows:
        assert sum(float(row[role]) for role in ROLES) == pytest.approx(100)
    found = list(csv.DictReader(scores.open()))
    assert len(found) == 3 * 4 * 8 and all(row["first_max"] for row in found if row["neurons"] != "0")
    assert plot.read_bytes().startswith(b"<?xml")
    lm = PLNDLM(roles=str(output), deactivate="all_shared", device="cpu", batch_size=4)
    results = evaluate(lm, roles.tasks, data, limit=3)
    assert results["config"]["plnd"]["evaluated"]["examples"] == 3
    assert results["config"]["plnd"]["evaluated"]["share"] == pytest.approx(roles.shares()["all_shared"] / 100)
    with pytest.raises(Exception, match="document 3: no roles for it among the artifact's 3 examples"):
        evaluate(lm, roles.tasks, data)
    assert main(["show", str(output)]) == 0
    assert "all-shared" in capsys.readouterr().out
    assert main(["verify", str(output), "--model", str(demo_model())]) == 0


@pytest.mark.slow
def test_aligned_documents_and_samples(data, tmp_path):
    """Documents of one id belong together wherever they stand; renumbered under `samples`, each finds its own."""
    tasks = named_tasks([f"plnd_ranked_fact_probing_{language}" for language in LANGUAGES])
    parallel = parallel_tasks(tasks, align="id", metadata={"data_dir": str(data)})
    assert len(parallel) == (12 - 3) * 4  # the facts that all three have, in each paraphrase
    for row, answers in zip(parallel.prompts, parallel.answers, strict=True):
        numbers = {text.split("land ")[1].split()[0] for text in row} | {text.split()[1] for text in answers}
        assert len(numbers) == 1
    assert any(len(set(documents)) > 1 for documents in parallel.documents)
    with pytest.raises(CorpusError, match="no column 'key'"):
        parallel_tasks(tasks, align="key", metadata={"data_dir": str(data)})
    output = tmp_path / "x.safetensors"
    arguments = [
        "--tasks",
        ",".join(tasks.values()),
        "--metadata",
        json.dumps({"data_dir": str(data)}),
        "--align",
        "id",
    ]
    assert run(*arguments, "--limit", "4", "--output", str(output)) == 0
    roles = Roles.load(output)
    samples = {
        task: sorted(row[place] for row in roles.metadata["documents"]) for place, task in enumerate(roles.tasks)
    }
    lm = PLNDLM(roles=str(output), deactivate="specific", device="cpu", batch_size=4)
    results = evaluate(lm, roles.tasks, data, samples=samples)
    assert results["config"]["plnd"]["evaluated"]["examples"] == 4


@pytest.mark.slow
def test_fewshot_prompts_are_those_of_lm_eval(data, tmp_path):
    """With worked examples the prompts are what lm-eval asks with as many; with none it is another prompt."""
    output = tmp_path / "x.safetensors"
    arguments = ["--tasks", XNLI, "--metadata", json.dumps({"data_dir": str(data)}), "--num_fewshot", "2"]
    assert run(*arguments, "--limit", "2", "--output", str(output)) == 0
    roles = Roles.load(output)
    assert roles.metadata["corpus"]["fewshot"] == 2
    lm = PLNDLM(roles=str(output), deactivate="specific", device="cpu", batch_size=4)
    results = evaluate(lm, roles.tasks, data, limit=2, num_fewshot=2)
    assert results["config"]["plnd"]["evaluated"]["examples"] == 2
    with pytest.raises(Exception, match="asked with another prompt"):
        evaluate(lm, roles.tasks, data, limit=2)


def test_from_json_lines(tmp_path, capsys):
    """One field per language, and answers beside them."""
    put(tmp_path / "x.jsonl", [{"en": "one", "de": "eins", "zh": "一"}] * 2)
    arguments = ["--parallel", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "x.safetensors")]
    scores = tmp_path / "scores.csv"
    assert run(*arguments, "--languages", "zh,en", "--attribution", str(scores), "--tokens", "last") == 0
    roles = Roles.load(tmp_path / "x.safetensors")
    assert roles.languages == ["zh", "en"] and roles.tasks is None and len(roles) == 2
    assert next(csv.DictReader(scores.open()))["first_max"] == ""
    assert run(*arguments, "--answers", str(tmp_path / "x.jsonl"), "--attribution", str(scores)) == 0
    assert next(csv.DictReader(scores.open()))["mean_max"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--parallel absent.jsonl", "absent.jsonl: no such file"),
        ("--parallel x.jsonl --align id", "--align goes with --tasks"),
        ("--parallel x.jsonl --limit 0", "--limit 0"),
        ("--tasks a_en,a_de --answers x.jsonl", "--answers goes with --parallel"),
        ("--tasks a_en,b_en", "both are called en; name them"),
        ("--tasks a_en,a_de --languages fr,en", "--languages fr: the tasks are in en, de"),
        ("--parallel x.jsonl --thresholds a", "--thresholds a: expected numbers"),
        ("--parallel x.jsonl --tokens all --attribution y.csv", "leave --tokens all out"),
        ("--parallel x.jsonl --output absent/x.safetensors", "choose a folder that exists"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, words):
    """Bad input is one line and status 2."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "x.jsonl", [{"en": "one", "de": "eins"}])
    assert run("--output", "x.safetensors", *arguments.split()) == 2
    found = capsys.readouterr().err
    assert words in found and found.count("\n") == 1


def test_tasks_that_have_no_roles(data):
    """Groups, running text and unequal tasks are refused."""
    metadata = {"data_dir": str(data)}
    with pytest.raises(CorpusError, match="plnd_xnli is a group"):
        parallel_tasks({"a": "plnd_xnli", "b": "plnd_ranked_xnli_en"}, metadata=metadata)
    put(data / "corpora" / "en.jsonl", [{"text": "x"}])
    put(data / "corpora" / "de.jsonl", [{"text": "x"}])
    with pytest.raises(CorpusError, match="plnd_text_en: roles are those of a prompt"):
        parallel_tasks({"en": "plnd_text_en", "de": "plnd_text_de"}, metadata={**metadata, "text_documents": "all"})
    tasks = {"en": "plnd_ranked_xnli_en", "de": "plnd_ranked_fact_probing_de"}
    with pytest.raises(CorpusError, match="the tasks have 4 or 44 documents, so they are not parallel by position"):
        parallel_tasks(tasks, metadata=metadata)
