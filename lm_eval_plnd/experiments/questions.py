"""Open questions, some to choose by and others to report on, answered by a loaded model as it is at the moment.

The questions, and what tells the language of an answer, are those of the tasks `plnd_confusion` and
`plnd_forced_language`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_plnd.rows.open_questions import open_questions
from lm_eval_plnd.scoring.confusion import MIN_WORDS, length, prose, told
from plnd.errors import PLNDError
from plnd.logit_lens.language_id import labels, scripts_in
from plnd.neurons.random_draw import draw
from plnd.statistics import CONFIDENCE

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

Row = Mapping[str, Any]
"""A question with the columns of `lm_eval_plnd.rows.open_questions.ASKED`."""


@dataclass(frozen=True)
class Halves:
    """The questions of every language, the same ones in each, in two parts that have none in common.

    Attributes:
        validation, report: language to rows, in one order.
    """

    validation: Mapping[str, Sequence[Row]]
    report: Mapping[str, Sequence[Row]]


def halves(
    languages: Sequence[str], validation: int, seed: int, *, wanted: str | None = None, folder: str | None = None
) -> Halves:
    """The questions asked in some languages, `validation` of them drawn by the seed to choose by, the others to report.

    Args:
        languages: in which they are asked.
        validation: how many are drawn; the same ones in every language.
        seed: of the draw.
        wanted: language of the answers; by default that of the question.
        folder: of other questions than plnd's, `{language}.jsonl` each, parallel by their ids.

    Raises:
        CorpusError: if a language has no questions, or others than the first one.
        PLNDError: if none would be left for one of the parts, or what tells languages is not installed.
    """
    rows = {
        x: open_questions(wanted or x, asked_in=x, questions_dir=folder)["test"].to_list()
        for x in dict.fromkeys(languages)
    }
    first = next(iter(rows.values()))
    ids = [row["id"] for row in first]
    for language, found in rows.items():
        if [row["id"] for row in found] != ids:
            raise PLNDError(f"questions in {language}: other ones, or in another order, than in {next(iter(rows))}")
    if not 0 < validation < len(ids):
        raise PLNDError(
            f"{validation} questions to choose by, of {len(ids)}: expected 1 to {len(ids) - 1}, the others are reported"
        )
    chosen = set(draw(len(ids), validation, seed, "questions").tolist())
    parts = [
        {x: [row for n, row in enumerate(found) if (n in chosen) == own] for x, found in rows.items()}
        for own in (True, False)
    ]
    return Halves(*parts)


def write_questions(rows: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Questions as files that the tasks take: `--metadata '{"questions_dir": FOLDER}'`."""
    from plnd.io.files import write_bytes

    folder.mkdir(exist_ok=True)
    for language, found in rows.items():
        lines = [
            json.dumps({"id": row["id"], "question": row["question"], "terms": one["concepts"]}, ensure_ascii=False)
            + "\n"
            for row in found
            for one in row["terms"]
            if one["language"] == language
        ]
        write_bytes("".join(lines).encode(), folder / f"{language}.jsonl")


def in_turn(rows: Mapping[str, Sequence[Row]], languages: Sequence[str]) -> list[Row]:
    """Every question once, asked in one language after the other."""
    count = len(rows[languages[0]])
    return [rows[languages[n % len(languages)]][n] for n in range(count)]


def answers(lm: HFLM, rows: Sequence[Row], *, tokens: int, chat: bool) -> list[str]:
    """What the model says to each question, greedily, in batches of the model's own batch size.

    Args:
        lm: lm-eval's model.
        rows: the questions.
        tokens: at most so many each.
        chat: ask through the tokenizer's chat template.
    """
    from lm_eval.api.instance import Instance

    options = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    prompts = [row["prompt"] for row in rows]
    if chat:
        prompts = [lm.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    requests = [
        Instance("generate_until", dict(row), (prompt, dict(options)), n, ("questions", n, 1))
        for n, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def slips(row: Row, answer: str, language: str) -> bool:
    """Whether an answer to a question in another language has a line in a language, or letters of its script.

    A line counts that is long enough and that both identifiers call by the language; letters, of a script that the
    language of the question does not use, Latin aside.
    """
    lines = prose(answer, [row["question"], row["instruction"]])
    foreign = {*labels("script", language)} - {*labels("script", row["language"]), "Latin"}
    return _has_line(lines, language) or any(scripts_in(line)[script] for line in lines for script in foreign)


def speaks(row: Row, answer: str, language: str, others: Sequence[str] = ()) -> bool:
    """Whether an answer to a question in a language is in it: a line that both identifiers call so, or most letters.

    Letters count where none of the `others` is written in them: answers too short to be told a language, of «是的».
    """
    lines = prose(answer, [row["question"], row["instruction"]])
    shared = {"Latin", *(script for other in others for script in labels("script", other))}
    letters = scripts_in(" ".join(lines))
    own = sum(letters[script] for script in {*labels("script", language)} - shared)
    return _has_line(lines, language) or 2 * own > letters.total()


def _has_line(lines: Sequence[str], language: str) -> bool:
    return any(line.is_in(language) for line in told(line for line in lines if length(line) >= MIN_WORDS))


@dataclass(frozen=True)
class Rate:
    """How many of some answers."""

    count: int
    of: int

    @classmethod
    def among(cls, verdicts: Sequence[bool | float] | np.ndarray) -> Rate:
        """Of verdicts, 0 or 1 each."""
        return cls(int(np.sum(verdicts)), len(verdicts))

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), which is one also where none or all are counted."""
        from scipy.stats import binomtest

        found = binomtest(self.count, self.of).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"
