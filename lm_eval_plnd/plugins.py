"""The filters and metrics of this package by name, for anybody's task files.

lm-eval releases that discover plugins (0.4.13 does not) find them by their entry points, in the groups
`lm_eval.filters` and `lm_eval.metrics`; with others, `import lm_eval_plnd.plugins` before evaluating. This project's
own task files name functions instead (`!function lm_eval_plnd.scoring.answers.answer_scores`), which every release
understands.

```yaml
filter_list:
  - name: answer
    filter:
      - {function: plnd_first_line}
      - {function: take_first}
metric_list:
  - {metric: plnd_f1, language: zh, aggregation: mean, higher_is_better: true}
```
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter, register_metric

from lm_eval_plnd.scoring import answers as metrics
from lm_eval_plnd.scoring import numerals, rouge


@register_filter("plnd_first_line")
class FirstLine(Filter):
    """The first line of each response that says something (`metrics.first_line`), without the white space around it."""

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """One list for each document, as long as its list of responses."""
        return [[metrics.first_line(response) for response in responses] for responses in resps]


@register_filter("plnd_final_number")
class FinalNumber(Filter):
    """The number that each response ends in, in plain digits (`-1234.5`), empty if it ends in none or was cut off.

    Args:
        language: two-letter code, as in `numerals.final_answer`.
    """

    def __init__(self, language: str) -> None:
        self.language = language

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """One list for each document, as long as its list of responses."""
        return [[self.plain(response) for response in responses] for responses in resps]

    def plain(self, response: str) -> str:
        """The number that one response ends in."""
        number = numerals.final_answer(response, self.language)
        return "" if number is None else f"{number.normalize():f}"


def _mean(score: Callable[..., float], references: Sequence[str], predictions: Sequence[str], *more: str) -> float:
    """The mean score of predictions against their references; lm-eval passes one of each."""
    return sum(score(p, r, *more) for p, r in zip(predictions, references, strict=True)) / len(predictions)


@register_metric(metric="plnd_exact_match", higher_is_better=True, aggregation="mean")
def exact_match(references: Sequence[str], predictions: Sequence[str], language: str) -> float:
    """`metrics.exact_match`: the same tokens in the same order, normalised as in SQuAD, in every script."""
    return _mean(metrics.exact_match, references, predictions, language)


@register_metric(metric="plnd_f1", higher_is_better=True, aggregation="mean")
def f1(references: Sequence[str], predictions: Sequence[str], language: str) -> float:
    """`metrics.f1`: overlap of the same tokens."""
    return _mean(metrics.f1, references, predictions, language)


@register_metric(metric="plnd_contains", higher_is_better=True, aggregation="mean")
def contains(references: Sequence[str], predictions: Sequence[str], language: str) -> float:
    """`metrics.contains`: all the reference's tokens stand in the prediction, one behind the other."""
    return _mean(metrics.contains, references, predictions, language)


@register_metric(metric="plnd_number_match", higher_is_better=True, aggregation="mean")
def number_match(references: Sequence[str], predictions: Sequence[str], language: str) -> float:
    """`numerals.number_match`: the same number in the end, as the language writes numbers."""
    return _mean(numerals.number_match, references, predictions, language)


@register_metric(metric="plnd_rouge_l", higher_is_better=True, aggregation="mean")
def rouge_l(references: Sequence[str], predictions: Sequence[str]) -> float:
    """`rouge.rouge_l`: F-measure of the longest common subsequence of Unicode tokens."""
    return _mean(rouge.rouge_l, references, predictions)
