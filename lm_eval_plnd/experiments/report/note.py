"""The note that a script leaves beside what it wrote, so that a report can say how it was made.

`figure3.made.json`, beside `figure3.csv` and `figure3.png`, holds the command as a list of words; a word that is a file
or folder is `{"path": …}`, seen from the note's own folder.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lm_eval_plnd.experiments.results import portable, read_json
from plnd.errors import PLNDError
from plnd.io.files import write_bytes

ENDING = ".made.json"


def write_note(output: str, inputs: Iterable[str], arguments: Sequence[str] | None = None) -> None:
    """Writes the note of the script that runs.

    Args:
        output: beginning of the names of the files that it wrote.
        inputs: files and folders that it read.
        arguments: the script's path and its arguments (default: this process's).
    """
    script, *words = sys.argv if arguments is None else arguments
    paths, folder = {output, *inputs}, os.path.dirname(output)
    command: list[str | dict[str, str]] = ["python", f"scripts/{Path(script).name}"]
    for word in _split(words):
        if word in paths:
            command.append({"path": Path(os.path.relpath(word, folder or ".")).as_posix()})
        else:
            command.append(portable(word))
    write_bytes((json.dumps({"command": command}, ensure_ascii=False) + "\n").encode(), f"{output}{ENDING}")


def _split(words: Iterable[str]) -> list[str]:
    """The words of a command, `--option=value` as two."""
    parts: list[str] = []
    for word in words:
        parts += word.split("=", 1) if word.startswith("--") else [word]
    return parts


def command_of(note: Path, folder: Path) -> str:
    """The command of a note, as it is typed in the folder above `folder`; other paths by their last names.

    Raises:
        PLNDError: if the file is something else.
    """

    def shown(word: str | dict[str, str]) -> str:
        return word if isinstance(word, str) else _seen_from_above(word["path"], note, folder)

    try:
        return shlex.join(map(shown, read_json(note)["command"]))
    except (KeyError, TypeError):
        raise PLNDError(f"{note}: not a note of one of the scripts; run it again, or delete the file") from None


def script_of(note: Path) -> str:
    """The name of the script that left a note.

    Raises:
        PLNDError: if the file is something else.
    """
    words = command_of(note, note.parent).split()
    return Path(words[1]).name if len(words) > 1 else ""


def _seen_from_above(path: str, note: Path, folder: Path) -> str:
    inside = Path(os.path.normpath(note.parent.relative_to(folder) / path))
    if inside.parts[:1] == ("..",):
        return inside.name
    return (Path(folder.resolve().name) / inside).as_posix()
