"""Tables are written as CSV, Markdown and LaTeX; from the Markdown they can be read again, and from nothing else."""

from __future__ import annotations

from lm_eval_plnd.experiments.tables import Shown, read_markdown, write_tables

TABLES = [
    Shown("text: bits | byte, ±: error", ("switched off", "en", "zh"), [("a|b", "2.1 ±0.0", "–"), ("c", "1*", "")]),
    Shown("words alone", ("one", "other"), [("x", "y\nz")], words=2),
]


def test_markdown_is_read_as_it_was_written(tmp_path):
    """Titles, headers, cells with bars and line ends, and which columns are words."""
    write_tables(str(tmp_path / "t"), ("a",), [(1,)], TABLES)
    found = read_markdown((tmp_path / "t.md").read_text(encoding="utf-8"))
    assert [(one.title, list(one.header), list(map(tuple, one.rows)), one.words) for one in found] == [
        (one.title, list(one.header), list(one.rows), one.words) for one in TABLES
    ]


def test_other_texts_have_no_tables():
    """A README, a title without its table, and a row that is too short."""
    ragged = "**t**\n\n| a | b |\n|:--|--:|\n| 1 |\n"
    for text in ("", "# Title\n\n| a |\n|:--|\n| 1 |\n", "**t**\n\nwords\n", ragged):
        assert read_markdown(text) == []
