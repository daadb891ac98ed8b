"""`plnd explore` from files to a page, and what it refuses."""

from __future__ import annotations

import pytest

from exploring import both, inspection
from plnd.commands.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with scores of two languages, a set and an inspection."""
    monkeypatch.chdir(tmp_path)
    contents = both()
    for name, one in contents.scores.items():
        one.save(f"{name}.scores.safetensors")
    contents.sets["zh"].save("own.safetensors")
    (tmp_path / "looked.json").write_text(inspection(model="elsewhere").to_json(), encoding="utf-8")
    return tmp_path


def test_a_page_of_all_kinds_of_files(here, capsys):
    """It is written, its size is said, and that the inspection names another model."""
    files = ["zh.scores.safetensors", "en.scores.safetensors", "own.safetensors", "looked.json"]
    assert main(["explore", *files, "--output", "page.html", "--projections", "q_proj,up_proj"]) == 0
    out, err = capsys.readouterr()
    page = (here / "page.html").read_text(encoding="utf-8")
    assert out.startswith(f"page.html: {len(page.encode()):,} bytes; sha256 ")
    assert err == (
        "warning: looked.json names the model elsewhere, the first file made/by-hand: make sure that they are one\n"
    )
    assert "q_proj, up_proj" in page and "down_proj.5" not in page


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("own.safetensors --output own.safetensors", "is read as well"),
        ("none.safetensors", "none.safetensors: "),
        ("own.safetensors --projections up", "unknown projection 'up'"),
        ("looked.json --projections o_proj", "nothing to show: the model has none of these projections"),
        ("own.safetensors --output no/page.html", "no/page.html"),
    ],
)
def test_refusals(here, capsys, line, problem):
    """One line, status 2, and no page."""
    assert main(["explore", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert not out and problem in err and len(err.splitlines()) == 1
    assert not (here / "explore.html").exists()
