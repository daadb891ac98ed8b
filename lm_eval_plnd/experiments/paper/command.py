"""Every item of the paper with its options, as one command line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import Any

from lm_eval_plnd.experiments.conditions import REGIONS
from lm_eval_plnd.experiments.paper.corpora import RULES, stability, table7
from lm_eval_plnd.experiments.paper.deactivation import Run, by_region, overlapping, table1, table10
from lm_eval_plnd.experiments.paper.enhancement import figure4, table6
from lm_eval_plnd.experiments.paper.lens import figure1, figure7
from lm_eval_plnd.experiments.paper.sets import figure3, figure5
from lm_eval_plnd.experiments.paper.tasks import original, prompts
from lm_eval_plnd.experiments.report.note import write_note
from lm_eval_plnd.experiments.settings import TWICE
from plnd.commands.shared import print_warning
from plnd.errors import PLNDError
from plnd.plot_style import check_plot


def no_options(parser: argparse.ArgumentParser) -> None:
    """For items that need nothing but their inputs."""


def details(parser: argparse.ArgumentParser) -> None:
    """Of tables over several languages."""
    parser.add_argument("--details", action="store_true", help="print every language, too (Tables 12 to 15)")


def staged(parser: argparse.ArgumentParser) -> None:
    """Of figures over blocks."""
    parser.add_argument("--under", type=int, help="N1, to be marked (default: that of an experiment's folder)")
    parser.add_argument("--gen", type=int, help="N2, to be marked (default: likewise)")


def of_figure3(parser: argparse.ArgumentParser) -> None:
    """Of Figure 3."""
    staged(parser)
    parser.add_argument("--queries", help="corpora with {language} in their name: count the neurons active in a query")
    parser.add_argument("--max-documents", type=int, default=100, help="queries of each language (default: 100)")


def thinking(parser: argparse.ArgumentParser) -> None:
    """Of Figure 7."""
    staged(parser)
    parser.add_argument("--language", default="zh", help="that the model may think in (default: zh)")


def of_vocabulary(parser: argparse.ArgumentParser) -> None:
    """Of Table 7."""
    parser.add_argument("--reference", nargs="+", required=True, help="a larger corpus of each language, in order")
    parser.add_argument("--languages", nargs="+", required=True, help="of the corpora, in order")
    parser.add_argument("--max-documents", type=int, help="the first ones of each corpus (default: all)")
    parser.add_argument("--model", help="whose tokenizer's tokens are counted, too")


def of_stability(parser: argparse.ArgumentParser) -> None:
    """Of `stability`."""
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--languages", nargs="+", required=True, help="of the corpora, in order")
    rule = parser.add_mutually_exclusive_group(required=True)
    for name, kind in RULES.items():
        rule.add_argument(f"--{name.replace('_', '-')}", type=kind, help="as of `plnd select`")
    parser.add_argument("--projections", help="only these, comma-separated")
    parser.add_argument("--every", type=int, default=10, help="documents from one set to the next (default: 10)")
    parser.add_argument("--jaccard", type=float, default=0.9, help="near enough to the final set (default: 0.9)")
    parser.add_argument("--max-documents", type=int, help="of each corpus (default: all)")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--min-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--qk", choices=("exact", "first_order", "off"), default="first_order")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")


COMMANDS: dict[str, tuple[Run, Callable[[argparse.ArgumentParser], Any]]] = {
    "table1": (table1, no_options),
    **{table: (by_region(table), details) for table in REGIONS},
    "prompts": (prompts, no_options),
    "original": (original, no_options),
    "later_table8": (overlapping("later_table8", "shared with English"), details),
    "later_table9": (overlapping("later_table9", "shared by all languages"), details),
    "table10": (table10, details),
    "table11": (table10, details),
    "table7": (table7, of_vocabulary),
    "figure1": (figure1, staged),
    "figure3": (figure3, of_figure3),
    "figure4": (figure4, no_options),
    "table6": (table6, no_options),
    "figure5": (figure5, no_options),
    "figure6": (figure5, no_options),
    "figure7": (figure7, thinking),
    "stability": (stability, of_stability),
}
"""Item to what makes it and what adds its options; the help is the function's docstring."""


def main(description: str | None) -> None:
    """Draws one figure or makes one table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, add_options) in COMMANDS.items():
        text = str(run.__doc__).replace("%", "%%")
        command = commands.add_parser(name, help=text.partition("\n")[0], description=text)
        command.add_argument("inputs", nargs="+", help="folder of `plnd experiment`, or artifacts")
        command.add_argument("--output", required=True, help="beginning of the names of the files to write")
        command.add_argument("--plot", help="picture to write, .svg, .pdf or .png (default: OUTPUT.svg)")
        command.add_argument("--columns", type=int, choices=(1, 2), default=2, help="of a paper's page (default: 2)")
        add_options(command)
        command.set_defaults(run=run)
    if (name := (sys.argv[1:] or [""])[0]) in TWICE:
        parser.exit(2, f"{parser.prog}: {name}: two tables of the paper have this number, say {TWICE[name]}\n")
    args = parser.parse_args()
    warnings.showwarning = print_warning  # one line each
    try:
        if args.plot:
            check_plot(args.plot)
        args.run(args)
        write_note(args.output, args.inputs)
    except PLNDError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
