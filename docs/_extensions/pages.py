"""Pages that lie elsewhere in the repository, as links between pages of the site."""

from __future__ import annotations

from sphinx.application import Sphinx

MOVED = {"../tasks/README.md": "tasks.md", "../CHANGELOG.md": "changelog.md"}
"""Target of a link, as it is right beside the files, to the page that includes it."""


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Points links at the pages of the site."""
    for target, here in MOVED.items():
        source[0] = source[0].replace(f"]({target}", f"]({here}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Reads every page through `relink`."""
    app.connect("source-read", relink)
    return {"parallel_read_safe": True}
