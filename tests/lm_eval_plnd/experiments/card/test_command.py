"""The model card: valid for huggingface_hub, one model, every score once, its origin and how to repeat it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from lm_eval_plnd.experiments.card.command import eval_result
from lm_eval_plnd.experiments.card.evaluations import Score
from lm_eval_plnd.experiments.results import COLUMNS
from plnd.commands.main import main
from plnd.io.files import write_csv
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions

WIDTHS = {"0.down_proj": 8, "0.o_proj": 4, "1.down_proj": 8, "1.o_proj": 4}
BASE = "some-org/some-model"


@pytest.fixture
def mask(tmp_path) -> Path:
    """A neurons artifact of four neurons in two blocks."""
    model = {"name": BASE, "revision": "0123abc", "model_type": "llama", "blocks": 2, "widths": WIDTHS}
    corpus = {"source": "zh.jsonl", "sha256": "cd" * 32, "documents": 5, "tokens": 6789, "max_length": 9, "skipped": {}}
    metadata = {"format": "plnd.neurons", "version": 1, "plnd": "0.1.0", "language": "zh", "model": model}
    metadata |= {"corpus": corpus, "method": {"name": "plnd", "projections": ["down_proj"]}, "dtype": "bfloat16"}
    metadata |= {
        "scores_sha256": "",
        "rule": {"name": "fraction", "value": 0.01, "projections": ["down_proj", "o_proj"]},
    }
    indices = {"0.down_proj": np.array([1, 5], np.int32), "1.o_proj": np.array([0, 3], np.int32)}
    importance = {address: np.ones(2, np.float32) for address in indices}
    NeuronSet(indices, importance, metadata).save(tmp_path / "zh.safetensors")
    return tmp_path / "zh.safetensors"


def lm_eval_results(path: Path, model: str, arguments: dict, scores: dict, plnd: dict | None = None) -> str:
    """A results file as lm-eval 0.4.13 writes it, of the tasks `plnd_xnli_zh` and `arc_easy`."""
    configs = {
        "plnd_xnli_zh": {
            "task": "plnd_xnli_zh",
            "custom_dataset": "def xnli(...): ...",
            "dataset_kwargs": {"language": "zh"},
            "test_split": "test",
            "metadata": {**arguments, "version": 1.0, "config_source": "/x/xnli.yaml", "data_dir": "/home/me/data"},
        },
        "arc_easy": {
            "task": "arc_easy",
            "dataset_path": "allenai/ai2_arc",
            "dataset_name": "ARC-Easy",
            "test_split": "test",
            "metadata": {"version": 1.0, "config_source": "/x/lm_eval/tasks/arc/arc_easy.yaml"},
        },
    }
    results = {
        task: {"alias": task, "sample_len": 50, **{f"{metric},none": value for metric, value in metrics.items()}}
        | {f"{metric}_stderr,none": 0.0625 for metric in metrics}
        for task, metrics in scores.items()
    }
    config = {"model": model, "model_args": arguments, "batch_size": 8, "limit": 50.0, "gen_kwargs": {}}
    found = {
        "results": results,
        "configs": {task: configs[task] for task in scores},
        "n-shot": {task: 3 if task == "arc_easy" else 0 for task in scores},
        "n-samples": {task: {"original": 100, "effective": 50} for task in scores},
        "config": config | ({} if plnd is None else {"plnd": plnd}),
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.23.0",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return str(path)


def off(mask: Path, **more) -> dict:
    """What `--model plnd` reports of its mask."""
    neurons = NeuronSet.load(mask)
    found = {"mask": str(mask), "mask_sha256": neurons.digest, "language": "zh", "neurons": len(neurons)}
    found |= {"of": neurons.total, "counts": neurons.counts(), "regions": None, "under": None, "gen": None}
    return found | {"control": None, "seed": None, "mode": "auto"} | more


SCORES = {"plnd_xnli_zh": {"acc": 0.34}, "arc_easy": {"acc": 0.5, "acc_norm": 0.4375}}
ORIGINAL = {"plnd_xnli_zh": {"acc": 0.48}, "arc_easy": {"acc": 0.5625, "acc_norm": 0.5}}


@pytest.fixture
def files(tmp_path, mask) -> dict[str, str]:
    """Results of the masked model, of the original and of two random controls."""
    arguments = {"mask": str(mask), "dtype": "float32"}
    files = {"masked": lm_eval_results(tmp_path / "masked.json", "plnd", arguments, SCORES, off(mask))}
    files["original"] = lm_eval_results(tmp_path / "original.json", "hf", {"pretrained": BASE}, ORIGINAL)
    for seed, acc in ((0, 0.47), (1, 0.45)):
        info = off(mask, control="random", seed=seed)
        given = arguments | {"control": "random", "seed": seed}
        drawn = {"plnd_xnli_zh": {"acc": acc}}
        files[f"random{seed}"] = lm_eval_results(tmp_path / f"random{seed}.json", "plnd", given, drawn, info)
    return files


def written(tmp_path: Path, *arguments: str) -> ModelCard:
    """The card that the command writes, as huggingface_hub reads it."""
    output = tmp_path / "README.md"
    assert main(["card", *arguments, "--output", str(output)]) == 0
    return ModelCard.load(output)


def test_card_is_valid_and_complete(tmp_path, mask, files):
    """Metadata come back as they were; the model index is the hub's own; each score is there once, with its details."""
    card = written(tmp_path, *files.values(), "--license", "apache-2.0", "--name", "some-model-without-zh")
    data = card.data
    assert (data.base_model, data.language, data.license) == (BASE, ["zh"], "apache-2.0")
    assert "plnd" in data.tags and data.pipeline_tag == "text-generation"
    assert data.model_name == "some-model-without-zh"
    found = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        "plnd_xnli_zh: acc": 0.34,
        "arc_easy: acc": 0.5,
        "arc_easy: acc_norm": 0.4375,
    }
    arc = found["arc_easy: acc_norm"]
    assert (arc.dataset_type, arc.dataset_config, arc.dataset_split) == ("allenai/ai2_arc", "ARC-Easy", "test")
    assert arc.metric_args == {"num_fewshot": 3, "documents": 50, "stderr": 0.0625}
    xnli = found["plnd_xnli_zh: acc"]
    assert (xnli.dataset_type, xnli.dataset_config, xnli.task_type) == ("facebook/xnli", "zh", "text-generation")
    index = eval_results_to_model_index(data.model_name, data.eval_results)
    assert model_index_to_eval_results(index) == (data.model_name, data.eval_results)
    assert yaml.safe_load(card.content.split("---\n")[1])["model-index"] == index
    assert ModelCard(card.content).content == card.content


def test_data_sets_have_the_hubs_own_configurations():
    """Of plnd's tasks, whose results name no data set: the one that they read, in the language that it was read in."""
    entry = eval_result(Score("plnd_ranked_xcsqa_ja", "acc", 0.5, language="ja"))
    assert (entry.dataset_type, entry.dataset_config) == ("INK-USC/xcsr", "X-CSQA-jap")
    entry = eval_result(Score("plnd_text_ja", "bits_per_byte", 0.5, language="ja"))
    assert (entry.dataset_type, entry.dataset_config) == ("plnd_text_ja", None)


def test_card_says_where_it_comes_from(tmp_path, mask, files):
    """Digest, rule, corpus and counts of the neurons; scores beside the original's and the controls'; commands."""
    text = written(tmp_path, *files.values()).text
    for line in (
        f"| SHA-256 of the neurons | {NeuronSet.load(mask).digest} |",
        "| neurons | 4 of 24 (16.667 %): 2 o\\_proj, 2 down\\_proj |",
        "| rule | fraction 0.01, of down\\_proj, o\\_proj |",
        "| corpus | 5 documents, 6,789 tokens, zh.jsonl |",
        f"| SHA-256 of the corpus's tokens | {'cd' * 32} |",
        "| revision of the base model | 0123abc |",
        "| task | metric | documents | original | this model | random neurons (mean of 2) |",
        "| plnd\\_xnli\\_zh | acc | 50 | 0.4800 | 0.3400 ± 0.0625 | 0.4600 |",
        "| arc\\_easy | acc\\_norm | 50 | 0.5000 | 0.4375 ± 0.0625 | – |",
        'model = plnd.load_model("some-org/some-model")',
        'with plnd.deactivated(model, plnd.NeuronSet.load("zh.safetensors")):',
        "plnd export --model some-org/some-model --mask zh.safetensors --output some-model-without-zh   "
        "# an ordinary checkpoint of it",
        "Evaluated with lm\\_eval 0.4.13, transformers 5.23.0.",
    ):
        assert line in text.splitlines()
    command = 'lm_eval --model plnd --model_args mask=zh.safetensors,dtype=float32 --include_path "$(plnd tasks)"'
    command += " --tasks plnd_xnli_zh,arc_easy --num_fewshot 3 --limit 50 --batch_size 8"
    assert f'{command} --metadata \'{{"data_dir": "data"}}\'' in text.splitlines()
    assert str(tmp_path) not in text and "/home/me" not in text


def test_names_cannot_break_the_card(tmp_path, mask, files):
    """A name with Markdown, HTML and line breaks stays a name, in the metadata and in the text."""
    nasty = "a|b <img src=x>\n---\n# c: `d`"
    card = written(tmp_path, *files.values(), "--name", nasty)
    assert card.data.model_name == nasty and "<img" not in card.text
    assert card.text.strip().splitlines()[0] == r"# a\|b &lt;img src=x&gt; --- # c: \`d\`"


def test_which_model_must_be_clear(tmp_path, mask, files, capsys):
    """Two masks' results in one card are refused; `--mask` chooses; nothing masked is refused too."""
    other = tmp_path / "ru.safetensors"
    NeuronSet.load(mask).top(3).save(other)
    more = lm_eval_results(tmp_path / "ru.json", "plnd", {"mask": str(other)}, ORIGINAL, off(other, language="ru"))
    output = ["--output", str(tmp_path / "README.md")]
    assert main(["card", *files.values(), more, *output]) == 2
    assert "several models (zh, ru): say which with --setting or --mask" in capsys.readouterr().err
    card = written(tmp_path, *files.values(), more, "--mask", str(other))
    assert NeuronSet.load(other).digest in card.text and card.data.eval_results[0].metric_value == 0.48
    assert written(tmp_path, *files.values(), more, "--setting", "zh").data.eval_results[0].metric_value == 0.34
    assert main(["card", files["original"], files["random0"], *output]) == 2
    assert "no results of a masked or tuned model, only of some-model, zh.random0" in capsys.readouterr().err


def test_results_that_disagree_are_refused(tmp_path, mask, files, capsys):
    """An export said to be of the same neurons that gives other numbers: one line, no card."""
    folder, neurons = tmp_path / "exported", NeuronSet.load(mask)
    folder.mkdir()
    record = {"model": {"name": BASE}, "mask": {"sha256": neurons.digest, "counts": neurons.counts()}}
    (folder / "plnd.json").write_text(json.dumps(record))
    same = lm_eval_results(tmp_path / "same.json", "hf", {"pretrained": str(folder)}, SCORES)
    card = written(tmp_path, files["masked"], same)
    assert len(card.data.eval_results) == 3 and "lm_eval --model hf --model_args pretrained=exported" in card.text
    assert card.data.library_name == "transformers" and card.data.base_model_relation == "finetune"
    (tmp_path / "README.md").unlink()
    unlike = lm_eval_results(tmp_path / "unlike.json", "hf", {"pretrained": str(folder)}, ORIGINAL)
    assert main(["card", files["masked"], unlike, "--output", str(tmp_path / "README.md")]) == 2
    error = capsys.readouterr().err
    assert "plnd_xnli_zh, acc: 0.34 in" in error and "cannot be the same model" in error and error.count("\n") == 1
    assert not (tmp_path / "README.md").exists()


def test_card_of_an_experiment(tmp_path, mask):
    """A setting of `plnd experiment`: its part of the artifact, how to have it alone, and its controls beside it."""
    folder, part = tmp_path / "run", NeuronSet.load(mask).restrict(regions=Regions(("under",), 1, 1))
    (folder / "neurons").mkdir(parents=True)
    NeuronSet.load(mask).save(folder / "neurons" / "zh.specific.safetensors")
    tasks = {"understanding": {"task": "plnd_xnli_{language}", "num_fewshot": 2}}
    settings = {"model": {"pretrained": BASE, "batch_size": 4}, "languages": ["en", "zh"], "corpus": "{language}.jsonl"}
    settings |= {"rule": {"fraction": 0.01}, "regions": {"under": 1, "gen": 1}, "tasks": tasks, "limit": 50}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings | {"experiments": ["table2"]}))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.99.0"}))
    rows = []
    for name, neurons, region, control, value in (
        ("original", None, "", "", 0.5),
        ("zh.specific.under", part, "under", "", 0.25),
        ("zh.specific.under.random0", part.random_like(0), "under", "random", 0.375),
        ("zh.specific", NeuronSet.load(mask), "", "", 0.125),
    ):
        state = ["none", ""] if neurons is None else ["specific", "zh"]
        counts = [0, 0.0, ""] if neurons is None else [len(neurons), len(neurons) / 24, neurons.digest]
        row = ["understanding", name, *state, region, control, 0 if control else "", 0, *counts]
        rows.append([*row, "plnd_xnli_zh", "zh", "acc", value, 0.03, 50])
    write_csv(folder / "results.csv", COLUMNS, rows)
    card = written(tmp_path, str(folder), "--setting", "zh.specific.under")
    assert [result.metric_value for result in card.data.eval_results] == [0.25]
    lines = card.text.splitlines()
    assert f"| SHA-256 of the neurons | {part.digest} |" in lines
    assert "| plnd\\_xnli\\_zh | acc | 50 | 0.5000 | 0.2500 ± 0.0300 | 0.3750 |" in lines
    assert (
        "plnd combine zh.specific.safetensors --regions under --under 1 --gen 1 --output zh.specific.under.safetensors"
        in lines
    )
    arguments = "mask=run/neurons/zh.specific.safetensors,regions=under,under=1,gen=1,pretrained=some-org/some-model"
    command = f'lm_eval --model plnd --model_args {arguments} --batch_size 4 --include_path "$(plnd tasks)"'
    assert f"{command} --tasks plnd_xnli_en,plnd_xnli_zh --num_fewshot 2 --limit 50" in lines
    assert "Evaluated with torch 2.99.0." in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "not a results file of lm-eval"),
        ('{"config": {}, "config": {"model": "hf"}}', "not JSON (key 'config' is there twice)"),
        ('{"results": [' + "0," * (2**22 + 1) + "0]}", "larger than results are, at most 67,108,864 bytes and"),
        ("[" * 10**5, "not JSON (nested too deeply)"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON (Exceeds the limit (4300"),
        ('{"config": {"model": "hf"}, "results": {"x": {"acc,none": "high"}}, "configs": {}}', "no score in it"),
        ('{"config": {"model": "hf"}, "results": {"x": 3}, "configs": {}}', "not a results file of lm-eval"),
    ],
)
def test_damaged_results_are_one_line(tmp_path, capsys, content, message):
    """Exit status 2, one line with the file, no card."""
    (tmp_path / "results.json").write_text(content)
    assert main(["card", str(tmp_path / "results.json"), "--output", str(tmp_path / "README.md")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "results.json") in error and error.count("\n") == 1
    assert not (tmp_path / "README.md").exists()


def test_no_results_and_no_hub(tmp_path, mask, files, capsys):
    """An empty folder, a missing file, and a hub that cannot be reached: one line each, no card."""
    output = ["--output", str(tmp_path / "README.md")]
    (tmp_path / "empty").mkdir()
    assert main(["card", str(tmp_path / "empty"), *output]) == 2
    assert "neither results.csv of `plnd experiment` nor results_….json of lm-eval" in capsys.readouterr().err
    assert main(["card", str(tmp_path / "absent.json"), *output]) == 2
    assert "absent.json: cannot be read" in capsys.readouterr().err
    assert main(["card", *files.values(), *output, "--validate"]) == 2
    assert "the hub cannot be asked (" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()
