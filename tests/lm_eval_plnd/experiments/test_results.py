"""What is known of results: in which direction a score is better."""

from __future__ import annotations

import re

from lm_eval.api import metrics  # noqa: F401  registers them
from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY

from lm_eval_plnd.experiments.results import LESS_IS_BETTER, less_is_better
from lm_eval_plnd.task_folder import tasks_folder


def test_scores_of_which_less_is_better_are_known():
    """All that lm-eval registers or a task of plnd declares so, and no other of these; filters do not matter."""
    found = {name: bool(better) for name, better in HIGHER_IS_BETTER_REGISTRY.items()}
    declared = re.compile(r"- metric: (\w+)\n(?:    .*\n)*?    higher_is_better: (true|false)")
    for path in tasks_folder().rglob("*.yaml"):
        found |= {name: better == "true" for name, better in declared.findall(path.read_text(encoding="utf-8"))}
    assert {"undetermined", "unreadable", "bits_per_byte", "f1"} <= found.keys()
    assert {name for name, better in found.items() if not better} == LESS_IS_BETTER
    assert less_is_better("undetermined,strict") and not less_is_better("f1,strict")
