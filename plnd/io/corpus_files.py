"""Files as people have them, of any compression and form, to numbered lines of text or rows, streamed.

How a file is compressed is known by its first bytes, its form by its ending; content that contradicts the ending is
refused, and where there is no ending that says something, as on a pipe, the content decides.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from plnd.errors import CorpusError
from plnd.io.columnar import Reluctant, checked_messages, largest_page, rows_at_once
from plnd.io.strict_json import MAX_ITEMS, too_many

ENDINGS = {
    ".txt": "text",
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".jsonlines", ".jl"), "json"),
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
FORMS = tuple(dict.fromkeys(ENDINGS.values()))
COMPRESSED = (".gz", ".gzip", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4", ".zip")
OTHERS = frozenset(
    ".7z .avro .conll .conllu .doc .docx .epub .htm .html .npy .npz .odt .orc .pdf .pickle .pkl .pth .rar .rtf"
    " .safetensors .sgm .sql .sqlite .srt .tar .tgz .tmx .toml .vtt .xhtml .xls .xlsx .xml .yaml .yml".split()
)
"""Endings of what is known not to be a document a line; no language's code, since `news.pt` is Portuguese."""
READABLE = (
    "a text file, a .jsonl file (.json, .csv, .tsv, .parquet, .arrow), any of them as .gz, .bz2, .xz, .zst,"
    " .lz4 or .zip, a folder of such files or a data set NAME[:CONFIG[:SPLIT]]"
)

HEAD = 4096
"""Bytes at the start of a file by which it is known."""
BLOCK = 1 << 16
"""Bytes that are decoded at a time where there are no lines."""
MAX_RECORD = 2**26
"""Bytes of a line, or letters of a record: a document of a hundred books."""
_TOO_LONG = f"longer than {MAX_RECORD:,} bytes, expected a document a line, or a record each"
_TOO_MANY = f"more than {MAX_ITEMS:,} values, expected the fields of one document"
BATCH = 256
"""Rows of Parquet and Arrow in memory at a time, fewer of large ones, more where a file's own batches are larger."""
MAX_LAYERS = 4
"""Compressions around one another."""
MAX_COPY = 2**33
"""Bytes of a compressed file that are unpacked to the disk, where its form needs to be read from its end."""
XZ_MEMORY = 2**27
"""Bytes that xz may take; its highest level takes half of it."""
ENCODINGS = {  # the longer marks first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MARKUP = re.compile(r"<\?xml|<!doctype|<(html|doc|tei|tmx|rss|mediawiki)\b|\{\\rtf|%PDF-", re.IGNORECASE)
JSON_START = re.compile(r'(\[\s*)?\{\s*("(\\.|[^"\\])*"\s*:|\})')
COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
Row = dict[str, Any]


def form_of_name(name: str) -> str | None:
    """The form that a file's ending names, compression and case aside; None if it names none."""
    return ENDINGS.get(_ending(name))


def _ending(name: str) -> str:
    path = PurePath(name.lower())
    while path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix


def files_in(source: BinaryIO, name: str) -> Iterator[tuple[BinaryIO, str, bool]]:
    """What a file holds, unpacked: itself, or the files of a zip archive by name.

    Args:
        source: the file's bytes, read once.
        name: what errors call it.

    Yields:
        A stream that is not compressed, its name, and whether it is one of several. Of an archive the files whose
        ending names a form count, all of one form; where it holds a single file, that one counts whatever its name.

    Raises:
        CorpusError: if an archive is damaged, encrypted, or holds no such files, or files of several forms.
    """
    stream = _unpacked(source, name)
    if not _head(stream).startswith((b"PK\3\4", b"PK\5\6")):
        yield stream, name, False
        return
    with zipfile.ZipFile(_seekable(stream, name)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
        members = names if len(names) == 1 else [member for member in names if form_of_name(member)]
        check_one_form(members, name, "name one file of it")
        if not members:
            raise CorpusError(f"{name}: a zip archive without a file that can be read, expected {READABLE}")
        for member in sorted(members):
            try:
                with archive.open(member) as packed:
                    stream = _unpacked(cast(BinaryIO, packed), f"{name}/{member}")
                    yield stream, f"{name}/{member}", len(members) > 1
            except RuntimeError:  # what zipfile raises for a password
                raise CorpusError(f"{name}/{member}: encrypted, expected an archive without a password") from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePath(name).parts)


def check_one_form(names: Iterable[str], where: str, advice: str) -> None:
    """Refuses files of several forms: some of them are likely the same documents again, or none."""
    forms: dict[str, str] = {}
    for name in names:
        forms.setdefault(form_of_name(name) or "text", PurePath(name).name)
    if len(forms) > 1:
        examples = ", ".join(sorted(forms.values()))
        raise CorpusError(f"{where}: files of several forms ({examples}), expected one form; {advice}")


# bytes


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong with a file's bytes as one line."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise CorpusError(f"{name}: damaged or cut off ({_reason(error)}); fetch it again") from None
    except csv.Error as error:
        raise CorpusError(f"{name}: not a table ({_reason(error)}), expected a header and rows as RFC 4180") from None
    except OSError as error:
        if error.errno:
            raise CorpusError(f"{name}: cannot be read ({error.strerror})") from None
        raise CorpusError(f"{name}: damaged or cut off ({_reason(error)}); fetch it again") from None
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "pyarrow":
            raise
        raise CorpusError(f"{name}: damaged or cut off ({_reason(error)}); fetch it again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class _Rejoined(io.RawIOBase):
    """A stream that cannot go back, with the bytes that were taken from it in front."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        block = self.head[: len(target)] or _some(self.rest, len(target))
        self.head = self.head[len(block) :]
        target[: len(block)] = block
        return len(block)


def _some(stream: BinaryIO, size: int) -> bytes:
    """Up to so many bytes, those that are there now where the stream can tell; empty at its end."""
    return getattr(stream, "read1", stream.read)(size)


class _Headed(io.BufferedReader):
    """A buffered stream whose first bytes are known without taking them from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.first = b""
        while len(self.first) < HEAD and (block := _some(stream, HEAD - len(self.first))):
            self.first += block
        super().__init__(_Rejoined(self.first, stream), BLOCK)
        self.source = stream


def _head(stream: BinaryIO) -> bytes:
    return cast(_Headed, stream).first


def _unpacked(source: BinaryIO, name: str) -> BinaryIO:
    """The bytes under any number of compressions, as a `_Headed` stream."""
    stream, layers = _Headed(source), 0
    while opener := next((opener for magic, opener in _COMPRESSIONS if magic.match(stream.first)), None):
        layers += 1
        if layers > MAX_LAYERS:
            raise CorpusError(f"{name}: compressed more than {MAX_LAYERS} times, expected once; unpack it")
        stream = _Headed(opener(stream))
    return cast(BinaryIO, stream)


class _Pieces(io.RawIOBase):
    """Bytes that arrive in pieces, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.piece = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self.piece:
            if (piece := next(self.pieces, None)) is None:
                return 0
            self.piece = memoryview(piece).cast("B")
        size = min(len(target), len(self.piece))
        target[:size], self.piece = self.piece[:size], self.piece[size:]
        return size


class _Xz(io.RawIOBase):
    """What xz files have in them; `lzma.LZMAFile` takes as much memory as a file asks for."""

    def __init__(self, source: BinaryIO) -> None:
        self.source, self.decoder = source, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        try:
            return self._read_into(target)
        except Exception:
            self.decoder = self._new()  # an error may live on, and the memory of its frames with it
            raise

    def _read_into(self, target: Any) -> int:
        while True:
            if self.decoder.eof:
                rest = self.decoder.unused_data.lstrip(b"\0") or self.source.read(BLOCK).lstrip(b"\0")
                if not rest:  # zeros may be between streams, and at the end
                    return 0
                self.decoder = self._new()
            else:
                rest = self.source.read(BLOCK) if self.decoder.needs_input else b""
                if not rest and self.decoder.needs_input:
                    raise EOFError("ended before the end-of-stream marker")
            if block := self.decoder.decompress(rest, len(target)):
                target[: len(block)] = block
                return len(block)


def _arrow_codec(name: str) -> Callable[[BinaryIO], BinaryIO]:
    """Arrow comes with `datasets`, and its streams say when they were cut off."""

    def opener(stream: BinaryIO) -> BinaryIO:
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(stream, name)))

    return opener


_COMPRESSIONS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Any]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), lambda stream: gzip.GzipFile(fileobj=stream)),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2File),
    (re.compile(rb"\xfd7zXZ\0|\]\0\0"), lambda stream: io.BufferedReader(_Xz(stream))),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _arrow_codec("zstd")),
    (re.compile(rb"\x04\x22\x4d\x18"), _arrow_codec("lz4")),
)


def _seekable(stream: BinaryIO, name: str) -> BinaryIO:
    """The file that is read as it is, else a copy on disk, for the forms whose index is at their end."""
    source = cast(_Headed, stream).source
    if isinstance(getattr(source, "raw", None), io.FileIO) and source.seekable():
        source.seek(0)
        return source
    copy, size = tempfile.TemporaryFile(), 0
    while block := stream.read(BLOCK):
        size += copy.write(block)
        if size > MAX_COPY:
            raise CorpusError(f"{name}: more than {MAX_COPY:,} bytes unpacked, expected at most that; unpack it")
    copy.seek(0)
    return cast(BinaryIO, copy)


# forms


def form_of(stream: BinaryIO, name: str, text_field: str | None) -> str:
    """The form of an unpacked file: by its ending, to which the content must not be contrary, else by its content.

    Args:
        stream: one of `files_in`.
        name: its name.
        text_field: the field that holds the text; None if all fields are read: then JSON may have any ending.

    Raises:
        CorpusError: if the content is of another form than the ending says, or of none that can be read.
    """
    ending, content = form_of_name(name), _form_of_content(_head(stream), name, text_field)
    if ending is None and _ending(name) in OTHERS:
        advice = "--format text reads a document a line"
        raise CorpusError(f"{name}: {_ending(name)} is no form of a corpus, expected {READABLE}; {advice}")
    if not _head(stream) or content == ending:
        return ending or "text"
    if ending is None or (ending == "text" and text_field is None):
        return content
    if (ending, content) in (("json", "text"), ("csv", "text"), ("tsv", "text"), ("csv", "tsv"), ("tsv", "csv")):
        return ending  # which their readers check, and name the line
    words = {"json": "JSON", "csv": "a table", "tsv": "a table", "parquet": "Parquet", "arrow": "Arrow"}
    if content == "text":
        raise CorpusError(f"{name}: not {words[ending]}, expected what its ending says; fetch it again or rename it")
    advice = f"rename it to .{'jsonl' if content == 'json' else content}, or say --format {ending} to read it as that"
    raise CorpusError(f"{name}: holds {words[content]}, but its ending says {ending}; {advice}")


def _form_of_content(head: bytes, name: str, text_field: str | None) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    for mark, encoding in ENCODINGS.items():
        if head.startswith(mark):
            advice = f"convert it with iconv -f {encoding} -t UTF-8"
            raise CorpusError(f"{name}: {encoding} and not UTF-8, expected UTF-8 text; {advice}")
    if head[257:262] == b"ustar":
        raise CorpusError(f"{name}: a tar archive, expected {READABLE}; unpack it")
    if b"\0" in head:
        raise CorpusError(f"{name}: not text (it has NUL bytes: a binary file, or UTF-16), expected {READABLE}")
    text = head.removeprefix(codecs.BOM_UTF8).decode(errors="ignore").lstrip()
    if MARKUP.match(text):
        raise CorpusError(f"{name}: markup ({text.split()[0]:.20}), expected {READABLE}; extract its text")
    if JSON_START.match(text) or (text.startswith("[") and form_of_name(name) == "json"):
        return "json"
    return _table(text.splitlines(), len(head) < HEAD, text_field) or "text"


def _table(lines: list[str], whole: bool, text_field: str | None) -> str | None:
    """The form of a table whose first lines these are; None if they are running text.

    A header has the text's field as a cell, or bare names with as many separators in the next line; lines that all
    have the same number of tabs, or of commas without a space, are a table as well.
    """
    first, *others = lines[: None if whole or len(lines) < 2 else -1] or [""]
    rows = [line for line in others if line.strip()]
    for form, separator in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        cells = next(csv.reader([first], delimiter=separator), [])
        if text_field in cells and (len(cells) > 1 or rows):
            return form
        if len(cells) < 2 or not rows:
            continue
        if all(map(COLUMN_NAME.fullmatch, cells)) and rows[0].count(separator) >= len(cells) - 1:
            return form
        even = all(len(next(csv.reader([row], delimiter=separator))) == len(cells) for row in rows)
        if even and (separator == "\t" or (separator == "," and len(rows) > 1 and ", " not in first)):
            return form
    return None


def numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, stripped, with their numbers from 1."""
    for number, line in enumerate(_decoded(stream, name), 1):
        if text := line.strip():
            yield number, text


def _decoded(stream: BinaryIO, name: str) -> Iterator[str]:
    number = 1
    try:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_RECORD + 1), b""), 1):
            if len(line) > MAX_RECORD:
                raise CorpusError(f"{name}, line {number}: {_TOO_LONG}")
            # decoded line by line, so that the line that is not UTF-8 is known
            yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x}"
        advice = "convert it, from Latin-1 for example with iconv -f LATIN1 -t UTF-8"
        raise CorpusError(f"{name}, line {number}: not UTF-8, expected UTF-8 text ({byte}); {advice}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        with reading(f"{name}, after line {number}"):
            raise error from None


def rows_of(stream: BinaryIO, name: str, form: str, text_field: str | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of an unpacked file, with where they stand.

    Args:
        stream: one of `files_in`.
        name: its name.
        form: any but text.
        text_field: the field to read of Parquet and Arrow; all, if None.

    Raises:
        CorpusError: naming the line or row that is not what is expected.
    """
    if form == "json":
        start = _head(stream).removeprefix(codecs.BOM_UTF8).lstrip()
        return (_json_list if start.startswith(b"[") else _json_lines)(stream, name)
    if form in ("csv", "tsv"):
        return _table_rows(stream, name, form, text_field)
    return (_parquet if form == "parquet" else _arrow)(stream, name, text_field)


def _json_lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(stream, name):
        if too_many(line):
            raise CorpusError(f"{name}, line {number}: {_TOO_MANY}")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise CorpusError(f"{name}, line {number}: not JSON, expected one JSON object a line") from None
        yield f"{name}, line {number}", row


def _json_list(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """The records of one JSON list, one in memory at a time."""
    decoder = json.JSONDecoder()
    text = _Text(codecs.iterdecode(iter(lambda: _some(stream, BLOCK), b""), "utf-8-sig"))
    number, here = 0, f"{name}, record 1"
    try:
        text.take("[")
        while text.next() != "]":
            number, here = number + 1, f"{name}, record {number + 1}"
            if number > 1:
                text.take(",")
                text.next()
            yield here, text.value(decoder, here)
        text.take("]")
        here = f"{name}, after the list"
        if text.next():
            raise _Unexpected
    except UnicodeDecodeError:
        raise CorpusError(f"{name}, after record {number}: not UTF-8, expected UTF-8 text") from None
    except (json.JSONDecodeError, _Unexpected, RecursionError):
        raise CorpusError(f"{here}: not JSON, expected one list of objects, or one JSON object a line") from None


class _Unexpected(Exception):
    pass


class _Text:
    """Text that arrives in pieces, read from its start."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces, self.text = iter(pieces), ""

    def more(self, size: int) -> bool:
        """Adds pieces of so many letters together; returns whether there was one."""
        pieces, length = [self.text], 0
        for piece in self.pieces:
            pieces.append(piece)
            length += len(piece)
            if length >= size:
                break
        self.text = "".join(pieces)
        return len(pieces) > 1

    def next(self) -> str:
        """The next letter that is not white space, left where it is; empty at the end."""
        self.text = self.text.lstrip()
        while not self.text and self.more(1):
            self.text = self.text.lstrip()
        return self.text[:1]

    def take(self, letter: str) -> None:
        """Takes this letter, which must be next."""
        if self.next() != letter:
            raise _Unexpected
        self.text = self.text[1:]

    def value(self, decoder: json.JSONDecoder, here: str) -> Any:
        """Takes the next JSON value, which is `here`; reads on while what there is may be the beginning of one."""
        while True:
            if len(self.text) > 2 * MAX_RECORD:
                raise CorpusError(f"{here}: {_TOO_LONG}")
            try:
                if too_many(self.text):
                    raise CorpusError(f"{here}: {_TOO_MANY}")
                value, end = decoder.raw_decode(self.text)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not cut or not self.more(len(self.text)):  # doubled, so that a long record is not parsed too often
                    raise
            else:
                self.text = self.text[end:]
                return value


def _table_rows(stream: BinaryIO, name: str, form: str, text_field: str | None) -> Iterator[tuple[str, Row]]:
    """Rows of a table whose first line names its columns; quoted cells may have line breaks in them."""
    lines = _decoded(stream, name)
    before, header = _first_line(lines)
    separators = (",", ";", "\t", "|") if form == "csv" else ("\t", ",", ";", "|")
    cells = {separator: next(csv.reader([header.rstrip("\r\n")], delimiter=separator), []) for separator in separators}
    # the separator is the one that makes the text's field a column, else the ending's own
    fitting = [separator for separator in separators if _root(text_field, cells[separator]) is not None]
    separator = fitting[0] if fitting else separators[0]
    columns = cells[separator]
    if len(set(columns)) < len(columns):
        raise CorpusError(f"{name}: columns {', '.join(columns):.80}: two of one name, expected different ones")
    csv.field_size_limit(MAX_RECORD)  # a document may be longer than the 128 KiB that csv takes for a mistake
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for row in reader:
            where = f"{name}, line {before + reader.line_num}"
            if row and len(row) != len(columns):
                raise CorpusError(f"{where}: {len(row)} cells, expected {len(columns)} as in its header; quote texts")
            if separator == "\t" and any("\n" in cell and "\t" in cell for cell in row):
                advice = 'quote texts with " in them, as RFC 4180 does, and double it, or take them out'
                raise CorpusError(f'{where}: a " that is closed only lines later, across tabs; {advice}')
            if row:
                yield where, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        with reading(f"{name}, line {before + reader.line_num}"):
            raise error from None


def _first_line(lines: Iterable[str]) -> tuple[int, str]:
    """The first line that is not blank, with its number; (0, "") if there is none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            return number, line
    return 0, ""


def _root(field: str | None, columns: Iterable[str]) -> str | None:
    """The column that holds a field, which may be a nested one: itself, or the part before its first dot."""
    names = list(columns)
    return next((name for name in (field, (field or "").partition(".")[0]) if name in names), None)


def _chosen(columns: list[str], field: str | None, name: str) -> list[str]:
    if field is None:
        return columns
    root = _root(field, columns)
    if root is None:
        raise missing(field, columns, name)
    return [root]


def missing(field: str, names: Iterable[str], where: str) -> CorpusError:
    """The error for a row without the field."""
    return CorpusError(f"{where}: no field {field!r} among {', '.join(names):.80}; name another with --text-field")


def _parquet(stream: BinaryIO, name: str, field: str | None) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet

    source = _seekable(stream, name)
    file = pyarrow.parquet.ParquetFile(Reluctant(source), buffer_size=BLOCK)
    columns = _chosen(file.schema_arrow.names, field, name)
    size = rows_at_once(largest_page(source, columns, name), BATCH)
    yield from batched_rows(file.iter_batches(batch_size=size, columns=columns, use_threads=False), name)


def _arrow(stream: BinaryIO, name: str, field: str | None) -> Iterator[tuple[str, Row]]:
    import pyarrow

    if _head(stream).startswith(b"ARROW1"):
        source = _seekable(stream, name)
        source.seek(len(b"ARROW1\0\0"))  # a stream follows, and a footer
        for _ in checked_messages(source, name):
            pass
        source.seek(0)
        file = pyarrow.ipc.open_file(Reluctant(source))
        batches: Iterable[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
        schema = file.schema
    else:
        batches = file = pyarrow.ipc.open_stream(Reluctant(io.BufferedReader(_Pieces(checked_messages(stream, name)))))
        schema = file.schema
    columns = _chosen(schema.names, field, name)
    yield from batched_rows((_validated(batch.select(columns)) for batch in batches), name)


def _validated(batch: Any) -> Any:
    """A batch whose rows are where it says; the library believes it, and reads anywhere in memory."""
    batch.validate(full=True)
    return batch


def batched_rows(batches: Iterable[Any], name: str) -> Iterator[tuple[str, Row]]:
    """The rows of Arrow batches or tables, with where they stand."""
    number = 0
    for batch in batches:
        size = rows_at_once(batch.nbytes, BATCH)  # not the rows' bytes, since all may be one value of a dictionary
        for start in range(0, batch.num_rows, size):
            try:
                rows = batch.slice(start, size).to_pylist()
            except UnicodeDecodeError:
                raise CorpusError(f"{name}, after row {number}: not UTF-8, expected UTF-8 text") from None
            for row in rows:
                number += 1
                yield f"{name}, row {number}", row


# opening


_PIPES: set[tuple[int, int]] = set()
"""Device and inode of the pipes that this process has read from."""


def opened(path: str | Path) -> BinaryIO:
    """A file's bytes, to be closed.

    Raises:
        CorpusError: if it cannot be opened, or is a pipe that was opened before: the documents that were read from it
            would be missing.
    """
    with reading(str(path)):
        if is_pipe(path):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in _PIPES:
                raise CorpusError(f"{path}: a pipe, which can be read only once, but is needed again; write a file")
            _PIPES.add((status.st_dev, status.st_ino))
        return open(path, "rb")


def is_pipe(path: str | Path) -> bool:
    """Whether what is read from a path is gone then."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
