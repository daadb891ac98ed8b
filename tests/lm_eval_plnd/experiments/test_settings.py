"""A settings file is checked before anything is computed; each mistake is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lm_eval_plnd.experiments.settings import expand, load_settings, parse_settings
from plnd.demo_data import demo_model
from plnd.errors import PLNDError

FOLDER = Path(__file__).resolve().parents[3] / "scripts" / "settings"
GOOD = """
model: {pretrained: m}
languages: [en, zh]
corpus: "corpora/{language}.jsonl"
rule: {fraction: 0.01}
tasks:
  understanding: plnd_xquad_{language}
  text: {task: "plnd_text_{language}", limit: 20}
experiments: [table2]
regions: {under: 2, gen: 1}
"""


def settings(**changes):
    """The good settings, other values for some fields."""
    return parse_settings({**yaml.safe_load(GOOD), **changes})


def test_what_is_left_out_is_filled_in():
    """Short forms stand for long ones: a task's name for an item, a list of tables for the paper's items."""
    found = settings()
    assert found.tasks["understanding"].task == "plnd_xquad_{language}"
    assert found.experiments == {"table2": ["understanding"]}
    assert (found.english, found.samples, found.seeds, found.neurons) == ("en", 1, [0], ["specific"])


def test_filled_in_settings_read_back_the_same(tmp_path):
    """What an experiment writes into its folder are the same settings."""
    found = settings(seeds=[1, 2], corpus={"en": "a", "zh": "b"})
    (tmp_path / "settings.yaml").write_text(found.text())
    assert load_settings(tmp_path / "settings.yaml") == found


def test_a_limit_is_the_lower_of_two():
    """`--limit` lowers the limits of the file and does not raise them."""
    found = settings(limit=30).limited(25)
    assert (found.limit, found.tasks["text"].limit) == (25, 20)
    assert settings().limited(5).limit == 5


def test_changes_by_dotted_names(tmp_path):
    """`--set` reaches every field, also within an item that is a mere name in the file."""
    (tmp_path / "s.yaml").write_text(GOOD)
    changes = {"model.pretrained": "other", "tasks.understanding.limit": 3, "metadata.data_dir": "d", "seeds": [4]}
    found = load_settings(tmp_path / "s.yaml", changes)
    assert found.model["pretrained"] == "other" and found.metadata == {"data_dir": "d"} and found.seeds == [4]
    assert found.tasks["understanding"].limit == 3 and found.tasks["understanding"].task == "plnd_xquad_{language}"


def test_paths_within_the_package():
    """`plnd:` begins a path inside the package; other values stay."""
    assert expand({"a": ["plnd:polyglot-9m", "b", 1]}) == {"a": [str(demo_model()), "b", 1]}


def test_as_many_documents_as_each_language_has():
    """A number of documents for all languages, or one for each."""
    assert settings(detection={"max_documents": 7}).detection_of("zh")["max_documents"] == 7
    assert settings(detection={"max_documents": {"en": 7, "zh": 5}}).detection_of("zh")["max_documents"] == 5


def test_items_of_some_languages():
    """An item may have fewer languages than the experiment, but English among them."""
    tasks = {"understanding": {"task": "x_{language}", "languages": ["en"]}}
    assert settings(tasks=tasks).languages_of("understanding") == ["en"]


SEARCH = {"under": [1, 2], "gen": [1]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"modle": 1}, "modle: unknown, expected some of model, languages, "),
        ({"model": {}}, "model.pretrained: missing"),
        ({"model": "m"}, "model: found 'm', expected fields with values"),
        ({"languages": "en"}, "languages: found 'en', expected a list"),
        ({"languages": ["en", False]}, "languages[1]: found False, expected text; put it in quotation marks"),
        ({"languages": ["en", "en"]}, "languages: found ['en', 'en'], expected one or more, each once"),
        ({"languages": ["zh", "de"]}, "languages: zh, de; expected en and at least one other"),
        ({"corpus": "corpus.jsonl"}, "corpus: 'corpus.jsonl' is one for all languages, expected {language} in it"),
        ({"corpus": {"en": "a"}}, "corpus.zh: missing"),
        ({"rule": {}}, "rule: expected exactly one of epsilon, top_k, fraction, or contrast, found none"),
        (
            {"rule": {"fraction": 0.1, "top_k": 3}},
            "rule: expected exactly one of epsilon, top_k, fraction, or contrast, found top_k, ",
        ),
        (
            {"rule": {"contrast": None}},
            "rule: expected exactly one of epsilon, top_k, fraction, or contrast, found none",
        ),
        ({"rule": {"contrast": {"count": 0}}}, "rule.contrast: count=0: expected a whole number above 0"),
        ({"rule": {"contrast": {"count": 2.5}}}, "rule.contrast.count: found 2.5, expected a whole number"),
        (
            {"rule": {"contrast": {"count": 2, "share": 0.1}}},
            "rule.contrast: expected one of count and share, found both",
        ),
        ({"rule": {"contrast": {"share": 2}}}, "rule.contrast: share=2.0: expected a number above 0 and at most 1"),
        ({"rule": {"contrast": {"rate": 1}}}, "rule.contrast.rate: unknown, expected some of count, share, error_rate"),
        ({"rule": {"contrast": 0.1}}, "rule.contrast: found 0.1, expected fields with values"),
        (
            {"rule": {"contrast": {}}, "neurons": ["specific", "all"]},
            "neurons: 'all' is made from what is important for a language, and rule.contrast finds what is specific to",
        ),
        (
            {"rule": {"contrast": {}}, "experiments": {"table9": ["text"]}},
            "experiments.table9: 'without_shared' is made from what is important for a language, and rule.contrast",
        ),
        ({"rule": {"fraction": "1%"}}, "rule.fraction: found '1%', expected a number"),
        ({"rule": {"fraction": 2}}, "rule.fraction: found 2.0, expected more than 0 and at most 1"),
        ({"rule": {"top_k": 1.5}}, "rule.top_k: found 1.5, expected a whole number"),
        ({"rule": {"top_k": 5, "projections": ["down"]}}, "rule.projections: unknown 'down', expected some of q_proj"),
        ({"tasks": {}}, "tasks: none, expected at least one"),
        (
            {"tasks": {"understanding": "plnd_xquad_zh"}},
            "tasks.understanding: 'plnd_xquad_zh' is one for all languages",
        ),
        ({"tasks": {"understanding": {"limit": 3}}}, "tasks.understanding.task: missing"),
        (
            {"tasks": {"understanding": {"task": "x_{language}", "limits": 3}}},
            "tasks.understanding.limits: unknown, expected some of task, metric, limit",
        ),
        (
            {"tasks": {"understanding": {"task": "x_{language}", "languages": ["zh"]}}},
            "tasks.understanding.languages: expected en among them, which all are compared with",
        ),
        (
            {"tasks": {"understanding": {"task": "x_{language}", "model": {"pretrained": "x"}}}},
            "tasks.understanding.model.pretrained: all items are evaluated on the one loaded model",
        ),
        ({"experiments": []}, "experiments: none, expected at least one"),
        ({"experiments": ["table16"]}, "experiments.table16: unknown, expected some of table1, table2"),
        (
            {"experiments": ["table3"]},
            "experiments.table3: reasoning is not among tasks, which has understanding, text",
        ),
        ({"experiments": {"table2": []}}, "experiments.table2: no item, expected some of understanding, text"),
        ({"regions": None}, "regions: missing; table2 needs regions.under (N1) and regions.gen (N2)"),
        ({"regions": {"under": 2}}, "regions.gen: missing"),
        ({"regions": {"under": -1, "gen": 1}}, "under=-1, gen=1: expected numbers of blocks, 0 or more"),
        ({"experiments": ["table10"]}, "search: missing; table10 needs search.under and search.gen"),
        ({"experiments": ["table10"], "search": SEARCH | {"language": "ru"}}, "search.language: ru is not among zh"),
        ({"experiments": ["table10"], "search": SEARCH | {"gen": [0]}}, "search.gen: found [0], expected numbers of"),
        ({"detection": {"qk": False}}, 'detection.qk: found false, which YAML reads in off; write "off" in quotation'),
        ({"detection": {"qk": "fast"}}, "detection: unknown qk 'fast': expected first_order, exact or off"),
        ({"detection": {"language": "zh"}}, "detection.language: unknown, expected some of qk, max_documents"),
        ({"detection": {"max_documents": "many"}}, "detection.max_documents: found 'many', expected a whole number"),
        ({"detection": {"max_documents": {"en": 3}}}, "detection.max_documents.zh: missing"),
        ({"samples": 2}, "samples: more than one need detection.max_documents, the size of each"),
        ({"samples": 0}, "samples: found 0, expected 1 or more"),
        ({"seeds": []}, "seeds: found [], expected one or more, each once"),
        (
            {"neurons": ["own"]},
            "neurons: unknown 'own', expected some of all, specific, without_english, without_shared",
        ),
        ({"task_languages": "both"}, "task_languages: unknown 'both', expected own or all"),
    ],
)
def test_a_mistake_is_one_line(changes, line):
    """What was found, what was expected, and where."""
    with pytest.raises(PLNDError) as caught:
        settings(**changes)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [", "not YAML"), ("- 1", "found [1], expected fields with values"), ("{}", "model: missing")],
)
def test_a_file_that_holds_something_else(tmp_path, text, line):
    """The line begins with the file's name."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(PLNDError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: {line}") and "\n" not in str(caught.value)


def test_a_change_where_no_field_is(tmp_path):
    """A value has no fields to change."""
    (tmp_path / "s.yaml").write_text(GOOD)
    with pytest.raises(PLNDError, match="corpus.zh: corpus is 'corpora/{language}.jsonl', which has no fields"):
        load_settings(tmp_path / "s.yaml", {"corpus.zh": "x"})


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_that_come_with_plnd(path):
    """Every settings file in scripts/settings is good."""
    assert load_settings(path).experiments


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"corpus": 7}, "corpus: found 7, expected text; put it in quotation marks"),
        ({"corpus": {"en": 3, "zh": "z"}}, "corpus.en: found 3, expected text; put it in quotation marks"),
        ({"corpus": {False: "n", "en": "e"}}, "corpus: False is no name; put it in quotation marks"),
        ({"rule": {"fraction": True}}, "rule.fraction: found True, expected a number"),
        ({"rule": {7: True}}, "rule[7]: unknown, expected some of epsilon, top_k, fraction, projections"),
        ({"seeds": [True]}, "seeds[0]: found True, expected a whole number"),
        ({"modle": 1, "seeds": 1}, "modle: unknown, expected some of model, languages, "),
        ({"tasks": {"text": 3}}, "tasks.text: found 3, expected fields with values"),
        ({"regions": []}, "regions: found [], expected fields with values"),
        ({"detection": {"batch_size": None}}, "detection.batch_size: found None, expected a whole number"),
        ({"detection": {"epsilon": "1"}}, "detection.epsilon: found '1', expected a number"),
        ({"detection": {"max_documents": {"en": 3, "zh": 1.5}}}, "detection.max_documents.zh: found 1.5, expected a"),
        ({"detection": {"method": 1}}, "detection.method: found 1, expected text; put it in quotation marks"),
    ],
)
def test_no_type_is_taken_for_another(changes, line):
    """A truth value is no number, a number no text, and of several possible types the one that a value looks like."""
    test_a_mistake_is_one_line(changes, line)


def test_numbers_stay_as_they_are_written():
    """A whole number where any is allowed becomes a number of the rule, and stays whole in `detection`."""
    found = settings(rule={"fraction": 1}, detection={"epsilon": 1})
    assert type(found.rule.fraction) is float and type(found.detection["epsilon"]) is int
    assert "epsilon: 1\n" in found.text()
