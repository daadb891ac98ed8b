"""The command line: collects the subcommands, parses, runs one, and turns what went wrong into a line and a status."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NoReturn

from plnd.commands.arena import Arena
from plnd.commands.detect import Detect, Merge
from plnd.commands.explore import Explore
from plnd.commands.files import Convert, Export, Families, Show, Verify
from plnd.commands.lens import Lens
from plnd.commands.neuron import Neuron
from plnd.commands.probe import Probe, accept_row
from plnd.commands.push import Push
from plnd.commands.reference import Reference, Steered
from plnd.commands.routing import Route
from plnd.commands.sets import Combine, Layers, Overlap, Select
from plnd.commands.shared import Command, error_line, print_error, print_warning
from plnd.commands.streams import Session, session
from plnd.errors import PLNDError
from plnd.io.files import check_outputs
from plnd.version import __version__

COMMANDS: dict[str, Command] = {
    "detect": Detect,
    "merge": Merge,
    "select": Select,
    "combine": Combine,
    "show": Show,
    "verify": Verify,
    "overlap": Overlap,
    "layers": Layers,
    "lens": Lens,
    "neuron": Neuron,
    "explore": Explore,
    "arena": Arena,
    "routing": Route,
    "reference": Reference,
    "steered": Steered,
    "export": Export,
    "convert": Convert,
    "push": Push,
    "families": Families,
    "probe": Probe,
}
GROUPS = {
    "find the neurons of a language": "detect merge select combine",
    "look at them": "show overlap layers neuron explore lens roles routing",
    "see what they do": "ablate arena experiment report card demo tasks",
    "change a model": "export reference steered suppress",
    "files and models": "verify convert push families probe",
}
"""Subcommands in the order of the help, also those of other packages; what is in none comes last."""
COMMANDS_GROUP = "plnd.commands"
"""Entry points of this group add subcommands: objects as `plnd.commands.shared.Command` describes them."""

INPUTS = (
    *("parts", "scores", "against", "neurons", "operations", "mask", "file", "files", "old", "settings", "results"),
    *("means", "steer", "direction", "model", "corpus", "corpora", "parallel", "include_path", "family", "text"),
    *("folder", "evaluation", "questions_dir"),
)
OUTPUTS = ("output", "export", "csv", "json", "html", "plot")
"""Arguments, of whatever subcommand, that name what is read and what is written."""
FOLDERS = ("model", "corpus", "corpora", "parallel", "folder", "results", "questions_dir")
"""Arguments that may name a folder, whose files are read; `_PAGES` are none of those."""
_PAGES = {".html", ".md", ".png", ".svg", ".pdf"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 for bad input, 3 where a search found nothing, 130 when
    interrupted.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(command=argv[0] if argv else "", advice=lambda args: "")
    try:
        with session() as run, warnings.catch_warnings():
            warnings.showwarning = print_warning
            try:
                args = _parsed(argv, run)
                check_text(argv)
                check_paths(args)
                accept_row(args)
                args.run(args)
                run.check_output()
                if run.interrupted:  # and a library made nothing of it
                    raise KeyboardInterrupt
                return 0
            except (Exception, KeyboardInterrupt) as error:
                if run.interrupted or isinstance(error, KeyboardInterrupt):  # libraries may make another error of it
                    print_error(args.command, "; ".join(filter(None, ("interrupted", args.advice(args)))))
                    return 130
                line = error_line(error)
                if line is None:
                    raise
                print_error(args.command, line)
                return error.status if isinstance(error, PLNDError) else 2
    except KeyboardInterrupt:  # while a line was printed, or the streams were put back
        return 130


def _parsed(argv: Sequence[str], run: Session) -> argparse.Namespace:
    try:
        return make_parser(find_commands(argv)).parse_args(argv)
    except SystemExit:  # after --help, too
        run.check_output()
        raise


def check_text(argv: Sequence[str]) -> None:
    """Refuses names of files that are no text in this locale, before they are to be written into an artifact.

    Raises:
        PLNDError: naming the argument.
    """
    for argument in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise PLNDError(f"argument {argument!r}: its bytes are no text here, which no artifact can hold; rename it")


def check_paths(args: argparse.Namespace) -> None:
    """Refuses to write over what is read, or may be as it lies in a folder that is, before anything is.

    Raises:
        PLNDError: naming both arguments.
    """
    read = {path: name for name in INPUTS for path in _paths(getattr(args, name, None))}
    written = {f"--{name}": path for name in OUTPUTS for path in _paths(getattr(args, name, None))}
    check_outputs(read, written)
    for name in FOLDERS:
        for folder in filter(os.path.isdir, _paths(getattr(args, name, None))):
            for flag, path in written.items():
                if os.path.isfile(path) and Path(folder).resolve() in Path(path).resolve().parents and not _ours(path):
                    raise PLNDError(
                        f"{flag} {path}: is in a folder that is read ({name}), and would be lost; choose another name"
                    )


def _ours(path: str) -> bool:
    """Whether a file in a folder that is read is none that one would read there: a page, a picture or an artifact."""
    from plnd.io.artifact import opened

    if Path(path).suffix.lower() in _PAGES:
        return True
    try:
        with opened(path) as stream:
            return bool(stream.metadata)
    except PLNDError:
        return False


def _paths(value: object) -> Iterator[str]:
    """What may be a path among an argument's values: `zh=zh.jsonl`, too, and what is listed."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str) and value:
        yield value
        yield value.partition("=")[2] or value


def find_commands(argv: Sequence[str] = ()) -> dict[str, Command]:
    """The subcommand that the arguments begin with, alone; where they begin with none, all of them.

    So a subcommand imports no other package's, and all are there for the help and for a name that does not exist.
    """
    name = argv[0] if argv else ""
    if name in COMMANDS:
        return {name: COMMANDS[name]}
    plugins = {entry.name: entry for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name)}
    if name in plugins:
        return {name: _load(plugins[name])}
    return COMMANDS | {other: _load(entry) for other, entry in plugins.items() if other not in COMMANDS}


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of these subcommands; what it parses says which one to `run`."""
    parser = _Parser(
        prog="plnd",
        description="Find, deactivate (ablate) and tune the neurons of a language model that serve one language.",
        epilog=f"{listed(commands)}\nEach subcommand has its own --help with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plnd {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser, help=argparse.SUPPRESS
    )
    for name, command in commands.items():
        sub = subparsers.add_parser(
            name,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run, advice=lambda args: "")  # advice: what to do after an interruption
        command.add_arguments(sub)
    return parser


def listed(commands: Mapping[str, Command]) -> str:
    """The subcommands by what they are for, each with its help."""
    known = {name for names in GROUPS.values() for name in names.split()}
    groups = {**GROUPS, "more": " ".join(name for name in commands if name not in known)}
    width, lines = shutil.get_terminal_size().columns, []
    for title, names in groups.items():
        here = [name for name in names.split() if name in commands]
        lines += [f"{title}:"] if here else []
        for name in here:
            text = commands[name].help.replace("%%", "%")
            lines.append(textwrap.fill(text, width, initial_indent=f"    {name:<12}", subsequent_indent=" " * 16))
        lines += [""] if here else []
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _load(entry: EntryPoint) -> Command:
    """Another package's subcommand, or what stands for it where it is broken: it must not take the others with it."""
    try:
        command = entry.load()
    except Exception as error:
        return _Unavailable(entry, f"{type(error).__name__}: {error}")
    if not isinstance(command, Command):
        return _Unavailable(entry, "expected an object with help, example, add_arguments and run")
    return command


class _Unavailable:
    """A subcommand that cannot be loaded: its help says why, and running it fails with the same words."""

    def __init__(self, entry: EntryPoint, problem: str) -> None:
        self.problem = f"cannot be loaded from {entry.value} ({problem})"
        self.help = self.problem.replace("%", "%%")
        self.example = f"plnd {entry.name}"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """It has none."""

    def run(self, args: argparse.Namespace) -> None:
        """Fails."""
        raise PLNDError(self.problem)
