"""Habits of the tests: they mirror the rooms, and go through the front door; with proofs that they can fail."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("plnd", "lm_eval_plnd", "peft_plnd", "scripts")

# Test files that are named after no module, and why.
MIRROR_NOTHING = {
    "tests/test_architecture.py": "docs/architecture.md",
    "tests/test_boundaries.py": "imports of all packages",
    "tests/test_gpu.py": "what needs an accelerator to be tried",
    "tests/test_habits.py": "the tests themselves",
    "tests/test_pages.py": "docs/: commands and Python of all pages",
    "tests/test_python_page.py": "docs/python.md: all of its Python",
    "tests/test_readme.py": "README.md",
    "tests/test_tutorial.py": "docs/tutorial.ipynb",
    "tests/test_site.py": "docs/: the site that Sphinx makes of it",
    "tests/lm_eval_plnd/test_every_row.py": "a model of every row of the families table, masked, under lm-eval",
    "tests/lm_eval_plnd/test_leaderboard.py": "lm-eval's own tasks and tables, with neurons off",
    "tests/lm_eval_plnd/scoring/test_tricky_answers.py": "the readers of answers together, on what models write",
    "tests/plnd/detection/test_tensor_parallel.py": "models spread over processes, measured, masked and under lm-eval",
    "tests/plnd/models/test_encoders.py": "encoders that fill in masked tokens, through everything that takes a model",
    "tests/plnd/models/test_scaled_inputs.py": "Llama 4, whose experts receive each token times its share, likewise",
    "tests/plnd/models/test_towers.py": "language models inside those that see or hear, likewise",
    "tests/plnd/importance/test_triton.py": "the Triton kernels, in a process of its own",
    "tests/plnd/test_deactivation_property.py": "plnd/deactivation.py, under random sequences of steps",
    "tests/peft_plnd/test_integration.py": "what PEFT, Trainer and accelerate do with a tuned model",
    "tests/peft_plnd/test_manners.py": "what PEFT's own methods do, of several modules of ours and of PEFT's",
    "tests/peft_plnd/test_training.py": "gradients and optimizers, of layer and model together",
    "tests/scripts/test_enhancement_changes.py": "the table of scripts/enhancement.py, without training",
    "tests/plnd/commands/test_blockwise.py": "the flag --blockwise, of all commands that have it",
    "tests/scripts/test_papers.py": "docs/papers.md: every command in it",
    "tests/scripts/test_plnd_paper_lens.py": "the second half of scripts/plnd_paper.py: tables and figures of the lens",
    "tests/scripts/test_slurm.py": "the job scripts of scripts/slurm",
    "tests/tasks/test_round_trips.py": "the task files, from a row to its score",
    "tests/tasks/test_tasks.py": "the task files",
    "tests/tasks/test_xquad_answers.py": "the task files, on all answers of XQuAD",
}

# Names with an underscore that ours and others have in common, where a test means the others': none is ours to rename.
OF_OTHERS = {
    "_": "a value that nobody reads",
    "_replace": "a method of named tuples",
    "_model_call": "lm-eval's: what every answer of an HFLM goes through",
    "_model_generate": "lm-eval's, likewise",
    "_repr_html_": "IPython's: what a notebook shows of an object",
}


def modules_tested(tests: Set[str], modules: Set[str]) -> dict[str, str | None]:
    """Test file to the module that it mirrors, `tests/a/b/test_c.py` to `a/b/c.py`, or None."""
    found: dict[str, str | None] = {}
    for test in tests:
        path = Path(test).relative_to("tests")
        module = path.with_name(path.name.removeprefix("test_")).as_posix()
        found[test] = module if module in modules else None
    return found


def names_of_our_own(sources: Mapping[str, str]) -> set[str]:
    """Names with one leading underscore that these modules give to functions, classes, variables and attributes."""
    found = set()
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def reaches_for(source: str, private: Set[str]) -> list[str]:
    """Where a test reads, imports or replaces one of these names, `12: lm._rows`; its own `self._x` are its own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in private:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.lineno}: import {alias.name}" for alias in node.names if alias.name in private]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # as monkeypatch.setattr names it
            if node.value.rpartition(".")[2] in private:
                found.append(f"{node.lineno}: {node.value!r}")
    return found


def files(*folders: str) -> dict[str, str]:
    """Path from the root to the source of every module in these folders."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_files():
    """Each test file has the place and the name of the module that it tests, or is listed with a reason."""
    tests = {path for path in files("tests") if Path(path).name.startswith("test_")}
    mirrored = modules_tested(tests, files(*OURS).keys())
    assert {test for test, module in mirrored.items() if module is None} == MIRROR_NOTHING.keys()


def test_every_script_has_a_test():
    """The figures that the docs print come from scripts that are run by a test."""
    tests = files("tests/scripts").keys()
    missing = {path for path in files("scripts") if f"tests/scripts/test_{Path(path).name}" not in tests}
    assert missing == set()


def test_no_private_name():
    """Tests read, import and replace what is public, so that the inside can be rebuilt without them."""
    private = names_of_our_own(files(*OURS)) - OF_OTHERS.keys()
    found = {path: reaches_for(source, private) for path, source in files("tests").items()}
    found.pop("tests/test_habits.py")  # whose proofs spell such names out
    assert {path: lines for path, lines in found.items() if lines} == {}


# proofs that the tests above can fail


def test_modules_tested_sees_a_stray():
    """A test file whose module moved elsewhere mirrors nothing."""
    tests = {"tests/plnd/io/test_files.py", "tests/plnd/test_files.py", "tests/plnd/io/test_file.py"}
    found = modules_tested(tests, {"plnd/io/files.py"})
    assert {test for test, module in found.items() if module} == {"tests/plnd/io/test_files.py"}


@pytest.mark.parametrize(
    "source",
    [
        "from plnd.commands.main import _parser",
        "from plnd.commands.main import main, _parser as p",
        "lm._rows([0])",
        "module.thing._rows",
        "monkeypatch.setattr('plnd.exchange.export._write_zeros', fail)",
        "monkeypatch.setattr(export, '_write_zeros', fail)",
        "getattr(lm, '_rows')",
        "def f():\n    x._Hidden()",
    ],
)
def test_reaches_for_sees_it(source):
    """Every way to a private name is found."""
    assert len(reaches_for(source, {"_parser", "_rows", "_write_zeros", "_Hidden"})) == 1


def test_reaches_for_sees_nothing_else():
    """What a test's own class keeps, what is another's, and words in running text are no matter."""
    source = "self._rows = 1\nconfig._name_or_path\nx = 'see lm._rows for more'\nfrom a import rows\n_rows = 2"
    assert reaches_for(source, {"_rows"}) == []


def test_names_of_our_own_are_those_that_are_defined():
    """Functions, classes, attributes and variables with one underscore; what is only used is another's."""
    source = "class _A:\n    def _b(self): self._c = other._d\n_E, f = 1, 2\ndef __g(): pass\ndef h(): pass"
    assert names_of_our_own({"m": source}) == {"_A", "_b", "_c", "_E"}


def test_nothing_of_a_merge_is_left():
    """No page and no code has the lines by which git shows two versions."""
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tasks").glob("*.md"), ROOT / "setup.cfg"]
    for page in pages:
        assert not [x for x in page.read_text(encoding="utf-8").splitlines() if x.startswith(marks)], page
