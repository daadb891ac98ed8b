"""What the pages of docs/ tell their reader to type is what the programs take, and their Python is run.

tests/test_readme.py does the same for the README and two pages, and runs their commands as well.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import plnd
from plnd.demo_data import demo_corpus, demo_model
from readme import accepted, blocks, commands, helped, problems, spans, undefined

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "tasks" / "README.md"]
}

RUN_BY = {
    "docs/ablation.md": "tests/lm_eval_plnd/experiments/ablation/test_command.py",
    "docs/accelerators.md": "tests/scripts/test_bench_gpu.py",
    "docs/arena.md": "tests/plnd/comparison/test_run.py",
    "docs/clusters.md": "tests/scripts/test_slurm.py",
    "docs/compatibility.md": "tests/scripts/test_compatibility.py",
    "docs/corpora.md": "tests/scripts/test_plnd_paper_lens.py",
    "docs/experiments.md": "tests/lm_eval_plnd/experiments/test_run.py",
    "docs/explore.md": "tests/plnd/commands/test_explore.py",
    "docs/families.md": "tests/plnd/commands/test_probe.py",
    "docs/guide.md": "tests/test_readme.py",
    "docs/hub.md": "tests/plnd/exchange/test_push.py",
    "docs/importance.md": "tests/test_readme.py",
    "docs/interventions.md": "tests/plnd/commands/test_reference.py",
    "docs/language-confusion.md": "tests/scripts/test_identifiers.py",
    "docs/larger.md": "tests/scripts/test_slurm.py",
    "docs/lens.md": "tests/plnd/commands/test_main.py",
    "docs/neurons.md": "tests/plnd/commands/test_neuron.py",
    "docs/peft_plnd.md": "tests/scripts/test_frontier.py",
    "docs/report.md": "tests/lm_eval_plnd/test_leaderboard.py",
    "docs/sharing-matters.md": "tests/scripts/test_sharing_matters.py",
    "docs/slips.md": "tests/lm_eval_plnd/experiments/suppression/test_command.py",
    "docs/suppression.md": "tests/lm_eval_plnd/experiments/suppression/test_command.py",
    "docs/units.md": "tests/plnd/neurons/test_unit_selection.py",
    "tasks/README.md": "tests/tasks/test_round_trips.py",
}
"""Pages with commands to the tests that run the like of them on small models; here they are parsed."""

NOT_PARSED = {
    "pip install": "installs from the network",
    "hf download": "the hub's own program",
    "export": "variables",
    "python -m": "pytest itself",
}

GIVEN = {"docs/interventions.md": ["plnd", "model", "german_neurons"]}
"""What a page's Python takes for granted: the package, a loaded model, a set of neurons."""

SMALLER = {"range(8, 16)": "range(4, 8)", '"google/gemma-3-270m"': repr(str(demo_model()))}
"""What the demo model has for what a reader's has."""


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> dict[str, list[list[str]]]:
    """Page to the commands of its shell blocks."""
    folder = tmp_path_factory.mktemp("typed")
    found = {
        page: [command for block in blocks(text, "sh") for command in commands(block, folder)]
        for page, text in PAGES.items()
    }
    return {page: typed for page, typed in found.items() if typed}


def test_every_page_with_commands_says_what_runs_them(typed):
    """And names a test that exists."""
    assert typed.keys() == RUN_BY.keys()
    assert [test for test in RUN_BY.values() if not (ROOT / test).exists()] == []


def test_every_command_parses(typed):
    """The programs, and torchrun around them, know each subcommand, option and choice, and miss none."""
    refused = []
    for page, found in typed.items():
        for command in {tuple(command): command for command in found}.values():
            if not {command[0], " ".join(command[:2])} & NOT_PARSED.keys():
                try:
                    accepted(command)
                except SystemExit as error:
                    refused.append(f"{page}: {' '.join(command)}: status {error.code}")
    assert refused == []


def test_no_command_hides():
    """Commands stand in fences of `sh`: an indented line or a fence without a language would not be looked at."""
    hidden = re.compile(r"^(?: {4}|```(?:bash|shell|console)?\n)(?:plnd|lm_eval|python|torchrun) \S.*", re.MULTILINE)
    assert {page: hidden.findall(text) for page, text in PAGES.items() if hidden.search(text)} == {}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_mentioned_exists(page):
    """Options in the text beside a subcommand are among those of its --help."""
    for _, command, *arguments in (s.split() for s in spans(PAGES[page]) if re.match(r"plnd [a-z]+( |$)", s)):
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert option in helped(command), f"plnd {command} {option}"


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_python_names_what_there_is(page):
    """The code compiles; names of the packages exist and take these arguments; others are defined or listed."""
    code = blocks(PAGES[page], "python")
    given = [f"{name} = None" for name in GIVEN.get(page, [])]
    assert [problem for block in code for problem in problems(block)] == []
    assert undefined([*given, *code]) == []


@pytest.mark.slow
def test_python_runs(tmp_path, monkeypatch):
    """The blocks of the pages that nothing else runs, on the demo model, in a folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    for page in ("docs/interventions.md", "docs/peft_plnd.md"):
        model = plnd.load_model(str(demo_model()), dtype="float32", device="cpu")
        names = {"plnd": plnd, "model": model, "german_neurons": plnd.load("de.safetensors")}
        for block in blocks(PAGES[page], "python"):
            for first, second in SMALLER.items():
                block = block.replace(first, second)
            exec(compile(block, page, "exec"), names)
    assert (tmp_path / "zh-adapter" / "adapter_model.safetensors").exists()


def prepare(folder: Path) -> None:
    """Sets of two languages, means and directions, each of four documents."""
    model = plnd.load_model(str(demo_model()), dtype="float32", device="cpu")
    texts = {
        x: list(plnd.read_documents(demo_corpus("detect") / "corpora" / f"{x}.jsonl"))[:4] for x in ("de", "zh", "en")
    }
    for language in ("de", "zh"):
        config = plnd.DetectConfig(language=language, qk="off", max_length=64)
        plnd.detect(model, texts[language], config).select(fraction=0.01).save(folder / f"{language}.safetensors")
    found = plnd.reference(model, texts)
    (folder / "reference").mkdir()
    found.means.save(folder / "reference" / "means.safetensors")
    found.direction("de").save(folder / "reference" / "de.direction.safetensors")


# a proof that the tests above can fail


@pytest.mark.parametrize(
    "command",
    [
        "torchrun --nproc_per_node 4 -m plnd detect --model m",
        "torchrun --no-such 4 -m plnd tasks",
        "scripts/slurm/submit.sh 64 zh.scores.safetensors --model M --corpus zh.jsonl --no-such",
    ],
)
def test_accepted_refuses(command):
    """Through torchrun and the job scripts, too."""
    with pytest.raises(SystemExit):
        accepted(command.split())
