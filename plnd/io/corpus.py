"""Running text of one language: from files or a Hugging Face data set to documents, one string each, streamed."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from plnd.demo_data import settings_only
from plnd.errors import CorpusError
from plnd.io.corpus_files import (
    COMPRESSED,
    ENDINGS,
    FORMS,
    READABLE,
    batched_rows,
    check_one_form,
    files_in,
    form_of,
    form_of_name,
    is_pipe,
    missing,
    numbered_lines,
    opened,
    reading,
    rows_of,
)
from plnd.io.inputs import digest_of, path_digest

STDIN = "/dev/stdin"
SURROGATE = re.compile("[\ud800-\udfff]")
SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` of `datasets` leaves in the folder of a data set, and of a dictionary of them."""
RECORDS = ("dataset_info.json", "dataset_infos.json")
"""What data sets' folders have beside their rows."""

FIRST = 100
"""Documents by which a data set of the hub is known again."""
SECTIONS = 64
"""A streamed data set is read in at most so many sections."""

Source = str | Path


def read_documents(
    source: Source | Sequence[Source], text_field: str = "text", form: str | None = None
) -> Iterator[str]:
    """The documents of a corpus, in order, one in memory at a time (of a folder also the names of its files).

    Args:
        source: a file (`.txt` or another ending that says nothing: a document a line; `.jsonl`, `.ndjson`, `.json`:
            an object a line, or one list of objects; `.csv`, `.tsv`: a header and rows; `.parquet`, `.arrow`), also
            compressed (gzip, bzip2, xz, zstandard, lz4, zip); a pipe; a folder of such files, by name, in which each
            `.txt` file is one document; a folder of `save_to_disk`; a pattern such as `zh/*.jsonl`, by name; the
            name of a data set as `name[:config[:split]]` (split `train` by default), which is streamed; or
            several of all these, one after the other.
        text_field: the field that holds the text, `a.b` for the field `b` of the object `a`.
        form: of files: text, json, csv, tsv, parquet or arrow, whatever their ending and first line say.

    Yields:
        Non-empty documents, at least one.

    Raises:
        CorpusError: if a source does not exist, all are empty, or one is not what its ending says, not UTF-8, damaged,
            or a row is not what is expected; the line is named.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if form is not None and form not in FORMS:
        raise CorpusError(f"format {form!r}: expected one of {', '.join(FORMS)}")
    parts = [part for each in sources for part in _parts(each, form)]  # what is not there is refused before any is read
    places = [os.path.abspath(path) if os.path.exists(path) else str(path) for path, _ in parts]
    twice, count = Counter(places).most_common(1)[0]
    if count > 1:
        raise CorpusError(f"{_named(sources)}: {twice} is named twice, expected once")
    empty = True
    for path, whole in parts:
        for text in _documents(path, text_field, form, whole):
            empty = False
            yield text
    if empty:
        raise CorpusError(f"{_named(sources)}: no document in it")


class Sections:
    """A corpus in sections that can be read apart; one after the other they are all of it.

    Args:
        sections: each opens one. Reading a section costs nothing of the others.
        names: what the sections are, for people: «files of a/b».
    """

    def __init__(self, sections: Sequence[Callable[[], Iterator[str]]], names: str = "sections") -> None:
        self.sections, self.names = sections, names

    def __len__(self) -> int:
        return len(self.sections)

    def __getitem__(self, number: int) -> Iterator[str]:
        return self.sections[number]()

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(open_section() for open_section in self.sections)


def read_sections(source: Source | Sequence[Source], text_field: str = "text") -> Sections | None:
    """The sections of a Hugging Face data set of several files, which is streamed; None if the source is no such one.

    A section is one of its files, or several consecutive ones if there are more than `SECTIONS`.

    Raises:
        CorpusError: as `read_documents`.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    parts = [path for each in sources for path, _ in _parts(each, None)]
    name = str(parts[0])
    if len(parts) > 1 or os.path.exists(name) or _saved(name.partition(":")[0]):
        return None
    rows = _streamed(name)
    files = min(int(getattr(rows, "num_shards", 1)), SECTIONS)  # releases that cannot shard a stream do not count

    def section(number: int) -> Iterator[str]:
        return _row_documents(rows.shard(files, number), f"{name}, section {number}", text_field)

    return Sections([partial(section, number) for number in range(files)], f"files of {name}") if files > 1 else None


def corpus_digest(source: Source | Sequence[Source]) -> str:
    """SHA-256 of the files of a corpus, at about a second for each gigabyte; of a data set of the hub, which nobody
    would download for it, that of its first `FIRST` documents.

    Raises:
        CorpusError: as `read_documents`; if it is a pipe, which would be empty then.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if found := pipes(sources):
        raise CorpusError(f"{found[0]}: a pipe, expected files, which can be read again; write one")
    parts = [path for each in sources for path, _ in _parts(each, None)]
    return digest_of(
        [path_digest(path) if os.path.exists(path) else list(islice(read_documents(path), FIRST)) for path in parts]
    )


def read_rows(path: Source) -> Iterator[tuple[str, Any]]:
    """The rows of one file of any form but text, in order, with where each stands.

    Raises:
        CorpusError: as `read_documents`.
    """
    if not os.path.isfile(path) and not is_pipe(path):
        raise CorpusError(f"{path}: no such file, expected .jsonl, .json, .csv, .tsv, .parquet or .arrow")
    with opened(path) as raw, reading(str(path)):
        for stream, name, _ in files_in(raw, str(path)):
            form = form_of(stream, name, None)
            yield from rows_of(stream, name, "json" if form == "text" else form)


def find_corpus(folder: Source, name: str) -> Path | None:
    """The file of a folder that is called so, with any ending that can be read: `.jsonl` and `.txt` before others.

    Raises:
        CorpusError: if there are several others.
    """
    for path in (Path(folder, f"{name}.jsonl"), Path(folder, f"{name}.txt")):
        if path.is_file():
            return path
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    matches = [file for file in names if form_of_name(file) and file.partition(".")[0] == name]
    if len(matches) > 1:
        raise CorpusError(f"{folder}: {', '.join(matches)}: which one is not known, expected one file called {name}")
    return Path(folder, matches[0]) if matches else None


def pipes(sources: Sequence[Source]) -> list[Source]:
    """Those of some sources that can be read only once."""
    return [source for source in sources if is_pipe(STDIN if source == "-" else source)]


def _named(sources: Sequence[Source]) -> str:
    return ", ".join(map(str, sources))


# from sources to files


def _parts(source: Source, form: str | None) -> list[tuple[Source, bool]]:
    """The files, saved data sets and names of data sets that a source is, and whether a text file is one document."""
    name = str(source)
    if name == "-":
        return [(STDIN, False)]
    if not name:
        raise CorpusError(f"an empty name, expected {READABLE}")
    if inside := settings_only(name):
        raise CorpusError(inside)
    if os.path.isdir(source) and not _saved(source):
        return [(path, True) for path in _files_of(Path(source), form)]
    if os.path.exists(source):
        return [(source, False)]
    if glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise CorpusError(f"{name}: no file matches, expected {READABLE}")
        files = [path for path in matches if not os.path.isdir(path)]
        if files and len(files) < len(matches) and "**" not in name:
            raise CorpusError(f"{name}: matches files and folders, expected either; write a longer pattern")
        if form is None:
            check_one_form(files, name, "let the pattern match one of them")
        return [part for path in files or matches for part in _parts(path, form)]
    if "://" in name:
        raise CorpusError(f"{name}: an address, expected {READABLE}; download it")
    place = name.partition(":")[0]
    if not os.path.isdir(place) and (_like_file(name) or place.startswith((".", "/", "~"))):
        raise CorpusError(f"{name}: no such file, expected {READABLE}")
    return [(source, False)]


def _like_file(name: str) -> bool:
    return Path(name.lower()).suffix in (*ENDINGS, *COMPRESSED)


def _saved(path: Source) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in SAVED)


def _files_of(folder: Path, form: str | None) -> list[Path]:
    """The files of a folder that can be read, by name."""
    with reading(str(folder)):
        names = sorted(name for name in os.listdir(folder) if os.path.isfile(folder / name))
        names = [name for name in names if _counts(name) or (form and not name.startswith("."))]
        below = next((os.path.relpath(place, folder) for place in _folders(folder) if place != str(folder)), None)
    if below is not None:
        advice = f"name the folders that you mean, as {folder / below.split(os.sep)[0]}"
        raise CorpusError(f"{folder}: files of a corpus in {below} below it, expected them in one folder; {advice}")
    if not names:
        raise CorpusError(
            f"{folder}: a folder without .txt files (a document a file), .jsonl, .json, .csv, .tsv, .parquet or .arrow"
        )
    if form is None:
        check_one_form(names, str(folder), f"name those that you mean, as '{folder}/*{Path(names[0]).suffix}'")
    return [folder / name for name in names]


def _folders(folder: Path) -> Iterator[str]:
    """A folder and those below it that have files of a corpus."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if any(map(_counts, names)):
            yield place


def _counts(name: str) -> bool:
    return form_of_name(name) is not None and not name.startswith(".") and name not in RECORDS


# from files to documents


def _documents(source: Source, text_field: str, form: str | None, whole: bool) -> Iterator[str]:
    if os.path.isdir(source):
        return _saved_documents(source, text_field)
    if os.path.exists(source):
        return _file_documents(source, text_field, form, whole)
    return _data_set_documents(str(source), text_field)


def _file_documents(path: Source, text_field: str, form: str | None, whole: bool) -> Iterator[str]:
    with opened(path) as raw, reading(str(path)):
        for stream, name, several in files_in(raw, str(path)):
            file_form = form or form_of(stream, name, text_field)
            if file_form != "text":
                for where, row in rows_of(stream, name, file_form, text_field):
                    yield from _text(row, text_field, where)
            elif whole or several:
                if text := "\n".join(line for _, line in numbered_lines(stream, name)):
                    yield text
            else:
                yield from (line for _, line in numbered_lines(stream, name))


def _saved_documents(folder: Source, text_field: str, split: str | None = None) -> Iterator[str]:
    """A data set that `save_to_disk` wrote, which stays on disk."""
    import datasets

    with _loading(str(folder)):
        rows = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        split = split or "train"
        if split not in rows:
            raise CorpusError(f"{folder}: no split {split!r} among {', '.join(rows):.80}; name one as {folder}::SPLIT")
        rows = rows[split]
    elif split is not None:
        raise CorpusError(f"{folder}: one data set without splits, expected no split {split!r}")
    columns = [name for name in (text_field, text_field.partition(".")[0]) if name in rows.column_names][:1]
    if not columns:
        raise missing(text_field, rows.column_names, str(folder))
    with reading(str(folder)):
        tables = rows.select_columns(columns).with_format("arrow").iter(256)
        for where, row in batched_rows(tables, str(folder)):
            yield from _text(row, text_field, where)


def without_code() -> dict[str, bool]:
    """What keeps `datasets` from running code of a data set, or asking to, before it lost the ability (4.0)."""
    import datasets

    return {} if int(datasets.__version__.partition(".")[0]) >= 4 else {"trust_remote_code": False}


def _data_set_documents(source: str, text_field: str) -> Iterator[str]:
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    if os.path.isdir(name) and _saved(name) and not config:
        yield from _saved_documents(name, text_field, split or None)
        return
    yield from _row_documents(_streamed(source), source, text_field)


def _streamed(source: str) -> Any:
    """The rows of a data set, none of them read yet."""
    import datasets

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    with _loading(source):
        options = {"split": split or "train", "streaming": True, **without_code()}
        return datasets.load_dataset(name, config or None, **options)


def _row_documents(rows: Any, where: str, text_field: str) -> Iterator[str]:
    with _loading(where):
        rows = iter(rows)
    number = 0
    while True:
        with _loading(where):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        yield from _text(row, text_field, f"{where}, row {number}")


@contextmanager
def _loading(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub, the file system and the builders each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{source}: neither a file nor a data set that can be loaded ({reason})") from None


def _text(row: Any, field: str, where: str) -> Iterator[str]:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: a {type(row).__name__}, expected an object with the field {field!r}")
    text = _value(row, field, where)
    if not isinstance(text, str):
        raise CorpusError(f"{where}: field {field!r} is {text!r:.60}, expected text; name another with --text-field")
    if SURROGATE.search(text):
        raise CorpusError(f"{where}: half a surrogate pair, which is not text")
    if text.strip():
        yield text


def _value(row: dict[str, Any], field: str, where: str) -> Any:
    """The value of a field: the one of this name, else `a.b` is the field `b` of `a`."""
    if field in row:
        return row[field]
    value: Any = row
    names: list[str] = list(row)
    for step, part in enumerate(field.split(".")):
        if not isinstance(value, dict) or part not in value:
            raise missing(field, names, where)
        value = value[part]
        prefix = ".".join(field.split(".")[: step + 1])
        names = [f"{prefix}.{name}" for name in value] if isinstance(value, dict) else [f"{prefix} ({value!r:.40})"]
    return value
