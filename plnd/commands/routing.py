"""`plnd routing`: how often, and how strongly, the tokens of each language go to each expert of a mixture."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from plnd.commands.reference import add_reading, read_with
from plnd.commands.shared import Command, by_language, from_flags, say
from plnd.errors import PLNDError
from plnd.references.config import ReferenceConfig

if TYPE_CHECKING:
    from plnd.references.routing import Routing

SHOWN = 5
"""Experts of each language in the table."""


class Route(Command):
    """The subcommand."""

    help = "count how often, and how strongly, each language's tokens go to each expert (mixtures of experts)"
    example = "plnd routing --model Qwen/Qwen3-30B-A3B --corpus zh=zh.jsonl en=en.jsonl --output routing.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, some of them the fields of `ReferenceConfig`."""
        add_reading(parser, "mixture of experts")
        parser.add_argument("--output", required=True, help="routing artifact to write; plnd show prints it again")
        parser.add_argument("--csv", help="also write all numbers as CSV: a row for each block, expert and language")
        parser.add_argument(
            "--top", type=int, default=SHOWN, metavar="N",
            help=f"experts of each language to print, those that take most more of it (default: {SHOWN})",
        )  # fmt: skip

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Reads each corpus once, writes the artifact, and prints the table."""
        from plnd.io.files import check_writable
        from plnd.references.routing_run import check_experts, routing

        if args.top < 1:
            raise PLNDError(f"--top {args.top}: expected 1 or more")
        config, corpora = from_flags(ReferenceConfig, args), by_language(args.corpus, "--corpus")
        for file in filter(None, (args.output, args.csv)):
            check_writable(file)
        found = read_with(routing, args, corpora, config, check_experts)
        digest = found.save(args.output)
        if args.csv:
            _write(found, args.csv)
        tokens = ", ".join(f"{language} {corpus.tokens:,}" for language, corpus in found.metadata.corpora.items())
        say(f"{args.output}: routing of tokens of {tokens}; sha256 {digest}")
        for line in table(found, args.top):
            say(line)


def table(found: Routing, top: int = SHOWN) -> Iterator[str]:
    """How far apart languages are routed, and which experts take more of each than of the others, in lines."""
    chosen = sorted({*found.metadata.chosen.values()})
    experts = sorted({found.model.units[f"{block}.down_proj"] for block in found.blocks})
    sizes = f"{' or '.join(map(str, chosen))} of {' or '.join(map(str, experts))} experts"
    yield f"{len(found.blocks)} blocks in which every token goes to {sizes}"
    if len(found.languages) < 2:
        yield "one language: name a corpus of another one to compare it with"
        return
    yield "how differently languages are routed (0 alike, 1 no expert in common; mean over blocks)"
    for (one, other), distance in found.distances().items():
        yield f"  {one:<6} {other:<6} {distance:.3f}"
    shares = {language: found.shares(language) for language in found.languages}
    yield "share of tokens that go to the experts that take most more of a language, and their mean router weight there"
    yield f"  {'':<6} {'block':>6} {'expert':>7}" + "".join(f"{x:>8}" for x in shares) + f"{'weight':>8}"
    for language in found.languages:
        for taken in found.preferring(language)[:top]:
            numbers = "".join(f"{float(shares[x][taken.block][taken.expert]):>8.1%}" for x in shares)
            yield f"  {language:<6} {taken.block:>6} {taken.expert:>7}{numbers}{taken.weight:>8.3f}"


def _write(found: Routing, path: str) -> None:
    from plnd.io.files import write_csv

    rows = []
    for language in found.languages:
        shares, weights = found.shares(language), found.mean_weights(language)
        for block in found.blocks:
            for expert, count in enumerate(found.tokens[language][block].tolist()):
                numbers = (float(shares[block][expert]), float(weights[block][expert]))
                rows.append((block, expert, language, count, *numbers))
    write_csv(path, ("block", "expert", "language", "tokens", "share", "mean_weight"), rows)
