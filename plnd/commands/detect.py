"""`plnd detect`: from a corpus to scores, in one process or in several."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from plnd.commands.shared import (
    Command,
    add_blockwise,
    add_corpus,
    add_fields,
    add_loading,
    add_model,
    describe_corpus,
    error_line,
    from_flags,
    load_any,
    model_source,
    open_corpus,
    print_error,
)
from plnd.detection.config import DetectConfig
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.detection.processes import Processes


class Detect(Command):
    """The subcommand."""

    help = "score every neuron of a model on a corpus of one language"
    example = "plnd detect --model google/gemma-3-270m --corpus zh.jsonl --language zh --output zh.scores.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, most of them the fields of `DetectConfig`."""
        add_model(parser, "folder or hub name of a causal language model")
        add_corpus(parser, "one or several: ")
        parser.add_argument("--output", required=True, help="scores artifact to write")
        add_fields(parser, DetectConfig, required=("language",))
        add_loading(parser)
        add_blockwise(parser)
        parser.add_argument(
            "--resume", action="store_true", help="continue a killed run; the result is the same bit for bit"
        )
        parser.set_defaults(advice=lambda args: "--resume continues" if checkpoint_path(args).exists() else "")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Detects; of several processes, those that fail fail together, and the first one says why."""
        from plnd.detection.processes import Processes

        processes = Processes.launched(args.device)
        with closing(processes):
            try:
                with processes.together():
                    detect_as(processes, args)
            except Exception as error:
                line = error_line(error)
                if line is None or processes.count == 1:
                    raise
                if processes.first:
                    print_error("detect", line)
                processes.exchange()  # when one has left, its launcher ends the others: not before the line is out
                sys.exit(2)


def detect_as(processes: Processes, args: argparse.Namespace) -> None:
    """What each process does; the first one writes."""
    from plnd.detection.run import detect
    from plnd.io.corpus import pipes
    from plnd.io.files import check_writable
    from plnd.models.layout import Layout
    from plnd.models.loading import disable_progress_bars, load_skeleton, load_tokenizer

    config = from_flags(DetectConfig, args)
    checkpoint = checkpoint_path(args)
    if processes.first:
        check_writable(args.output)
        if checkpoint.exists() and not args.resume:
            print(f"starting again; --resume would continue from {checkpoint}", file=sys.stderr)
    else:
        disable_progress_bars()
    if processes.count > 1 and (pipe := next(iter(pipes(args.corpus)), None)):
        raise PLNDError(f"{pipe}: a pipe, which {processes.count} processes cannot all read; write a file")
    documents = open_corpus(args.corpus, args)
    Layout(load_skeleton(args.model, **model_source(args)))  # an unknown family, too, is refused before it is loaded
    tokenizer = load_tokenizer(args.model, **model_source(args))
    device = args.device if processes.device is None else str(processes.device)
    model = load_any(args, device=device)
    scores = detect(
        model,
        documents,
        config,
        tokenizer=tokenizer,
        source=", ".join(args.corpus),
        checkpoint=checkpoint,
        resume=args.resume,
        progress=True,
        processes=processes,
    )
    if processes.first:
        digest = scores.save(args.output)
        checkpoint.unlink(missing_ok=True)  # not before the scores are safe
        print(f"{args.output}: {describe_corpus(scores.metadata.corpus)}; sha256 {digest}")


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Where the state of an unfinished run is kept; written from its first minute on."""
    return Path(f"{args.output}.checkpoint")
