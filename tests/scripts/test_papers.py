"""docs/papers.md has a row for everything in both papers, and the command of each row does what it says."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from plnd.commands.main import main
from plnd.demo_data import demo_corpus, demo_model
from programs import run_script

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")
VERDICTS = re.compile(
    r"exact|differs: |needs data: |as Tables? \d|an? drawing|drawings|the derivation|how many documents"
)
CORPUS = {x: str(demo_corpus("detect") / "corpora" / f"{x}.jsonl") for x in ("en", "de", "zh")}
SETTINGS = """
model: {pretrained: "plnd:polyglot-9m", dtype: float32, device: cpu, batch_size: 2}
languages: [en, zh]
corpus: "plnd:corpus/detect/corpora/{language}.jsonl"
detection: {qk: "off", max_documents: 2, max_length: 32}
rule: {epsilon_for: 0.03, projections: paper}
regions: {under: 2, gen: 1}
search: {language: zh, under: [1, 2], gen: [1]}
neurons: [all]
equal: true
tasks:
  text: {task: "plnd_text_{language}", metadata: {data_dir: "plnd:corpus/evaluate", text_documents: all},
         model: {max_length: 32, add_bos_token: false}, limit: 1}
experiments:
  {table1: text, table2: text, table3: text, table4: text, table5: text, original: text, later_table8: text,
   later_table9: text, table10: text, figure3: , figure4: text, figure5: , table6: text}
enhancement: {documents: [2], compared: 2, pool: 4, high: [zh], low: [zh], states: [neurons], max_length: 16}
"""
SHARING = """
model: {pretrained: "plnd:polyglot-9m", dtype: float32, device: cpu, batch_size: 4}
languages: [en, de, zh]
counts: [2]
shares: [0.5]
tasks: {xnli: "plnd_ranked_xnli_{language}"}
"""
LOADING = ["--model", str(demo_model()), "--dtype", "float32", "--device", "cpu"]


def sections() -> list[str]:
    """The page's parts of one paper each."""
    return PAGE.split("\n## ")[1:]


def rows(section: str) -> list[list[str]]:
    """The cells of a table."""
    lines = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines if len(line) == 3 and line[1].strip() != "command"]


def numbers(text: str) -> set[int]:
    """`4, 12 to 14, 18` as numbers."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def listed(section: str, kind: str) -> set[int]:
    """The numbers of a paper's equations, tables or figures that have a row."""
    heads = [head for head, *_ in rows(section) if "later" not in head and re.match(rf"{re.escape(kind)}s? ", head)]
    return set().union(*(numbers(head.split(", ", 1)[0] if "Eq" in head else head) for head in heads))


def commands() -> list[str]:
    """Every command of the page, once."""
    return list(dict.fromkeys(command for part in sections() for _, cell, _ in rows(part) for command in spans(cell)))


def spans(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_everything_in_both_papers_has_a_row():
    """Equations, tables and figures by their numbers; the later appendix's two tables by their own names."""
    plnd, sharing = sections()
    assert listed(plnd, "Eq.") == set(range(1, 12)) and listed(sharing, "Eq.") == set(range(1, 13))
    assert listed(plnd, "Table") == set(range(1, 16)) and listed(sharing, "Table") == {1, 2, 3, 4}
    assert listed(plnd, "Figure") == set(range(1, 8)) and listed(sharing, "Figure") == set(range(1, 28))
    assert {"plnd_paper.py later_table8 DIR", "plnd_paper.py later_table9 DIR"} <= set(commands())


def test_every_row_says_how_near_it_comes():
    """Exact, or how it differs, or which data it needs; or what it is instead of a number."""
    for section in sections():
        for head, _, verdict in rows(section):
            assert VERDICTS.match(verdict), f"{head}: {verdict}"


@pytest.mark.parametrize("name", ["plnd_paper", "sharing_matters"])
def test_every_command_of_the_scripts_has_a_row(name, capsys):
    """And no row has one that does not exist."""
    with pytest.raises(SystemExit):
        run_script(name, "no-such-table")
    known = set(re.findall(r"[\w.]+", capsys.readouterr().err.partition("choose from")[2]))
    assert known and {command.split()[1] for command in commands() if command.startswith(f"{name}.py ")} == known


def test_the_page_tells_a_missing_row():
    """The tests above can fail: a number that is in no row, and a row without a verdict, are seen."""
    assert numbers("Figures 4, 12 to 14, 18") == {4, 12, 13, 14, 18}
    assert listed("x\n| Table 1 | `a` | exact |", "Table") == {1} and not VERDICTS.match("like the paper")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    """What the page's placeholders stand for, made by the commands themselves on the model inside the package."""
    folder = tmp_path_factory.mktemp("papers")
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "xnli").mkdir()
    for language in CORPUS:
        row = json.dumps({"premise": f"{language} 1", "hypothesis": "no", "label": "neutral"}) + "\n"
        for split in ("dev", "test"):
            (folder / "xnli" / f"xnli_{split}_{language}.jsonl").write_text(row)
    found = {name: str(folder / name.lower()) for name in ("DIR", "ROLES", "ALL", "SCORES", "LENS")}
    (folder / "sharing.yaml").write_text(SHARING + f"metadata: {{data_dir: {folder}}}\n")
    found |= {"QUERIES": CORPUS["zh"].replace("zh.", "{language}."), "SHARING": str(folder / "sharing.yaml")}
    found |= {"CORPUS": CORPUS["zh"], "METADATA": json.dumps({"data_dir": str(folder)})}
    tasks = ",".join(f"plnd_ranked_xnli_{language}" for language in CORPUS)
    roles = ["roles", *LOADING, "--tasks", tasks, "--metadata", found["METADATA"]]
    lens = ["--language", "zh", "--max-documents", "1", "--max-length", "16", "--identifier", "script", "--top-k", "2"]
    for command in (
        ["experiment", str(folder / "settings.yaml"), "--output", found["DIR"]],
        [*roles, "--output", found["ROLES"], "--attribution", found["SCORES"], "--thresholds", "0,0.1"],
        [*roles, "--output", found["ALL"], "--tokens", "all"],
        ["lens", *LOADING, "--corpus", CORPUS["zh"], *lens, "--csv", found["LENS"]],
    ):
        assert main(command) == 0, command
    return found


MORE = {
    "stability": [*LOADING, "--every", "2", "--max-documents", "4", "--max-length", "32", "--qk", "off"],
    "figure8": ["--counts", "2,3"],
    "figure3 DIR": ["--max-documents", "1"],
    "table2 ROLES": ["--shares", "0.5", "--metadata", "METADATA", *LOADING[2:], "--batch-size", "4"],
    "table4 ROLES": ["--metadata", "METADATA", *LOADING[2:], "--batch-size", "4"],
}
"""Options that a command takes here, because the page's reader has them by default, or for the sake of time."""


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if ".py " in command and "/" not in command])
def test_scripts(inputs, tmp_path, command):
    """Each command writes its numbers; a table also as Markdown and LaTeX."""
    name, words = command.split(".py ")
    words = shlex.split(words) + [word for key, more in MORE.items() if words.startswith(key) for word in more]
    first, *others = [inputs.get(word, word) for word in words]
    run_script(name, first, *others, "--output", str(tmp_path / "out"))
    if first == "run":
        assert {"figure3.csv", "figure26.csv", "table2.tex"} <= {path.name for path in (tmp_path / "out").iterdir()}
        return
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert len(list(csv.reader(stream))) > 1
    assert {path.suffix for path in tmp_path.glob("out.*")} & {".md", ".svg"}
    if "table" in first or first in ("prompts", "original"):
        assert "|---" in (tmp_path / "out.md").read_text().replace(":", "-")
        assert r"\begin{tabular}" in (tmp_path / "out.tex").read_text()


DETECT = [
    "detect",
    *LOADING,
    "--corpus",
    CORPUS["zh"],
    "--language",
    "zh",
    "--max-documents",
    "2",
    "--max-length",
    "32",
]
COMPLETED = {
    "plnd detect": [*DETECT, "--output", "OUT"],
    "plnd detect --qk exact": [*DETECT, "--qk", "exact", "--output", "OUT"],
    "plnd select --epsilon": ["select", "DIR/neurons/zh.scores.safetensors", "--epsilon", "1e-9", "--output", "OUT"],
    "plnd overlap": ["overlap", *(f"DIR/neurons/{x}.all.safetensors" for x in ("en", "zh")), "--csv", "OUT"],
    "plnd roles": None,
    "plnd roles --attribution": None,
}
"""The page's commands of `plnd`, with what they leave to their reader; of None, `inputs` has run them."""


def test_every_command_of_plnd_is_run():
    """Those of the page are those that are completed here."""
    assert {command for command in commands() if command.startswith("plnd ")} == COMPLETED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command, arguments in COMPLETED.items() if arguments])
def test_commands_of_plnd(inputs, tmp_path, command):
    """Each does its work and writes its file."""
    arguments = [word.replace("DIR/", f"{inputs['DIR']}/") for word in COMPLETED[command] or ()]
    assert main([str(tmp_path / "out") if word == "OUT" else word for word in arguments]) == 0
    assert (tmp_path / "out").stat().st_size > 0
