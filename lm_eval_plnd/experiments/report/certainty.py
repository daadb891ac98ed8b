"""How sure the scores of an experiment are: intervals and p-values from the documents' values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_plnd.experiments import results
from lm_eval_plnd.experiments.results import BITS, TEXT, Row

if TYPE_CHECKING:
    import numpy as np

SURE = 0.05
"""Differences of a smaller p-value are bold."""


@dataclass(frozen=True)
class Certainty:
    """How sure a score is.

    Attributes:
        low, high: ends of its interval; nan where it has none.
        p_value: that the difference from the original is chance; nan where they cannot be compared, and where the
            documents are too few for any to be below `SURE`.
        change_low, change_high: ends of the interval of that difference.
    """

    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    change_low: float = math.nan
    change_high: float = math.nan


Key = tuple[str, str, str]
"""Setting, task and metric."""


@dataclass(frozen=True)
class Scores:
    """All scores of an experiment, and what is known beside them.

    Attributes:
        by_key: rows by setting, task and metric.
        text: bits per byte by setting and language.
        certainty: of each row.
        plain: name of the setting in which nothing was switched off; None if there is none.
    """

    by_key: Mapping[Key, Row]
    text: Mapping[tuple[str, str], Row]
    certainty: Mapping[Key, Certainty]
    plain: str | None

    def change(self, row: Row) -> float:
        """Difference from the original; nan for the original itself, and where that was not evaluated."""
        old = self.by_key.get((self.plain or "", row.task, row.metric))
        return math.nan if old is None or row.original else row.value - old.value

    def of(self, row: Row) -> Certainty:
        """How sure a row is."""
        return self.certainty[row.setting, row.task, row.metric]

    def bits(self, row: Row) -> Row | None:
        """The bits per byte of a row's setting in the language of its task."""
        return self.text.get((row.setting, row.task_language))


def read_scores(folder: Path, rows: Sequence[Row], progress: bool) -> Scores:
    """All scores, with what the documents tell of each; `progress` shows a bar."""
    from tqdm import tqdm

    by_key = {(row.setting, row.task, row.metric): row for row in rows}
    originals = [row.setting for row in rows if row.original]
    plain = originals[0] if originals else None
    samples = {row.setting: results.read_samples(folder, row.setting) for row in results.first_of_each(rows)}
    certainty = {}
    for row in tqdm(rows, desc="statistics", unit=" scores", disable=not progress):
        old = by_key.get((plain or "", row.task, row.metric))
        before = None if old is None or row.original else _values(old, samples[old.setting])[0]
        certainty[row.setting, row.task, row.metric] = _certainty(row, samples[row.setting], before)
    text = {(row.setting, row.task_language): row for row in rows if (row.item, row.metric) == (TEXT, BITS)}
    return Scores(by_key, text, certainty, plain)


def _certainty(row: Row, samples: results.Samples, before: np.ndarray | None) -> Certainty:
    """Interval, and p-value against the original's values, from the documents.

    Bits per byte are a mean weighted by the documents' bytes w: Σ w·v / Σ w, the plain mean of w·v / w̄. That is what
    the test compares; the interval is that of the ratio.
    """
    from plnd.statistics import as_ratio, bootstrap_interval, paired_p_value, smallest_p_value

    values, weights = _values(row, samples)
    if values is None:
        return Certainty()
    low, high = bootstrap_interval(as_ratio(weights * values, weights))
    if before is None or len(before) != len(values):
        return Certainty(low, high)
    known = smallest_p_value(len(values)) < SURE
    p_value = paired_p_value(weights * values, weights * before) if known else math.nan
    return Certainty(low, high, p_value, *bootstrap_interval(as_ratio(weights * (values - before), weights)))


def _values(row: Row, samples: results.Samples) -> tuple[np.ndarray | None, np.ndarray]:
    """A row's values and their weights, which have the mean 1, both [documents]; None where they were not kept."""
    import numpy as np

    from plnd.statistics import relative_lengths

    metrics = samples.get(row.task, {})
    try:
        values = np.asarray(metrics[row.metric], dtype=np.float64)
        counted = results.document_weights(metrics, row.metric)
        weights = np.ones_like(values) if counted is None else np.asarray(counted, dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        return None, np.empty(0)
    if values.ndim != 1 or values.shape != weights.shape or not len(values) or not weights.sum() > 0:
        return None, np.empty(0)
    weights = relative_lengths(weights)
    fits = math.isclose(float((weights * values).mean()), row.value, rel_tol=1e-6, abs_tol=1e-9)
    return (values, weights) if fits else (None, weights)
