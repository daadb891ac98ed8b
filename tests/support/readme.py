"""The commands and code of a Markdown text, as its reader would type them, and what programs say of them."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import io
import re
import subprocess
from contextlib import redirect_stdout, suppress
from pathlib import Path

from plnd.commands.main import find_commands, main, make_parser
from programs import parsed, script

RECORDER = r"""
record() { local IFS=; printf '%s\0' "$@" "" >> "$RECORD"; }
plnd() { record plnd "$@"; if [ "$1" = tasks ]; then echo TASKS; fi; }
for name in lm_eval python pip torchrun cat less cd export; do
  eval "$name() { record $name \"\$@\"; }"
done
scripts/slurm/submit.sh() { record scripts/slurm/submit.sh "$@"; }
command_not_found_handle() { record "$@"; }
"""


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str, folder: Path) -> list[list[str]]:
    """The programs that a shell block runs, each with its arguments, as bash understands it; nothing is run."""
    record = folder / "commands"
    record.write_bytes(b"")
    environment = {"RECORD": str(record), "PATH": "/nowhere"}
    subprocess.run(["/bin/bash", "-c", RECORDER + block], env=environment, cwd=folder, check=True, timeout=60)
    found: list[list[str]] = [[]]
    for word in record.read_bytes().decode().split("\0")[:-1]:
        if word:
            found[-1].append(word)
        else:
            found.append([])
    return found[:-1]


def spans(text: str) -> list[str]:
    """What is set as code inside of lines."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def lm_eval() -> None:
    """lm-eval's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def accepted(command: list[str]) -> None:
    """Parses a command with its program's own parser; what stands for more of the same (`…`) is left out.

    Raises:
        SystemExit: if the parser refuses it.
    """
    program, *arguments = [word for word in command if word != "…"]
    if program == "plnd":
        parsed(main, arguments)
    elif program == "lm_eval":
        assert parsed(lm_eval, arguments).model_args
    elif program == "python":
        parsed(script(Path(arguments[0]).stem).main, arguments[1:])
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(arguments)
        assert launched.module
        accepted([launched.training_script, *launched.training_script_args])
    elif program == "scripts/slurm/submit.sh":
        shards, output, *detect = arguments
        accepted(["plnd", "detect", *detect, "--output", output, "--shard", f"1/{shards}"])
    elif program == "sbatch" and "scripts/slurm/experiment.sbatch" in arguments:
        settings, folder, *more = arguments[arguments.index("scripts/slurm/experiment.sbatch") + 1 :]
        accepted(["plnd", "experiment", settings, "--output", folder, *more])
    else:
        raise AssertionError(f"no parser for {program}")


def undefined(codes: list[str]) -> list[str]:
    """Names that pieces of code, one after the other, use without having them."""
    known, found = set(dir(builtins)), []
    for tree in map(ast.parse, codes):
        nodes = list(ast.walk(tree))
        known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        known |= {
            alias.asname or alias.name.partition(".")[0] for n in nodes if hasattr(n, "names") for alias in n.names
        }
        found += [n.id for n in nodes if isinstance(n, ast.Name) and n.id not in known]
    return found


def problems(code: str) -> list[str]:
    """What a piece of code asks of our packages, and of PEFT, that they do not have."""
    tree, known, found = ast.parse(code), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name):
                    known[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    found.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            if not hasattr(known[node.value.id], node.attr):
                found.append(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Call) and (called := named(node.func, known)) is not None:
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            try:
                inspect.signature(called).bind_partial(*node.args, **keywords)
            except TypeError as error:
                found.append(f"{ast.unparse(node.func)}: {error}")
    return found


def named(node: ast.expr, known: dict):
    """What a name or an attribute of a module stands for, if it is known."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
        return getattr(known[node.value.id], node.attr, None)
    return None


@functools.cache
def helped(command: str) -> list[str]:
    """The options in a subcommand's --help."""
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        make_parser(find_commands([command])).parse_args([command, "--help"])
    return re.findall(r"--[\w-]+", printed.getvalue())
