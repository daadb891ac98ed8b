"""How a suppression is searched, and what it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from plnd.errors import PLNDError
from plnd.numbers import is_real, is_whole

Stop = Literal["both", "slips", "answers"]
STOPS = ("both", "slips", "answers")
RULE = (
    "of all candidates whose rate of the unwanted language on the validation questions is at most the target, the one"
    " that raises the kept languages' bits per byte least on the validation text, on average; of equals, the one of"
    " fewest neurons, then the mildest"
)
"""How one is chosen, in one sentence."""


@dataclass(frozen=True)
class SuppressConfig:
    """How a suppression is searched.

    Attributes:
        target: the largest rate that counts as stopped.
        stop: which rate: `slips` into the language, of answers to questions in the kept languages; `answers` in it, to
            questions in it; or `both`, the larger of the two.
        shares: of the neurons chosen from, one nested set for each; what does not have the contrast is never in one.
        factors: what the neurons' values are multiplied by, from 0 (off) to below 1; every set is tried with each.
        times: how many times as important for the language as for any other a neuron is (`plnd.contrast`): sets take
            those of the largest number first, and of the next ones where there are no more.
        questions: so many to choose by; the others are reported.
        seed: of the draw of questions.
        tokens: of an answer, at most.
        draws: random sets beside the one that is chosen, as many neurons of each block and projection.
        max_documents: of each language, for detection.
        validation_documents: of each kept language, to choose by.
        report_documents: of each language, to report.
        max_length: tokens kept of each document.
        batch_size: questions that are answered at once.
    """

    target: float = 0.02
    stop: Stop = "both"
    shares: Sequence[float] = (0.0005, 0.002, 0.005, 0.01, 0.02)
    factors: Sequence[float] = (0.0, 0.25)
    times: Sequence[float] = (2.0, 1.5, 1.2)  # as contrast's by default, whose module would bring numpy into the help
    questions: int = 24
    seed: int = 0
    tokens: int = 48
    draws: int = 2
    max_documents: int = 40
    validation_documents: int = 6
    report_documents: int = 12
    max_length: int = 192
    batch_size: int = 16

    def __post_init__(self) -> None:
        _check_list("times", self.times, "of at least 1", lambda times: times >= 1)
        if not (is_real(self.target) and 0 <= self.target < 1):
            raise PLNDError(f"target={self.target!r}: expected a rate from 0 to below 1, such as 0.02")
        if self.stop not in STOPS:
            raise PLNDError(f"unknown stop={self.stop!r}: expected one of {', '.join(STOPS)}")
        _check_list("shares", self.shares, "above 0 and at most 1", lambda share: 0 < share <= 1)
        _check_list("factors", self.factors, "from 0 to below 1", lambda factor: 0 <= factor < 1)
        least = {"seed": 0, "draws": 0, "max_length": 32}
        counted = ("questions", "tokens", "max_documents", "validation_documents", "report_documents", "batch_size")
        for name in (*least, *counted):
            value = getattr(self, name)
            if not (is_whole(value) and value >= least.get(name, 1)):
                raise PLNDError(f"{name}={value!r}: expected a whole number of at least {least.get(name, 1)}")


def _check_list(name: str, values: Sequence[float], expected: str, accepted: Callable[[float], bool]) -> None:
    if not values or not all(is_real(value) and accepted(value) for value in values) or len({*values}) < len(values):
        raise PLNDError(f"{name}={list(values)}: expected different numbers {expected}")
