"""`plnd lens`: what the hidden states of every block decode to, language by language."""

from __future__ import annotations

import argparse

from plnd.commands.shared import (
    Command,
    add_blockwise,
    add_corpus,
    add_fields,
    add_loading,
    add_model,
    add_plot,
    from_flags,
    load_both,
    open_corpus,
)
from plnd.errors import PLNDError
from plnd.logit_lens.config import LensConfig


class Lens(Command):
    """The subcommand."""

    help = "decode the hidden states of every block to tokens, and count their languages (figures 1 and 7)"
    example = (
        "plnd lens --model google/gemma-3-270m --corpus zh.jsonl ru.jsonl --language zh ru --max-documents 50"
        " --csv lens.csv --plot lens.png"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, some of them the fields of `LensConfig`."""
        add_model(parser, "folder or hub name of a language model")
        add_corpus(parser, "one a language (of several files, a folder or a pattern in quotation marks): ")
        parser.add_argument(
            "--language", nargs="+", required=True, help="language code of each corpus, in the same order"
        )
        add_fields(parser, LensConfig)
        parser.add_argument(
            "--identifier", choices=("cld3", "script", "both"), default="cld3",
            help="what tells the languages: cld3 (default), the letters' script, or both, one after the other",
        )  # fmt: skip
        add_loading(parser)
        add_blockwise(parser)
        parser.add_argument("--csv", help="also write the counts as CSV")
        add_plot(parser, "the shares")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Decodes each corpus once, counts by each identifier, and prints, writes and draws the shares."""
        from plnd.io.files import check_writable
        from plnd.logit_lens.language_id import find_identifier
        from plnd.logit_lens.lens import decode_tokens, lens_panels, save_lens
        from plnd.plot_style import check_plot

        if len(args.corpus) != len(args.language):
            raise PLNDError(f"{len(args.corpus)} corpora and {len(args.language)} languages: expected one for each")
        if len(set(args.language)) < len(args.language):
            raise PLNDError(f"languages {', '.join(args.language)}: expected each once")
        config = from_flags(LensConfig, args)
        for path in filter(None, (args.csv, args.plot)):
            check_writable(path)
        if args.plot:
            check_plot(args.plot)
        chosen = ("cld3", "script") if args.identifier == "both" else (args.identifier,)
        identifiers = [find_identifier(name) for name in chosen]
        corpora = [open_corpus(corpus, args) for corpus in args.corpus]
        model, tokenizer = load_both(args)
        counts = []
        for language, documents in zip(args.language, corpora, strict=True):
            decoded = decode_tokens(model, tokenizer, documents, config, progress=True)
            counts += [decoded.labelled(tokenizer, identifier, language) for identifier in identifiers]
            read = f"{decoded.documents:,} documents, {decoded.positions:,} tokens"
            print(f"{language}: {read}, top {decoded.top_k} decoded")
        panels = lens_panels(counts)
        for title, curves in panels.items():
            print(f"{title}, %\n{'block':>10}" + "".join(f"{name:>{max(10, len(name) + 2)}}" for name in curves))
            for block, values in zip(counts[0].blocks, zip(*curves.values(), strict=True), strict=True):
                cells = zip(curves, values, strict=True)
                print(f"{block:>10}" + "".join(f"{value:>{max(10, len(name) + 2)}.1f}" for name, value in cells))
        if args.csv:
            save_lens(counts, args.csv)
        if args.plot:
            from plnd.plots import plot_lines

            plot_lines(panels, args.plot, "share (%)", along="blocks passed", passed=True, columns=args.columns)
