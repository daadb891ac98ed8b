"""Which steers a model's answers better to a language: neurons amplified, a direction added (DiffMean), or both?

    plnd reference --model M --corpus de=de.jsonl en=en.jsonl … --output reference
    for x in de en …; do plnd detect --model M --method relevance --corpus $x.jsonl --language $x \
        --max-documents 40 --output $x.scores.safetensors; done
    python scripts/steering.py --model M --scores *.scores.safetensors --reference reference --output steering

Open questions (docs/language-confusion.md), asked in one of the other languages after the other, say no word of the
wanted one. The strength of each method is the one of its grid with the best score on the validation questions, where an
answer scores 1 if it is in the wanted language and about its question (`forced`; `--by reached` drops the latter); of
equals the first, so write grids from weak to strong. What is reported is of the other questions: the rate of answers in
the wanted language, how far they are about the question, the product, all with 95 % intervals, and the paired
differences between methods over all languages. Beside them stand the model as it is, and as many random neurons of each
block and projection, amplified by the same factor.

Answers are kept in the output folder by all that they depend on: a run that was killed, or is asked for more, goes on.
With its defaults it answers some 3,400 questions, of which a model of 0.5 B parameters on one core answers about two a
second.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lm_eval_plnd.experiments.changes import estimate
from lm_eval_plnd.experiments.evaluation import load_lm
from lm_eval_plnd.experiments.kept import Kept
from lm_eval_plnd.experiments.questions import Rate, Row, answers, halves, in_turn
from lm_eval_plnd.experiments.tables import Shown, markdown, write_tables
from lm_eval_plnd.scoring.confusion import forced_scores
from plnd import Direction, NeuronSet, PLNDError, Scores, contrast, intervened, steered
from plnd.references.direction import named_blocks
from plnd.statistics import bootstrap_interval

MEASURES = ("reached", "relevance", "forced")
METHODS = ("nothing", "random", "neurons", "direction", "both")
PAIRS = (("neurons", "direction"), ("both", "direction"), ("neurons", "random"))
"""Which methods are compared, the first less the second."""


@dataclass(frozen=True)
class Setting:
    """What is done to the model: neurons, or random ones, times a factor, and a direction added times a strength."""

    factor: float = 1.0
    strength: float = 0.0
    random: bool = False

    @property
    def name(self) -> str:
        """For files."""
        return f"{'random' if self.random else 'neurons'}-{self.factor:g}-direction-{self.strength:g}"


@dataclass(frozen=True)
class Wanted:
    """A language to steer to.

    Attributes:
        language: its code.
        neurons: its own.
        direction: to it.
        validation, report: questions in other languages.
    """

    language: str
    neurons: NeuronSet
    direction: Direction
    validation: Sequence[Row]
    report: Sequence[Row]


def main() -> None:
    """Answers, scores, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name")
    add("--scores", nargs="+", required=True, help="scores artifacts from plnd detect, one of each language")
    add("--reference", type=Path, required=True, help="folder of plnd reference")
    add(
        "--languages",
        help="to steer to, comma-separated, and in which is asked (default: all that there are scores of)",
    )
    add("--factors", type=_numbers, default=(1.5, 2, 4), help="of neurons (default: 1.5,2,4)")
    add("--strengths", type=_numbers, default=(0.05, 0.1, 0.2, 0.4), help="of directions (default: 0.05,0.1,0.2,0.4)")
    add("--blocks", help="at which blocks directions are added, 8-15 or joined by commas (default: all)")
    add(
        "--share",
        type=float,
        default=0.001,
        help="of the neurons chosen from, so many are a language's (default: 0.001)",
    )
    add("--times", type=float, default=2.0, help="as plnd select's (default: 2)")
    add("--questions", type=int, default=16, help="to choose by; the others are reported (default: 16)")
    add("--by", choices=("forced", "reached"), default="forced", help="score by which strengths are chosen")
    add("--seed", type=int, default=0, help="of the draw of questions")
    add("--tokens", type=int, default=48, help="of an answer, at most (default: 48)")
    add("--batch-size", type=int, default=16)
    add("--dtype", default="auto")
    add("--device")
    add("--chat-template", action=argparse.BooleanOptionalAction, default=True, help="ask through it (default)")
    add("--output", type=Path, required=True, help="folder for answers, tables and the picture")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        run(args)
    except PLNDError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(args: argparse.Namespace) -> None:
    """The experiment.

    Raises:
        PLNDError: if something is missing, or a kept answer is damaged.
    """
    wanted = list(read_wanted(args))
    blocks = None if args.blocks is None else named_blocks(args.blocks)
    lm = load_lm({"pretrained": args.model, "dtype": args.dtype, "device": args.device, "batch_size": args.batch_size})
    if args.chat_template and not lm.tokenizer.chat_template:
        raise PLNDError(f"{args.model}: its tokenizer has no chat template; give --no-chat-template")
    args.output.mkdir(parents=True, exist_ok=True)
    kept = Kept.of(lm, args.output / "answers")
    grid = {
        "neurons": [Setting(factor) for factor in args.factors],
        "direction": [Setting(strength=strength) for strength in args.strengths],
        "both": [Setting(factor, strength) for factor in args.factors for strength in args.strengths],
    }
    total = len(wanted) * (sum(map(len, grid.values())) + len(METHODS))
    rows: list[dict[str, Any]] = []
    with tqdm(total=total, unit=" settings", file=sys.stderr) as bar:

        def scores(one: Wanted, setting: Setting, half: str) -> dict[str, np.ndarray]:
            bar.set_postfix_str(f"{one.language} {setting.name}")
            questions = one.validation if half == "validation" else one.report

            def found() -> list[str]:
                with applied(lm.model, one, setting, blocks):
                    return answers(lm, questions, tokens=args.tokens, chat=args.chat_template)

            about = {
                "setting": asdict(setting) | {"blocks": blocks and list(blocks)},
                "neurons": one.neurons.digest,
                "direction": one.direction.digest,
                "prompts": [row["prompt"] for row in questions],
                "generation": [args.tokens, args.chat_template, args.batch_size],
            }
            said = kept.get(f"{one.language}-{half}-{setting.name}", about, found)
            bar.update()
            scored = [forced_scores(dict(row), [answer]) for row, answer in zip(questions, said, strict=True)]
            return {measure: np.array([each[measure] for each in scored], float) for measure in MEASURES}

        for one in wanted:
            chosen = {"nothing": Setting()}
            for method, settings in grid.items():
                tried = [float(scores(one, setting, "validation")[args.by].mean()) for setting in settings]
                chosen[method] = settings[int(np.argmax(tried))]  # of equals the first
            chosen["random"] = Setting(chosen["neurons"].factor, random=True)
            for method in METHODS:
                rows.append(
                    {"language": one.language, "method": method, "setting": chosen[method]}
                    | scores(one, chosen[method], "report")
                )
    write(rows, args.output)


def read_wanted(args: argparse.Namespace) -> Iterator[Wanted]:
    """The languages, with their neurons, directions and questions.

    Raises:
        PLNDError: if a language has no scores, direction or questions.
    """
    scores = {found.metadata.language: found for found in map(Scores.load, args.scores)}
    languages = [str(x) for x in scores] if args.languages is None else args.languages.split(",")
    for language in languages:
        if language not in scores or len(scores) < len(args.scores):
            raise PLNDError(
                f"--scores: of {', '.join(map(str, scores))}; expected one file of each language, {language} too"
            )
    for language in languages:
        neurons = contrast(
            scores[language], [scores[x] for x in scores if x != language], share=args.share, times=args.times
        )
        direction = Direction.load(args.reference / f"{language}.direction.safetensors")
        others = [x for x in languages if x != language] or [x for x in scores if x != language]
        asked = halves(others, args.questions, args.seed, wanted=language)
        yield Wanted(language, neurons, direction, in_turn(asked.validation, others), in_turn(asked.report, others))


@contextmanager
def applied(model: Any, one: Wanted, setting: Setting, blocks: Sequence[str] | None) -> Iterator[None]:
    """The model with a setting."""
    neurons = one.neurons.random_like(0) if setting.random else one.neurons
    with ExitStack() as stack:
        if setting.factor != 1:
            stack.enter_context(intervened(model, neurons, kind="scale", factor=float(setting.factor)))
        if setting.strength:
            stack.enter_context(steered(model, one.direction, strength=setting.strength, blocks=blocks))
        yield


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Prints and writes the tables, and draws how many answers reach the language."""
    from importlib.util import find_spec

    shown = [_table(rows), _comparison(rows)]
    print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in shown))
    header = (
        "language",
        "method",
        "factor",
        "strength",
        "questions",
        *(f"{x}{end}" for x in MEASURES for end in _ENDS),
    )
    numbers = [
        (row["language"], row["method"], row["setting"].factor, row["setting"].strength, len(row["reached"]),
         *(value for measure in MEASURES for value in _mean(row[measure], measure)))
        for row in rows
    ]  # fmt: skip
    write_tables(str(folder / "steering"), header, numbers, shown)
    if find_spec("matplotlib"):
        from plnd.plots import plot_bars

        languages = list(dict.fromkeys(row["language"] for row in rows))
        means = {
            method: np.array([_mean(row["forced"], "forced") for row in rows if row["method"] == method])
            for method in METHODS
        }
        plot_bars(
            {method: found[:, 0] for method, found in means.items()}, languages, folder / "steering.png",
            "in the language × about the question",
            intervals={method: found[:, 1:].T for method, found in means.items()},
        )  # fmt: skip


_ENDS = ("", "_low", "_high")


def _table(rows: Sequence[Mapping[str, Any]]) -> Shown:
    """Each language and method, and all languages together."""
    together = [
        {"language": "all", "method": method, "setting": None}
        | {x: np.concatenate([row[x] for row in rows if row["method"] == method]) for x in MEASURES}
        for method in METHODS
    ]
    lines = [
        (row["language"], row["method"], _described(row), str(len(row["reached"])))
        + tuple("{:.2f} [{:.2f}, {:.2f}]".format(*_mean(row[measure], measure)) for measure in MEASURES)
        for row in [*rows, *together]
    ]
    header = ("to", "by", "strength", "questions", "in the language", "about the question", "product")
    return Shown("Answers to questions in other languages; 95 % intervals", header, lines, words=3)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> Shown:
    """Differences between methods on the same questions, over all languages."""
    lines = []
    for first, second in PAIRS:
        for measure in MEASURES:
            one, other = (np.concatenate([row[measure] for row in rows if row["method"] == x]) for x in (first, second))
            found = estimate([(1.0, one - other, np.ones(len(one)))])
            lines.append((f"{first} less {second}", measure, f"{len(one):,}", found.shown(3)))
    return Shown("Differences on the same questions", ("", "", "questions", "difference"), lines, words=2)


def _described(row: Mapping[str, Any]) -> str:
    setting = row["setting"]
    parts = [f"× {setting.factor:g}"] if setting and setting.factor != 1 else []
    return ", ".join(parts + ([f"+ {setting.strength:g}"] if setting and setting.strength else []))


def _mean(values: np.ndarray, measure: str) -> tuple[float, float, float]:
    """The mean and its interval: Wilson's of a rate, of other numbers the bootstrap's."""
    if measure == "reached":
        rate = Rate.among(values)
        return rate.value, *rate.interval
    return float(values.mean()), *bootstrap_interval(values)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers joined by commas, such as 1.5,2")
    return found


if __name__ == "__main__":
    main()
