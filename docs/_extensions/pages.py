"""What pages of the site have that their files have not: links to each other, and where Colab finds the notebook."""

from __future__ import annotations

import json
import os

from sphinx.application import Sphinx

MOVED = {"../tasks/README.md": "tasks.md", "../CHANGELOG.md": "changelog.md"}
"""Target of a link, as it is right beside the files, to the page that includes it."""

REPOSITORY = os.environ.get("GITHUB_REPOSITORY")
"""owner/name, where GitHub builds the site."""

BADGE = (
    "[![Open in Colab](_static/colab.svg)]"
    f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/docs/tutorial.ipynb)"
)


def changed(app: Sphinx, page: str, source: list[str]) -> None:
    """Points links at the pages of the site; the notebook gets a badge under its title."""
    for target, here in MOVED.items():
        source[0] = source[0].replace(f"]({target}", f"]({here}")
    if page == "tutorial" and REPOSITORY:
        notebook = json.loads(source[0])
        title, *text = "".join(notebook["cells"][0]["source"]).split("\n")
        notebook["cells"][0]["source"] = "\n".join([title, "", BADGE, *text])
        source[0] = json.dumps(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    """Reads every page through `changed`."""
    app.connect("source-read", changed)
    return {"parallel_read_safe": True}
