"""A masked, an exported and a merged model give the same numbers on stock lm-eval tasks, and one model card."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import lm_eval.models  # noqa: F401  the registry must be filled before a name is added to it
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from peft import get_peft_model

from lm_eval_plnd.bridge import register
from peft_plnd import NeuronSelectConfig
from peft_plnd.tuner.layer import NeuronSelectLayer
from plnd.commands.main import main
from plnd.demo_data import demo_model
from plnd.exchange.export import export
from plnd.models.layout import Layout
from plnd.models.loading import load_model, load_tokenizer
from plnd.neurons.neuron_set import NeuronSet

TASKS = Path(lm_eval.__file__).parent / "tasks"
CHOICE, GENERATION = "leaderboard_bbh_boolean_expressions", "gsm8k"
STOCK = {CHOICE: "leaderboard/bbh_mc/boolean_expressions.yaml", GENERATION: "gsm8k/gsm8k.yaml"}
ROWS = {
    CHOICE: [
        {"input": "not True or True is", "target": "True"},
        {"input": "False and not False is", "target": "False"},
        {"input": "True and ( True or False ) is", "target": "True"},
        {"input": "not ( False or True ) is", "target": "False"},
    ],
    GENERATION: [
        {
            "question": f"Eva has {n} pens and buys {n + 2}. How many has she?",
            "answer": f"{n} + {n + 2}\n#### {2 * n + 2}",
        }
        for n in range(3, 8)
    ],
}
COMMON = {"dtype": "float32", "max_length": 512}


def neurons(path: Path) -> NeuronSet:
    """2 % of every projection of the demo model, at random, as an artifact."""
    model = Layout(load_model(str(demo_model()), device="cpu")).description()
    generator = np.random.default_rng(0)
    indices = {a: np.flatnonzero(generator.random(w) < 0.02).astype(np.int32) for a, w in model["widths"].items()}
    importance = {a: np.ones(len(v), np.float32) for a, v in indices.items()}
    corpus = {"source": "made.jsonl", "sha256": "ef" * 32, "documents": 3, "tokens": 99, "max_length": 9, "skipped": {}}
    metadata = {"format": "plnd.neurons", "version": 1, "plnd": "0.1.0", "language": "en", "corpus": corpus}
    metadata |= {"method": {"name": "plnd", "projections": []}, "rule": {"name": "fraction", "value": 0.02}}
    found = NeuronSet(indices, importance, metadata | {"dtype": "float32", "scores_sha256": "", "model": model})
    found.save(path)
    return found


def adapter(mask: Path, folder: Path) -> Path:
    """A neuron-select adapter whose change is minus the weight: its rows and columns are zero once it is merged."""
    model = load_model(str(demo_model()), dtype="float32", device="cpu")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=str(mask), task_type="CAUSAL_LM"))
    with torch.no_grad():
        for layer in tuned.modules():
            if isinstance(layer, NeuronSelectLayer):
                weight = layer.get_base_layer().weight
                for name, rows in layer.neuron_select_rows.items():
                    layer.neuron_select_out[name].copy_(-weight[rows])
                for name, columns in layer.neuron_select_columns.items():
                    layer.neuron_select_in[name].copy_(-weight[:, columns])
    tuned.save_pretrained(folder)
    merged = folder.with_name("merged")
    tuned.merge_and_unload().save_pretrained(merged)
    load_tokenizer(str(demo_model())).save_pretrained(merged)
    return merged


def stock_tasks(folder: Path) -> TaskManager:
    """lm-eval's own task files, with their data in a folder instead of on the hub."""
    for task, file in STOCK.items():
        data = folder / f"{task}.json"
        data.write_text("\n".join(map(json.dumps, ROWS[task])))
        splits = {"train": str(data), "test": str(data)}
        lines = [f"include: {TASKS / file}", f"task: {task}", "dataset_path: json", "dataset_name: null"]
        lines += [f"dataset_kwargs: {json.dumps({'data_files': splits})}"]
        if task == GENERATION:
            lines += ["generation_kwargs: {until: ['Question:'], max_gen_toks: 12, do_sample: false, temperature: 0.0}"]
            lines += ["num_fewshot: 1"]
        (folder / f"{task}.yaml").write_text("\n".join(lines))
    return TaskManager(include_path=str(folder), include_defaults=False)


pytestmark = pytest.mark.slow  # three models and two stock tasks


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    """Results of the original, the masked, the exported, the merged and the adapted model; their files in `folder`."""
    folder = tmp_path_factory.mktemp("leaderboard")
    chosen = neurons(folder / "en.safetensors")
    export(demo_model(), chosen, folder / "exported")
    merged = adapter(folder / "en.safetensors", folder / "adapter")
    models = {
        "original": ("hf", {"pretrained": str(demo_model())}),
        "masked": ("plnd", {"mask": str(folder / "en.safetensors")}),
        "exported": ("hf", {"pretrained": str(folder / "exported")}),
        "merged": ("hf", {"pretrained": str(merged)}),
        "adapter": ("plnd", {"pretrained": str(demo_model()), "peft": str(folder / "adapter")}),
    }
    register()
    manager = stock_tasks(folder)
    results: dict[str, dict] = {"folder": folder}
    for name, (model, arguments) in models.items():
        tracker = EvaluationTracker(output_path=str(folder / "results" / name))
        results[name] = simple_evaluate(
            model=model,
            model_args={**arguments, **COMMON},
            tasks=list(STOCK),
            task_manager=manager,
            batch_size=2,
            device="cpu",
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        samples = {task: results[name]["samples"][task] for task in STOCK}
        tracker.save_results_aggregated(results={**results[name], "samples": None}, samples=samples)
    return results


def answers(results: dict, task: str) -> list:
    """What the model said to each document: log-likelihoods of the choices, or the text."""
    return [
        [sample["resps"], sample["filtered_resps"]]
        for sample in sorted(results["samples"][task], key=lambda s: s["doc_id"])
    ]


@pytest.mark.parametrize("task", STOCK)
@pytest.mark.parametrize("name", ["exported", "merged"])
def test_the_same_numbers(found, name, task):
    """Every document's log-likelihoods and texts, and so every metric, are exactly those of the masked model."""
    assert answers(found[name], task) == answers(found["masked"], task) != answers(found["original"], task)
    assert found[name]["results"][task] == found["masked"]["results"][task]
    assert len({sample["doc_id"] for sample in found[name]["samples"][task]}) == len(ROWS[task])


def test_an_adapter_that_is_not_merged(found):
    """It adds its change to the output instead of the weight: the same texts, log-likelihoods up to rounding."""
    assert answers(found["adapter"], GENERATION) == answers(found["masked"], GENERATION)

    def likelihoods(name: str) -> np.ndarray:
        return np.array([[float(choice[0]) for choice in filtered] for _, filtered in answers(found[name], CHOICE)])

    np.testing.assert_allclose(likelihoods("adapter"), likelihoods("masked"), rtol=1e-5)
    assert not np.allclose(likelihoods("adapter"), likelihoods("original"), rtol=1e-3)


def test_one_card_of_all_three(found, capsys):
    """Masked, exported and merged results agree, so that they are one model's; the card has each score once."""
    folder, output = found["folder"], found["folder"] / "README.md"
    results = {name: str(folder / "results" / name) for name in ("masked", "exported", "merged", "original", "adapter")}
    three = [results[name] for name in ("masked", "exported", "merged", "original")]
    options = ["--mask", str(folder / "en.safetensors"), "--output", str(output)]
    assert main(["card", *three, *options]) == 0
    card = ModelCard.load(output)
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    masked = found["masked"]["results"]
    assert scores == {
        f"{CHOICE}: acc_norm": masked[CHOICE]["acc_norm,none"],
        f"{GENERATION}: exact_match, strict-match": masked[GENERATION]["exact_match,strict-match"],
        f"{GENERATION}: exact_match, flexible-extract": masked[GENERATION]["exact_match,flexible-extract"],
    }
    assert NeuronSet.load(folder / "en.safetensors").digest in card.text
    assert "AutoModelForCausalLM.from_pretrained" in card.text
    assert "lm_eval --model plnd --model_args mask=en.safetensors,dtype=float32" in card.text
    assert main(["card", *three, results["adapter"], *options]) == 2
    assert "results of several models (en, adapter): say which with --setting" in capsys.readouterr().err
    assert main(["card", *three, results["adapter"], *options, "--setting", "adapter"]) == 0
    card = ModelCard.load(output)
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.text


def test_every_task_of_the_leaderboard_resolves():
    """The group `leaderboard` and the groups in it name tasks that lm-eval has."""
    manager = TaskManager(include_path=str(TASKS / "leaderboard"), include_defaults=False)
    seen, todo = set(), ["leaderboard"]
    while todo:
        name = todo.pop()
        assert name in manager.all_tasks, name
        seen.add(name)
        if name in manager.all_groups:
            todo += manager.task_index[name].cfg["task"]
    assert CHOICE in seen and len(seen) > 30
