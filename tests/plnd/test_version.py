"""One version: the package's, the citation's, and the one that the changelog begins with."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from plnd.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_and_the_changelog_have_it():
    """A release that forgets one of them cites, or tells, another version."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found and found[1] == __version__
