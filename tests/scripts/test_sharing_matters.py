"""scripts/sharing_matters.py draws every figure and makes every table from what `plnd roles` writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lm_eval_plnd.parallel_tasks import parallel_tasks
from pictures import columns, curves, drawn
from plnd.demo_data import demo_model
from plnd.io.files import write_csv
from plnd.models.loading import load_model, load_tokenizer
from plnd.plot_style import in_words
from plnd.roles.attribution import COLUMNS, Attribution
from plnd.roles.roles import ROLES, Roles, find_roles
from programs import run_script

LANGUAGES = ("en", "de", "zh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Roles of two XNLI pairs in three languages on the demo's model, at the last and at all tokens, and scores."""
    path = tmp_path_factory.mktemp("sharing")
    (path / "xnli").mkdir()
    for language in LANGUAGES:
        rows = [{"premise": f"{language} {n}", "hypothesis": "no", "label": "neutral"} for n in range(2)]
        for split in ("dev", "test"):
            (path / "xnli" / f"xnli_{split}_{language}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = {language: f"plnd_ranked_xnli_{language}" for language in LANGUAGES}
    parallel = parallel_tasks(tasks, metadata={"data_dir": str(path)})
    model, tokenizer = load_model(str(demo_model()), dtype="float32", device="cpu"), load_tokenizer(str(demo_model()))
    inputs = parallel.token_ids(tokenizer)
    attribution = Attribution(model, 3, parallel.answer_ids(tokenizer))
    options = {"output": path / "x.roles.safetensors", "thresholds": (0.0, 0.1)}
    find_roles(model, parallel, inputs, listener=attribution, **options)
    find_roles(model, parallel, inputs, output=path / "all.roles.safetensors", tokens="all")
    write_csv(path / "x.scores.csv", COLUMNS, attribution.rows(LANGUAGES))
    return path


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("name", "source", "panels", "names"),
    [
        ("figure3", "x.roles.safetensors", 1, 4),
        ("figure5", "x.roles.safetensors", 2, 4),
        ("figure6", "all.roles.safetensors", 1, 4),
        ("figure7", "x.roles.safetensors", 2, 2.5),
        ("figure8", "x.roles.safetensors", 2, 4),
        ("figure9", "x.scores.csv", 3, 4),
        ("figure10", "x.scores.csv", 2, 4),
        ("figure11", "x.scores.csv", 1, 4),
        ("figure20", "x.roles.safetensors", 2, 4),
    ],
)
@pytest.mark.slow
def test_figures(folder, tmp_path, capsys, name, source, panels, names):
    """Each figure is printed, a CSV with a value per panel, curve and block, and a picture of these values."""
    options = ["--counts", "2,3"] if name == "figure8" else []
    with drawn() as figures:
        run_script("sharing_matters", name, str(folder / source), "--output", str(tmp_path / name), *options)
    rows = table(tmp_path / f"{name}.csv")
    assert len(rows) == panels * names * 8
    assert len({row["panel"] for row in rows}) == panels
    of_row: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        of_row.setdefault((in_words(row["panel"]), in_words(row["curve"])), []).append(float(row["value"]))
    (figure,) = figures
    shown = columns(figure) if name == "figure9" else curves(figure)
    assert shown.keys() == of_row.keys()
    for curve, values in of_row.items():
        assert shown[curve] == pytest.approx(values, nan_ok=True), curve
    assert all(axis.get_xlabel() == "block" for axis in figure.axes if axis.axison)
    assert rows[0]["panel"] in capsys.readouterr().out


def test_figures_show_the_artifact(folder, tmp_path):
    """Figure 3 is eq. 8; the columns of Figure 9 sum to 100; Figure 6 is what no token activates."""
    roles, every = (Roles.load(folder / f"{name}.roles.safetensors") for name in ("x", "all"))
    for name, source in (
        ("figure3", "x.roles.safetensors"),
        ("figure6", "all.roles.safetensors"),
        ("figure9", "x.scores.csv"),
    ):
        run_script("sharing_matters", name, str(folder / source), "--output", str(tmp_path / name))
    found = np.array([float(row["value"]) for row in table(tmp_path / "figure3.csv")]).reshape(4, 8)
    np.testing.assert_allclose(found.T, roles.ratios())
    inactive = np.array([float(row["value"]) for row in table(tmp_path / "figure6.csv")]).reshape(4, 8)
    np.testing.assert_allclose(inactive[:3].T, 100 - every.active())
    assert (inactive[3] <= inactive[:3].min(0)).all()
    columns = np.array([float(row["value"]) for row in table(tmp_path / "figure9.csv")]).reshape(3, 4, 8)
    np.testing.assert_allclose(columns.sum(1), 100)


def test_table1(folder, tmp_path):
    """Scores over all blocks: extremes of the blocks' extremes, mean and variance over all neurons."""
    run_script(
        "sharing_matters", "table1", str(folder / "x.scores.csv"), "--output", str(tmp_path / "t"), "--answer", "mean"
    )
    source = table(folder / "x.scores.csv")
    for row in table(tmp_path / "t.csv"):
        blocks = [
            r for r in source if (r["language"], r["role"]) == (row["language"], row["role"]) and r["neurons"] != "0"
        ]
        n, mean, variance = (np.array([float(r[k]) for r in blocks]) for k in ("neurons", "mean_mean", "mean_variance"))
        assert float(row["max"]) == max(float(r["mean_max"]) for r in blocks)
        assert float(row["min"]) == min(float(r["mean_min"]) for r in blocks)
        whole = (n * mean).sum() / n.sum()
        assert float(row["mean"]) == pytest.approx(whole)
        assert float(row["variance"]) == pytest.approx((n * (variance + mean**2)).sum() / n.sum() - whole**2)


@pytest.mark.slow
def test_table2(folder, tmp_path, capsys):
    """Every setting is evaluated, but for those that an earlier run evaluated; nothing is evaluated twice."""
    arguments = ["table2", str(folder / "x.roles.safetensors"), "--output", str(tmp_path / "t"), "--shares", "0.5"]
    arguments.append("--controls")
    metadata = json.dumps({"data_dir": str(folder)})
    shares = {role: share / 100 for role, share in Roles.load(folder / "x.roles.safetensors").shares().items()}
    earlier = {
        f"w/o {kind}{role.replace('_', '-')}": {"share": shares[role], "score": [0.25] * 3}
        for kind in ("", "random, as many as ")
        for role in ROLES
        if kind or role in ("partial_shared", "non_activated")
    }
    (tmp_path / "t.json").write_text(json.dumps(earlier))
    run_script("sharing_matters", *arguments, "--metadata", metadata, "--device", "cpu", "--dtype", "float32")
    rows = table(tmp_path / "t.csv")
    names = ["baseline", "w/o all-shared", "w/o partial-shared", "w/o specific", "w/o non-activated", "w/o random 50%"]
    assert [row["setting"] for row in rows[:6]] == names and len(rows) == 10
    assert [float(row["share"]) for row in rows] == pytest.approx([0, *shares.values(), 0.5, *shares.values()])
    assert {row["setting"] for row in rows if row["en"] == "0.25"} == earlier.keys()
    assert all(0 <= float(row[language]) <= 1 for row in rows for language in LANGUAGES)
    first = (tmp_path / "t.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run_script("sharing_matters", *arguments, "--model", "absent")
    assert "holds another table, whose data is" in capsys.readouterr().err
    arguments += ["--metadata", metadata, "--dtype", "float32"]
    run_script("sharing_matters", *arguments, "--model", "absent")
    assert (tmp_path / "t.json").read_bytes() == first and "w/o all-shared" in capsys.readouterr().out
    arguments.remove("--controls")
    run_script("sharing_matters", *arguments, "--model", "absent")
    assert [row["setting"] for row in table(tmp_path / "t.csv")] == names


@pytest.fixture(scope="module")
def edits(tmp_path_factory) -> tuple[Path, str]:
    """Roles of two MzsRE edits in two directions on the demo's model, and the tasks' metadata."""
    path = tmp_path_factory.mktemp("edits")
    (path / "mzsre").mkdir()
    for other in ("de", "zh"):
        rows = [{code: {"src": f"{code} {n}?", "alt": f"{code} {n}"} for code in ("en", other)} for n in range(2)]
        (path / "mzsre" / f"en-{other}.json").write_text(json.dumps(rows))
    metadata = {"data_dir": str(path)}
    parallel = parallel_tasks({x: f"plnd_mzsre_en_{x}" for x in ("de", "zh")}, metadata=metadata)
    model, tokenizer = load_model(str(demo_model()), dtype="float32", device="cpu"), load_tokenizer(str(demo_model()))
    find_roles(model, parallel, parallel.token_ids(tokenizer), output=path / "e.roles.safetensors")
    return path, json.dumps(metadata)


@pytest.mark.slow
def test_table2_of_mzsre(edits, tmp_path):
    """Without --metric the tasks' first metric counts, which is not accuracy; the store names it."""
    path, metadata = edits
    arguments = ["table2", str(path / "e.roles.safetensors"), "--output", str(tmp_path / "t"), "--shares", "0.5"]
    settings = ("w/o all-shared", "w/o partial-shared", "w/o specific", "w/o non-activated", "w/o random 50%")
    (tmp_path / "t.json").write_text(json.dumps({name: {"share": 0.1, "score": [0.25] * 2} for name in settings}))
    run_script("sharing_matters", *arguments, "--metadata", metadata, "--device", "cpu", "--dtype", "float32")
    stored = json.loads((tmp_path / "t.json").read_text())
    assert stored["baseline"]["metric"] == "exact_match"
    assert all(0 <= score <= 1 for score in stored["baseline"]["score"])


def test_table2_refuses_other_metrics(edits, tmp_path, capsys):
    """A metric that the tasks do not have, and a store of another metric, are one line and status 2."""
    path, metadata = edits
    arguments = ["table2", str(path / "e.roles.safetensors"), "--output", str(tmp_path / "t"), "--metadata", metadata]
    with pytest.raises(SystemExit, match="2"):
        run_script("sharing_matters", *arguments, "--metric", "acc")
    said = capsys.readouterr().err
    assert "plnd_mzsre_en_de: found no metric acc" in said and "--metric exact_match or f1 or contains" in said
    (tmp_path / "t.json").write_text(json.dumps({"baseline": {"share": 0.0, "score": [0, 0], "metric": "f1"}}))
    with pytest.raises(SystemExit, match="2"):
        run_script("sharing_matters", *arguments, "--metric", "exact_match")
    assert "found scores in f1, expected exact_match" in capsys.readouterr().err


def test_wrong_inputs(folder, tmp_path, capsys):
    """Roles of the last token draw no Figure 6: one line, status 2."""
    with pytest.raises(SystemExit) as end:
        run_script("sharing_matters", "figure6", str(folder / "x.roles.safetensors"), "--output", str(tmp_path / "f"))
    assert end.value.code == 2 and "needs those of `plnd roles --tokens all`" in capsys.readouterr().err
