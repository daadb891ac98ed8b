"""`plnd explore`: a page to look at all neurons of a model, with their importance in each language."""

from __future__ import annotations

import argparse

from plnd.commands.shared import Command, print_warning


class Explore(Command):
    """The subcommand."""

    help = "make a page to explore a whole model: a map of blocks and projections, every neuron by its address"
    example = "plnd explore de.scores.safetensors zh.scores.safetensors zh.safetensors zh.json --output zh.html"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the files to read and the page to write."""
        parser.add_argument(
            "files", nargs="+", help="scores of languages, neurons artifacts, and what plnd neuron --json wrote (.json)"
        )
        parser.add_argument("--output", default="explore.html", help="page to write (default: explore.html)")
        parser.add_argument("--projections", help="show only these, comma-separated, such as o_proj,down_proj")
        parser.add_argument(
            "--rounded", action="store_true",
            help="half the size: numbers of single neurons are rounded to 16 bits, and the page says so",
        )  # fmt: skip

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Reads the files, writes the page, and says how large it is."""
        from plnd.explorer.contents import read
        from plnd.explorer.page import explorer_page
        from plnd.io.files import check_writable, write_bytes

        check_writable(args.output)
        chosen = None if args.projections is None else [name.strip() for name in args.projections.split(",")]
        contents = read(args.files, chosen)
        for name, inspection in contents.inspections.items():
            if inspection.model != contents.model:
                print_warning(
                    f"{name}.json names the model {inspection.model}, the first file {contents.model}: make sure that"
                    " they are one"
                )
        page = explorer_page(contents, rounded=args.rounded).encode()
        digest = write_bytes(page, args.output)
        print(f"{args.output}: {len(page):,} bytes; sha256 {digest}")
