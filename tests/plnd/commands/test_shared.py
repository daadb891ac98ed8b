"""What a subcommand is, and flags that are the fields of a dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from plnd.commands.main import COMMANDS, find_commands, make_parser
from plnd.commands.shared import Command, add_fields, from_flags, print_warning
from plnd.detection.config import DetectConfig
from plnd.logit_lens.config import LensConfig


@dataclass(frozen=True)
class Example:
    """A configuration with each kind of field."""

    size: int = field(default=3, metadata={"help": "how large"})
    share: float | None = field(default=None, metadata={"help": "how much"})
    colour: Literal["red", "green"] = field(default="red", metadata={"help": "what it looks like"})
    long_name: str | None = field(default=None, metadata={"help": "what it is called"})
    count: int | Literal["auto"] = field(default=2, metadata={"help": "how many"})


def parse(line: str, **keywords) -> argparse.Namespace:
    """The flags of `Example`, parsed."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_fields(parser, Example, **keywords)
    return parser.parse_args(line.split())


@pytest.mark.parametrize(
    "line, expected",
    [
        ("", Example()),
        ("--size 4 --share 0.5", Example(size=4, share=0.5)),
        ("--colour green --long-name x", Example(colour="green", long_name="x")),
        ("--count 7", Example(count=7)),
        ("--count auto", Example(count="auto")),
    ],
)
def test_fields_are_flags(line, expected):
    """Name, type and default of a flag are the field's; what is parsed gives the configuration back."""
    assert from_flags(Example, parse(line)) == expected


@pytest.mark.parametrize("line", ["--size 0.5", "--share much", "--colour blue", "--count many", "--count 0.5"])
def test_values_of_another_type_are_refused(line):
    """A number that is none, a fraction for an int, and a word that the Literal does not have."""
    with pytest.raises(argparse.ArgumentError):
        parse(line)


def test_a_field_can_be_required(capsys):
    """`required` names fields that the command line insists on."""
    assert parse("--long-name x", required=("long_name",)).long_name == "x"
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parse("", required=("long_name",))


@pytest.mark.parametrize("command, config", [("detect", DetectConfig), ("lens", LensConfig)])
def test_the_command_line_has_each_field_as_the_dataclass_has_it(capsys, monkeypatch, command, config):
    """Defaults are the dataclass's, and the help of each flag is its field's, word for word."""
    parser = make_parser(COMMANDS)
    output = ["--output", "o"] if command == "detect" else []
    args = parser.parse_args([command, *"--model m --corpus c --language xx".split(), *output])
    assert from_flags(config, args) == (config(language="xx") if config is DetectConfig else config())
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parser.parse_args([command, "--help"])
    out = capsys.readouterr().out
    for one in fields(config):
        default = "" if one.default is None else f" (default: {one.default})"
        assert f"{one.metadata['help']}{default}\n" in out and f"--{one.name.replace('_', '-')} " in out


@pytest.mark.parametrize("name", find_commands())
def test_every_subcommand_is_one(name):
    """Each of plnd and its plug-ins has, itself, the four things that `Command` asks for."""
    command = find_commands([name])[name]
    assert isinstance(command, Command) and Command in command.__mro__
    assert {"help", "example", "add_arguments", "run"} <= vars(command).keys()


def test_what_lacks_one_of_the_four_is_none():
    """The check that plug-ins pass when they are loaded can fail."""

    class NoExample:
        help = "does nothing"
        add_arguments = run = staticmethod(print)

    assert not isinstance(NoExample, Command)
    NoExample.example = "plnd nothing"
    assert isinstance(NoExample, Command)


def test_a_warning_steers_no_terminal(capsys):
    """What stands in a file's metadata may be in a warning: it is one line, its escape sequences are shown."""
    print_warning("model \x1b[2Jx\nneurons 9 of 9")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: model ") and "\x1b" not in line and line.endswith("neurons 9 of 9")
