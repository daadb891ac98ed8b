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

from lm_eval_plnd.scoring import wording
from lm_eval_plnd.scoring.answers import UNSPACED, first_line, tokens
from lm_eval_plnd.scoring.wording import phrases

_TOKEN = regex.compile(
    rf"[{UNSPACED}]\p{{M}}*|[\p{{L}}\p{{N}}--[{UNSPACED}]][\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]*", regex.V1
)
_FORMAT = regex.compile(r"\p{Cf}")
_LABEL = regex.compile(r"[^\p{L}\p{N}]*(?P<label>[^:：]{1,100})[:：][^\p{L}\p{N}\p{Ps}\p{Pi}\"'「『]*(?=\S)")
_PRESENTING_WORDS = 16  # at most, of a line that only presents the summary


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
        doc: a row with `summary`, the gold one, and `language`.
        results: what the model generated, one string, in which `summary_line` finds the summary.
    Returns:
        `rougeL`, from 0 to 1.
    """
    return {"rougeL": rouge_l(summary_line(results[0], doc.get("language", "en")), doc["summary"])}


def summary_line(text: str, language: str) -> str:
    """The first line that says something and does not only announce or present the summary, without its label.

    Args:
        text: a whole answer.
        language: two-letter code; `wording.SUMMARY_WORDS` and `PRESENTING` have its words.
    """
    lines = [line.strip() for line in text.split("\n")]
    while lines and _announces(first_line("\n".join(lines)), language):
        rest = lines[lines.index(first_line("\n".join(lines))) + 1 :]
        if not first_line("\n".join(rest)):
            break
        lines = rest
    line = first_line("\n".join(lines))
    label = _LABEL.match(line)
    return line[label.end() :] if label and _announces(label["label"], language) else line


def _announces(line: str, language: str) -> bool:
    """Whether a line is the word for a summary, or a short sentence that presents one."""
    if _is_label(line, language):
        return True
    said = tokens(line, language)
    names, presents = ([tokens(word, language) for word in phrases(table, language)] for table in _INTRODUCTIONS)
    short = len(regex.findall(r"[\p{L}\p{M}\p{N}]+", line)) <= _PRESENTING_WORDS and len(said) <= 3 * _PRESENTING_WORDS
    return short and any(said[: len(p)] == p for p in presents) and any(_stands_in(said, name) for name in names)


def _is_label(text: str, language: str) -> bool:
    """Whether a text is the word for a summary and no more, up to marks."""
    said = tokens(text, language)
    return bool(said) and any(said == tokens(word, language) for word in phrases(wording.SUMMARY_WORDS, language))


_INTRODUCTIONS = (wording.SUMMARY_WORDS, wording.PRESENTING)


def _stands_in(said: list[str], name: list[str]) -> bool:
    """Whether some tokens stand in others, in order."""
    return any(said[n : n + len(name)] == name for n in range(len(said) - len(name) + 1))
