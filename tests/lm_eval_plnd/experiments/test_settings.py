"""A settings file is checked before anything is computed; each mistake is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lm_eval_plnd.experiments.settings import FOLDER, expand, load_settings, parse_settings
from plnd.demo_data import demo_model
from plnd.errors import PLNDError

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


def test_experiments_without_tables():
    """Sets, and the figures that need nothing else, need no task; the original alone is evaluated on every item."""
    found = parse_settings({**yaml.safe_load(GOOD), "tasks": {}, "experiments": ["sets", "figure5"]})
    assert found.experiments == {"sets": [], "figure5": []}
    assert settings(experiments=["original"]).experiments == {"original": ["understanding", "text"]}


def test_projections_by_the_name_of_a_group():
    """`paper` stands for the projections of which the paper has an importance, and is kept as it was written."""
    found = settings(rule={"epsilon_for": 0.0013, "projections": "paper"}).rule
    assert (found.projections, found.of_one_language) == ("paper", {"epsilon_for": 0.0013})


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
        ({"rule": {}}, "rule: expected exactly one of epsilon, epsilon_for, top_k, fraction, or contrast, found none"),
        (
            {"rule": {"fraction": 0.1, "top_k": 3}},
            "rule: expected exactly one of epsilon, epsilon_for, top_k, fraction, or contrast, found top_k, ",
        ),
        (
            {"rule": {"contrast": None}},
            "rule: expected exactly one of epsilon, epsilon_for, top_k, fraction, or contrast, found none",
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
            {"rule": {"contrast": {}}, "experiments": {"later_table9": ["text"]}},
            "experiments.later_table9: 'without_shared' is made from what is important for a language, and",
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
        ({"experiments": []}, "experiments: none, expected some of table1, table2, "),
        (
            {"experiments": ["table8"]},
            "experiments.table8: two tables of the paper have this number, say the prompts (scripts/plnd_paper.py",
        ),
        (
            {"experiments": {"table9": ["text"]}},
            "experiments.table9: two tables of the paper have this number, say original or, in the later appendix,",
        ),
        ({"experiments": {"sets": ["text"]}}, "experiments.sets: found text, expected no item: it evaluates nothing"),
        ({"rule": {"epsilon_for": 1.5}}, "rule.epsilon_for: found 1.5, expected more than 0 and at most 1"),
        (
            {"rule": {"epsilon_for": 0.1, "projections": "q_proj"}},
            "rule.projections='q_proj': expected a list of names, such as ['o_proj', 'down_proj'], or one of paper,",
        ),
        ({"equal": "all"}, "equal: found 'all', expected true or false"),
        ({"equal": 0}, "equal: found 0, expected true, false, or a number of neurons"),
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
        ({"ablation": "noise"}, "ablation: unknown 'noise', expected zero or mean"),
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
    """Every settings file in the package is good, and is found by its name from anywhere."""
    assert load_settings(path).experiments
    assert load_settings(path.stem) == load_settings(path)


def test_a_file_comes_before_what_comes_with_plnd(tmp_path, monkeypatch):
    """A reader's own `demo` is theirs; a word that is neither is told what there is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PLNDError, match="demi: no such file, nor among the settings that come with plnd: .*demo, "):
        load_settings("demi")
    with pytest.raises(PLNDError, match=r"demo\.yaml: cannot be read \(No such file"):
        load_settings("demo.yaml")
    Path("demo").write_text(GOOD.replace("zh", "sw"))
    assert "sw" in load_settings("demo").languages


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"corpus": 7}, "corpus: found 7, expected text; put it in quotation marks"),
        ({"corpus": {"en": 3, "zh": "z"}}, "corpus.en: found 3, expected text; put it in quotation marks"),
        ({"corpus": {False: "n", "en": "e"}}, "corpus: False is no name; put it in quotation marks"),
        ({"rule": {"fraction": True}}, "rule.fraction: found True, expected a number"),
        ({"rule": {7: True}}, "rule[7]: unknown, expected some of epsilon, epsilon_for, top_k, fraction, projections"),
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


@pytest.mark.parametrize(
    "language",
    [
        "../../evil",
        "a/b",
        "a\\b",
        "",
        ".",
        "..",
        ".zh",
        "CON",
        "nul",
        "com1",
        "zh.s1",
        "a\n",
        "a\0",
        "z h",
        "x" * 65,
        "-",
    ],
)
def test_languages_that_are_no_part_of_a_files_name(language):
    """Artifacts are named after languages: none leads out of the folder, or into another one's file."""
    with pytest.raises(PLNDError, match="languages: .* cannot be part of a file's name"):
        settings(languages=["en", language])


def test_languages_that_are(tmp_path):
    """Codes, names and other scripts are; two that differ by case alone are one file on some systems."""
    names = ["en", "zh-Hant", "pt_BR", "中文", "con_", "x" * 64]
    assert settings(languages=names).languages == names
    with pytest.raises(PLNDError, match="languages: en, zh, ZH: two that are one file on some systems"):
        settings(languages=["en", "zh", "ZH"])


TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": {"pretrained": "m", "token": "abc"}}, "model.token"),
        ({"model": {"pretrained": "m", "use_auth_token": "abc"}}, "model.use_auth_token"),
        ({"model": {"pretrained": "m", "proxies": {"https": "http://me:pass@host"}}}, "model.proxies.https"),
        ({"corpus": f"https://huggingface.co/x/{{language}}?token={TOKEN}"}, "corpus"),
        ({"corpus": {"en": "a", "zh": f"https://user:{TOKEN}@huggingface.co/x"}}, "corpus.zh"),
        ({"metadata": {"source": [f"x?access_token={TOKEN}"]}}, "metadata.source"),
        ({"tasks": {"text": {"task": "t_{language}", "model": {"token": "x"}}}}, "tasks.text.model.token"),
    ],
)
def test_secrets_are_refused(changes, where):
    """Settings are copied into the folder and its report: a token is not taken, and not said again."""
    with pytest.raises(PLNDError) as caught:
        settings(**changes)
    assert str(caught.value).startswith(f"{where}: holds a token or password") and TOKEN not in str(caught.value)


def test_what_only_looks_like_a_secret():
    """Arguments that have to do with tokens of text, and `token: true`, which says to use the one that is there."""
    model = {"pretrained": "m", "prefix_token_id": 1, "add_bos_token": True, "token": True, "max_gen_toks": 9}
    assert settings(model=model).model == model


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LAUGHS, "more than 100,000 values, aliases repeated; expected settings"),
        ("a: &a [*a]", "more than 100,000 values, aliases repeated; expected settings"),
        ("limit: 1\nseeds: [1]\nlimit: 2", "line 3: 'limit' is there twice"),
        ("model: {pretrained: a, pretrained: b}", "line 1: 'pretrained' is there twice"),
        ("limit: " + "9" * 5000, "not YAML (Exceeds the limit (4300"),
        ("limit: " + "9" * 4000, "limit: a number of 4000 digits"),
        ("model: {revision: 2026-02-30}", "not YAML (day is out of range for month)"),
        ("model: {revision: 2026-02-03}", "model.revision: found 2026-02-03, which YAML reads as date; put it in"),
        ("model: {revision: 2026-02-03 99:99:99}", "not YAML ("),
        (
            "model: {revision: !!binary aGFsbG8=}",
            "model.revision: found b'hallo', which YAML reads as bytes; put it in",
        ),
        ("model: !!set {a, b}", "model: found"),
        ("rule: {epsilon: .nan}", "rule.epsilon: found nan, expected a finite number"),
        ("a: " + "[" * 33 + "]" * 33, "values inside one another, more than 32 deep; expected settings"),
        ("a: " + "[" * 5000, "values inside one another, more than 32 deep; expected settings"),
        ("a: !!python/object/apply:os.abort []", "not YAML (could not determine a constructor"),
        ("a: \x07", "not YAML ("),
        ("? [a]\n: b", "not YAML ("),
        ("x" * (2**20 + 1), "larger than 1,048,576 bytes, expected settings"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_no_settings(tmp_path, text, line):
    """Bombs, and values that are odd to YAML or Python, are one line, at once."""
    test_a_file_that_holds_something_else(tmp_path, text, line)


def test_aliases_are_read(tmp_path):
    """The negative of the bombs above: a value may be said once and meant twice, and merged."""
    text = (
        GOOD.replace("{limit: 20}", "x").replace("seeds: [0]", "")
        + "\nmetadata: &m {data_dir: d}\ndetection: &d {qk: exact}\n"
    )
    (tmp_path / "s.yaml").write_text(text + "search: {under: &n [1, 2], gen: *n}\n")
    assert load_settings(tmp_path / "s.yaml").search.gen == [1, 2]
