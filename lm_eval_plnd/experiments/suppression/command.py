"""`plnd suppress`: stops a model's answers in one language, at the least cost to those that are kept."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_plnd.experiments.suppression.config import STOPS, SuppressConfig
from plnd.commands.shared import (
    Command,
    add_corpus,
    add_model,
    add_plot,
    by_language,
    describe_neurons,
    open_corpus,
    say,
)
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from lm_eval_plnd.experiments.kept import Kept
    from lm_eval_plnd.experiments.questions import Halves
    from lm_eval_plnd.experiments.suppression.run import Suppression
    from lm_eval_plnd.experiments.suppression.texts import Texts
    from plnd.neurons.scores import Scores

DEFAULTS = SuppressConfig()
REPORTED = "report_questions"
"""The folder of the questions that the choice has not seen."""
OF_CHOICE = ("card.md", "report.csv", "report.md", "report.tex", "answers.jsonl", "curve.png")
"""What an earlier search may have left, beside its mask, that a later one that finds nothing would not replace."""
MEASURED = "measured"
"""The folder of what was measured, from which the same command goes on."""


class Suppress(Command):
    """The subcommand (entry point `plnd.commands: suppress`)."""

    help = "stop a model's answers in one language at the least cost to others: a mask, its trade-off and a card"
    example = (
        "plnd suppress zh --model MODEL --keep en,de --corpus zh=zh.jsonl en=en.jsonl de=de.jsonl --output without-zh"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, many of them fields of `SuppressConfig`."""
        parser.description = (
            "Stops a model's answers in one language. Candidates are nested sets of the neurons that matter more for\n"
            "it than for the others (as plnd select --against), each with every factor.\n"
            "Of all candidates whose rate of the unwanted language on the validation questions is at most the target,\n"
            "the one is chosen that raises the kept languages' bits per byte least on the validation text, on average\n"
            "(of equals, the one of fewest neurons, then the mildest).\n"
            "Where none reaches it, the curve is written, no mask, and the exit status is 3."
        )
        add = parser.add_argument
        add("language", help="code of the language to stop, such as zh")
        add("--keep", required=True, help="languages that are to stay, comma-separated")
        add_model(parser, "folder or hub name")
        add_corpus(
            parser,
            "LANGUAGE=CORPUS for each of these languages, of which the first documents are for detection, the next ones"
            " to choose by and to report: ",
        )
        add(
            "--scores",
            nargs="+",
            metavar="FILE",
            help="scores from plnd detect, of each language, instead of detection",
        )
        add("--output", required=True, help="folder to write mask, curve, report and card to")
        add("--export", metavar="DIR", help="also write the model with it done, an ordinary checkpoint")
        search = parser.add_argument_group("the search")
        for name, text in {
            "target": "the largest rate that counts as stopped",
            "questions": "so many to choose by, of each kind; the others are reported",
            "seed": "of the draw of questions",
            "draws": "random sets beside the one that is chosen",
            "tokens": "of an answer, at most",
        }.items():
            default = getattr(DEFAULTS, name)
            search.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
        search.add_argument(
            "--stop", choices=STOPS, default=DEFAULTS.stop,
            help="which rate counts: slips into the language of answers to questions in the kept ones, answers in it to"
            " questions in it, or both, the larger one (default: both)",
        )  # fmt: skip
        search.add_argument(
            "--shares", type=_numbers, default=DEFAULTS.shares, metavar="S,…",
            help=f"sizes, as shares of the neurons chosen from (default: {_joined(DEFAULTS.shares)})",
        )  # fmt: skip
        search.add_argument(
            "--times", type=_numbers, default=DEFAULTS.times, metavar="T,…",
            help="how many times as important for the language as for any other a neuron is; sets take those of the"
            f" largest number first, and of the next ones where there are no more (default: {_joined(DEFAULTS.times)})",
        )  # fmt: skip
        search.add_argument(
            "--factors", type=_numbers, default=DEFAULTS.factors, metavar="F,…",
            help="what their values are multiplied by, 0 is off; every size is tried with each (default:"
            f" {_joined(DEFAULTS.factors)})",
        )  # fmt: skip
        search.add_argument("--projections", help="choose only from these, comma-separated, as plnd select")
        search.add_argument(
            "--control", choices=("random", "none"), default="random",
            help="what stands beside it: as many random neurons of each block and projection (default), or nothing",
        )  # fmt: skip
        search.add_argument("--questions-dir", metavar="DIR", help="other questions than plnd's: {language}.jsonl each")
        search.add_argument(
            "--chat-template", action=argparse.BooleanOptionalAction, default=None,
            help="ask through the tokenizer's chat template (default: if it has one)",
        )  # fmt: skip
        texts = parser.add_argument_group("texts and model")
        for name, text in {
            "max-documents": "of each language, for detection",
            "validation-documents": "of each kept language, to choose by",
            "report-documents": "of each language, to report",
            "max-length": "tokens kept of each document",
            "batch-size": "questions that are answered at once",
        }.items():
            default = getattr(DEFAULTS, name.replace("-", "_"))
            texts.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
        texts.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16")
        texts.add_argument("--device", help="cpu, cuda, cuda:1, … (default: an accelerator if any)")
        add_plot(parser, "the trade-off")
        parser.set_defaults(advice=lambda args: "the same command continues")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Detects where no scores are given, searches, prints and writes what came of it."""
        from lm_eval_plnd.experiments.evaluation import load_lm
        from lm_eval_plnd.experiments.kept import Kept
        from lm_eval_plnd.experiments.questions import halves
        from lm_eval_plnd.experiments.suppression.run import candidates, check_found, suppress
        from lm_eval_plnd.experiments.suppression.summary import text
        from plnd.neurons.scores import Scores

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        config = _config(args)
        kept = [name for name in args.keep.split(",") if name]
        languages = _languages(args.language, kept)
        corpora = by_language(args.corpus, "--corpus")
        if missing := [x for x in languages if x not in corpora]:
            raise PLNDError(f"--corpus: none of {', '.join(missing)}; give LANGUAGE=CORPUS for each language")
        folder = _opened(args)
        asked = halves(languages, config.questions, config.seed, folder=args.questions_dir)
        scores = _scores([Scores.load(file) for file in args.scores or ()], languages)
        documents = {x: open_corpus(corpora[x], args) for x in languages}
        lm = load_lm(
            {"pretrained": args.model, "revision": args.revision or "main", "dtype": args.dtype, "device": args.device}
            | {"batch_size": config.batch_size, "trust_remote_code": args.trust_remote_code}
        )
        chat = args.chat_template
        if chat is None:
            chat = bool(lm.tokenizer.chat_template)
        elif chat and not lm.tokenizer.chat_template:
            raise PLNDError(f"--chat-template: the tokenizer of {args.model} has none; leave it out")
        texts = _texts(lm, documents, scores, config)
        sources = {x: ", ".join(files) for x, files in corpora.items()}
        before = Kept.of(lm, folder / MEASURED)
        scores = scores or _detected(lm, texts, sources, config, before)
        projections = None if args.projections is None else [name.strip() for name in args.projections.split(",")]
        others = [found for language, found in scores.items() if language != args.language]
        tried = candidates(scores[args.language], others, config, projections)
        found = suppress(lm, tried, asked, texts, args.language, kept, config, chat=chat, measured_before=before)
        for line in text(found).split("\n"):
            say(line)
        _write(found, folder, args, sources, asked)
        check_found(found)


def _config(args: argparse.Namespace) -> SuppressConfig:
    from dataclasses import fields

    given = {field.name: getattr(args, field.name) for field in fields(SuppressConfig)}
    return SuppressConfig(**given | ({"draws": 0} if args.control == "none" else {}))


def _languages(language: str, kept: Sequence[str]) -> list[str]:
    if not kept:
        raise PLNDError("--keep: expected the languages that are to stay, such as en,de")
    found = [language, *kept]
    if again := next((x for x in found if found.count(x) > 1), None):
        raise PLNDError(f"--keep {','.join(kept)}: {again} is named twice; name each language once, and not {language}")
    return found


def _opened(args: argparse.Namespace) -> Path:
    """The folder, made, with what is asked for beside it checked before hours are spent."""
    from plnd.io.files import check_writable

    if args.plot:
        from plnd.plot_style import check_plot

        check_plot(args.plot)
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --output") from None
    check_writable(folder / "curve.csv")
    if args.export and Path(args.export).exists() and any(Path(args.export).iterdir()):
        raise PLNDError(f"{args.export}: is not empty; choose a new folder with --export")
    return folder


def _scores(given: Sequence[Scores], languages: Sequence[str]) -> dict[str, Scores]:
    """By language; none where none are given, else one of each language at least."""
    found: dict[str, Scores] = {}
    for scores in given:
        language = scores.metadata.language
        if language is None or language in found:
            raise PLNDError(
                f"--scores: {language or 'no language'} is named by two files or none: one of each language"
            )
        found[language] = scores
    if given and (missing := [x for x in languages if x not in found]):
        raise PLNDError(f"--scores: none of {', '.join(missing)}; detect them too, or leave --scores out")
    return found


def _texts(
    lm: HFLM, documents: Mapping[str, Any], scores: Mapping[str, Scores], config: SuppressConfig
) -> dict[str, Texts]:
    from lm_eval_plnd.experiments.suppression.texts import read_texts
    from plnd.comparison.documents import check_apart
    from plnd.models.layout import Layout

    layout, found = Layout(lm.model), {}
    for language, corpus in documents.items():
        read = scores[language].metadata.corpus if scores else None
        found[language] = read_texts(
            layout, lm.tokenizer, corpus, language,
            detection=0 if scores else config.max_documents, validation=config.validation_documents,
            report=config.report_documents, max_length=config.max_length,
            skipped=0 if read is None else read.documents + sum(read.counts_skipped().values()),
        )  # fmt: skip
    check_apart({x: one.detection for x, one in found.items()}, {x: one.validation for x, one in found.items()})
    chosen_on = {x: [*one.detection, *(document.text for document in one.validation)] for x, one in found.items()}
    check_apart(chosen_on, {x: one.report for x, one in found.items()})
    return found


def _detected(
    lm: HFLM, texts: Mapping[str, Texts], sources: Mapping[str, str], config: SuppressConfig, before: Kept
) -> dict[str, Scores]:
    """Relevance in every language, as `plnd detect --method relevance` measures it; what is kept is read."""
    from lm_eval_plnd.experiments.suppression.run import TEXTS_AT_ONCE
    from plnd.detection.config import DetectConfig
    from plnd.detection.run import detect
    from plnd.neurons.scores import Scores

    found = {}
    for language, read in texts.items():
        how = DetectConfig(language, method="relevance", max_length=config.max_length, batch_size=TEXTS_AT_ONCE)
        about = [language, sources[language], read.detection, config.max_length, TEXTS_AT_ONCE]
        path = before.path(f"{language}.scores", about)
        if path is not None and path.exists():
            found[language] = Scores.load(path)
            continue
        found[language] = detect(
            lm.model, read.detection, how, tokenizer=lm.tokenizer, source=sources[language], progress=True
        )
        if path is not None:
            found[language].save(path)
    return found


def _write(
    found: Suppression, folder: Path, args: argparse.Namespace, sources: Mapping[str, str], asked: Halves
) -> None:
    """All files; of what was not found those of the curve alone, and none of an earlier search that found something."""
    from importlib.util import find_spec

    from lm_eval_plnd.experiments.questions import write_questions
    from lm_eval_plnd.experiments.suppression.summary import card, draw, write
    from plnd.exchange.export import export
    from plnd.io.files import write_bytes
    from plnd.secrets import published

    mask = folder / f"{args.language}.safetensors"
    for name in (mask.name, *OF_CHOICE):
        (folder / name).unlink(missing_ok=True)
    write(found, folder)
    plots = [args.plot] if args.plot else []
    plots += [folder / "curve.png"] if find_spec("matplotlib") else []
    for path in plots if found.points else ():
        draw(found, path, columns=args.columns)
    if found.candidate is None:
        return
    neurons = found.candidate.neurons
    digest = neurons.save(mask)
    say(f"{mask}: {describe_neurons(neurons)}; sha256 {digest}")
    corpora = ", ".join(f"{language} {published(source)}" for language, source in sources.items())
    export_name = args.export and Path(args.export).name
    write_bytes(card(found, mask.name, digest, corpora, export_name).encode(), folder / "card.md")
    write_questions(asked.report, folder / REPORTED)
    if args.export:
        source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        export(args.model, neurons, args.export, **source, progress=True, intervention=found.candidate.intervention)
        say(f"{args.export}: the model with it done")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers joined by commas, such as 0,0.5") from None


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
