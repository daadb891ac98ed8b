"""Where rows come from: the one table of data sets of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from lm_eval_plnd.rows.sources import HUB, hub_dataset

TASKS = Path(__file__).resolve().parents[3] / "tasks"


def test_every_task_is_known_to_the_table_by_its_name():
    """A task whose rows a function of the table's name reads is of that data set; the others are of none."""
    seen = set()
    for path in TASKS.rglob("_*.yaml"):
        found = re.search(r"!function lm_eval_plnd\.rows\.benchmarks\.(\w+)", path.read_text(encoding="utf-8"))
        if found is None:
            continue
        for task in path.parent.glob("plnd_*_en.yaml"):
            assert hub_dataset(task.stem) == HUB.get(found[1]), task.stem
            seen.add(found[1])
    assert seen > HUB.keys()


def test_tasks_of_others_are_in_no_table():
    """Only plnd's own names say where their rows are from."""
    assert hub_dataset("xnli_en") is None and hub_dataset("plnd_xnlix_en") is None


def test_configurations_are_those_of_the_hub():
    """Each data set writes a language in its own way."""
    configs = {name: dataset.config_of("ja") for name, dataset in HUB.items()}
    assert configs == {"mgsm": "ja", "xquad": "xquad.ja", "xcsqa": "X-CSQA-jap", "xlsum": "japanese", "xnli": "ja"}
