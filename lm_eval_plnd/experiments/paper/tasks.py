"""The tasks themselves: their prompts, and what the original model scores on them (Tables 8 and 9 of the appendix)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.changes import Folder
from lm_eval_plnd.experiments.conditions import Setting
from lm_eval_plnd.experiments.paper.shown import digits
from lm_eval_plnd.experiments.results import SETTINGS
from lm_eval_plnd.experiments.run import load_tasks
from lm_eval_plnd.experiments.settings import load_settings
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.statistics import ratio_error


def original(args: argparse.Namespace) -> None:
    """The original model on every item in every language, and the average without English: Table 9 of the appendix.

    Scores are in per cent, but for bits per byte, of which less is better; ± is the standard error over documents.
    """
    folder = Folder(args.inputs[0])
    values, texts = folder.samples(Setting(()).name), []
    rows: list[tuple[Any, ...]] = []
    for item, metric in folder.metrics.items():
        spoken = [x for x in folder.settings.languages_of(item) if folder.settings.tasks[item].task_of(x) in values]
        found = {x: folder.documents(Setting(()), item, x) for x in spoken}
        errors = {x: ratio_error(scores, folder.lengths(item, x)) for x, scores in found.items()}
        places, means = digits(metric), {x: float(scores.mean()) for x, scores in found.items()}
        others = [mean for x, mean in means.items() if x != folder.settings.english]
        average = float(np.mean(others)) if others else np.nan
        rows += [(item, metric, x, mean, errors[x], len(found[x])) for x, mean in means.items()]
        rows.append((item, metric, "average", average, "", ""))
        shown = [
            f"{means[x]:.{places}f} ±{errors[x]:.{places}f}" if x in means else "–" for x in folder.settings.languages
        ]
        texts.append([item, metric, *shown, f"{average:.{places}f}" if others else "–"])
    head = ("item", "metric", *folder.settings.languages, "average")
    width = [max(map(len, column)) + 2 for column in zip(head, *texts, strict=True)]
    for line in (head, *texts):
        print("".join(f"{text:<{w}}" for text, w in zip(line, width, strict=True)).rstrip())
    title = (
        f"original scores of {folder.settings.model['pretrained']}, ± standard error; the average is without English"
    )
    write_tables(
        args.output,
        ("item", "metric", "language", "value", "stderr", "documents"),
        rows,
        [Shown(title, head, texts, 2)],
    )


def prompts(args: argparse.Namespace) -> None:
    """The prompt of each item in each language, as its task builds it: Table 8 of the appendix.

    The input is a settings file, or the folder of an experiment. Prompts are templates where the task has one, else
    those of its first document.
    """
    source = Path(args.inputs[0])
    settings = load_settings(source / SETTINGS if source.is_dir() else source)
    tasks, rows = load_tasks(settings), []
    for item, options in settings.tasks.items():
        for language in settings.languages_of(item):
            if (name := options.task_of(language)) not in tasks:
                continue
            template = tasks[name].get_config("doc_to_text")
            if not isinstance(template, str):
                template = str(tasks[name].doc_to_text(next(iter(tasks[name].eval_docs))))
            rows.append((item, language, name, template))
    for item, language, _, template in rows:
        print(f"{item}, {language}: {template}")
    header = ("item", "language", "task", "prompt")
    write_tables(args.output, header, rows, [Shown("prompts", header, rows, len(header))])
