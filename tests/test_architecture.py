"""docs/architecture.md shows the house as it is: every folder and file with its caption, and the import table.

`python tests/test_architecture.py` writes both anew.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("plnd", "lm_eval_plnd", "peft_plnd")


def caption(source: str) -> str:
    """The first sentence of a module's docstring, without its full stop; that of "eq. 10" ends none."""
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    return re.split(r"(?<!\beq)\. ", text)[0].removesuffix(".")


def tree(package: Path) -> list[str]:
    """A package's files and folders, a line each, folders before files, with their captions."""
    lines = []

    def add(folder: Path, depth: int) -> None:
        face = (folder / "__init__.py").read_text(encoding="utf-8")
        lines.append(f"{'  ' * depth + folder.name + '/':<28} {caption(face)}")
        inside = sorted(path for path in folder.iterdir() if path.name != "__init__.py")
        for path in (path for path in inside if (path / "__init__.py").exists()):
            add(path, depth + 1)
        for path in (path for path in inside if path.suffix == ".py"):
            lines.append(f"{'  ' * (depth + 1) + path.stem:<28} {caption(path.read_text(encoding='utf-8'))}")

    add(package, 0)
    return lines


def import_table() -> list[str]:
    """The rules of tests/test_boundaries.py, a line a room."""
    spec = importlib.util.spec_from_file_location("boundaries", Path(__file__).with_name("test_boundaries.py"))
    assert spec is not None and spec.loader is not None
    boundaries = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boundaries)
    rows = []
    for room, allowed in boundaries.MAY_IMPORT.items():
        ground = set(boundaries.GROUND) <= set(allowed)
        named = [
            *(["the ground"] if ground else []),
            *(name for name in allowed if not (ground and name in boundaries.GROUND)),
        ]
        rows.append(f"{room:<24} {', '.join(named).replace('*', 'everything') or 'nothing of plnd'}")
    return rows


def blocks() -> dict[str, str]:
    """What stands between the marks of the page, by their names."""
    drawn = {package: "\n".join(tree(ROOT / package)) for package in PACKAGES}
    return drawn | {"imports": "\n".join(import_table())}


def between(page: str, name: str) -> str:
    """The text of the page's code block that is marked with a name."""
    return page.partition(f"<!-- {name} -->\n```\n")[2].partition("\n```")[0]


@pytest.mark.parametrize("name", [*PACKAGES, "imports"])
def test_the_page_shows_the_house(name):
    """The page's tree names each folder and file with the first sentence of its docstring; the table is the tests'."""
    assert between(PAGE.read_text(encoding="utf-8"), name) == blocks()[name]


def test_a_missing_file_would_be_noticed(tmp_path):
    """A tree with another file is another tree, and a caption is a docstring's first sentence."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text('"""A package. More."""')
    before = tree(tmp_path / "p")
    (tmp_path / "p" / "m.py").write_text('"""A module\nof two lines (eq. 1).\n\nMore."""')
    assert before == [f"{'p/':<28} A package"]
    assert tree(tmp_path / "p") == [*before, f"{'  m':<28} A module of two lines (eq. 1)"]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, drawn in blocks().items():
        text = text.replace(between(text, name), drawn) if between(text, name) else text
    PAGE.write_text(text, encoding="utf-8")
