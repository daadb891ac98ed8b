"""What the README and the guide tell their reader to type is what the programs take, and does what they say.

The commands and the Python are taken from the text. In the default run every command is parsed by the program's own
parser, and the Python is held to the packages' names and arguments; `-m slow` runs all of it, in the pages' order and
in one folder, on the model and the corpora inside the package.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plnd
from plnd.demo_data import demo_corpus, demo_model
from readme import accepted, blocks, commands, helped, problems, spans, undefined

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/guide.md", "docs/importance.md")
"""Pages whose commands and Python are held to the programs, and run one after the other."""
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)

RUN = {
    "plnd": "detect select ablate combine show overlap layers neuron export convert experiment report card tasks",
    "lm_eval": "--model",
    "python": "scripts/plnd_paper.py",
}
"""The programs that the slow test runs, with their first arguments."""

NOT_RUN = {
    ("pip", "install"): "installs from the network; .ci/run does the same in a fresh environment",
    ("plnd", "demo"): "tests/lm_eval_plnd/commands/test_demo.py runs it, and holds its table to the README's",
    ("python", "-m"): "pytest itself",
}
"""Commands of the README that the slow test leaves out, and why."""

SMALLER = {
    "google/gemma-3-270m": str(demo_model()),  # the hub is not asked
    "meta-llama/Llama-2-7b-hf": str(demo_model()),
    "--model MODEL": f"--model {demo_model()}",
    "task_manager=manager)": "task_manager=manager, limit=1)",
    "TaskManager(include_path=str(tasks_folder()))": "TaskManager(include_path=str(tasks_folder()), metadata="
    f"{{'data_dir': '{demo_corpus('evaluate')}'}})",
    "under=8,gen=2": "under=2,gen=1",  # of 8 blocks
    "--under 8 --gen 2": "--under 2 --gen 1",
    "wikimedia/wikipedia:20231101.$language": "$language.jsonl",  # scripts/follow_readme.py asks a hub on this machine
    "wikimedia/wikipedia:20231101.{x}": "{x}.jsonl",
    "--max-documents 200": "--max-documents 4 --device cpu",
    "--max-documents 40": "--max-documents 4 --device cpu",
    "max_documents=40": "max_documents=4",
    "--limit 25": "--limit 1",
    "plnd_text_ru ": f'plnd_text_ru --device cpu --metadata \'{{"data_dir": "{demo_corpus("evaluate")}"}}\' ',
    "--tasks plnd_text_zh,plnd_xquad_zh": "--tasks plnd_text_zh",  # XQuAD is on the hub
    " …": ' --include_path "$(plnd tasks)" --tasks plnd_text_zh',  # "and so on": what the command before it has
    "lm_eval --model plnd": f'lm_eval --model plnd --device cpu --limit 1 --metadata \'{{"data_dir": '
    f'"{demo_corpus("evaluate")}"}}\'',
    "--output run ": "--output run --set experiments='{table1: text, table2: text}' --set languages='[en, zh]'"
    """ --set tasks='{text: {task: "plnd_text_{language}", limit: 1, metadata: {data_dir: "plnd:corpus/evaluate"}}}'"""
    " --set detection.max_documents=4 ",
}
"""What the slow test puts for what a reader has, or has time for: first to second, wherever it stands."""


def prepare(folder: Path) -> None:
    """The files that the README's reader brings along."""
    (folder / "scripts").symlink_to(ROOT / "scripts")
    for language in ("en", "zh", "ru"):
        shutil.copy(demo_corpus("detect") / "corpora" / f"{language}.jsonl", folder)
    lape = [[torch.tensor([n, n + 7]) for _ in range(8)] for n in range(7)]  # languages x blocks
    torch.save(lape, folder / "LLaMA-2-7B.neuron.pth")


SELECTED = """
for language in en ru; do
  plnd select $language.scores.safetensors --fraction 0.01 --output $language.safetensors
done
"""
"""What the table of rules, in the README between detecting and combining, leaves to its reader."""

ACTIVATIONS = """
for language in en zh ru; do
  plnd detect --method lape --model google/gemma-3-270m --corpus $language.jsonl --language $language \\
              --max-documents 200 --output $language.scores.safetensors
done
"""
"""LAPE's rule reads scores of this method."""

PROGRAMS = f"""
plnd() {{ {sys.executable} -m plnd "$@"; }}
lm_eval() {{ {sys.executable} -m lm_eval "$@"; }}
python() {{ {sys.executable} "$@"; }}
"""
"""The programs of this environment, whether or not their scripts are on the path."""

LAPE = "plnd select zh.scores.safetensors --against en.scores.safetensors ru.scores.safetensors --top-rate"
BEFORE = {"plnd combine": SELECTED, LAPE: ACTIVATIONS}
"""Start of a block to what has been typed before it."""


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> list[list[str]]:
    """Every command of the README's shell blocks."""
    folder = tmp_path_factory.mktemp("typed")
    return [command for block in blocks(README, "sh") for command in commands(block, folder)]


def is_known(command: list[str]) -> bool:
    """Whether a command is run by the slow test, or left out for a reason."""
    return tuple(command[:2]) in NOT_RUN or command[1] in RUN.get(command[0], "").split()


def test_every_command_is_run_or_left_out_for_a_reason(typed):
    """And nothing is listed that the README does not have."""
    assert [command for command in typed if not is_known(command)] == []
    heads = {tuple(command[:2]) for command in typed}
    assert heads == NOT_RUN.keys() | {(program, first) for program, firsts in RUN.items() for first in firsts.split()}


def test_every_command_parses(typed):
    """The programs know each subcommand, option and choice, and nothing that they require is missing."""
    for command in typed:
        if tuple(command[:2]) not in NOT_RUN or command[0] == "plnd":
            try:
                accepted(command)
            except SystemExit as error:
                raise AssertionError(f"{' '.join(command)}: refused with status {error.code}") from None


def test_what_is_mentioned_exists():
    """Options in the text beside a subcommand, `plnd detect --scoring official`, are among those of its --help."""
    mentioned = [span.split() for span in spans(README) if re.match(r"plnd [a-z]+( |$)", span)]
    assert len(mentioned) > 5
    for _, command, *arguments in mentioned:
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert option in helped(command), f"plnd {command} {option}"


def test_model_arguments_are_those_of_the_model():
    """What the README passes to `--model plnd` is a parameter of the class, or among those that its docstring lists."""
    from lm_eval_plnd.model import PLNDLM

    parameters = {name for base in PLNDLM.__mro__ for name in inspect.signature(base.__init__).parameters}
    for names in re.findall(r"^ *- ([a-z_, ]+): ", inspect.getdoc(PLNDLM.__init__) or "", re.MULTILINE):
        parameters |= set(names.split(", "))
    passed = re.findall(r"--model_args ([^\s`]+)", README)
    assert len(passed) >= 4
    assert {pair.partition("=")[0] for one in passed for pair in one.split(",")} <= parameters


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_python_names_what_there_is(number):
    """The code compiles; names of the packages exist, and calls of them have parameters of these names."""
    assert problems(blocks(README, "python")[number]) == []


def test_python_defines_what_it_uses():
    """Read from the top, each name is imported or assigned in its block or in one before it."""
    assert undefined(blocks(README, "python")) == []


@pytest.mark.parametrize(
    "page", ["README.md", "tasks/README.md", *(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
)
def test_files_that_are_named_exist(page):
    """Paths of the repository set as code, and the targets of links."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    folders = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in (span for span in spans(text) if re.fullmatch(rf"({folders})/[\w./-]+", span)):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.slow
def test_the_readme_runs(tmp_path, monkeypatch):
    """Each block, in the order of the text, ends well in the folder that the ones before it left."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "0")
    namespace: dict = {}
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        code = smaller(block)
        if language == "python":
            exec(compile(code, "README.md", "exec"), namespace)
            continue
        if any(tuple(command[:2]) in NOT_RUN for command in commands(block, tmp_path)):
            continue
        before = next((smaller(more) for start, more in BEFORE.items() if block.startswith(start)), "")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", PROGRAMS + before + code], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    made = {path.name for path in tmp_path.iterdir()}
    assert {"zh.safetensors", "zh_specific.safetensors", "zh_own.safetensors", "overlap.png", "layers.png"} <= made
    assert (tmp_path / "run" / "results.csv").exists() and (tmp_path / "README.md").exists()
    assert namespace["model"].peft_config["default"].peft_type == "NEURON_SELECT"
    off = plnd.NeuronSet.load("zh.safetensors")
    assert 0 < len(off) < 0.03 * off.total


def smaller(code: str) -> str:
    """A block with `SMALLER` put in."""
    for first, second in SMALLER.items():
        code = code.replace(first, second)
    return code


# proofs that the tests above can fail


def test_commands_are_as_bash_reads_them(tmp_path):
    """Loops, quotes, continued lines, comments and substitutions; `…` stays a word."""
    block = (
        'for x in a b; do\n  plnd show $x \\\n    "c d"  # no\ndone\nlm_eval --p "$(plnd tasks)" … && nobody knows\n'
    )
    assert commands(block, tmp_path) == [
        ["plnd", "show", "a", "c d"],
        ["plnd", "show", "b", "c d"],
        ["plnd", "tasks"],
        ["lm_eval", "--p", "TASKS", "…"],
        ["nobody", "knows"],
    ]
    assert not is_known(["nobody", "knows"]) and not is_known(["plnd", "frobnicate"])


@pytest.mark.parametrize(
    "command",
    ["plnd detect --model m", "plnd show x --no-such", "plnd frobnicate x", "lm_eval --model plnd --no-such 1"],
)
def test_accepted_refuses(command):
    """A missing argument, an unknown option, an unknown subcommand."""
    with pytest.raises(SystemExit):
        accepted(command.split())


def test_undefined_sees_a_name():
    """What an earlier block defines is there; what none does is named."""
    assert undefined(["import plnd\nx = plnd.a", "for y in x:\n    print(y, plnd, z)"]) == ["z"]


@pytest.mark.parametrize(
    "code, problem",
    [
        ("import plnd\nplnd.nothing", "plnd.nothing"),
        ("from peft import nothing", "peft.nothing"),
        ("import plnd\nplnd.DetectConfig(lang='zh')", "plnd.DetectConfig: got an unexpected keyword argument 'lang'"),
    ],
)
def test_problems_sees_them(code, problem):
    """A name that is not there, and an argument that is called otherwise."""
    assert problems(code) == [problem]
