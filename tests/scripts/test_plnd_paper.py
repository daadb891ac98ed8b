"""scripts/plnd_paper.py makes the paper's tables from a folder of `plnd experiment`: numbers worked out by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from handmade import make_neurons
from lm_eval_plnd.experiments.changes import Folder, change, estimate
from lm_eval_plnd.experiments.conditions import Setting, plan
from lm_eval_plnd.experiments.results import COLUMNS
from lm_eval_plnd.experiments.run import rows
from lm_eval_plnd.experiments.settings import parse_settings
from pictures import curves, drawn, named_bars
from plnd.errors import PLNDError
from plnd.io.files import write_csv
from programs import run_script

SETTINGS = """
model: {pretrained: m}
languages: [en, de, zh]
corpus: "{language}.jsonl"
rule: {fraction: 0.01}
regions: {under: 2, gen: 1}
tasks: {understanding: "u_{language}", text: "t_{language}"}
experiments: {}
"""
RIGHT = {"en": [1, 0, 1, 1], "de": [1, 0, 0, 0], "zh": [1, 1, 1, 1]}
"""Of the original, by language: 75, 25 and 100 per cent."""
OFF = {"de": {"en": [1, 0, 1, 1], "de": [0, 0, 0, 0]}, "zh": {"en": [1, 0, 1, 0], "zh": [0, 0, 1, 1]}}
"""Without the neurons of German and of Chinese, in English and in that language."""
BYTES, BITS = [100, 300], [2.0, 4.0]


def folder(
    path: Path, off: Mapping[str, Mapping[str, list]] = OFF, right: Mapping[str, list] = RIGHT, **changes
) -> Path:
    """A finished experiment: `off` where a language's own neurons are off, else what the original answers.

    Random sets answer as the original; text gets 1 bit worse in the language whose own neurons are off.
    """
    settings = parse_settings({**yaml.safe_load(SETTINGS), **changes})
    (path / "samples").mkdir(parents=True)
    (path / "settings.yaml").write_text(settings.text())
    neurons, table = make_neurons({"0.down_proj": [1, 2, 3]}), []
    for setting in plan(settings):
        own = setting.seed is None and setting.neurons != "none"
        values = {}
        for item, tasks in setting.tasks(settings).items():
            for language, task in tasks.items():
                if item == "text":
                    worse = 1.0 if own and language == setting.language else 0.0
                    values[task] = {"bits_per_byte": [bits + worse for bits in BITS], "bytes": BYTES}
                else:
                    values[task] = {"acc": [float(x) for x in (off[setting.language] if own else right)[language]]}
        (path / "samples" / f"{setting.name}.json").write_text(json.dumps(values))
        table += rows(setting, settings, None if setting.neurons == "none" else neurons, values)
    write_csv(path / "results.csv", COLUMNS, table)
    return path


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def numbers(row: Mapping[str, str], *names: str) -> list[float]:
    """Some of a row's numbers."""
    return [float(row[name]) for name in names]


def test_table2(tmp_path, capsys):
    """ΔEng and Δn-Eng are changes, a loss negative; Δ is their difference; averages are over languages."""
    made = folder(tmp_path / "run", experiments={"table2": ["understanding"]})
    with drawn() as figures:
        run_script("plnd_paper", "table2", str(made), "--output", str(tmp_path / "t"))
    found = [row for row in table(tmp_path / "t.csv") if row["item"] == "understanding"]
    marks = [(row["under"], row["s-attn"], row["s-ffn"], row["gen"], row["switched off"]) for row in found]
    assert marks == [
        ("✗", "✓", "✓", "✓", "specific random"),
        ("✗", "✗", "✗", "✗", "specific random"),
        ("✓", "✗", "✗", "✓", "specific"),
        ("✓", "✓", "✓", "✗", "specific"),
        ("✗", "✓", "✓", "✓", "specific"),
    ]
    names = ("english", "others", "delta_english", "delta_others", "delta", "neurons")
    assert numbers(found[0], *names) == pytest.approx([75, 62.5, 0, 0, 0, 3])
    # English: (75 + 50) / 2; the others: (0 + 50) / 2; changes (0 - 25) / 2 and (-25 - 50) / 2
    assert numbers(found[4], *names) == pytest.approx([62.5, 25, -12.5, -37.5, 25, 3])
    assert {path.name for path in tmp_path.glob("*.svg")} == {"t_understanding.svg", "t_text.svg"}
    picture = next(figure for figure in figures if figure.axes[0].get_xlabel().startswith("understanding: "))
    heights = {name: [height for _, _, height in columns] for name, columns in named_bars(picture.axes[0]).items()}
    for label, column in (("ΔEng", "delta_english"), ("Δn-Eng", "delta_others"), ("Δ", "delta")):
        assert heights[label] == pytest.approx([float(row[column]) for row in found])
    out = capsys.readouterr().out
    assert "original: en 75.0  de 25.0  zh 100.0" in out and "-37.5" in out


def test_text_stands_beside_and_counts_bytes(tmp_path):
    """Bits per byte are weighted by length, and Δ turns its sign, since less is better."""
    made = folder(tmp_path / "run", experiments={"table5": ["understanding"]})
    run_script("plnd_paper", "table5", str(made), "--output", str(tmp_path / "t"))
    row = [row for row in table(tmp_path / "t.csv") if row["item"] == "text"][-1]
    # (100 * 2 + 300 * 4) / 400 = 3.5 bits per byte, and one more in the languages whose neurons are off
    assert numbers(row, "english", "others", "delta_english", "delta_others", "delta") == pytest.approx(
        [3.5, 4.5, 0, 1, 1]
    )


def test_details_are_the_languages(tmp_path, capsys):
    """Tables 12 to 15: each language's neurons, its own score and English's."""
    made = folder(tmp_path / "run", experiments={"table2": ["understanding"]})
    run_script("plnd_paper", "table2", str(made), "--output", str(tmp_path / "t"), "--details")
    found = [r for r in table(tmp_path / "t_details.csv") if r["item"] == "understanding" and r["under"] == "✗"][-4:]
    assert [(r["neurons_of"], r["task_language"], float(r["value"]), float(r["change"])) for r in found] == [
        ("de", "en", 75.0, 0.0),
        ("de", "de", 0.0, -25.0),
        ("zh", "en", 50.0, -25.0),
        ("zh", "zh", 50.0, -50.0),
    ]
    assert "zh:  en-D 50.0  Δen -25.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "count"), [("table3", 6), ("table4", 5), ("table5", 3), ("later_table8", 2), ("later_table9", 2)]
)
def test_rows_of_the_other_tables(tmp_path, name, count):
    """As many rows as the paper has for a model."""
    made = folder(tmp_path / "run", experiments={name: ["understanding"]})
    run_script("plnd_paper", name, str(made), "--output", str(tmp_path / "t"))
    assert len([row for row in table(tmp_path / "t.csv") if row["item"] == "understanding"]) == count


@pytest.mark.parametrize("name", ["table10", "table11"])
def test_the_search_takes_the_highest_delta(tmp_path, capsys, name):
    """N1 and N2 of which English suffers least and the language most."""
    made = folder(tmp_path / "run", experiments={"table10": ["understanding"]}, search={"under": [1, 2], "gen": [1, 2]})
    better = json.loads((made / "samples" / "zh.specific.under=2.json").read_text())
    better["u_zh"]["acc"] = [0.0, 0.0, 0.0, 0.0]
    (made / "samples" / "zh.specific.under=2.json").write_text(json.dumps(better))
    worse = json.loads((made / "samples" / "zh.specific.gen=2.json").read_text())
    worse["u_zh"]["acc"] = [1.0, 1.0, 1.0, 1.0]
    (made / "samples" / "zh.specific.gen=2.json").write_text(json.dumps(worse))
    run_script("plnd_paper", name, str(made), "--output", str(tmp_path / "t"))
    assert "understanding, specific: highest Δ with N1 = 2, N2 = 1" in capsys.readouterr().out
    found = {row["blocks"]: float(row["delta"]) for row in table(tmp_path / "t.csv") if row["item"] == "understanding"}
    assert found == pytest.approx({"N1 1": 25, "N1 2": 75, "N2 1": 25, "N2 2": -25})


def test_tables_as_markdown_and_latex(tmp_path):
    """Beside the CSV stand the table as it is printed, as Markdown and as LaTeX that its packages can set."""
    made = folder(tmp_path / "run", experiments={"table2": ["understanding"]})
    run_script("plnd_paper", "table2", str(made), "--output", str(tmp_path / "t"), "--details")
    lines = (tmp_path / "t.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| Under"))
    row = [line for line in lines if line.startswith("| ✗")][2]
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)), strict=True))
    assert (cells["Eng"], cells["n-Eng"], cells["Δn-Eng"], cells["Δ"]) == ("62.5", "25.0", "-37.5", "+25.0")
    assert len([line for line in lines if line.startswith("**")]) == 2  # the item, and the text beside it
    latex = (tmp_path / "t.tex").read_text()
    assert (
        latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 2 and r"95 \% interval of $\Delta$" in latex
    )
    assert latex.isascii() and r"$\times$" in latex and r"$\checkmark$" in latex
    details = (tmp_path / "t_details.md").read_text()
    assert "en-D | " in details and "Δzh-D" in details and " -50.0 |" in details


def test_original_scores(tmp_path, capsys):
    """Table 9 of the appendix: the original's scores by item and language, the average without English, as numbers."""
    made = folder(tmp_path / "run", experiments={"original": ["understanding"]})
    run_script("plnd_paper", "original", str(made), "--output", str(tmp_path / "t"))
    found = {(r["item"], r["language"]): r for r in table(tmp_path / "t.csv")}
    values = {language: float(found["understanding", language]["value"]) for language in ("en", "de", "zh", "average")}
    assert values == {"en": 75, "de": 25, "zh": 100, "average": 62.5}
    assert float(found["text", "average"]["value"]) == pytest.approx(3.5)
    stderr = {r["task_language"]: r["stderr"] for r in table(made / "results.csv") if r["item"] == "understanding"}
    assert float(found["understanding", "de"]["stderr"]) == pytest.approx(100 * float(stderr["de"]))
    assert "75.0" in (tmp_path / "t.md").read_text() and r"\pm" in (tmp_path / "t.tex").read_text()
    assert "62.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["table8", "table9"])
def test_numbers_of_two_tables(tmp_path, capsys, name):
    """What is Table 8 in one version of the paper and another one in a later appendix is asked for by its own name."""
    with pytest.raises(SystemExit, match="2"):
        run_script("plnd_paper", name, str(tmp_path), "--output", str(tmp_path / "t"))
    error = capsys.readouterr().err
    assert f"{name}: two tables of the paper have this number, say" in error and f"later_{name}" in error
    assert error.count("\n") == 1


def test_table1(tmp_path, capsys):
    """Each language without its own neurons and without random ones; the average leaves English out."""
    off = {**OFF, "en": {"en": [0, 0, 0, 0]}}
    made = folder(tmp_path / "run", off=off, experiments={"table1": ["understanding"]})
    run_script("plnd_paper", "table1", str(made), "--output", str(tmp_path / "t"))
    found = [r for r in table(tmp_path / "t.csv") if r["item"] == "understanding"]
    values = {(r["switched off"], r["language"]): float(r["value"]) for r in found}
    assert values["original", "zh"] == values["random, as many as language-specific", "zh"] == 100
    assert (values["language-specific", "en"], values["language-specific", "zh"]) == (0, 50)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("language-specific")][:1]
    assert line.split()[-1] == "25.0"


def test_seeds_and_samples_are_averaged(tmp_path):
    """Two samples of documents: the mean of both, and how far they lie apart."""
    made = folder(tmp_path / "run", experiments={"table5": ["understanding"]}, samples=2, seeds=[0, 1, 2],
                  detection={"max_documents": 1})  # fmt: skip
    for language in ("de", "zh"):
        path = made / "samples" / f"{language}.specific.gen.s1.json"
        values = json.loads(path.read_text())
        values["u_en"]["acc"] = [0.0, 0.0, 0.0, 0.0]
        path.write_text(json.dumps(values))
    run_script("plnd_paper", "table5", str(made), "--output", str(tmp_path / "t"))
    found = [row for row in table(tmp_path / "t.csv") if row["item"] == "understanding"]
    assert [row["draws"] for row in found] == ["3", "3", "2"]
    # Δ of the first sample is 25; of the second, with English at 0, -75 + 37.5
    assert float(found[2]["delta"]) == pytest.approx((25 - 37.5) / 2)
    assert float(found[2]["delta_sd_of_draws"]) == pytest.approx(np.std([25, -37.5], ddof=1))


def test_estimates_of_parallel_documents():
    """Of groups of one size a document is drawn in all at once: what they have in common cancels."""
    shift = np.array([5.0, -5.0, 3.0, 1.0])
    found = estimate([(1.0, shift + 2, np.ones(4)), (-1.0, shift, np.ones(4))])
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_estimates_of_groups_of_unequal_size():
    """The mean is that of the groups' means; the interval measures what varies within groups."""
    state = np.random.default_rng(0)
    one, other = state.normal(5, 1, 400), state.normal(-3, 2, 200)
    found = estimate([(1.0, one, np.ones(400)), (-0.5, other, np.ones(200))])
    assert found.value == pytest.approx(one.mean() - 0.5 * other.mean())
    error = np.sqrt(one.var() / 400 + 0.25 * other.var() / 200)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert found.low < found.value < found.high and found.p < 0.01


@pytest.mark.parametrize("size", [300, 200])
def test_estimates_of_documents_of_unequal_length(size):
    """Intervals are those of a ratio of sums, as resampling documents finds them; lengths alone do not vary it."""
    state = np.random.default_rng(0)
    groups = []
    for weight, count in ((1.0, 300), (-0.5, size)):
        lengths = state.uniform(0.1, 4, count)
        lengths /= lengths.mean()
        groups.append((weight, lengths * state.normal(3, 0.5, count), lengths))
    found = estimate(groups)
    parts = []
    for weight, values, lengths in groups:
        again = state.integers(0, len(values), (4000, len(values)))
        parts.append(weight * values[again].sum(1) / lengths[again].sum(1))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sum(parts, axis=0).std(), rel=0.1)
    assert found.value == pytest.approx(np.sum([weight * values.mean() for weight, values, _ in groups]))


def test_standard_errors_are_those_of_the_results(tmp_path):
    """Table 1 has the errors of results.csv, of bits per byte, too."""
    made = folder(tmp_path / "run", off={**OFF, "en": {"en": [0, 0, 0, 0]}}, experiments={"table1": ["understanding"]})
    run_script("plnd_paper", "table1", str(made), "--output", str(tmp_path / "t"))
    found = {(r["item"], r["language"]): float(r["stderr"]) for r in table(tmp_path / "t.csv") if r["neurons"] == "0"}
    rows = [row for row in table(made / "results.csv") if row["setting"] == "original"]
    assert len(found) == len(rows) == 6
    for row in rows:
        scale = 1 if row["item"] == "text" else 100
        assert found[row["item"], row["task_language"]] == pytest.approx(scale * float(row["stderr"]))


def test_items_that_a_language_does_not_have(tmp_path):
    """Its neurons are left out of that item's averages, in English too."""
    tasks = {"understanding": {"task": "u_{language}", "languages": ["en", "zh"]}, "text": "t_{language}"}
    made = folder(tmp_path / "run", tasks=tasks, experiments={"table5": ["understanding"]})
    run_script("plnd_paper", "table5", str(made), "--output", str(tmp_path / "t"))
    row = [row for row in table(tmp_path / "t.csv") if row["item"] == "understanding"][-1]
    assert numbers(row, "english", "others", "delta") == pytest.approx([50, 50, 25])


def test_a_table_that_was_not_run(tmp_path, capsys):
    """One line that says what the experiment has."""
    made = folder(tmp_path / "run", experiments={"table5": ["understanding"]})
    with pytest.raises(SystemExit):
        run_script("plnd_paper", "table2", str(made), "--output", str(tmp_path / "t"))
    assert "an experiment of table5, without table2; add it" in capsys.readouterr().err


def test_a_run_that_is_not_finished(tmp_path):
    """What is missing is named."""
    made = folder(tmp_path / "run", experiments={"table5": ["understanding"]})
    (made / "samples" / "zh.specific.gen.json").unlink()
    with pytest.raises(PLNDError, match="no acc of u_en for zh.specific.gen; run `plnd experiment` on"):
        change(Folder(made), "understanding", Setting((), "specific", region="gen"), False, ["zh"])


def test_figures_of_neurons(tmp_path, capsys):
    """Figure 3 counts neurons by block, Figure 5 their overlap; of a folder, each language's own, in their order."""
    settings = parse_settings(
        {**yaml.safe_load(SETTINGS), "languages": ["zh", "en", "de"], "experiments": {"table1": ["text"]}}
    )
    (tmp_path / "run" / "neurons").mkdir(parents=True)
    (tmp_path / "run" / "settings.yaml").write_text(settings.text())
    make_neurons({"0.down_proj": [1, 2], "1.o_proj": [3]}).save(tmp_path / "run" / "neurons" / "en.all.safetensors")
    make_neurons({"0.down_proj": [2, 4]}).save(tmp_path / "run" / "neurons" / "zh.all.safetensors")
    make_neurons({"0.down_proj": [5]}).save(tmp_path / "run" / "neurons" / "zh.s1.all.safetensors")
    with drawn() as figures:
        run_script("plnd_paper", "figure3", str(tmp_path / "run"), "--output", str(tmp_path / "f3"))
        run_script("plnd_paper", "figure5", str(tmp_path / "run"), "--output", str(tmp_path / "f5"))
    found = {(r["language"], r["projection"], r["block"]): int(r["neurons"]) for r in table(tmp_path / "f3.csv")}
    assert found["en", "down_proj", "0"] == 2 and found["en", "o_proj", "1"] == 1 and found["zh", "down_proj", "0"] == 2
    assert list(dict.fromkeys(language for language, _, _ in found)) == ["zh", "en"]
    overlap = {(r["structure"], r["x"], r["y"]): float(r["overlap"]) for r in table(tmp_path / "f5.csv")}
    assert overlap["feed_forward", "en", "zh"] == 0.5 and np.isnan(overlap["attention", "en", "zh"])
    by_block, heat = figures
    assert curves(by_block)["feed-forward", "English"] == [2, 0] and curves(by_block)["attention", "English"] == [0, 1]
    assert curves(by_block)["feed-forward", "Chinese"] == [2, 0]
    for axis in heat.axes[:2]:
        structure = axis.get_title().replace("-", "_")
        shown = np.ma.filled(axis.get_images()[0].get_array(), np.nan)
        expected = [[overlap[structure, x, y] for y in ("zh", "en")] for x in ("zh", "en")]
        np.testing.assert_array_equal(shown, expected)
