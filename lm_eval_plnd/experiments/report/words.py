"""Settings, scores and figures in words, and what a table shows as sentences, with what there is too little of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_plnd.experiments.report.certainty import SURE, Scores
from lm_eval_plnd.experiments.report.page import shown, signed
from lm_eval_plnd.experiments.results import Row, less_is_better
from plnd.plot_style import in_words

if TYPE_CHECKING:
    from lm_eval_plnd.experiments.settings import Settings

FEW = 30
"""Documents below which intervals are rough."""

PAPERS = {
    "plnd_paper": {
        "table1": "each language without its own neurons, and without as many random ones",
        "table2": "understanding, without neurons of one part of the model",
        "table3": "reasoning, without neurons of one part of the model",
        "table4": "knowledge, without neurons of one part of the model",
        "table5": "generation, without neurons of one part of the model",
        "later_table8": "without neurons shared with English",
        "later_table9": "without neurons shared by all languages",
        "table10": "how many blocks understand (N1) and generate (N2)",
        "table11": "how many blocks understand (N1) and generate (N2)",
        "table6": "trained on few documents: other languages",
        "table7": "how much of a vocabulary the corpora cover",
        "figure1": "which languages hidden states decode to, block by block",
        "figure3": "the languages' neurons in every block",
        "figure4": "trained on few documents",
        "figure5": "which neurons languages share",
        "figure6": "which neurons languages share",
        "figure7": "which languages hidden states decode to, block by block",
        "prompts": "the prompts",
        "original": "scores of the model as it is",
        "stability": "how many documents are enough",
    }
}
"""What the items of a script show, by the name that its note gives."""
NUMBERS = {"value": "score", "change": "change", "delta": "Δ", "delta_english": "ΔEng", "delta_others": "Δn-Eng"}


def setting_in_words(row: Row) -> str:
    """What was switched off."""
    if row.original:
        return "nothing switched off"
    kind = in_words(row.neurons) if row.neurons != "all" else "all of the language"
    parts = [in_words(row.language), kind, _region(row.region), "in equal numbers" if row.table else ""]
    parts.append(f"documents of sample {row.sample}" if row.sample not in ("", "0") else "")
    words = ", ".join(filter(None, parts))
    draw = f", draw {row.seed}" if row.seed else ""
    return f"{words}: as many random neurons{draw}" if row.control else words


def _region(region: str) -> str:
    name, _, number = region.partition("=")
    if number:
        which = {"under": "first", "gen": "last"}.get(name, in_words(name))
        return f"{which} block" if number == "1" else f"{which} {number} blocks"
    return in_words(region) if region else ""


def score_in_words(item: str, metric: str) -> str:
    """An item and how it is measured, as a heading: `Understanding: F1`."""
    name, _, filtered = metric.partition(",")
    measured = in_words(name) + (f" ({filtered})" if filtered else "")
    title = in_words(item)
    return f"{title[:1].upper()}{title[1:]}: {measured}"


def figure_in_words(script: str, item: str) -> str:
    """What an item of a script shows; empty where that is not known."""
    return PAPERS.get(Path(script).stem, {}).get(item, "")


def regions_in_words(rows: Sequence[Row], settings: Settings | None) -> list[tuple[str, str]]:
    """What the parts of the model are that settings name, where they name some."""
    if not any(row.region for row in rows):
        return []
    given = settings.regions if settings is not None else None
    first, last = ("the first", "the last") if given is None else (f"the first {given.under}", f"the last {given.gen}")
    return [
        ("understanding blocks (under)", f"{first}, in which other languages are understood"),
        ("task-solving blocks (solve)", "those between; their attention is solve_attn, their feed-forward solve_ffn"),
        ("generation blocks (gen)", f"{last}, in which the answer gets its language"),
    ]


# what a table shows


def findings(rows: Sequence[Row], scores: Scores) -> list[str]:
    """Sentences on the scores of one item in one metric: how much worse without what, and the largest change.

    Each comparison is a setting's score against the original's on the same documents of one task.
    """
    changed = [row for row in rows if not row.original and math.isfinite(scores.change(row))]
    if not changed:
        return []
    if not any(row.value for row in rows):
        return [
            "Every score is 0, the original's too: the model solves none of these documents, so that nothing can be"
            " seen of what was switched off."
        ]
    if not any(scores.change(row) for row in changed):
        return ["No score differs from the original's."]
    own = [row for row in changed if not row.control and row.language == row.task_language]
    others = [row for row in changed if not row.control and row.language != row.task_language]
    random = [row for row in changed if row.control]
    groups = {"in the neurons' own language": own, "in other languages": others, "with as many random neurons": random}
    metric = in_words(rows[0].metric.partition(",")[0])
    said = [f"{_mean(group, scores)} {where} ({_worse(group, scores)})" for where, group in groups.items() if group]
    better = "less is better" if less_is_better(rows[0].metric) else "more is better"
    sentences = [f"Mean change of {metric} ({better}): {'; '.join(said)}."]
    if own and (most := max(own, key=lambda row: _loss(row, scores))) and _loss(most, scores) > 0:
        sentences.append(_largest(most, scores, len(own)))
    return sentences


def warnings(rows: Sequence[Row]) -> list[str]:
    """What there are too few documents for."""
    from plnd.statistics import smallest_p_value

    fewest = min(row.documents for row in rows)
    if smallest_p_value(fewest) >= SURE:
        return [
            f"Only {fewest} documents a task: no p-value of this test can be below {smallest_p_value(fewest):.2g}, so"
            " that none is shown, and intervals say little. Take these numbers as a trial of the machinery."
        ]
    if fewest < FEW:
        return [f"Only {fewest} documents a task: intervals are rough, and small changes cannot be told from chance."]
    return []


def nothing_to_see(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Of a script's table, the items of which every score and change is 0, so that their pictures are empty."""
    places = [place for place, name in enumerate(header) if name in (*NUMBERS, "english", "others")]
    item = header.index("item") if "item" in header else None
    names = dict.fromkeys(row[item] if item is not None else "" for row in rows)
    empty = []
    for name in names:
        numbers = [row[place] for row in rows if item is None or row[item] == name for place in places]
        if places and all(text in ("", "0", "0.0") for text in numbers):
            empty.append(name)
    what = [in_words(name) for name in empty]
    shown_here = "tables and pictures of it show nothing"
    return [f"{f'{name}: e' if name else 'E'}very score and every change is 0, so that {shown_here}." for name in what]


def _mean(rows: Sequence[Row], scores: Scores) -> str:
    return signed(math.fsum(scores.change(row) for row in rows) / len(rows))


def _worse(rows: Sequence[Row], scores: Scores) -> str:
    lost = [row for row in rows if _loss(row, scores) > 0]
    tested = [row for row in rows if math.isfinite(scores.of(row).p_value)]
    sure = sum(scores.of(row).p_value < SURE for row in lost)
    tail = f", {sure:,} of them with p < {SURE:g}, not corrected for {len(tested):,} tests" if tested else ""
    return f"worse in {len(lost):,} of {len(rows):,} comparisons{tail}"


def _largest(row: Row, scores: Scores, among: int) -> str:
    found = scores.of(row)
    ends = f", 95 % interval {signed(found.change_low)} to {signed(found.change_high)}"
    interval = "" if math.isnan(found.change_low) else ends
    picked = f"; the largest of {among:,}, picked afterwards, which flatters it" if among > 1 else ""
    return (
        f"Largest loss in the own language: {setting_in_words(row)}, {signed(scores.change(row))} to {shown(row.value)}"
        f" over {row.documents:,} documents{interval}{picked}."
    )


def _loss(row: Row, scores: Scores) -> float:
    change = scores.change(row)
    return change if less_is_better(row.metric) else -change
