"""Where the lm-evaluation-harness task files are; knows nothing of lm-eval."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from plnd.errors import PLNDError


def tasks_folder() -> Path:
    """The folder to give to `lm_eval --include_path`.

    Raises:
        PLNDError: if the project is not installed.
    """
    spec = importlib.util.find_spec("plnd_tasks")
    if spec is None or not spec.submodule_search_locations:
        raise PLNDError("the task files are not installed; install plnd with pip")
    return Path(spec.submodule_search_locations[0])
