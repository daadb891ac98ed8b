"""The named filters and metrics: declared as newer lm-eval looks for them, and they work in a task file."""

import configparser
import importlib
import json
from pathlib import Path

import pytest
from lm_eval.api.registry import filter_registry, get_metric, get_metric_aggregation, is_higher_better
from lm_eval.tasks import TaskManager

from lm_eval_plnd import plugins

ROOT = Path(__file__).resolve().parents[2]


def declared(group: str) -> dict[str, str]:
    """The entry points of a group in setup.cfg."""
    config = configparser.ConfigParser(delimiters=("=",))
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return dict(line.split(" = ") for line in config["options.entry_points"][group].strip().splitlines())


def resolve(target: str):
    """The object that an entry point names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def test_filters_are_declared():
    """Every registered filter of ours is an entry point that names it, and the other way round."""
    entries = declared("lm_eval.filters")
    assert set(entries) == {name for name in filter_registry.keys() if name.startswith("plnd_")}
    assert all(resolve(target) is filter_registry.get(name) for name, target in entries.items())


def test_metrics_are_declared():
    """Every metric is an entry point that names the decorated function, with its aggregation and direction."""
    entries = declared("lm_eval.metrics")
    assert set(entries) == {f"plnd_{name}" for name in "contains exact_match f1 number_match rouge_l".split()}
    for name, target in entries.items():
        assert resolve(target) is get_metric(name)
        assert is_higher_better(name) is True
        assert get_metric_aggregation(name)([0.0, 1.0]) == 0.5


def test_filters():
    """One response is replaced by its first line, by the number that it ends in."""
    assert plugins.FirstLine().apply([["\n a \nb", ""]], [{}]) == [["a", ""]]
    assert plugins.FinalNumber(language="de").apply([["so 70.000,50 €.", "-5", "keine", "100"]], [{}]) == [
        ["70000.5", "-5", "", "100"]
    ]


@pytest.mark.parametrize(
    ("metric", "language", "prediction", "answer", "expected"),
    [
        ("plnd_exact_match", "zh", "２４次。", "24 次", 1.0),
        ("plnd_f1", "zh", "马丁路德", "路德", 4 / 6),
        ("plnd_contains", "zh", "答案是24次。", "24 次", 1.0),
        ("plnd_number_match", "de", "Es sind 2.125.", "2,125", 1.0),
        ("plnd_rouge_l", None, "大雪", "大雪停课", 4 / 6),
    ],
)
def test_metrics_in_a_task_file(tmp_path, metric, language, prediction, answer, expected):
    """A task that names a filter and a metric loads and scores; the mean of several pairs is the metric's value."""
    (tmp_path / "rows.json").write_text(json.dumps([{"question": "?", "answer": answer}]), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        f"""
task: tried
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.json"}}}}}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: []}}
filter_list:
  - {{name: line, filter: [{{function: plnd_first_line}}, {{function: take_first}}]}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true{f", language: {language}" if language else ""}}}
""",
        encoding="utf-8",
    )
    task = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["tried"])["tasks"]["tried"]
    assert task.process_results(task.eval_docs[0], [prediction]) == {metric: pytest.approx(expected)}
    more = {"language": language} if language else {}
    both = get_metric(metric)(references=[answer, answer], predictions=[prediction, ""], **more)
    assert both == pytest.approx(expected / 2)
