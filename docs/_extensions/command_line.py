"""The directive `command-line`: every subcommand of `plnd` with its options, from the program's own parser.

Help is shown as it was written: it is no reStructuredText, which is why sphinx-argparse and autoprogram, who read it
as such, do not serve here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from plnd.commands.main import GROUPS, find_commands, make_parser
from plnd.commands.shared import Command


class CommandLine(SphinxDirective):
    """A section for each group of subcommands, and in it one for each subcommand."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        commands = find_commands()
        subparsers = next(a for a in make_parser(commands)._actions if isinstance(a, argparse._SubParsersAction))
        return [
            self.section(
                title.capitalize(),
                [self.command(name, subparsers.choices[name], commands) for name in names.split() if name in commands],
            )
            for title, names in GROUPS.items()
        ]

    def command(self, name: str, parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> nodes.section:
        """What a subcommand does, its options, its example."""
        options = nodes.definition_list("", *options_of(parser))
        example = code(commands[name].example, "sh")
        return self.section(f"plnd {name}", [nodes.paragraph("", parser.description or ""), example, options])

    def section(self, title: str, inside: list[nodes.Node]) -> nodes.section:
        """A section with an anchor of its title."""
        section = nodes.section("", nodes.title("", title), *inside, names=[nodes.fully_normalize_name(title)])
        self.state.document.note_implicit_target(section, section)
        return section


def options_of(parser: argparse.ArgumentParser) -> Iterator[nodes.definition_list_item]:
    """An item for each argument, `--help` apart: how it is written, and what it is."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        written = formatter._format_action_invocation(action)
        text = formatter._expand_help(action) if action.help else ""
        yield nodes.definition_list_item(
            "", nodes.term("", "", nodes.literal("", written)), nodes.definition("", nodes.paragraph("", text))
        )


def code(text: str, language: str) -> nodes.literal_block:
    """A block of code."""
    return nodes.literal_block(text, text, language=language)


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
