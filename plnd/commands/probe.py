"""`plnd probe`: what of a model outside the families table has exact closed forms, and a draft of its row.

`--family`, of the commands that take a model, uses such a row; `accept_row` holds it to that model's twin first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from plnd.addresses import PROJECTIONS
from plnd.commands.shared import Command, add_trust, say
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.probing.probe import Kind
    from plnd.probing.probe import Probe as Found


def accept_row(args: argparse.Namespace) -> None:
    """Has the row that --family names, if any, hold for --model in this run, if the model's twin passes.

    Raises:
        PLNDError: if it does not, or the command was given no model.
    """
    file = getattr(args, "family", None)
    if file is None:
        return
    if args.model is None:
        raise PLNDError("--family: it is held to the twin of a model, so give --model too")
    from plnd.probing.rows import accept_family

    accept_family(file, args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)


class Probe(Command):
    """The subcommand."""

    help = "say which projections of any model are exact, against brute force on a tiny twin, and draft its row"
    example = "plnd probe some/model --output row.json"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the model, whose configuration alone is read, and where to write the row."""
        parser.add_argument("model", help="folder, hub name or configuration file (config.json); no weights are read")
        parser.add_argument("--revision", help="hub branch, tag or commit")
        add_trust(parser)
        parser.add_argument("--output", help="write the row, for --family; only one whose twin passes")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Probes and prints."""
        from plnd.io.files import check_writable
        from plnd.probing.probe import probe
        from plnd.probing.rows import write_row

        if args.output:
            check_writable(args.output)
        found = probe(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
        for line in _report(found):
            say(line)
        if not args.output:
            return
        if found.family is None or not found.usable:
            raise PLNDError(f"{args.output}: not written, since the row cannot be used: {found.problem}")
        write_row(found.family, args.output)
        say(f"{args.output}: the row of {found.model_type}, for --family")


def _report(found: Found) -> Iterator[str]:
    from plnd.probing.rows import as_code

    yield f"{found.model_type}: each closed form against brute force, on a tiny random twin in float64"
    for kind in found.kinds:
        yield ""
        yield f"block {kind.block} ({kind.count} of its kind in the twin)"
        yield from (f"  {line}" for line in _lines(kind))
    yield ""
    if found.family is None:
        yield f"no row: {found.problem}"
        return
    yield "draft of the row, for plnd/models/families.py:"
    yield f"    {as_code(found.family)}"
    yield f"not usable: {found.problem}" if found.problem else f"usable by --family{_without(found)}"


def _lines(kind: Kind) -> Iterator[str]:
    by_name = {verdict.projection: verdict for verdict in kind.verdicts}
    yield from (f"{name:<10} {by_name[name]}" for name in PROJECTIONS if name in by_name)
    yield from (f"not bound: {text}" for text in kind.missing)
    if kind.rest:
        yield f"left alone: {', '.join(kind.rest)}"


def _without(found: Found) -> str:
    lost = [name for name, exact in found.verdicts.items() if not exact]
    return f", with --qk off ({' and '.join(lost)} not exact)" if lost else ""
