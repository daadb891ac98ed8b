"""`plnd detect` and `plnd merge`: from a corpus to scores, in one process or several, on one machine or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    say,
)
from plnd.detection.config import DetectConfig
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.detection.part import Part
    from plnd.detection.processes import Processes
    from plnd.detection.shards import Shard
    from plnd.io.corpus import Sections
    from plnd.neurons.scores import Scores


class Detect(Command):
    """The subcommand."""

    help = "score every neuron of a model on a corpus of one language"
    example = "plnd detect --model google/gemma-3-270m --corpus zh.jsonl --language zh --output zh.scores.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, most of them the fields of `DetectConfig`."""
        add_model(parser, "folder or hub name of a causal language model")
        add_corpus(parser, "one or several: ")
        parser.add_argument("--output", required=True, help="scores artifact to write; with --shard, a part of one")
        parser.add_argument(
            "--shard", metavar="I/N",
            help="score one of N shares of the documents, 3/64 the third of 64, and write a part; plnd merge makes of"
            " all parts what one run would write",
        )  # fmt: skip
        add_fields(parser, DetectConfig, required=("language",))
        add_loading(parser)
        add_blockwise(parser)
        parser.add_argument(
            "--resume", action="store_true", help="continue a killed run; the result is the same bit for bit"
        )
        parser.add_argument(
            "--tensor-parallel", action="store_true",
            help="under torchrun: spread the model over the processes, by transformers' plan for its family; without it"
            " each has the whole model and some of the documents",
        )  # fmt: skip
        parser.add_argument(
            "--expert-parallel", action="store_true",
            help="the same, and of a mixture each process has some of the experts whole, not a part of each",
        )  # fmt: skip
        parser.set_defaults(advice=lambda args: "--resume continues" if checkpoint_path(args).exists() else "")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Detects; of several processes, those that fail fail together, and the first one says why."""
        from plnd.detection.meeting import OneModel
        from plnd.detection.processes import Processes

        kind = OneModel if args.tensor_parallel or args.expert_parallel else Processes
        processes = kind.launched(args.device)
        with closing(processes):
            try:
                with processes.together():
                    detect_as(processes, args)
            except Exception as error:
                line = error_line(error)
                if line is None or processes.count == 1:
                    raise
                if processes.first or not processes.can_tell(error):
                    print_error("detect", line)
                if processes.can_tell(error):
                    processes.exchange()  # when one has left, its launcher ends the others: not before the line is out
                sys.exit(2)


def detect_as(processes: Processes, args: argparse.Namespace) -> None:
    """What each process does; the first one writes."""
    from plnd.detection.documents import OwnTokenizer
    from plnd.detection.run import detect, detect_shard
    from plnd.detection.shards import Shard
    from plnd.io.corpus import pipes
    from plnd.io.files import check_writable
    from plnd.models.layout import Layout
    from plnd.models.loading import disable_progress_bars, load_skeleton, load_tokenizer

    config = from_flags(DetectConfig, args)
    shard = None if args.shard is None else Shard.parse(args.shard)
    checkpoint = checkpoint_path(args)
    if processes.first:
        check_writable(args.output)
        if checkpoint.exists() and not args.resume:
            print(f"starting again; --resume would continue from {checkpoint}", file=sys.stderr)
        if args.resume and not checkpoint.exists():
            print(f"nothing to resume ({checkpoint} is not there): starting with the first document", file=sys.stderr)
    else:
        disable_progress_bars()
    if processes.count > 1 and (pipe := next(iter(pipes(args.corpus)), None)):
        raise PLNDError(f"{pipe}: a pipe, which {processes.count} processes cannot all read; write a file")
    documents = _documents(args, config, shard, processes)
    layout = Layout(load_skeleton(args.model, **model_source(args)))  # an unknown family is refused before it is loaded
    if processes.first and (others := ", ".join(layout.left_alone)):
        print(f"measures the language model of {args.model}; left alone: {others}", file=sys.stderr)
    tokenizer = load_tokenizer(args.model, **model_source(args))
    device = args.device if processes.device is None else str(processes.device)
    spread = {"tensor_parallel": args.tensor_parallel, "expert_parallel": args.expert_parallel}
    model = load_any(args, device=device, **spread)
    options: dict[str, Any] = {
        "tokenizer": OwnTokenizer(lambda: tokenizer),
        "source": ", ".join(args.corpus),
        "checkpoint": checkpoint,
        "resume": args.resume,
        "progress": True,
        "processes": processes,
    }
    found: Scores | Part
    if shard is None:
        found = detect(model, documents, config, **options)
    else:
        found = detect_shard(model, documents, shard, config, **options)
    if processes.first:
        digest = found.save(args.output)
        checkpoint.unlink(missing_ok=True)  # not before the scores are safe
        which = "" if shard is None else f"shard {shard}, "
        print(f"{args.output}: {which}{describe_corpus(found.metadata.corpus)}; sha256 {digest}")


def _documents(
    args: argparse.Namespace, config: DetectConfig, shard: Shard | None, processes: Processes
) -> Iterator[str] | Sections:
    """The corpus, in sections where it has some and all of it counts; on one line, what a shard reads of it."""
    from plnd.io.corpus import read_sections

    whole = config.max_documents is not None or args.format is not None
    sections = None if whole else read_sections(args.corpus, args.text_field)
    speaks = shard is not None and processes.first
    if sections is None:
        if speaks:
            print(f"shard {shard}: reads the whole corpus and scores its share", file=sys.stderr)
        return open_corpus(args.corpus, args)
    numbers = range(len(sections))
    mine = [number for number in numbers if shard is None or shard.within(number, len(numbers)) is not None]
    if speaks:
        print(f"shard {shard}: reads {len(mine)} of {len(numbers)} {sections.names}", file=sys.stderr)
    next(sections[mine[0]], None)  # what cannot be read is refused before a model is loaded
    return sections


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Where the state of an unfinished run is kept; written from its first minute on."""
    return Path(f"{args.output}.checkpoint")


class Merge(Command):
    """The subcommand."""

    help = "make scores of the parts that plnd detect --shard wrote, in any order: those of the run without shards"
    example = "plnd merge zh.1.part zh.2.part zh.3.part --output zh.scores.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the parts and where to write."""
        parser.add_argument("parts", nargs="+", metavar="PART", help="all parts of one run")
        parser.add_argument("--output", required=True, help="scores artifact to write")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Merges."""
        from plnd.detection.part import merge
        from plnd.io.files import check_writable

        check_writable(args.output)
        scores = merge(args.parts)
        digest = scores.save(args.output)
        say(f"{args.output}: {describe_corpus(scores.metadata.corpus)}; sha256 {digest}")
