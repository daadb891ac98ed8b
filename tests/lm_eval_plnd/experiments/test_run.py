"""`plnd experiment`: the run from settings to results, and runs that were killed or shared."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lm_eval_plnd.experiments.conditions import Setting, plan, region_of
from lm_eval_plnd.experiments.results import document_weights
from lm_eval_plnd.experiments.run import experiment, inputs, load_lm, load_tasks
from lm_eval_plnd.experiments.settings import FOLDER, load_settings
from plnd.commands.main import main
from plnd.demo_data import demo_corpus, demo_model
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from plnd.references.means import Means
from plnd.statistics import weighted_mean
from programs import run_script

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
TEXT = {"task": "plnd_text_{language}", "metadata": {"data_dir": "plnd:corpus/evaluate", "text_documents": "all"}}


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_documents_count_by_their_bytes_for_bits_per_byte_alone():
    """Whatever filter stands in the metric's name; beside it, in the same task, every document counts the same."""
    metrics = {"bits_per_byte": [1.0, 2.0], "acc": [0.0, 1.0], "bytes": [10.0, 30.0]}
    assert document_weights(metrics, "bits_per_byte") == document_weights(metrics, "bits_per_byte,none") == [10, 30]
    assert document_weights(metrics, "acc") is None


# the run


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """The folder of a finished experiment."""
    folder = tmp_path_factory.mktemp("experiment") / "run"
    experiment(tiny(languages=["en", "zh"], samples=2), folder)
    return folder


def test_what_a_run_leaves(finished):
    """Settings with their defaults, versions, neurons, values per document and a row for each task and metric."""
    settings = load_settings(finished / "settings.yaml")
    assert settings.seeds == [0] and "torch" in json.loads((finished / "environment.json").read_text())
    rows = table(finished / "results.csv")
    assert list(dict.fromkeys(row["setting"] for row in rows)) == [setting.name for setting in plan(settings)]
    one = [row for row in rows if row["setting"] == "zh.specific.gen.s1"]
    measured = {(row["item"], row["task_language"], row["metric"]) for row in one}
    assert measured == {("reading", x, m) for x in ("en", "zh") for m in ("exact_match", "f1", "contains")} | {
        ("text", x, "bits_per_byte") for x in ("en", "zh")
    }
    assert {(row["neurons"], row["language"], row["region"], row["control"], row["sample"]) for row in one} == {
        ("specific", "zh", "gen", "", "1")
    }
    values = json.loads((finished / "samples" / "zh.specific.gen.s1.json").read_text())
    for row in one:
        numbers = values[row["task"]]
        value, stderr = weighted_mean(numbers[row["metric"]], numbers.get("bytes"))
        assert (row["value"], row["stderr"]) == (repr(value), "" if stderr is None else repr(stderr))
        assert int(row["documents"]) == len(numbers[row["metric"]]) == (1 if row["item"] == "reading" else 2)
    answers = json.loads((finished / "answers" / "zh.specific.gen.s1.json").read_text(encoding="utf-8"))
    assert answers.keys() == {row["task"] for row in one if row["item"] == "reading"}
    assert all(len(of) == 1 and of[0].keys() == {"prompt", "target", "answer"} for of in answers.values())


def test_rows_name_the_neurons_that_were_off(finished):
    """The number, the share and the digest are those of the saved set, restricted as the row says."""
    settings = load_settings(finished / "settings.yaml")
    saved = NeuronSet.load(finished / "neurons" / "zh.specific.safetensors")
    (row, *_) = [row for row in table(finished / "results.csv") if row["setting"] == "zh.specific.gen"]
    off = saved.restrict(regions=region_of(Setting((), "specific", "zh", "gen"), settings))
    assert (int(row["deactivated"]), row["mask_sha256"]) == (len(off), off.digest)
    assert float(row["share"]) == len(off) / off.total and 0 < len(off) < len(saved)


def test_samples_of_documents_do_not_meet(finished):
    """The second sample begins where the first one ended."""
    first, second = (Scores.load(finished / "neurons" / f"zh{s}.scores.safetensors") for s in ("", ".s1"))
    assert first.metadata["corpus"]["sha256"] != second.metadata["corpus"]["sha256"]
    assert (first.metadata["corpus"]["source"], second.metadata["corpus"]["source"]) == (
        "zh.jsonl",
        "zh.jsonl from document 2",
    )


def test_bits_per_byte_are_those_of_the_model(finished):
    """The original's text score is lm-eval's own, of the plain model with the same arguments."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.task_folder import tasks_folder

    metadata = {"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"}
    arguments = {"pretrained": str(demo_model()), "dtype": "float32", "max_length": 64, "add_bos_token": False}
    found = simple_evaluate(
        "hf",
        model_args=arguments,
        tasks=["plnd_text_zh"],
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata),
        device="cpu",
        limit=2,
        batch_size=2,
        bootstrap_iters=0,
    )["results"]["plnd_text_zh"]["bits_per_byte,none"]
    rows = table(finished / "results.csv")
    (row,) = [r for r in rows if (r["setting"], r["task"]) == ("original", "plnd_text_zh")]
    assert float(row["value"]) == pytest.approx(found, rel=1e-6)


def test_a_model_is_loaded_on_the_device_that_is_there():
    """Settings that name no device run on a machine without a GPU, where lm-eval's class would ask for one."""
    lm = load_lm({"pretrained": "plnd:polyglot-9m", "dtype": "float32", "batch_size": 1})
    assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_finished_run_is_not_repeated(finished, monkeypatch):
    """Without the model: what is there is read, and the same file is written."""
    before = (finished / "results.csv").read_bytes()
    log = (finished / "log.jsonl").read_text()
    monkeypatch.setattr("lm_eval_plnd.experiments.run.load_lm", lambda arguments: pytest.fail("the model was loaded"))
    experiment(load_settings(finished / "settings.yaml"), finished)
    assert (finished / "results.csv").read_bytes() == before and (finished / "log.jsonl").read_text() == log


def test_what_is_missing_is_run_again(finished, tmp_path):
    """Without some of its samples, scores and results, a run comes to the same bytes."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    for name in ("samples/original.json", "samples/zh.specific.gen.json", "neurons/en.scores.safetensors"):
        (copy / name).unlink()
    (copy / "results.csv").write_text("cut off")
    (copy / ".results.csv.abc.partial").write_text("half")
    experiment(load_settings(copy / "settings.yaml"), copy)
    same_files(finished, copy)
    assert not list(copy.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param(
            {"tasks": {"reading": {"task": "plnd_cued_xkuad_{language}"}}},
            "tasks.reading: no lm-eval task plnd_cued_xkuad_en; `lm_eval ls tasks` lists them",
            marks=pytest.mark.slow,  # looks through all of lm-eval's own tasks
        ),
        ({"metadata": {"data_dir": "no-such-folder"}}, "no-such-folder/xquad/xquad.en.json: "),
        ({"corpus": "no-such/{language}.jsonl"}, "no-such/en.jsonl: no such file, expected a text file, "),
        ({"model": {"pretrained": "no-such-model"}}, "no-such-model: cannot be loaded ("),
        ({"regions": {"under": 6, "gen": 3}}, "under=6 and gen=3 overlap: the model has 8 blocks"),
        (
            {"tasks": {"reading": TEXT | {"gen_kwargs": {"max_gen_toks": 2}}}},
            "tasks.reading.gen_kwargs: plnd_text_en generates nothing",
        ),
        (
            {"tasks": {"reading": "plnd_cued_xquad_{language}", "again": "plnd_cued_xquad_{language}"}},
            "tasks.again: another item has the task plnd_cued_xquad_en already",
        ),
    ],
)
def test_mistakes_are_seen_before_the_model_is_loaded(tiny, tmp_path, monkeypatch, changes, line):
    """One line, no folder made, nothing computed."""
    monkeypatch.setattr("lm_eval_plnd.experiments.run.load_lm", lambda arguments: pytest.fail("the model was loaded"))
    with pytest.raises(PLNDError) as caught:
        experiment(tiny(**changes), tmp_path / "run")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_experiment_in_the_folder(tiny, tmp_path):
    """A run is continued with equal settings only; the line names the first difference."""
    (tmp_path / "settings.yaml").write_text(tiny(seeds=[1]).text())
    with pytest.raises(
        PLNDError, match=r"holds another experiment, whose seeds is \[1\] and not \[0\]; choose another"
    ):
        experiment(tiny(), tmp_path)


@pytest.mark.parametrize(
    "name, line",
    [
        pytest.param("model/model.safetensors", r"model's content \(pretrained\)", marks=pytest.mark.slow),
        pytest.param("model/tokenizer.json", r"model's content \(pretrained\)", marks=pytest.mark.slow),
        pytest.param("corpora/zh.jsonl", "corpus of zh", marks=pytest.mark.slow),
        ("data/xquad/xquad.zh.json", "rows of plnd_cued_xquad_zh"),
    ],
)
def test_what_changed_in_its_place_is_another_experiment(finished, tmp_path, data, name, line):
    """Weights, tokenizer, corpus and rows of the same names, changed since a run was stopped or done, are refused."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.copytree(demo_model(), tmp_path / "model")
    shutil.copytree(demo_corpus("detect") / "corpora", tmp_path / "corpora")
    shutil.copytree(data, tmp_path / "data")
    places = {"model": {"pretrained": str(tmp_path / "model"), "dtype": "float32", "device": "cpu", "batch_size": 2}}
    places |= {"corpus": str(tmp_path / "corpora/{language}.jsonl"), "metadata": {"data_dir": str(tmp_path / "data")}}
    settings = load_settings(copy / "settings.yaml").model_copy(update=places)
    (copy / "settings.yaml").write_text(settings.text())
    experiment(settings, copy)  # the same content goes on
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"0?", b"1?") if name[0] == "d" else path.read_bytes()[:-2] + b" \n")
    with pytest.raises(PLNDError, match=f"holds another experiment, whose {line} is .* choose another folder"):
        experiment(settings, copy)


def test_means_depend_on_every_language(tiny):
    """Chinese neurons alone are switched off, and put at means over the documents of all languages."""
    alone = {"experiments": {"table5": ["text"]}, "neurons": ["all"], "languages": ["en", "de", "zh"]}
    alone |= {"tasks": {"text": TEXT | {"languages": ["en", "zh"]}}}
    zero, mean = (inputs(tiny(**alone, ablation=kind), {}) for kind in ("zero", "mean"))
    assert zero.keys() & {f"corpus of {x}" for x in ("en", "de", "zh")} == {"corpus of zh"}
    assert mean.keys() - zero.keys() == {"corpus of en", "corpus of de"}


def test_folders_of_before_are_told(finished, tmp_path):
    """What an experiment of an earlier plnd was made of is not known: that is said, and then written down."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "inputs.json").unlink()
    with pytest.warns(UserWarning, match="begun by an earlier plnd, so that changes of .* go unseen"):
        experiment(load_settings(copy / "settings.yaml"), copy)
    assert (copy / "inputs.json").read_bytes() == (finished / "inputs.json").read_bytes()


def test_other_versions_are_told(finished, tmp_path):
    """A run that is continued with other versions of what computes says so."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "environment.json").write_text("{}")
    with pytest.warns(UserWarning, match="begun with other versions, whose numbers may differ"):
        experiment(load_settings(copy / "settings.yaml"), copy)


def test_scores_of_another_language_are_refused(finished, tmp_path):
    """Scores may be put into the folder; those of another language are not taken for this one's."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.copy(copy / "neurons" / "zh.scores.safetensors", copy / "neurons" / "en.scores.safetensors")
    with pytest.raises(PLNDError, match="en.scores.safetensors: scores of zh, expected en; put the right file there"):
        experiment(load_settings(copy / "settings.yaml"), copy)


def test_damaged_samples_are_refused(finished, tmp_path):
    """What cannot be read is named, and what to do."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    path = copy / "samples" / "original.json"
    digit = re.sub(r'("bits_per_byte": \[\d\.)(\d)', lambda found: found[1] + str(9 - int(found[2])), path.read_text())
    for damaged in ("{", "[]", digit):
        path.write_text(damaged)
        with pytest.raises(PLNDError, match="original.json: .*damaged"):
            experiment(load_settings(copy / "settings.yaml"), copy)


@pytest.mark.slow
def test_sets_alone(tiny, tmp_path):
    """An experiment of sets evaluates nothing: neurons and no results; it needs no task and no data of one."""
    settings = tiny(tasks={}, experiments={"sets": []}, metadata={})
    assert experiment(settings, tmp_path / "run") == tmp_path / "run" / "neurons"
    kinds = {path.name for path in (tmp_path / "run" / "neurons").iterdir()}
    assert {"zh.scores.safetensors", "zh.all.safetensors", "en.specific.safetensors"} <= kinds
    assert not (tmp_path / "run" / "results.csv").exists()
    run_script("plnd_paper", "figure5", str(tmp_path / "run"), "--output", str(tmp_path / "figure5"))
    assert len(table(tmp_path / "figure5.csv")) == 3 * 3 * 3


@pytest.mark.slow
def test_equal_numbers_are_in_the_results(tiny, tmp_path, capsys):
    """Rows of one table have one number of neurons; the artifact beside has those that were off and no others."""
    from lm_eval_plnd.experiments.results import arguments, mask_file, read_results

    settings = tiny(languages=["en", "zh"], neurons=["all"], equal=True, experiments={"table5": ["text"]})
    experiment(settings, tmp_path / "run")
    found = {row.setting: row for row in read_results(tmp_path / "run") if row.language}
    assert list(found) == ["zh.all.gen.table5.random0", "zh.all.table5.random0", "zh.all.gen.table5"]
    (count,) = {row.deactivated for row in found.values()}
    own = NeuronSet.load(mask_file(tmp_path / "run", found["zh.all.gen.table5"]))
    assert (len(own), own.digest) == (count, found["zh.all.gen.table5"].mask_sha256)
    assert own.random_like(0).digest == found["zh.all.gen.table5.random0"].mask_sha256
    line = arguments(found["zh.all.gen.table5"], settings, "run")
    assert "mask=run/neurons/zh.all.gen.table5.safetensors" in line and "regions" not in line
    run_script("plnd_paper", "table5", str(tmp_path / "run"), "--output", str(tmp_path / "t"))
    assert {row["neurons"] for row in table(tmp_path / "t.csv")} == {str(count)}


@pytest.mark.slow
def test_no_language_weighs_more_in_means(tiny, tmp_path):
    """A corpus with fewer documents than are asked for is refused, with the number that all have."""
    from plnd.demo_data import demo_corpus

    corpora = {}
    for language, count in (("en", 3), ("zh", 2)):
        lines = (demo_corpus("detect") / "corpora" / f"{language}.jsonl").read_text("utf-8").splitlines()
        corpora[language] = str(tmp_path / f"{language}.jsonl")
        Path(corpora[language]).write_text("\n".join(lines[:count]) + "\n", "utf-8")
    detection = {"max_length": 32, "max_documents": 3, "qk": "off"}
    options = {"languages": ["en", "zh"], "corpus": corpora, "detection": detection, "samples": 1}
    settings = tiny(**options, experiments={"table5": ["text"]}, ablation="mean")
    with pytest.raises(PLNDError, match="mean: the corpora have 3 of en, 2 of zh.* detection.max_documents to 2 or"):
        experiment(settings, tmp_path / "mean")
    assert not (tmp_path / "mean" / "neurons" / "means.safetensors").exists()


@pytest.mark.slow
def test_mean_ablation(tiny, tmp_path):
    """With `ablation: mean` a setting is what `lm_eval --model plnd` finds with the command that the folder gives for
    it, neurons at their means over the documents of detection of all languages; it is not what zero gives."""
    from lm_eval_plnd.experiments.results import arguments, read_results

    settings = tiny(languages=["en", "zh"], experiments={"table5": ["text"]}, ablation="mean")
    experiment(settings, tmp_path / "mean")
    means = Means.load(tmp_path / "mean" / "neurons" / "means.safetensors")
    assert {language: said["documents"] for language, said in means.metadata.corpora.items()} == {"en": 2, "zh": 2}
    rows = read_results(tmp_path / "mean")
    row = next(x for x in rows if (x.setting, x.task, x.metric) == ("zh.specific.gen", "plnd_text_zh", "bits_per_byte"))
    given = arguments(row, settings, str(tmp_path / "mean")).split("--model_args ")[1]
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.task_folder import tasks_folder
    from plnd.demo_data import demo_corpus

    metadata = {"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"}
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    options = {"device": "cpu", "limit": 2, "batch_size": 2, "bootstrap_iters": 0, "task_manager": manager}
    own = simple_evaluate("plnd", f"{given},max_length=64,add_bos_token=False", tasks=["plnd_text_zh"], **options)
    assert row.value == pytest.approx(own["results"]["plnd_text_zh"]["bits_per_byte,none"], rel=1e-6)
    run_script("plnd_paper", "table5", str(tmp_path / "mean"), "--output", str(tmp_path / "table5"))
    assert "neurons at their means" in (tmp_path / "table5.md").read_text()
    experiment(tiny(languages=["en", "zh"], experiments={"table5": ["text"]}), tmp_path / "zero")
    zero = {(x.setting, x.task, x.metric): x for x in read_results(tmp_path / "zero")}
    assert zero[row.setting, row.task, row.metric].mask_sha256 == row.mask_sha256
    assert zero[row.setting, row.task, row.metric].value != row.value


@pytest.mark.slow
def test_weights_are_as_before_after_each_setting(tiny, tmp_path, monkeypatch):
    """The one loaded model is bit for bit what it was when every setting is done."""
    from lm_eval_plnd.experiments import run as module

    loaded = []
    load = module.load_lm

    def remembered(arguments):
        loaded.append(load(arguments))
        return loaded[-1]

    monkeypatch.setattr(module, "load_lm", remembered)
    settings = tiny(languages=["en", "zh"], experiments={"later_table9": ["text"]})
    experiment(settings, tmp_path / "run")
    fresh = load(settings.model).model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in loaded[0].model.state_dict().items())


def test_gen_kwargs_and_fewshot_reach_the_task(tiny):
    """An item's own options are put into its tasks."""
    tasks = {"reading": {"task": "plnd_cued_xquad_{language}", "gen_kwargs": {"max_gen_toks": 3}, "num_fewshot": 1}}
    (task, *_) = load_tasks(tiny(tasks=tasks)).values()
    assert task.config.generation_kwargs["max_gen_toks"] == 3 and task.config.num_fewshot == 1


def test_rows_of_what_no_table_uses_are_not_read(tiny):
    """An item that is not evaluated needs no data set."""
    unread = {"task": "plnd_mgsm_{language}", "metadata": {"data_dir": "plnd:corpus/evaluate"}}
    wanted = {"tasks": {"text": TEXT, "reasoning": unread}, "experiments": {"table1": ["text"]}}
    assert list(load_tasks(tiny(**wanted))) == ["plnd_text_en", "plnd_text_de", "plnd_text_zh"]


# the command


def written(settings, path: Path) -> str:
    """Settings as a file."""
    path.write_text(settings.text())
    return str(path)


def test_the_plan_on_the_command_line(tiny, tmp_path, capsys):
    """`--dry-run` counts documents, requests and tokens, names every setting and writes nothing."""
    assert main(["experiment", written(tiny(), tmp_path / "s.yaml"), "--dry-run", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "zh.specific.gen.random0" in out and "estimate (2 FLOP for each parameter and token" in out
    (line,) = [line for line in out.splitlines() if line.startswith("plnd_cued_xquad_en")]
    documents, requests, read, generated, times = line.split()[1:]
    assert (documents, requests, generated, times) == ("1", "1", "2", str(1 + 3))
    assert " GFLOP\n" in out and re.search(r"\(float32 on \w+, [\d.e+]+ TFLOP/s\): \d+ minutes", out)
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_tokens_of_the_plan_are_the_tokenizers(tiny):
    """What is read is the prompts' own number of tokens."""
    from lm_eval_plnd.experiments.cost import cost
    from plnd.demo_data import demo_model
    from plnd.models.loading import load_tokenizer

    tasks, tokenizer = load_tasks(tiny()), load_tokenizer(str(demo_model()))
    found = cost(tasks["plnd_cued_xquad_en"], 2, tokenizer)
    prompts = [f"a b c Question: {n}? Answer:" for n in range(2)]
    assert found.read == sum(len(tokenizer(prompt).input_ids) for prompt in prompts)
    assert (found.documents, found.written) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--output is missing: name the folder for the results (or ask for --dry-run)"),
        (["--limit", "0", "--dry-run"], "--limit 0: expected 1 or more"),
        (["--set", "seeds", "--dry-run"], "--set seeds: expected NAME=VALUE, the value as in YAML"),
        (["--set", "seeds=[", "--dry-run"], "--set seeds: not YAML (while parsing a flow node"),
        (["--set", "sedes=[1]", "--dry-run"], "sedes: unknown, expected some of model, "),
    ],
)
def test_mistakes_on_the_command_line(tiny, tmp_path, capsys, arguments, line):
    """One line and exit status 2."""
    assert main(["experiment", written(tiny(), tmp_path / "s.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


# runs that are killed


def test_an_interrupted_run_says_how_it_continues(tiny, tmp_path, monkeypatch, capsys):
    """Ctrl-C: one line, status 130."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval_plnd.experiments.run.load_lm", interrupt)
    assert main(["experiment", written(tiny(), tmp_path / "s.yaml"), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "plnd experiment: interrupted; the same command continues\n"


@pytest.mark.slow
def test_a_killed_run_comes_to_the_same_bytes(tiny, tmp_path):
    """Killed once while it evaluates, and started again."""
    settings = tiny(languages=["en", "zh"], experiments={"table10": ["text"]}, search={"under": [1, 2], "gen": [1]})
    assert killed_and_finished(written(settings, tmp_path / "s.yaml"), tmp_path, [0.0]) == 1


@pytest.mark.slow
def test_runs_killed_at_random_come_to_the_same_bytes(tiny, tmp_path):
    """Killed at random moments, in detection and in evaluation, whole or while a file is written."""
    delays = [random.Random(seed).uniform(0, 1.5) for seed in range(8)]
    assert killed_and_finished(written(tiny(samples=2), tmp_path / "s.yaml"), tmp_path, delays)


@pytest.mark.slow
def test_shards_change_nothing(tiny, finished, tmp_path):
    """Detection in parts: the same neurons and results, to the byte, and no part is left."""
    experiment(tiny(languages=["en", "zh"], samples=2, shards=3), tmp_path / "run")
    for path in sorted(finished.rglob("*")):
        if path.is_file() and path.name not in ("log.jsonl", "settings.yaml"):
            assert (tmp_path / "run" / path.relative_to(finished)).read_bytes() == path.read_bytes(), path.name
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_two_processes_share_the_settings(tiny, tmp_path, shards):
    """Each setting, and each shard of a detection, is one of theirs, and the files are those of one process alone."""
    settings = written(tiny(languages=["en", "zh"], shards=shards), tmp_path / "s.yaml")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(["experiment", settings, "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "plnd", "experiment", settings, "--output", str(halves)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    same_files(whole, halves)
    steps = [sorted(map(step_of, (run / "log.jsonl").read_text().splitlines())) for run in (whole, halves)]
    assert steps[0] == steps[1]


def step_of(line: str) -> tuple[str, ...]:
    """What a line of the log says was done."""
    event = json.loads(line)
    return event["step"], *(event.get(name, "") for name in ("setting", "item", "language", "shard"))


def same_files(whole: Path, other: Path) -> None:
    """Every file but the log is the same."""
    for path in sorted(whole.rglob("*")):
        if path.is_file() and path.name != "log.jsonl":
            assert (other / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def killed_and_finished(settings: str, folder: Path, delays: list[float]) -> int:
    """How often a run was killed, each time so long after it wrote something; then its files are a whole run's."""
    whole, broken = folder / "whole", folder / "broken"
    assert main(["experiment", settings, "--output", str(whole)]) == 0
    killed = 0
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, "-m", "plnd", "experiment", settings, "--output", str(broken)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        known = len(list(broken.rglob("*.json")))
        while process.poll() is None and len(list(broken.rglob("*.json"))) == known:
            time.sleep(0.01)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert main(["experiment", settings, "--output", str(broken)]) == 0
    same_files(whole, broken)
    return killed


# the settings files that come with plnd


@pytest.fixture(scope="module")
def rows_of_all(data) -> Path:
    """One or two rows of every benchmark in English and Chinese, beside the questions of `data`."""
    for folder in ("mgsm", "xlsum", "xnli", "corpora", "fact_probing/tuples", "xcsqa/en", "xcsqa/zh"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    choices = [{"label": letter, "text": letter.lower()} for letter in "ABCDE"]
    asked = {"id": "1", "question": {"stem": "?", "choices": choices}, "answerKey": "A"}
    article = {"id": "1", "title": "t", "text": "a b c", "summary": "a b"}
    pair = {"premise": "p", "hypothesis": "h", "label": "neutral"}
    facts = [{"sub_label": f"S{n}", "obj_label": f"O{n}", "sub_uri": f"Q{n}", "obj_uri": f"P{n}"} for n in range(12)]
    for language, name, code in (("en", "english", "en"), ("zh", "chinese_simplified", "zh-hans")):
        (data / "mgsm" / f"mgsm_{language}.tsv").write_text("1+1?\t2\n2+2?\t4\n")
        (data / "xlsum" / f"{name}_test.jsonl").write_text(json.dumps(article) + "\n")
        (data / "xcsqa" / language / "dev.jsonl").write_text(json.dumps(asked) + "\n")
        (data / "corpora" / f"{language}.jsonl").write_text('{"text": "a b c"}\n' * 4)
        (data / "fact_probing" / "tuples" / f"{code}.jsonl").write_text("".join(json.dumps(f) + "\n" for f in facts))
        for split in ("dev", "test"):
            (data / "xnli" / f"xnli_{split}_{language}.jsonl").write_text(json.dumps(pair) + "\n")
    return data


def at_small_scale(path: Path, data: Path):
    """A settings file on the model inside the package, in two languages, on the data of the tests."""
    items: dict[str, dict] = {name: {"languages": ["en", "zh"]} for name in load_settings(path).tasks}
    for name in ("understanding", "reasoning", "generation"):
        if name in items:
            items[name]["gen_kwargs"] = {"max_gen_toks": 2}
    changes = {
        "model": {"pretrained": "plnd:polyglot-9m", "dtype": "float32", "device": "cpu", "batch_size": 2},
        "languages": ["en", "zh"],
        "corpus": "plnd:corpus/detect/corpora/{language}.jsonl",
        "detection": {"qk": "off", "max_documents": 2, "max_length": 32},
        "rule": {"fraction": 0.02, "projections": ["down_proj", "o_proj"]},
        "regions": {"under": 2, "gen": 1},
        "search": {"under": [1, 2], "gen": [1]},
        "seeds": [0],
        "metadata": {"data_dir": str(data)},
        **{f"tasks.{item}.{field}": value for item, given in items.items() for field, value in given.items()},
        **({"tasks.text.metadata": {"data_dir": "plnd:corpus/evaluate"}} if "text" in items else {}),
    }
    return load_settings(path, changes).limited(2)


FILES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.endswith("-enhancement"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_settings_file_has_a_plan(path, rows_of_all):
    """Its tasks exist and load, its tables have settings, and its cost can be told."""
    from lm_eval_plnd.experiments.cost import estimate

    settings = at_small_scale(path, rows_of_all)
    found = estimate(settings)
    assert "detection: 2 passes" in found and f"{len(plan(settings))} settings" in found
    assert ("zh.all.under+solve_ffn+gen" in found) == ("table3" in settings.experiments)


@pytest.mark.slow
def test_a_plan_counts_the_pass_over_the_documents_of_means(rows_of_all):
    """Of every language as many documents as of the one with the fewest, on top of those of detection."""
    from lm_eval_plnd.experiments.cost import estimate

    settings = at_small_scale(FILES[0], rows_of_all)
    assert "means:" not in estimate(settings)
    found = estimate(settings.model_copy(update={"ablation": "mean"}))
    tokens = len(settings.languages) * settings.detection["max_documents"] * settings.detection["max_length"]
    assert f"means:     {tokens:,} tokens at most" in found
