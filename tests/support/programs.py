"""Command lines and scripts as tests run them: in this process, with their arguments, through the front door."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class _Parsed(BaseException):
    """Ends a program when its arguments are parsed; no `except Exception` stops it."""


def script(name: str) -> ModuleType:
    """A file of `scripts/` as a module, which those of them that import each other share."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look for annotations
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(SCRIPTS))  # as for `python scripts/name.py`
            spec.loader.exec_module(module)
    return sys.modules[name]


def run_script(name: str, *arguments: object) -> None:
    """`python scripts/name.py arguments`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *map(str, arguments)])
        script(name).main()


def parsed(program: Callable[[], object], arguments: Sequence[str]) -> argparse.Namespace:
    """What a program's parser makes of its arguments; the program is left before it does anything.

    Raises:
        SystemExit: if it does not accept them.
        AssertionError: if it does not parse them with argparse.
    """
    parse_args = argparse.ArgumentParser.parse_args
    found: list[argparse.Namespace] = []

    def parse_and_leave(self, args=None, namespace=None):
        found.append(parse_args(self, args, namespace))
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
        patch.setattr(sys, "argv", ["program", *arguments])
        try:
            program()
        except _Parsed:
            return found[0]
    raise AssertionError("the program parsed nothing")
