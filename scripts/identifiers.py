"""Where two identifiers of languages disagree, cld3 and fastText's lid.176: on human-written text and models' answers.

    python scripts/identifiers.py text                             # the demo's corpus, by the length of the text
    python scripts/identifiers.py text de=de.jsonl zh=zh.jsonl --words 5 10 20 40 --pieces 200
    python scripts/identifiers.py answers OUT/*/samples_plnd_confusion_*.jsonl    # of lm_eval --log_samples

`text` prints, of pieces of so many words (two characters are a word in scripts without spaces), the share that each
calls by the language of the corpus, that both do, that the two call the same, that both call another language (which
is what line-level pass rates are wrong by), and of which nothing is said because they disagree or are unsure. A minute
for ten languages. `answers` prints, for each task, how far they agree on the lines of the answers, those on which they
do not, and the relevance of answers to their own questions and to the next ones: the floor to read it against.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import regex
from tabulate import tabulate

from lm_eval_plnd.rows.sources import text_of
from lm_eval_plnd.scoring.answers import UNSPACED
from lm_eval_plnd.scoring.confusion import IDENTIFIERS, MIN_WORDS, Line, length, prose, told
from lm_eval_plnd.scoring.relevance import relevance
from plnd import read_documents
from plnd.demo_data import demo_corpus
from plnd.errors import PLNDError
from plnd.logit_lens.language_id import same_language

SAMPLES = "samples that lm_eval --log_samples writes for plnd_confusion_* or plnd_forced_language_*"

_WORD = regex.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+\s*")


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    text = what.add_parser("text", help="human-written text of a known language")
    text.add_argument("corpora", nargs="*", metavar="LANGUAGE=FILE", help="default: the demo's corpus")
    text.add_argument("--words", nargs="+", type=int, default=[3, 5, 10, 20, 40])
    text.add_argument("--pieces", type=int, default=200, help="of each length, each of a document of its own")
    answers = what.add_parser("answers", help="samples that lm_eval --log_samples wrote")
    answers.add_argument("samples", nargs="+", type=Path)
    answers.add_argument("--show", type=int, default=5, help="lines on which the two disagree, for each task")
    args = parser.parse_args()
    try:
        if args.what == "text":
            print(text_table(args.corpora or demo_corpora(), args.words, args.pieces))
        else:
            for path in args.samples:
                print("\n".join(answers_report(path, args.show)), end="\n\n")
    except PLNDError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def demo_corpora() -> list[str]:
    """The demo's texts for evaluation, LANGUAGE=FILE each."""
    return [f"{path.stem}={path}" for path in sorted((demo_corpus("evaluate") / "corpora").glob("*.jsonl"))]


def text_table(corpora: Sequence[str], words: Sequence[int], count: int) -> str:
    """Rates of right and like answers, a row for each language and length, in percent.

    Raises:
        PLNDError: if a corpus is not given as LANGUAGE=FILE.
    """
    rows = []
    for corpus in corpora:
        language, equals, file = corpus.partition("=")
        if not equals:
            raise PLNDError(f"{corpus}: expected LANGUAGE=FILE, as in de=de.jsonl")
        documents = list(read_documents(file))
        random.Random(0).shuffle(documents)
        for size in words:
            lines = told(islice(pieces(documents, size), count))
            if lines:
                rows.append([language, size, len(lines), *rates(lines, language).values()])
    header = ["language", "words", "pieces", *IDENTIFIERS, "both right", "alike", "both wrong", "undetermined"]
    return tabulate(rows, headers=header, tablefmt="pipe", floatfmt=".1f")


def rates(lines: Sequence[Line], language: str) -> dict[str, float]:
    """Shares of lines in percent: right by each identifier and by both, called the same, wrong by both, and open.

    `alike` is of the lines that both call something, as the tasks' `agreement`; the others are of all.
    """
    alike = [line.agreed for line in lines if line.agreed is not None]
    verdicts = [line.is_in(language) for line in lines]
    return {
        **{
            name: _percent(same_language(line.labels[place], language) for line in lines)
            for place, name in enumerate(IDENTIFIERS)
        },
        "both right": _percent(verdict is True for verdict in verdicts),
        "alike": _percent(alike),
        "both wrong": _percent(verdict is False for verdict in verdicts),
        "undetermined": _percent(verdict is None for verdict in verdicts),
    }


def _percent(truths: Iterable[bool | None]) -> float:
    there = list(truths)
    return 100 * sum(map(bool, there)) / len(there) if there else float("nan")


def pieces(documents: Iterable[str], words: int) -> Iterator[str]:
    """A piece of so many words of each document that is long enough, from somewhere in it, always the same."""
    draw = random.Random(0)
    for document in documents:
        parts = _WORD.findall(" ".join(prose(document)))
        start = draw.randrange(max(1, len(parts) - 2 * words))
        piece = ""
        for part in parts[start:]:
            piece += part
            if length(piece) >= words:
                yield piece.strip()
                break


def answers_report(path: Path, show: int) -> list[str]:
    """What the two say of the answers of one task, as lines of text.

    Raises:
        PLNDError: if the file is not one that lm-eval writes for these tasks.
    """
    samples = [read_sample(line, path) for line in text_of(path, SAMPLES).splitlines() if line.strip()]
    lines = [
        (line, doc["language"])
        for doc, answer in samples
        for line in told(one for one in prose(answer, repeated(doc)) if length(one) >= MIN_WORDS)
    ]
    named = [line.agreed for line, _ in lines if line.agreed is not None]
    open_lines = [line for line, language in lines if line.is_in(language) is None]
    report = [
        f"{path.name}: {len(samples)} answers, {len(lines)} lines of {MIN_WORDS} words or more",
        f"both identifiers call {len(named)} of them something, {sum(map(bool, named))} of these the same; "
        f"{len(open_lines)} are undetermined:",
        *(f"- {' '.join(map('{}={}'.format, IDENTIFIERS, line.labels))}: {line.text}" for line in open_lines[:show]),
    ]
    return report + relevances(samples)


def relevances(samples: Sequence[tuple[dict[str, Any], str]]) -> list[str]:
    """Mean relevance of the answers to their own questions and to the next one's, where there are two."""
    if len(samples) < 2:
        return []
    texts = [" ".join(prose(answer, repeated(doc))) for doc, answer in samples]
    terms = [{row["language"]: row["concepts"] for row in doc["terms"]} for doc, _ in samples]
    own = sum(map(relevance, texts, terms)) / len(texts)
    other = sum(map(relevance, texts, terms[1:] + terms[:1])) / len(texts)
    return [f"relevance {own:.3f}, to the next question {other:.3f}"]


def repeated(doc: dict[str, Any]) -> list[str]:
    """The parts of the prompt, whose repetition is no answer."""
    return [doc["question"], doc["instruction"]]


def read_sample(line: str, path: Path) -> tuple[dict[str, Any], str]:
    """The row and the answer of one sample."""
    try:
        sample = json.loads(line)
        doc, answer = sample["doc"], sample["resps"][0][0]
        doc["question"], doc["language"], doc["instruction"], doc["terms"]
    except (KeyError, IndexError, TypeError, ValueError):
        raise PLNDError(f"{path}: expected {SAMPLES}") from None
    return doc, answer


if __name__ == "__main__":
    main()
