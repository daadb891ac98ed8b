"""The site: every page has its place, every public name its entry, and Sphinx makes it without a warning."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peft_plnd
import plnd
from plnd.commands.main import GROUPS, find_commands

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pages() -> set[str]:
    """The pages, as the index calls them."""
    found = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")]
    return {path.relative_to(DOCS).with_suffix("").as_posix() for path in found} - {"index"}


def indexed(index: str) -> list[str]:
    """The pages of the index's four lists, `title <page>` or `page`."""
    lists = re.findall(r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    assert len(lists) == 4
    return [re.sub(r".*<(.+)>", r"\1", line) for one in lists for line in one.splitlines()]


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_page_is_in_one_list():
    """Tutorial, how-to, reference or explanation."""
    assert sorted(indexed((DOCS / "index.md").read_text(encoding="utf-8"))) == sorted(pages())


def test_every_public_name_has_an_entry():
    """What `plnd` and `peft_plnd` name is in the reference, and nothing by these packages' names that they lack."""
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^\.\. auto\w+:: (\w+\.\w+)$", text, re.MULTILINE)) - {"plnd.errors"}
    public = {f"plnd.{name}" for name in plnd.__all__} | {f"peft_plnd.{name}" for name in peft_plnd.__all__}
    assert entries == public - {"plnd.__version__", "plnd.PLNDError"}  # that one is with the other errors


def test_every_entry_names_what_there_is():
    """What the reference shows is where it says, also where Sphinx is not installed to find out."""
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)
    assert len(named) > 50 and [name for name in named if not exists(name)] == []


def test_every_command_is_in_a_group():
    """The page of commands shows the groups of `plnd --help`."""
    assert set(find_commands()) <= {name for names in GROUPS.values() for name in names.split()}


@pytest.mark.slow
def test_the_site_is_made(tmp_path):
    """Without a warning, with every command on its page, and with nothing that a browser would fetch elsewhere."""
    for module in ("sphinx", "furo", "myst_nb", "sphinx_copybutton"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed (pip install ".[docs]")')
    built = tmp_path / "site"
    program = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-d", str(tmp_path / "cache"), str(DOCS), str(built)]
    where = os.environ | {"GITHUB_REPOSITORY": "owner/name"}
    done = subprocess.run(program, capture_output=True, text=True, env=where)
    assert done.returncode == 0, done.stderr
    html = {path.relative_to(built).as_posix(): path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    assert html.keys() >= {f"{page}.html" for page in pages()}
    assert all(f"<h3>plnd {name}" in html["reference/commands.html"] for name in find_commands())
    assert "https://colab.research.google.com/github/owner/name/blob/main/docs/tutorial.ipynb" in html["tutorial.html"]
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]+"|<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//'
    )
    assert {page: fetched.findall(text) for page, text in html.items() if fetched.search(text)} == {}


# a proof that the tests above can fail


def test_indexed_sees_a_page():
    """With a title or without; a list that is missing is noticed."""
    one = "```{toctree}\n:caption: A\n:hidden:\n\n{}\n```\n"
    assert indexed("".join(one.replace("{}", page) for page in ("a", "B <b/c>", "d", "e"))) == ["a", "b/c", "d", "e"]
    with pytest.raises(AssertionError):
        indexed(one.replace("{}", "a"))


def test_exists_sees_what_moved():
    """A module that is gone, a name that a module lacks."""
    assert exists("plnd.NeuronSet.random_like") and not exists("peft_plnd.layer.X") and not exists("plnd.no_such")
