"""Running text of one language: from files or a Hugging Face data set to documents, one string each, streamed."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plnd.errors import CorpusError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_documents(source: str | Path, text_field: str = "text") -> Iterator[str]:
    """The documents of a corpus, in order, one in memory at a time (of a folder also the names of its files).

    Args:
        source: a `.jsonl` file (one JSON object with a `text_field` a line), any other text file (one document a line),
            a folder (each `.txt` file in it one document, by name), or the name of a data set as
            `name[:config[:split]]` (split `train` by default), which is streamed.
        text_field: the field that holds the text, for JSON lines and data sets.

    Yields:
        Non-empty documents, at least one.

    Raises:
        CorpusError: if the source does not exist, is empty or not UTF-8, or a row is not what is expected; the line is
            named.
    """
    empty = True
    for text in _read(source, text_field):
        empty = False
        yield text
    if empty:
        raise CorpusError(f"{source}: no document in it")


def _read(source: str | Path, text_field: str) -> Iterator[str]:
    path = Path(source)
    if os.path.isdir(path):
        return _read_folder(path)
    if os.path.isfile(path):
        return _read_json_lines(path, text_field) if path.suffix in JSON_SUFFIXES else _lines(path)
    name = str(source).partition(":")[0]
    if not os.path.isdir(name) and (path.suffix in (*JSON_SUFFIXES, ".txt") or name.startswith((".", "/", "~"))):
        raise CorpusError(f"{source}: no such file, expected a text file, a .jsonl file or a folder of .txt files")
    return _read_dataset(str(source), text_field)


def _lines(path: Path) -> Iterator[str]:
    for _, line in numbered_lines(path):
        yield line


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, stripped, with their numbers from 1."""
    number = 0
    try:
        with open(path, "rb") as stream:  # decoded line by line, so that the line that is not UTF-8 is known
            for number, line in enumerate(stream, 1):
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().strip()
                if text:
                    yield number, text
    except UnicodeDecodeError:
        raise CorpusError(f"{path}, line {number}: not UTF-8, expected UTF-8 text") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from None


def _read_json_lines(path: Path, text_field: str) -> Iterator[str]:
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise CorpusError(f"{path}, line {number}: not JSON, expected one JSON object a line") from None
        yield from _text(row, text_field, f"{path}, line {number}")


def _read_folder(path: Path) -> Iterator[str]:
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".txt"))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from None
    if not names:
        raise CorpusError(f"{path}: a folder without .txt files, expected one document a file")
    for name in names:
        text = "\n".join(line for line in _lines(path / name))
        if text:
            yield text


def _read_dataset(source: str, text_field: str) -> Iterator[str]:
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    import datasets

    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield from _text(row, text_field, f"{source}, row {number}")
    except CorpusError:
        raise
    except Exception as error:  # the hub, the file system and the builders each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{source}: neither a file nor a data set that can be loaded ({reason})") from None


def _text(row: Any, field: str, where: str) -> Iterator[str]:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: a {type(row).__name__}, expected an object with the field {field!r}")
    if field not in row:
        raise CorpusError(f"{where}: no field {field!r} among {', '.join(row):.80}; name another with --text-field")
    text = row[field]
    if not isinstance(text, str):
        raise CorpusError(f"{where}: field {field!r} is {text!r:.60}, expected text; name another with --text-field")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CorpusError(f"{where}: half a surrogate pair, which is not text")
    if text.strip():
        yield text
