"""scripts/frontier.py: equal budgets, rates by successive halving, runs that go on, and what is made of them."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from handmade import MODEL, WIDTHS, make_scores
from lm_eval_plnd.experiments.frontier.budgets import Population, choose, fit_ranks
from lm_eval_plnd.experiments.frontier.run import frontier, how_of, read_runs
from lm_eval_plnd.experiments.frontier.schedule import Cell, cells, due, rounds, sizes
from lm_eval_plnd.experiments.frontier.settings import RATES, load_frontier_settings, parse_frontier_settings
from lm_eval_plnd.experiments.frontier.texts import read_texts, write_jsonl
from lm_eval_plnd.experiments.frontier.training import Bench
from pictures import drawn
from plnd.demo_data import demo_corpus, demo_model
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.io.inputs import sealed
from plnd.models.loading import load_tokenizer
from plnd.neurons.neuron_set import NeuronSet
from programs import run_script

FIELDS = {
    "model": {"pretrained": "absent", "dtype": "float32", "device": "cpu"},
    "languages": ["en", "ru", "zh"],
    "trained": ["zh"],
    "corpus": str(demo_corpus("detect") / "corpora" / "{language}.jsonl"),
    "methods": ["lora", "contrast"],
    "budgets": [0.01],
    "seeds": [0, 1],
    "detection": {"documents": 4, "max_length": 32, "qk": "off"},
    "training": {"documents": 8, "max_length": 16, "batch_size": 2},
    "evaluation": {"choice": 2, "held_out": 3, "max_length": 32, "min_length": 8},
}


def settings(**changes):
    """Small settings, with some changed."""
    return parse_frontier_settings({**FIELDS, **changes})


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"methods": ["lore"]}, "methods.lore.kind: unknown 'lore', expected one of lora"),
        ({"methods": {"a": {"kind": "lora", "control": "random"}}}, "methods.a: measure and control are for the kinds"),
        (
            {"methods": {"a": {"kind": "lora", "rates": [0.1, 0.1]}}},
            "methods.a.rates: found [0.1, 0.1], expected numbers",
        ),
        ({"methods": {"a": {"kind": "lora", "whole": True}}}, "methods.a: whole is for the kinds magnitude, gradient"),
        ({"methods": {"a": {"kind": "random", "importance_power": 1}}}, "methods.a: importance_power is for the kinds"),
        ({"methods": {"a": {"kind": "gradient", "control": "random"}}}, "methods.a: measure and control are for"),
        ({"methods": {"a": {"kind": "lora", "warm": {}}}}, "methods.a: warm is for the kinds magnitude, gradient"),
        ({"methods": {"a": {"kind": "difference", "warm": {}}}}, "methods.a.warm: difference needs a language"),
        (
            {"methods": {"a": {"kind": "rank", "warm": {"language": "de"}}}},
            "a.warm.language: de is not among languages",
        ),
        ({"methods": {"a": {"kind": "rank", "warm": {"budget": 1.0}}}}, "methods.a.warm.budget: found 1, expected a"),
        (
            {"methods": {"a": {"kind": "rank", "warm": {}}}, "training": {"documents": 1}},
            "training: found one document in a round, expected two or more",
        ),
        ({"methods": {"a": {"kind": "full", "replay": 1}}}, "methods.a.replay: found 1, expected a share, 0 or more"),
        ({"methods": {"a": {"kind": "lora", "budgets": [0.2]}}}, "methods.a.budgets: 0.2 is not among budgets"),
        ({"methods": {"../a": {"kind": "lora"}}}, "methods.../a: expected letters, digits, - and _"),
        ({"methods": {}}, "methods: found {}, expected one or more, each once"),
        ({"reference": "full"}, "reference: found full, expected one of lora, contrast"),
        ({"trained": ["de"]}, "trained: de is not among languages, which has en, ru, zh"),
        ({"trained": []}, "trained: found [], expected one or more"),
        ({"languages": ["zh"]}, "expected two or more"),
        ({"budgets": [1.5]}, "budgets: found 1.5, expected shares of the parameters, above 0 and below 1"),
        ({"corpus": "zh.jsonl"}, "corpus: 'zh.jsonl' is one for all languages, expected {language} in it"),
        ({"corpus": {"zh": "a", "en": "b"}}, "corpus.ru: missing"),
        ({"projections": "paper"}, "name down_proj for a feed-forward neuron"),
        ({"projections": ["q_proj"]}, "projections: none that is scored with detection.qk off"),
        ({"seeds": [-1]}, "seeds: found -1, expected 0 or more"),
        ({"factor": 1}, "factor: found 1, expected 2 or more"),
        ({"training": {"documents": 0}}, "training.documents: found 0, expected 1 or more"),
        (
            {"model": {"pretrained": "a", "dtype": "float16"}},
            "model.dtype: found float16, expected bfloat16 or float32",
        ),
        ({"model": {"pretrained": "a", "dtype": "float32", "peft": "b"}}, "model.peft: unknown, expected some of"),
        ({"further": 1}, "further: extra inputs are not permitted"),
    ],
)
def test_settings_are_checked(changes, line):
    """What makes no sense is one line that names the field."""
    with pytest.raises(PLNDError) as error:
        settings(**changes)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(Path("scripts/settings/frontier").glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_that_come_along_are_valid(path):
    """Each file of `scripts/settings/frontier` is read, and what is written of it is read as the same."""
    found = load_frontier_settings(path)
    assert parse_frontier_settings(yaml.safe_load(found.text())) == found and list(cells(found))


def test_no_text_is_learnt_from_and_measured():
    """Nor is one that rates are chosen on reported; a text that comes again counts once."""
    tokenizer = load_tokenizer(str(demo_model()))
    found = read_texts(settings(), "zh", tokenizer)
    source = list(dict.fromkeys(read_documents(FIELDS["corpus"].replace("{language}", "zh"))))
    parts = [{source[d.number] for d in found.choice}, {source[d.number] for d in found.held_out}, set(found.rest)]
    assert [len(part) for part in parts[:2]] == [2, 3] and len(parts[2]) == len(found.rest) >= 8
    assert sum(map(len, parts)) == len(set.union(*parts))
    for document in (*found.choice, *found.held_out):
        own = tokenizer(source[document.number], add_special_tokens=False)["input_ids"]
        assert document.ids[1:] == own[:31]


def test_texts_that_evaluation_reads_alike_are_one(tmp_path):
    """Two of the same first 31 tokens: what is trained on would else be reported."""
    tokenizer, source = load_tokenizer(str(demo_model())), FIELDS["corpus"].replace("{language}", "zh")
    texts = list(dict.fromkeys(read_documents(source)))
    (tmp_path / "corpora").mkdir()
    write_jsonl([text + more for text in texts for more in ("", " and more")], tmp_path / "corpora" / "zh.jsonl")
    found = read_texts(settings(corpus=f"{tmp_path}/corpora/{{language}}.jsonl"), "zh", tokenizer)
    beginnings = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"][:31])
        for text in (*found.rest, *(document.text for document in (*found.choice, *found.held_out)))
    ]
    assert len(set(beginnings)) == len(beginnings) > 20


def test_what_one_language_learns_is_not_measured_in_another(tmp_path):
    """A text that is reported in English, and that Chinese may be trained on, is refused before any training."""
    tokenizer = load_tokenizer(str(demo_model()))
    english, chinese = (read_texts(settings(), language, tokenizer) for language in ("en", "zh"))
    source = FIELDS["corpus"].replace("{language}", "zh")
    texts = [english.held_out[0].text if text == chinese.rest[-1] else text for text in read_documents(source)]
    write_jsonl(texts, tmp_path / "zh.jsonl")
    corpora = {x: FIELDS["corpus"].replace("{language}", x) for x in ("en", "ru")} | {"zh": f"{tmp_path}/zh.jsonl"}
    bench = Bench(settings(corpus=corpora, model={**FIELDS["model"], "pretrained": str(demo_model())}), tmp_path)
    with pytest.raises(PLNDError, match="en: 1 texts for evaluation are for detection or training too, in zh"):
        bench.check([])


def test_successive_halving():
    """Four rates on a quarter of the documents, the better two on half of them, the best on all with every seed."""
    chosen = settings(methods={"lora": {"rates": [0.1, 0.2, 0.3, 0.4]}})
    assert rounds(chosen, 4) == [(4, 2), (2, 4)] and rounds(chosen, 1) == [] and rounds(chosen, 3) == [(3, 2), (2, 4)]
    cell, gains = Cell("zh", "lora", 0.01), {}
    assert cells(chosen) == [cell]
    first = due(chosen, cell, gains)
    assert [(run.rate, run.documents, run.seed, run.final) for run in first] == [
        (x, 2, 2, False) for x in (0.1, 0.2, 0.3, 0.4)
    ]
    gains |= dict(zip((run.name for run in first[:3]), (0.5, 0.7, math.nan), strict=True))
    assert due(chosen, cell, gains) == first[3:]
    gains[first[3].name] = 0.7
    second = due(chosen, cell, gains)
    assert [(run.rate, run.documents) for run in second] == [(0.2, 4), (0.4, 4)]
    gains |= dict(zip((run.name for run in second), (-0.1, 0.0), strict=True))
    final = due(chosen, cell, gains)
    assert [(run.rate, run.documents, run.seed, run.final) for run in final] == [(0.4, 8, 0, True), (0.4, 8, 1, True)]
    assert due(chosen, cell, gains | {final[0].name: math.nan}) == final[1:]
    assert due(chosen, cell, gains | {run.name: math.nan for run in final}) == []
    assert sorted(sizes(chosen)) == sorted((run.final, run.documents) for run in (*first, *second, *final))


@pytest.mark.parametrize("budget", [5, 90, 119, 120, 121, 600, 12_345])
def test_ranks_fill_the_budget(budget):
    """All parameters of a fit are within the budget, the next rank would not be, and ranks differ by one at most."""
    one = {f"m{n}": size for n, size in enumerate((10, 30, 20, 60))}
    ranks = fit_ranks(one, budget)
    spent = sum(one[name] * rank for name, rank in ranks.items())
    every = [ranks.get(name, 0) for name in one]
    assert spent <= budget and max(every) - min(every) <= 1
    assert all(spent + size > budget for name, size in one.items() if every[list(one).index(name)] == min(every))
    fixed = fit_ranks(one, budget, dict.fromkeys(one, 7))
    assert sum(one[name] * rank + 7 for name, rank in fixed.items()) <= budget
    assert max(fit_ranks(one, budget, most=1).values(), default=0) <= 1


def population() -> Population:
    """Queries and feed-forward neurons of the model made by hand; a query costs 5 parameters, a column 6."""
    widths = {f"{block}.{name}": WIDTHS[name] for block in range(2) for name in ("q_proj", "down_proj")}
    return Population(widths, {a: 5 if a.endswith("q_proj") else 6 for a in widths}, MODEL)


def chosen_neurons(method: dict, budget: int, seed: int = 0, times: float = 1.0):
    """What one method chooses for Chinese, of random importances; those of the three languages."""
    generator = np.random.default_rng(0)
    everything = {
        language: make_scores(
            {address: generator.random((3, width)) + 0.1 for address, width in MODEL["widths"].items()},
            language=language,
            corpus={**make_scores({"0.q_proj": np.ones((3, 6))}).metadata.corpus, "sha256": str(n) * 64},
        )
        for n, language in enumerate(("en", "ru", "zh"))
    }
    chosen = settings(
        methods={"m": method}, detection={"qk": "exact"}, times=times, projections=["q_proj", "down_proj"]
    )
    norms = {address: np.arange(1.0, width + 1) for address, width in population().widths.items()}
    squares = {**norms, "0.down_proj": norms["0.down_proj"] + 100}
    found = choose(
        chosen,
        chosen.methods["m"],
        population(),
        budget,
        "zh",
        seed,
        lambda x, _: everything[x],
        lambda: norms,
        lambda x: {a: v * (5 if a.endswith("q_proj") else 6) for a, v in squares.items()},
    )
    return found, everything


def cost(neurons) -> int:
    """Parameters of a set."""
    return sum(len(indices) * population().costs[address] for address, indices in neurons.items())


@pytest.mark.parametrize("kind", ["magnitude", "gradient", "random", "rank", "difference", "contrast"])
def test_neurons_fill_the_budget(kind):
    """Each rule takes neurons for as many parameters as the budget has, less one neuron's, and says for how many."""
    found, _ = chosen_neurons({"kind": kind}, 37)
    assert 37 - 6 < cost(found) <= 37 and found.metadata.rule.parameters == 37


def test_rules_take_what_they_say():
    """Rank: the best ranked. Difference: within one share in Chinese, in no other one. Magnitude: largest norms.

    Gradient: the largest square for each parameter, of which a row or column has as many as it costs.
    """
    ranked, scores = chosen_neurons({"kind": "rank"}, 37)
    entry = {
        x: {
            (a, n): (rank + 1) / width
            for a, width in population().widths.items()
            for n, rank in enumerate(of.worst_rank[a])
        }
        for x, of in scores.items()
    }
    taken = {(a, int(n)) for a, indices in ranked.items() for n in indices}
    assert max(entry["zh"][x] for x in taken) <= min(v for x, v in entry["zh"].items() if x not in taken)
    apart, _ = chosen_neurons({"kind": "difference"}, 13)
    own = {(a, int(n)) for a, indices in apart.items() for n in indices}
    limit = max(entry["zh"][x] for x in own)
    assert all(entry[other][x] > limit for other in ("en", "ru") for x in own)
    steep, _ = chosen_neurons({"kind": "gradient"}, 6 * WIDTHS["down_proj"])
    assert {a: len(indices) for a, indices in steep.items()} == {"0.down_proj": WIDTHS["down_proj"]}
    large, _ = chosen_neurons({"kind": "magnitude"}, 22)
    assert {a: indices.tolist() for a, indices in large.items()} == {a: [w - 1] for a, w in population().widths.items()}


def test_random_choices_follow_the_seed():
    """The same seed the same neurons, another one others; a control has as many of each place as the rule."""
    sets = [chosen_neurons({"kind": "random"}, 60, seed)[0] for seed in (1, 1, 2)]
    assert sets[0] == sets[1] != sets[2]
    rule = chosen_neurons({"kind": "contrast"}, 37)[0]
    control = chosen_neurons({"kind": "contrast", "control": "random"}, 37, 5)[0]
    assert {a: len(v) for a, v in control.items()} == {a: len(v) for a, v in rule.items()} and control != rule


@pytest.mark.parametrize(
    "method, budget, line",
    [
        ({"kind": "random"}, 4, "a budget of 4 parameters is below one neuron's, 5: give a larger one"),
        ({"kind": "random"}, 10_000, "random finds 28 neurons for None, and the budget pays for about 2,000"),
    ],
)
def test_budgets_that_do_not_fit(method, budget, line):
    """A budget below one neuron, and one for more neurons than a rule finds, are refused."""
    with pytest.raises(PLNDError, match=line):
        chosen_neurons(method, budget)


def finished(folder: Path, **changes):
    """A folder of an experiment of LoRA and contrast whose runs are done, with numbers made by hand."""
    chosen = settings(methods={name: {"rates": [0.1]} for name in ("lora", "contrast")}, **changes)
    before = {x: {"nats": [8.0, 4.0, 6.0], "sizes": [4, 2, 6]} for x in chosen.languages}
    (folder / "base.json").write_text(json.dumps({"choice": before, "held_out": before, "tasks": {}}))
    lines = []
    for cell in cells(chosen):
        for run in due(chosen, cell, {}):
            own = {"lora": 0.5, "contrast": 1.0}[cell.method] + run.seed
            nats = {x: [n - own if x == "zh" else n + 0.25 for n in before[x]["nats"]] for x in before}
            what = {"run": run.name, "final": True, "language": "zh", "method": cell.method, "budget": cell.budget}
            how = {"how": how_of(chosen, cell.method), "rate": run.rate, "documents": 8, "seed": run.seed}
            lines.append({**what, **how, "parameters": 7, "share": 0.01, "nats": nats})
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return chosen


def test_report(tmp_path):
    """Gain and forgetting are changes of nats over ln 2 and bytes, means over seeds; the picture has them as points.

    No model is needed any more.
    """
    chosen = finished(tmp_path)
    with drawn() as figures:
        assert frontier(chosen, tmp_path) == tmp_path / "frontier.csv"
    with (tmp_path / "frontier.csv").open(newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    for method, by_seed in (("lora", (0.5, 1.5)), ("contrast", (1.0, 2.0))):
        per_bit = 3 / math.log(2) / 12  # three documents, twelve bytes
        row = rows[method]
        assert float(row["gain"]) == pytest.approx(np.mean(by_seed) * per_bit)
        assert float(row["gain_seed_deviation"]) == pytest.approx(np.std(by_seed, ddof=1) * per_bit)
        assert float(row["forgetting"]) == pytest.approx(0.25 * per_bit)
        assert float(row["gain_low"]) <= float(row["gain"]) <= float(row["gain_high"])
    assert rows["lora"]["gain_p"] == "" and float(rows["contrast"]["gain_p"]) == 0.25  # of 2 ** 3 signs two
    assert float(rows["contrast"]["forgetting_p"]) == 1
    assert "Chinese" in (tmp_path / "frontier.md").read_text()
    (axis,) = [axis for axis in figures[0].axes if axis.axison]
    marked = [line for line in axis.get_lines() if line.get_marker() != "None"]
    points = {(float(x), float(y)) for line in marked for x, y in line.get_xydata()}
    assert points == {(float(row["forgetting"]), float(row["gain"])) for row in rows.values()}
    assert axis.get_title() == "Chinese"
    with (tmp_path / "changes.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 2 * 3 * 2


def test_a_line_without_an_end_is_not_counted(tmp_path):
    """What a killed process left of a line is no run; a damaged line inside is refused."""
    finished(tmp_path)
    whole = read_runs(tmp_path)
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write('{"run": "zh.')
    assert read_runs(tmp_path) == whole and len(whole) == 4
    with (tmp_path / "runs.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(PLNDError, match=r"runs\.jsonl: line 5 is damaged; delete it, and the run is repeated"):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    "damaged, problem",
    [
        (lambda run: [run], "line 1 is damaged"),
        (lambda run: {**run, "rate": 0.2}, "line 1 is damaged"),  # its name says 0.1
        (lambda run: {**run, "nats": 3}, "line 1 is damaged"),
        (lambda run: {**run, "nats": {"zh": ["a"]}}, "line 1 is damaged"),
        (lambda run: {name: value for name, value in run.items() if name != "share"}, "line 1 is damaged"),
        (lambda run: {**run, "how": {"kind": 3}}, "line 1 is damaged"),
        (lambda run: {**run, "sha256": "0"}, "line 1 is damaged"),
        (lambda run: {**run, "nats": run["nats"] | {"zh": [1.0]}}, "has other documents than base.json"),
        (lambda run: {**run, "tasks": {"reading": {"zh": [1.0]}}}, "has other documents than base.json"),
    ],
)
def test_damaged_lines_are_one_line(tmp_path, damaged, problem):
    """Whatever valid JSON stands where a run was: it is named, and no table is made of it."""
    chosen = finished(tmp_path)
    first, *others = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join([json.dumps(damaged(json.loads(first))), *others, ""]))
    with pytest.raises(PLNDError, match=f"runs.jsonl: .*{problem}; delete .*, and the run is repeated") as caught:
        frontier(chosen, tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "frontier.csv").exists()


@pytest.mark.parametrize(
    "damaged", ["{", "[]", "{}", '{"choice": {}, "held_out": {}, "tasks": {}}', "sizes", "checksum"]
)
def test_a_damaged_base_is_one_line(tmp_path, damaged):
    """What the base model scored is checked as the runs are."""
    chosen = finished(tmp_path)
    text = (tmp_path / "base.json").read_text()
    found = {
        "sizes": text.replace("[4, 2, 6]", "[4, 2, 0]"),
        "checksum": sealed(json.loads(text)).replace("8.0", "9.0"),
    }
    (tmp_path / "base.json").write_text(found.get(damaged, damaged))
    with pytest.raises(PLNDError, match=r"base.json: damaged; delete it, and the base model is evaluated again"):
        frontier(chosen, tmp_path)


@pytest.mark.slow
def test_other_texts_or_another_model_in_their_place(tmp_path):
    """Corpus and model of the same names whose content changed are refused, also where all runs are done."""
    corpora, model = tmp_path / "corpora", tmp_path / "model"
    shutil.copytree(demo_corpus("detect") / "corpora", corpora)
    shutil.copytree(demo_model(), model)
    named = {"corpus": str(corpora / "{language}.jsonl"), "model": {**FIELDS["model"], "pretrained": str(model)}}
    (tmp_path / "out").mkdir()
    chosen = finished(tmp_path / "out", **named)
    with pytest.warns(UserWarning, match="begun by an earlier plnd"):
        frontier(chosen, tmp_path / "out")
    frontier(chosen, tmp_path / "out")
    for path, line in ((corpora / "ru.jsonl", "corpus of ru"), (model / "config.json", "model's content")):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(PLNDError, match=f"holds another experiment, whose {line}"):
            frontier(chosen, tmp_path / "out")
        path.write_bytes(before)


@pytest.mark.parametrize(
    "change, line",
    [
        ("training.documents=9", "holds another experiment, whose training is"),
        ("methods.contrast.measure=relevance", "holds runs of contrast as another method"),
    ],
)
def test_another_experiment_in_the_folder(tmp_path, capsys, change, line):
    """Other settings in the same folder are one line and status 2; further methods are not refused for that."""
    chosen = finished(tmp_path)
    (tmp_path / "settings.yaml").write_text(chosen.text())
    with pytest.raises(SystemExit) as end:
        run_script("frontier", tmp_path / "settings.yaml", "--output", tmp_path, "--set", change)
    error = capsys.readouterr().err
    assert end.value.code == 2 and line in error and error.count("\n") == 1


def without_times(folder: Path) -> dict[str, dict]:
    """The runs of a folder, but for how long they took."""
    return {
        name: {key: value for key, value in run.items() if not key.endswith("seconds")}
        for name, run in read_runs(folder).items()
    }


@pytest.fixture(scope="module")
def small(small_model):
    """Settings of a whole experiment on the small model: two rates, then two seeds, of three methods."""
    model = {"pretrained": small_model, "dtype": "float32", "device": "cpu"}
    methods = {name: {"rates": [0.001, 0.01]} for name in ("lora", "random", "contrast")}
    parts = {
        "training": {"documents": 4, "max_length": 16, "batch_size": 2},
        "detection": {"documents": 4, "max_length": 32},
    }
    return settings(model=model, methods=methods, budgets=[0.001], **parts)


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    """The folder of the experiment, done in one go."""
    folder = tmp_path_factory.mktemp("frontier")
    frontier(small, folder)
    return folder


@pytest.mark.slow
def test_dry_run(small, uninterrupted, tmp_path, capsys):
    """The runs, the documents and a time that was measured here; nothing is left behind. What is done is not to do."""
    path = tmp_path / "small.yaml"
    path.write_text(small.text())
    run_script("frontier", path, "--dry-run", "--output", tmp_path / "none")
    said = capsys.readouterr().out
    assert "3 places, 12 runs, 12 of them to do (6 of these reported)" in said
    assert "  lora: 2 of 2 documents, then 2 of 4 documents" in said
    assert "to do: 36 documents trained on, 77 evaluated, 12 for detection" in said  # 3·(2·2 + 2·4), 3·2·2 + 2 + 7·3·3
    assert "s a document trained on" in said and [path] == list(tmp_path.iterdir())
    run_script("frontier", path, "--dry-run", "--output", uninterrupted)
    said = capsys.readouterr().out
    assert "12 runs, 0 of them to do" in said and "to do: 0 documents trained on, 0 evaluated, 0 for detection" in said
    assert "about 0 hours" in said
    (uninterrupted / "neurons" / "en.plnd.scores.safetensors").rename(tmp_path / "en.safetensors")
    run_script("frontier", path, "--dry-run", "--output", uninterrupted)
    (tmp_path / "en.safetensors").rename(uninterrupted / "neurons" / "en.plnd.scores.safetensors")
    assert "to do: 0 documents trained on, 0 evaluated, 4 for detection" in capsys.readouterr().out


@pytest.mark.slow
def test_every_budget_is_spent(uninterrupted):
    """All methods train as many parameters, up to one neuron's or one rank's of one module."""
    runs = without_times(uninterrupted)
    assert len(runs) == 3 * (2 + 2) and all(0.0009 < run["share"] <= 0.001 for run in runs.values())
    assert sum(run["final"] for run in runs.values()) == 6
    assert all(set(run["nats"]) == ({"en", "ru", "zh"} if run["final"] else {"zh"}) for run in runs.values())


@pytest.mark.slow
def test_killed_and_continued(small, uninterrupted, tmp_path):
    """Two processes on one folder, of which one is killed, and a third that goes on: the same runs and table."""

    def child() -> int:
        number = os.fork()
        if not number:
            frontier(small, tmp_path)
            os._exit(0)
        return number

    killed, other = child(), child()
    while not (tmp_path / "runs.jsonl").exists():
        time.sleep(0.01)
    os.kill(killed, signal.SIGKILL)
    statuses = [os.waitpid(number, 0)[1] for number in (killed, other)]
    assert [os.waitstatus_to_exitcode(status) for status in statuses] == [-signal.SIGKILL, 0]
    frontier(small, tmp_path)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 12
    assert without_times(tmp_path) == without_times(uninterrupted)
    assert (tmp_path / "frontier.csv").read_bytes() == (uninterrupted / "frontier.csv").read_bytes()


@pytest.mark.slow
def test_every_method_leaves_the_model_as_it_was(small, tmp_path):
    """Each kind trains parameters within the budget, changes the loss, and leaves no bit of the base model changed.

    Whole neurons, rates by importance and replay are other trainings, of what they say.
    """
    from lm_eval_plnd.experiments.frontier.schedule import Run
    from lm_eval_plnd.experiments.frontier.training import Bench

    kinds = {name: {"kind": name} for name in RATES}
    kinds |= {"whole": {"kind": "contrast", "whole": True}, "random-whole": {"kind": "random", "whole": True}}
    kinds |= {
        "warm": {"kind": "gradient", "warm": {}},
        "warm-whole": {"kind": "gradient", "whole": True, "warm": {"budget": 0.4}},
        "warm-english": {"kind": "contrast", "warm": {"language": "en"}},
    }
    kinds |= {"scaled": {"kind": "contrast", "importance_power": 1.0}, "replay": {"kind": "contrast", "replay": 0.5}}
    fields = {"methods": {name: {**kind, "rates": [0.01]} for name, kind in kinds.items()}}
    chosen = parse_frontier_settings({**yaml.safe_load(small.text()), **fields, "budgets": [0.0008]})
    for part in ("neurons", "documents", ".locks"):
        (tmp_path / part).mkdir()
    bench = Bench(chosen, tmp_path)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    plain = bench.evaluate(bench.model, False, ["zh"])["nats"]["zh"]
    losses = {}
    for cell in cells(chosen):
        found = bench.run(Run(cell, 0.01, 2, 0, False))
        losses[cell.method] = found["nats"]["zh"]
        after = bench.model.state_dict()
        assert after.keys() == before.keys() and all(bool((after[name] == before[name]).all()) for name in before)
        least = 0.0004 if cell.method == "warm-english" else 0.00064  # the two languages' neurons may be the same ones
        assert found["share"] == 1 if cell.budget is None else least < found["share"] <= 0.0008, cell
        assert found["nats"]["zh"] != plain, cell
        assert bench.evaluate(bench.model, False, ["zh"])["nats"]["zh"] == plain, cell
    apart = ("contrast", "whole", "scaled", "replay", "gradient", "warm", "warm-whole", "warm-english")
    assert len({tuple(losses[name]) for name in apart}) == len(apart)
    parts = [tmp_path / f"documents/zh.2.r0.warm-zh-0.5.{part}.jsonl" for part in ("first", "then")]
    first, then = ([json.loads(line)["text"] for line in path.open()] for path in parts)
    assert len(first) == len(then) == 1 and first != then and {*first, *then} <= set(bench.texts("zh").rest)
    english = json.loads((tmp_path / "documents/zh.2.r0.warm-en-0.5.first.jsonl").read_text())["text"]
    assert english in bench.texts("en").rest
    texts = [json.loads(line)["text"] for line in (tmp_path / "documents/zh.2.r0.replay0.5.jsonl").open()]
    assert [text in bench.texts(x).rest for text, x in zip(texts, ("zh", "en"), strict=True)] == [True, True]
    mask = NeuronSet.load(tmp_path / "neurons/zh.whole.0.0008.safetensors")
    assert mask == mask.whole() and mask.counts()["gate_proj"] > 0
