"""The site: `sphinx-build -W -n docs site` makes it of the pages beside this file (`pip install ".[docs]"`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from plnd.version import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "plnd"
author = "The plnd developers"
version = release = __version__
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "command_line", "pages"]
exclude_patterns = ["_extensions"]
nitpicky = True
nitpick_ignore_regex = [
    # types of other projects, whose sites are not asked
    (r"py:.*", r"(torch|np|numpy|nn|transformers|peft|lm_eval|collections|pathlib|contextlib|os|typing)\..*"),
    (r"py:class", r"HFLM|Task|Path|TaskType|PeftType"),
    # of values that nobody makes by hand; what metadata say is in docs/artifacts.md
    (
        r"py:class",
        r"plnd\.(io\.(artifact|metadata)|model_description|models|logit_lens\.language_id|detection\.totals)\..*",
    ),
    (r"py:class", r"plnd\.(references\.run\.Sums|comparison\.summary\.(Point|Line)|probing\.probe\.Kind)"),
    (r"py:class", r"Tokens|Listener"),
]

html_theme = "furo"
html_title = f"plnd {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
pygments_style, pygments_dark_style = "default", "github-dark"
highlight_language = "none"  # of fences that name no language
smartquotes = False  # two hyphens are an option

myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook is shown as it is; tests/test_tutorial.py executes it
nb_merge_streams = True

default_role = "literal"  # docstrings set code in single backticks, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what is returned is told in words, shapes among them

repository = os.environ.get("GITHUB_REPOSITORY")  # owner/name, where GitHub builds the site (_extensions/pages.py)
html_theme_options = {"source_repository": f"https://github.com/{repository}/"} if repository else {}
