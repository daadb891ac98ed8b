"""ROUGE-L in every language: the `rouge_score` package with tokens that are not only English.

That package's own tokens are runs of a-z and 0-9, so a Chinese or Russian summary has none. Here, after Unicode NFKC
and lower case, a token is a run of letters, their marks and digits of any script; the characters of scripts that put no
spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) are one token each, with their marks. Invisible format
characters (joiners, direction marks) are dropped. Nothing is stemmed. On ASCII text tokens and scores are the
package's.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lm_eval_plnd.scoring.answers import UNSPACED, first_line

_TOKEN = regex.compile(
    rf"[{UNSPACED}]\p{{M}}*|[\p{{L}}\p{{N}}--[{UNSPACED}]][\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]*", regex.V1
)
_FORMAT = regex.compile(r"\p{Cf}")


class UnicodeTokenizer(Tokenizer):
    """Tokens of any script, as the module says, for `rouge_score`."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in order."""
        return _TOKEN.findall(unicodedata.normalize("NFKC", _FORMAT.sub("", text)).lower())


_SCORER = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of tokens, from 0 to 1; 0 if either has none."""
    return float(_SCORER.score(reference, prediction)["rougeL"].fmeasure)


def summary_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L of a generated summary; lm-eval's `process_results`.

    Args:
        doc: a row with `summary`, the gold one.
        results: what the model generated, one string, of which the first line that is not blank is the summary.
    Returns:
        `rougeL`, from 0 to 1.
    """
    return {"rougeL": rouge_l(first_line(results[0]), doc["summary"])}
