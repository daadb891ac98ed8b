"""Sharing Matters as one settings file: its commands, its items, and every one of them on the demo's model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from lm_eval_plnd.experiments.role_experiment import ITEMS, Item, inputs_of, load_role_settings, shown, steps
from plnd.errors import PLNDError
from programs import run_script

SETTINGS = {
    "model": {"pretrained": "plnd:polyglot-9m", "dtype": "float32", "device": "cpu"},
    "languages": ["en", "de", "es"],
    "tasks": {
        "xnli": "plnd_ranked_xnli_{language}",
        "facts": {"task": "plnd_ranked_fact_probing_{language}", "align": "id"},
        "edits_from_english": "plnd_mzsre_en_{language}",
        "edits_to_english": "plnd_mzsre_{language}_en",
    },
    "limit": 2,
    "counts": [2],
    "shares": [0.5],
    "thresholds": [0.0, 0.1],
    "fewshot": 1,
}


def settings_file(path: Path, **changes) -> Path:
    """The settings above, other values for some fields."""
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}, sort_keys=False))
    return path


def test_the_papers_items():
    """Every figure with a number and every table of the paper has a name: Figures 1 and 2 are drawings."""
    figures = {f"figure{n}" for n in range(3, 28)}
    assert ITEMS.keys() == figures | {f"table{n}" for n in range(1, 5)}


def test_commands(tmp_path):
    """A run of `plnd roles` for every task, one at all tokens for Figure 6, one with worked examples for Figure 19."""
    found = {step.name: shown(step.command("F")) for step in steps(load_role_settings(settings_file(tmp_path / "s")))}
    assert list(found) == [
        *("xnli", "facts", "facts_all_tokens", "edits_from_english", "edits_from_english_fewshot", "edits_to_english")
    ]
    assert "--tasks en=plnd_mzsre_en_en,de=plnd_mzsre_en_de,es=plnd_mzsre_en_es" in found["edits_from_english"]
    assert "--tasks en=plnd_mzsre_en_en,de=plnd_mzsre_de_en,es=plnd_mzsre_es_en" in found["edits_to_english"]
    assert (
        "--align id --limit 2 --tokens all --output F/facts_all_tokens.roles.safetensors" in found["facts_all_tokens"]
    )
    assert (
        "--num_fewshot 1" in found["edits_from_english_fewshot"]
        and "--attribution F/xnli.attribution.csv" in found["xnli"]
    )


@pytest.mark.parametrize(("name", "languages"), [("demo", 6), ("bloomz-7b1", 10)])
def test_the_settings_that_come_with_plnd(name, languages):
    """All four kinds of input, for all tables and figures."""
    folder = Path(__file__).resolve().parents[3] / "scripts" / "settings"
    settings = load_role_settings(folder / "sharing-matters" / f"{name}.yaml")
    assert len(settings.languages) == languages and len(steps(settings)) == 6


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tasks": {"xnly": "x_{language}"}}, "tasks: found xnly, expected some of xnli, facts"),
        ({"tasks": {"xnli": "plnd_xnli_zh"}}, "tasks.xnli: 'plnd_xnli_zh' is one for all languages"),
        (
            {"tasks": {"xnli": {"task": "x_{language}", "languages": ["en", "fr"]}}},
            "tasks.xnli.languages: fr is not among",
        ),
        ({"languages": ["en"], "language": "en"}, "tasks.xnli: expected 2 to 16 languages"),
        ({"language": "zh"}, "language: zh is not among languages"),
        ({"model": {"dtype": "float32"}}, "model.pretrained: missing"),
        (
            {"model": {"pretrained": "m", "parallelize": True}},
            "model.parallelize: unknown, expected some of pretrained",
        ),
        ({"languages": ["en", "de", "../../evil"]}, "languages: '../../evil'"),
        ({"languages": ["en", "de", "DE"]}, "languages: en, de, DE: two that are one file on some systems"),
        ({"metadata": {"token": "hf_" + "x" * 34}}, "metadata.token: holds a token or password"),
        ({"limits": 3}, "limits: extra inputs are not permitted, found 3"),
        ({"limit": "3"}, "limit: input should be a valid integer, found '3'"),
    ],
)
def test_refusals(tmp_path, changes, line):
    """One line with the file and the field."""
    with pytest.raises(PLNDError) as caught:
        load_role_settings(settings_file(tmp_path / "s.yaml", **changes))
    assert f"s.yaml: {line}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("limit: 3\nlimit: 4\n", "line 2: 'limit' is there twice"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{n}: &c{n} [{'*b, ' * 99}]\n" for n in range(600)), "more than"),
        ("limit: " + "[" * 1000, "values inside one another"),
        ("", "empty, expected fields with values"),
    ],
    ids=["twice", "laughs", "deep", "empty"],
)
def test_files_that_are_no_settings(tmp_path, text, line):
    """The same reading as that of `plnd experiment`."""
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(PLNDError) as caught:
        load_role_settings(tmp_path / "s.yaml")
    assert f"s.yaml: {line}" in str(caught.value) and "\n" not in str(caught.value)


def test_inputs_of_a_folder(tmp_path):
    """Those that it has, of several folders each; files stay what they are; none is one line."""
    (tmp_path / "xnli.roles.safetensors").touch()
    item = Item("ratios", ("xnli", "facts"))
    assert inputs_of(item, ["a.roles.safetensors", str(tmp_path)]) == [
        "a.roles.safetensors",
        str(tmp_path / "xnli.roles.safetensors"),
    ]
    with pytest.raises(PLNDError, match="found none of facts.attribution.csv; `scripts/sharing_matters.py run` writes"):
        inputs_of(Item("top", ("facts",), scores=True), [str(tmp_path)])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few rows of each benchmark in three languages: of two, no neuron is partial-shared."""
    folder = tmp_path_factory.mktemp("data")
    for place in ("xnli", "mzsre", "fact_probing/tuples"):
        (folder / place).mkdir(parents=True)

    def put(name: str, rows: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for language in ("en", "de", "es"):
        pairs = [{"premise": f"{language} {n}", "hypothesis": "no", "label": "neutral"} for n in range(2)]
        for split in ("dev", "test"):
            put(f"xnli/xnli_{split}_{language}.jsonl", pairs)
        places = [
            {"sub_uri": f"Q{n}", "obj_uri": f"Q9{n}", "sub_label": f"land {n}", "obj_label": f"{language}town {n}"}
            for n in range(12)
        ]
        put(f"fact_probing/tuples/{language}.jsonl", [{**place, "lineid": n} for n, place in enumerate(places)])
    said = {"subject": "s", "src": "who?", "alt": "she", "rephrase": "r", "loc": "l", "loc_ans": "a", "portability": {}}
    for other in ("de", "es"):
        edits = [{x: {**said, "alt": f"{x} {n}"} for x in ("en", other)} for n in range(3)]
        (folder / "mzsre" / f"en-{other}.json").write_text(json.dumps(edits))
    return folder


@pytest.mark.slow
def test_every_table_and_figure(data, tmp_path, capsys):
    """From one settings file by one command; again, nothing is computed; further names draw from the folder."""
    file = settings_file(tmp_path / "s.yaml", metadata={"data_dir": str(data)})
    run_script("sharing_matters", "run", file, "--output", tmp_path / "run")
    made = {path.name for path in (tmp_path / "run").iterdir()}
    others = ("figure4", "figure12", "figure13", "figure14", "figure18", "table4")
    for name in ITEMS.keys() - {*others, "table2"}:
        assert {f"{name}.csv", f"{name}.svg", f"{name}.made.json"} <= made
    assert {"table2_xnli.csv", "table2_edits_from_english.csv", "table2_edits_to_english.json"} <= made
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.safetensors")}
    capsys.readouterr()
    run_script("sharing_matters", "run", file, "--output", tmp_path / "run")
    assert "plnd roles" not in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.safetensors")} == before
    for name in random.Random(0).sample(others[:5], 2):
        run_script(
            "sharing_matters", name, tmp_path / "run", "--output", tmp_path / name, "--plot", tmp_path / f"{name}.svg"
        )
        assert (tmp_path / f"{name}.svg").is_file()
    with pytest.raises(SystemExit) as end:
        run_script("sharing_matters", "run", file, "--output", tmp_path / "run", "--set", "limit=1")
    assert end.value.code == 2 and "holds another experiment" in capsys.readouterr().err
