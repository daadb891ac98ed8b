"""`plnd arena`: detectors compared on the same documents at the same number of neurons."""

from __future__ import annotations

import argparse
from pathlib import Path

from plnd.commands.shared import Command, add_fields, add_loading, add_trust, from_flags, load_both
from plnd.comparison.config import ArenaConfig
from plnd.errors import PLNDError


class Arena(Command):
    """The subcommand."""

    help = "compare detectors of language-specific neurons on the same documents, at the same number of neurons"
    example = (
        "plnd arena --model google/gemma-3-270m --languages en,zh,ru,de --corpora corpora --documents 30 --output arena"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, some of them the fields of `ArenaConfig`."""
        parser.add_argument("--model", help="folder or hub name of a decoder (default: the model inside the package)")
        parser.add_argument("--revision", help="hub branch, tag or commit")
        add_trust(parser)
        parser.add_argument(
            "--corpora", nargs="+", metavar="FOLDER",
            help="with a LANGUAGE.jsonl each: one folder, whose first documents are for detection and whose last ones"
            " for evaluation, or one for each (default: the corpus inside the package)",
        )  # fmt: skip
        parser.add_argument(
            "--languages", default="en,de,fr,es,ru,zh", help="comma-separated, two or more (default: en,de,fr,es,ru,zh)"
        )
        add_fields(parser, ArenaConfig)
        add_loading(parser)
        parser.add_argument(
            "--output",
            default="arena",
            help="folder of tables, sets and the state of an unfinished run (default: arena)",
        )
        parser.set_defaults(advice=lambda args: f"the same command goes on from {args.output}/")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Compares, prints the table, writes tables and, with matplotlib, pictures."""
        from importlib.util import find_spec

        from plnd.comparison.measures import neuron_widths
        from plnd.comparison.run import arena
        from plnd.comparison.tables import table
        from plnd.demo_data import demo_model

        config = from_flags(ArenaConfig, args)
        languages = [language.strip() for language in args.languages.split(",")]
        chosen, held_out = read_corpora(args.corpora, languages, config)
        args.model = args.model or str(demo_model())
        model, tokenizer = load_both(args, neuron_widths)
        output = Path(args.output)
        comparison = arena(model, chosen, held_out, config, output=output, tokenizer=tokenizer, progress=True)
        print(table(comparison))
        if find_spec("matplotlib"):
            from plnd.comparison.pictures import plot_comparison

            plot_comparison(comparison, output)
        else:
            print("no pictures: pip install 'plnd[plots]'")
        print(f"{output}/: comparison.csv, changes.csv, sets/; settings.json names the documents")


def read_corpora(
    folders: list[str] | None, languages: list[str], config: ArenaConfig
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Language to texts for detection, and to those for evaluation.

    Raises:
        PLNDError: if a language is named twice, or there are more than two folders.
        CorpusError: if a file cannot be read, or has too few documents.
    """
    from plnd.demo_data import demo_corpus
    from plnd.io.corpus import read_documents

    if len(set(languages)) < len(languages):
        raise PLNDError(f"languages {', '.join(languages)}: expected each once")
    if folders is not None and len(folders) > 2:
        raise PLNDError(f"{len(folders)} corpora: expected one folder, or one for detection and one for evaluation")
    places = [Path(folder) for folder in folders or ()]
    if folders is None:
        places = [demo_corpus(half) / "corpora" for half in ("detect", "evaluate")]
    chosen: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    for language in languages:
        texts = [list(read_documents(str(place / f"{language}.jsonl"))) for place in places]
        first, last = texts[0], texts[-1]
        if len(places) == 1:  # documents that are too short may make either half reach into the other's
            cut = len(first) * config.samples * config.documents
            cut = round(cut / (config.samples * config.documents + config.held_out))
            first, last = first[:cut], first[cut:]
        chosen[language], held_out[language] = first, last
    return chosen, held_out
