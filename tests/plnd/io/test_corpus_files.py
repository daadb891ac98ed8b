"""Corpora as people have them: every form gives the same documents, and what is none is refused, never read as text."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from corpora import TEXTS, make, refusal
from plnd.errors import CorpusError
from plnd.io import columnar, corpus_files
from plnd.io.corpus import find_corpus, pipes, read_documents
from plnd.roles.parallel import read_parallel

zstandard = pytest.importorskip("zstandard")

ROWS = [{"id": n, "text": text, "meta": {"body": f"{text} {n}"}} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def table_bytes(delimiter: str, quoting: int = csv.QUOTE_MINIMAL, end: str = "\r\n") -> bytes:
    """The rows as a table with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("id", "text"), *((row["id"], row["text"]) for row in ROWS)])
    return stream.getvalue().encode()


def parquet_bytes(rows=ROWS, **options) -> bytes:
    """The rows as Parquet."""
    stream = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


def arrow_bytes(rows=ROWS, new=pa.ipc.new_stream, dictionary: bool = False, compression: str | None = None) -> bytes:
    """The rows as Arrow, as a stream or a file."""
    table, stream = pa.Table.from_pylist(rows), io.BytesIO()
    if dictionary:
        table = pa.table({"text": table["text"].dictionary_encode()})
    with new(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    """Two frames with check sums, as parallel compressors write them."""
    compressor, half = zstandard.ZstdCompressor(write_checksum=True), len(data) // 2
    return b"".join(compressor.compress(part) for part in (data[:half], data[half:]))


def lz4(data: bytes) -> bytes:
    """A frame, as Arrow writes it."""
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "lz4") as compressed:
        compressed.write(data)
    return stream.getvalue().to_pybytes()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


FORMS = {
    ".txt": "\n".join(TEXTS).encode(),
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    ".csv": table_bytes(","),
    ".tsv": table_bytes("\t"),
    ".parquet": parquet_bytes(),
    ".arrow": arrow_bytes(),
    ".feather": arrow_bytes(new=pa.ipc.new_file),
}
COMPRESSIONS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".lz4": lz4,
}


# forms


@pytest.mark.parametrize("ending", FORMS)
def test_forms_and_their_endings_in_any_case(tmp_path, ending):
    """Each form is known by its ending, in whichever case; blank texts are no documents in any of them."""
    for name in (f"corpus{ending}", f"CORPUS{ending.upper()}", f"Other{ending.title()}"):
        assert list(read_documents(make(tmp_path / name, FORMS[ending]))) == TEXTS


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("ending", FORMS)
def test_compressed_forms(tmp_path, ending, compression):
    """Each form is also read compressed, known by its first bytes: with the ending, in capitals, and without it."""
    packed = COMPRESSIONS[compression](FORMS[ending])
    for name in (f"corpus{ending}{compression}", f"CORPUS{ending}{compression}".upper(), f"corpus{ending}"):
        assert list(read_documents(make(tmp_path / name, packed))) == TEXTS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_content_decides_where_the_ending_says_nothing(tmp_path, ending):
    """A file without an ending, or with one of its own, is what it holds, compressed or not."""
    for name in ("corpus", "part-00000", "corpus.zh"):
        assert list(read_documents(make(tmp_path / name, FORMS[ending]))) == TEXTS
        assert list(read_documents(make(tmp_path / name, gzip.compress(FORMS[ending])))) == TEXTS


@pytest.mark.parametrize("name", ["news.pt", "europarl.de-en.de", "README.md", "corpus"])
def test_other_endings_are_text(tmp_path, name):
    """An ending that says nothing, a language's code say, is that of a text file with a document a line."""
    assert list(read_documents(make(tmp_path / name, "\n".join(TEXTS)))) == TEXTS


def test_ending_of_a_compression_that_is_not_there(tmp_path):
    """Downloaders unpack and leave the name: what the bytes are counts."""
    assert list(read_documents(make(tmp_path / "corpus.jsonl.gz", LINES))) == TEXTS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_byte_order_mark_and_crlf(tmp_path, ending):
    """What Windows writes around documents is no part of them."""
    content = b"\xef\xbb\xbf" + FORMS[ending].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert list(read_documents(make(tmp_path / f"corpus{ending}", content))) == TEXTS


@pytest.mark.parametrize("ending, delimiter", [(".csv", ";"), (".csv", "\t"), (".csv", "|"), (".tsv", ",")])
def test_separator_is_the_one_of_the_column(tmp_path, ending, delimiter):
    """A table separated by something else than its ending says is read where that makes the text a column."""
    assert list(read_documents(make(tmp_path / f"corpus{ending}", table_bytes(delimiter)))) == TEXTS


def test_table_cells(tmp_path):
    """Quoted cells keep separators, quotes and line breaks; blank cells are no documents; long cells are read."""
    long = "x" * 200_000
    content = f'label,text\n1,"a, ""b""\nc"\n\n2,\n3,  \n4,{long}\n'
    assert list(read_documents(make(tmp_path / "corpus.csv", content))) == ['a, "b"\nc', long]
    assert list(read_documents(make(tmp_path / "one.csv", "text\na\nb\n"))) == ["a", "b"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".arrow", ".feather"])
def test_nested_field(tmp_path, ending):
    """`a.b` is the field b of a; a field that is itself called a.b comes first."""
    path = make(tmp_path / f"corpus{ending}", FORMS[ending])
    assert list(read_documents(path, "meta.body")) == [f"{text} {n}" for n, text in enumerate(TEXTS)]
    content = '{"a": {"b": "nested"}, "a.b": "itself"}'
    assert list(read_documents(make(tmp_path / "dots.jsonl", content), "a.b")) == ["itself"]
    both = parquet_bytes([{"a": {"b": "nested"}, "a.b": "itself"}])
    assert list(read_documents(make(tmp_path / "dots.parquet", both), "a.b")) == ["itself"]


@pytest.mark.parametrize("size", [1, 70_000, 300_000])
def test_long_records_of_a_json_list(tmp_path, size):
    """A list's records are found wherever the file is cut into blocks, on one line or many."""
    texts = [f'{n} \\ " ü {"é" * size}' for n in range(3)]
    for indent in (None, 2):
        content = json.dumps([{"text": text} for text in texts], indent=indent)
        assert list(read_documents(make(tmp_path / "corpus.json", content))) == texts


# folders, archives, patterns, several


def test_folder_of_a_form(tmp_path):
    """The files of a folder are read by name, compressed or not; files that are of no form do not count."""
    for n, text in enumerate(TEXTS):
        content = json.dumps({"text": text}).encode()
        make(tmp_path / f"{n}.jsonl{'.gz' if n == 1 else ''}", gzip.compress(content) if n == 1 else content)
    make(tmp_path / "README.md", "no"), make(tmp_path / "dataset_info.json", "{}"), make(tmp_path / "._0.jsonl", "\0")
    make(tmp_path / "empty.jsonl", "")
    assert list(read_documents(tmp_path)) == TEXTS


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".csv", ".JSON"])
def test_folder_of_tables(tmp_path, ending):
    """Folders of other forms are read likewise."""
    for name in "ab":
        make(tmp_path / f"{name}{ending}", FORMS[ending.lower()])
    assert list(read_documents(tmp_path)) == TEXTS * 2


def test_folder_of_texts_in_other_forms(tmp_path):
    """A text file of a folder is one document, also in capitals and compressed."""
    make(tmp_path / "a.TXT", "one\ntwo"), make(tmp_path / "b.txt.xz", lzma.compress(b"three\nfour"))
    assert list(read_documents(tmp_path)) == ["one\ntwo", "three\nfour"]


def test_mixed_folder(tmp_path):
    """Of two forms in one folder neither is left out without a word."""
    make(tmp_path / "a.txt", "a"), make(tmp_path / "b.jsonl", LINES)
    assert refusal(tmp_path) == (
        f"{tmp_path}: files of several forms (a.txt, b.jsonl), expected one form; name those that you mean, as"
        f" '{tmp_path}/*.txt'"
    )
    assert list(read_documents(f"{tmp_path}/*.jsonl")) == TEXTS


def test_nested_folder(tmp_path):
    """Folders below are not left out without a word, and named they are read."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        make(tmp_path / split / "a.jsonl", json.dumps({"text": split}))
    assert refusal(tmp_path) == (
        f"{tmp_path}: files of a corpus in test below it, expected them in one folder; name the folders that you mean,"
        f" as {tmp_path}/test"
    )
    assert list(read_documents([tmp_path / "train", tmp_path / "test"])) == ["train", "test"]
    assert list(read_documents(f"{tmp_path}/*")) == list(read_documents(f"{tmp_path}/**/*.jsonl")) == ["test", "train"]


def test_pattern(tmp_path):
    """A pattern is its files by name, as if each was named; a file that is called like a pattern is itself."""
    for n, text in enumerate(TEXTS):
        make(tmp_path / f"{n}.txt", f"{text}\n{text}")
    assert list(read_documents(f"{tmp_path}/[0-9].txt")) == [text for text in TEXTS for _ in range(2)]
    assert list(read_documents(make(tmp_path / "[0].jsonl", LINES))) == TEXTS
    assert refusal(f"{tmp_path}/z*.txt").startswith(
        f"{tmp_path}/z*.txt: no file matches, expected a text file, a .json"
    )
    assert "files of several forms" in refusal(f"{tmp_path}/*")


def test_several_sources(tmp_path):
    """Sources of any form come one after the other; one that is missing is refused before the first document."""
    first, second = make(tmp_path / "b.jsonl", LINES), make(tmp_path / "a.csv", FORMS[".csv"])
    assert list(read_documents([first, str(second)])) == TEXTS * 2
    documents = read_documents([first, tmp_path / "nothing.jsonl"])
    with pytest.raises(CorpusError, match=r"nothing\.jsonl: no such file"):
        next(documents)
    assert refusal([first, first]) == f"{first}, {first}: {first} is named twice, expected once"
    assert refusal([first, f"{tmp_path}/*.jsonl"]).endswith(f"{first} is named twice, expected once")
    assert refusal("").startswith("an empty name, expected")
    assert refusal("https://host/a.jsonl").startswith("https://host/a.jsonl: an address, expected a text file")


def test_zip(tmp_path):
    """An archive of one file is that file; of several it is the folder."""
    for ending, content in FORMS.items():
        assert list(read_documents(make(tmp_path / "one.zip", zipped({f"c{ending}": content})))) == TEXTS
    assert list(read_documents(make(tmp_path / "c.jsonl.zip", zipped({"data": LINES})))) == TEXTS
    several = {"x/b.txt": b"one\ntwo", "x/a.txt": b"three", "__MACOSX/x/._a.txt": b"\0", "x/README.md": b"no"}
    assert list(read_documents(make(tmp_path / "several.ZIP", zipped(several)))) == ["three", "one\ntwo"]
    assert list(read_documents(make(tmp_path / "without", zipped({"a.csv": FORMS[".csv"]})))) == TEXTS


def test_zip_of_something_else(tmp_path):
    """Office documents and archives of several forms are zip files too, and no corpora."""
    path = make(tmp_path / "report.zip", zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}))
    assert refusal(path).startswith(f"{path}: a zip archive without a file that can be read, expected")
    path = make(tmp_path / "mixed.zip", zipped({"a.txt": b"a", "b.jsonl": LINES}))
    assert refusal(path).startswith(f"{path}: files of several forms (a.txt, b.jsonl), expected one form")
    path = make(tmp_path / "cut.zip", zipped({"a.jsonl": LINES})[:-30])
    assert refusal(path).startswith(f"{path}: damaged or cut off (")


def test_saved_data_set(tmp_path):
    """What `save_to_disk` wrote is read: a data set, one split of a dictionary of them, `train` unless it is named."""
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "dict")
    assert list(read_documents(tmp_path / "one")) == list(read_documents(tmp_path / "dict")) == TEXTS
    assert list(read_documents(tmp_path / "one", "meta.body"))[0] == f"{TEXTS[0]} 0"
    assert (
        list(read_documents(tmp_path / "dict" / "test")) == list(read_documents(f"{tmp_path}/dict::test")) == TEXTS[2:]
    )
    assert refusal(f"{tmp_path}/dict::dev").startswith(
        f"{tmp_path}/dict: no split 'dev' among train, test; name one as"
    )
    assert refusal(tmp_path / "one", "body").endswith(
        "no field 'body' among id, text, meta; name another with --text-field"
    )


# pipes


@pytest.mark.parametrize("ending", FORMS)
def test_pipe(tmp_path, ending):
    """A pipe has no ending: its content says what it is, compressed or not; it is read once."""
    for content in (FORMS[ending], gzip.compress(FORMS[ending]), zstd(FORMS[ending])):
        with pipe_with(content) as path:
            assert pipes([path, "-", "other"]) == [path] + (["-"] if pipes(["-"]) else [])
            assert list(read_documents(path)) == TEXTS


class pipe_with:  # noqa: N801
    """A pipe as `<(command)` makes it, with this content."""

    def __init__(self, content: bytes) -> None:
        self.end, start = os.pipe()

        def write() -> None:
            with open(start, "wb") as stream:
                stream.write(content)

        self.thread = threading.Thread(target=write)

    def __enter__(self) -> str:
        self.thread.start()
        return f"/dev/fd/{self.end}"

    def __exit__(self, *error: object) -> None:
        os.close(self.end)
        self.thread.join()


@pytest.mark.parametrize("content, field", [
    ("id,Review Text\n1,good\n2,\"bad, very\"\n", "Review Text"),
    ("id,sentence\n1,a b\n2,\"c\nd\"\n", "sentence"),
    ("1\tEin Satz.\n2\tNoch einer.\n", "text"),
    ("Review Text;Label\na;1\n", "Review Text"),
    ("Review Text,Label\na,1\nb,2\n", "text"),
    ("text\na\nb\n", "text"),
])  # fmt: skip
def test_table_is_known_by_its_lines(tmp_path, content, field):
    """No header, label or row number of a table becomes a document, where no ending says that it is a table."""
    assert "holds a table, but its ending says text" in refusal(make(tmp_path / "c.txt", content), field)
    path = make(tmp_path / "c", content)
    if field in content.splitlines()[0]:
        assert list(read_documents(path, field)) == list(read_documents(path, field, "csv"))
    else:
        assert "no field 'text' among" in refusal(path)


@pytest.mark.parametrize(
    "content",
    ["Yes, I do.\nNo, I do not.\nWell, no.", "hello,world", "a\tb\nc", "one; two\nthree; four\nfive; six",
     "It is 1,000.\nNo.\nSo.", "你好,世界\n再见"],
)  # fmt: skip
def test_text_is_no_table(tmp_path, content):
    """Running text with commas, tabs and semicolons stays a document a line."""
    for name in ("c.txt", "c"):
        assert list(read_documents(make(tmp_path / name, content))) == content.split("\n")


def test_pipe_is_not_read_twice():
    """What is gone is not left out without a word."""
    with pipe_with(LINES) as path:
        assert next(read_documents(path)) == TEXTS[0]
        assert refusal(path) == f"{path}: a pipe, which can be read only once, but is needed again; write a file"


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_streamed(name):
    """The first document comes before the input has ended."""
    code = (
        f"from plnd.io.corpus import read_documents\nfor text in read_documents({name!r}): print(len(text), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x" * 3000 + b"\n" + b"y" * 5000 + b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"3000\n"
        child.stdin.write(b"z\n")
        child.stdin.close()
        assert child.stdout.read() == b"5000\n1\n"
    assert child.returncode == 0


# refusals


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("c.txt", LINES, "holds JSON, but its ending says text; rename it to .jsonl, or say --format text to read"),
        ("c.txt", FORMS[".json"], "holds JSON, but its ending says text"),
        ("c.txt", FORMS[".csv"], "holds a table, but its ending says text; rename it to .csv"),
        ("c.txt", b"id\tsentence\n1\ta b\n2\tc\n", "holds a table, but its ending says text; rename it to .tsv"),
        ("c.txt", FORMS[".parquet"], "holds Parquet, but its ending says text; rename it to .parquet"),
        ("c.jsonl", FORMS[".parquet"], "holds Parquet, but its ending says json"),
        ("c.csv", LINES, "holds JSON, but its ending says csv; rename it to .jsonl"),
        ("c.parquet", LINES, "holds JSON, but its ending says parquet; rename it to .jsonl"),
        ("c.parquet", b"nonsense", "not Parquet, expected what its ending says; fetch it again or rename it"),
        ("c.arrow", b"nonsense", "not Arrow, expected what its ending says"),
        ("c.parquet", b"", "damaged or cut off ("),
        ("c.parquet", FORMS[".parquet"][:-20], "damaged or cut off ("),
        ("c.jsonl", b"<!DOCTYPE html><html>Not found", "markup (<!DOCTYPE), expected"),
        ("c.txt", b'<?xml version="1.0"?>\n<a>\n', "markup (<?xml), expected"),
        ("c.txt", b'<doc id="1" url="">\ntext\n</doc>\n', "markup (<doc), expected"),
        ("c", b"%PDF-1.7\n%\xe2\xe3", "markup (%PDF-1.7), expected"),
        ("c.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", ".srt is no form of a corpus, expected"),
        ("c.conllu", b"# text = a\n1\ta\n", ".conllu is no form of a corpus, expected"),
        ("c.bin", b"\x00\x01\x02", "not text (it has NUL bytes"),
        ("c.json", b'[{"text": "a"}, {"text": ]', "record 2: not JSON, expected one list of objects"),
        ("c.json", b'[{"text": "a"} {"text": "b"}]', "record 2: not JSON, expected one list of objects"),
        ("c.json", b'[{"text": "a"}', "record 2: not JSON, expected one list of objects"),
        ("c.json", b'[{"text": "a"}] [', "after the list: not JSON, expected one list of objects"),
        ("c.json", b'["a", "b"]', "record 1: a str, expected an object with the field 'text'"),
        ("c.json", b'{"text": ["a", "b"]}', "line 1: field 'text' is ['a', 'b'], expected text; name another"),
        ("c.json", b'{\n "text": "a"\n}', "line 1: not JSON, expected one JSON object a line"),
        ("c.csv", b"id,body\n1,a\n", "line 2: no field 'text' among id, body; name another with --text-field"),
        ("c.csv", b"id,text\n1,a\n2,b, c\n", "line 3: 3 cells, expected 2 as in its header; quote texts"),
        ("c.csv", b'id,text\n1,"a"b\n', "line 2: not a table ("),
        ("c.csv", b'id,text\n1,"a\n', "not a table (unexpected end of data), expected a header and rows"),
        ("c.csv", b"text,text\na,b\n", "columns text, text: two of one name"),
        ("c.csv", b"id,text\n1,\xe9\n", "line 2: not UTF-8, expected UTF-8 text (byte 0xe9); convert it"),
        ("c.csv", "id,text\n1,a\n".encode("utf-16"), "UTF-16 and not UTF-8, expected UTF-8 text; convert it with"),
        ("c.parquet", parquet_bytes([{"id": 1, "body": "a"}]), "no field 'text' among id, body; name another"),
        ("c.arrow", arrow_bytes([{"id": 1, "body": "a"}]), "no field 'text' among id, body; name another"),
        ("c.parquet", parquet_bytes([{"text": "a"}, {"text": None}]), "row 2: field 'text' is None, expected text"),
        ("c.parquet", parquet_bytes([{"text": 1}]), "row 1: field 'text' is 1, expected text"),
        ("c.csv", b"", "no document in it"),
        ("c.csv", b"id,text\n1,\n", "no document in it"),
        ("c.jsonl.gz", gzip.compress(b"", mtime=0), "no document in it"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(tmp_path, name, content, words):
    """Each fault is one line that says what was found, and no header, markup or row becomes a document."""
    path = make(tmp_path / name, content)
    assert refusal(path).startswith(str(path))
    assert words in refusal(path)


def test_a_tar_archive(tmp_path):
    """An archive that cannot be read is named, also compressed."""
    import tarfile

    make(tmp_path / "a.txt", "a")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    assert "a tar archive, expected a text file, a .jsonl" in refusal(tmp_path / "c.tar.gz")


@pytest.mark.parametrize("field, words", [
    ("meta.nothing", "no field 'meta.nothing' among meta.body; name another with --text-field"),
    ("text.a", f"no field 'text.a' among text ('{TEXTS[0]}'); name another with --text-field"),
    ("meta", "field 'meta' is {'body': 'Ein Satz. 0'}, expected text"),
])  # fmt: skip
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_nested_field_that_is_not_there(tmp_path, ending, field, words):
    """The fields that are there are named, at the level where the first one is missing."""
    assert words in refusal(make(tmp_path / f"corpus{ending}", FORMS[ending]), field)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fault", ["cut", "broken"])
def test_damaged_stream(tmp_path, compression, fault):
    """Documents before the fault are given; then comes one line, never a silent end."""
    import random

    draw = random.Random(0)
    good = b"".join(b'{"text": "%032x"}\n' % draw.getrandbits(128) for _ in range(12_000))
    packed = bytearray(COMPRESSIONS[compression](good))
    if fault == "cut":
        del packed[-len(packed) // 10 :]
    else:
        middle = len(packed) * 3 // 4
        packed[middle : middle + 100] = bytes(100)
    path = make(tmp_path / f"c.jsonl{compression}", bytes(packed))
    given = []
    broken = "|not JSON|not UTF-8" if fault == "broken" else ""  # where the fault is seen before the check sum
    with pytest.raises(CorpusError, match=rf"c\.jsonl.*: (damaged or cut off \(.+\); fetch it again{broken})"):
        for text in read_documents(path):
            given.append(text)
    assert given or compression in (".bz2", ".lz4")  # whose blocks are as large as what is before the fault
    assert given == [json.loads(line)["text"] for line in good.splitlines()[: len(given)]]


def test_format_says_what_a_file_is(tmp_path):
    """A form that is named is the form, whatever ending and content say."""
    assert list(read_documents(make(tmp_path / "c.txt", LINES), form="json")) == TEXTS
    assert list(read_documents(make(tmp_path / "c.srt", "a\nb"), form="text")) == ["a", "b"]
    assert list(read_documents(make(tmp_path / "d.txt", '{"text": "a"}'), form="text")) == ['{"text": "a"}']
    assert list(read_documents(make(tmp_path / "e", b"body\na\nb\n"), "body", "csv")) == ["a", "b"]
    with pytest.raises(CorpusError, match="format 'xml': expected one of text, json, csv, tsv, parquet, arrow"):
        next(read_documents(tmp_path / "c.txt", form="xml"))


# memory and laziness


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".jsonl.gz", ".jsonl.zst"])
def test_memory_stays_flat(tmp_path, ending):
    """A corpus of 3 MB takes 1 MB at most; its first documents are there before the rest is read."""
    record = json.dumps({"text": "x" * 990})
    count = 3_000
    if ending == ".json":
        content = ("[" + ",".join([record] * count) + "]").encode()
    elif ending == ".csv":
        content = ("text\n" + ("x" * 990 + "\n") * count).encode()
    else:
        content = (f"{record}\n" * count).encode()
    path = make(tmp_path / f"c{ending}", COMPRESSIONS.get(ending.removeprefix(".jsonl"), bytes)(content))
    del content
    assert len(next(read_documents(path))) == 990  # imports what it needs
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents(path)) == count
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending, content", [
    (".json", b'[{"text": "a"}, {"text": "b"}, {broken'),
    (".csv", b"id,text\n1,a\n2,b\n3\n"),
    (".jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n{broken', mtime=0)),
    (".parquet", parquet_bytes([{"text": "a"}, {"text": "b"}, {"text": None}])),
])  # fmt: skip
def test_every_form_is_streamed(tmp_path, ending, content):
    """What is wrong further down does not stop what comes before it, so that a limit stops the reading."""
    documents = read_documents(make(tmp_path / f"corpus{ending}", content))
    assert [next(documents), next(documents)] == ["a", "b"]
    with pytest.raises(CorpusError):
        next(documents)


# what takes more than it seems


@pytest.mark.parametrize(
    ("ending", "content", "found"),
    [
        (".parquet", parquet_bytes([{"text": "a" * 3000}]), "a page of 3,"),
        (".parquet", parquet_bytes([{"text": "a" * 3000}], use_dictionary=False, compression="zstd"), "a page of 3,"),
        (".parquet", parquet_bytes([{"text": "a"}, {"text": "b" * 3000}], data_page_version="2.0"), "a page of 3,"),
        (".arrow", arrow_bytes([{"text": "a" * 9000}], compression="zstd"), "a batch of 9,"),
        (".arrow", arrow_bytes([{"text": "a" * 9000}], pa.ipc.new_file, compression="lz4"), "a batch of 9,"),
        (".arrow", arrow_bytes([{"text": "a" * 9000}], dictionary=True, compression="zstd"), "a batch of 9,"),
    ],
)
def test_columns_that_unpack_to_too_much(tmp_path, monkeypatch, ending, content, found):
    """What would be unpacked at once is refused before it is, by what the file says of it; here at 1 and 5 kB."""
    path = make(tmp_path / f"c{ending}", content)
    assert len(list(read_documents(path))) in (1, 2)
    monkeypatch.setattr(columnar, "MAX_PAGE", 1000)
    monkeypatch.setattr(columnar, "MAX_BATCH", 5000)
    line = refusal(path, "text")
    assert line.startswith(f"{path}: {found}") and "bytes unpacked, expected at most" in line


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_rows_of_one_long_text_are_not_all_in_memory(tmp_path, monkeypatch, ending):
    """Of rows that share a text, which a file holds once, only so many are made at a time as fit."""
    rows = [{"text": "a" * 1000}] * 1000
    content = parquet_bytes(rows) if ending == ".parquet" else arrow_bytes(rows, dictionary=True)
    path = make(tmp_path / f"c{ending}", content)
    assert len(list(read_documents(path))) == 1000  # imports what it needs
    monkeypatch.setattr(columnar, "ROW_BYTES", 20_000)
    tracemalloc.start()
    try:
        assert sum(map(len, read_documents(path))) == 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_pages_that_are_none(tmp_path):
    """A file whose index is whole and whose pages are not is one line."""
    data = parquet_bytes([{"text": "a" * 100}], use_dictionary=False)
    for junk in (b"\xff", b"\x19"):  # a number without end, lists in lists
        path = make(tmp_path / "c.parquet", data[:4] + junk * 60 + data[64:])
        assert refusal(path, "text").startswith(f"{path}: damaged or cut off (no page at byte")


def test_each_byte_of_a_parquet_file_can_be_another():
    """Whatever one byte of the index or of a page's header becomes (another type, a place before the file), the size
    of the largest page is found or the file is refused; nothing else is raised."""
    data = parquet_bytes([{"text": "a" * 100}], use_dictionary=False)
    outcomes = set()
    for place in range(len(data) - 8):
        for byte in (255, data[place] ^ 1, data[place] ^ 16):
            changed = data[:place] + bytes([byte]) + data[place + 1 :]
            try:
                outcomes.add(type(columnar.largest_page(io.BytesIO(changed), ["text"], "c.parquet")))
            except CorpusError as error:
                outcomes.add(type(error))
    assert outcomes == {int, CorpusError}


def test_arrow_that_points_elsewhere(tmp_path):
    """Places of texts beyond the texts, and more bytes than there are: one line, and nothing is read anywhere else."""
    data = arrow_bytes([{"text": "a" * 40}, {"text": "b" * 40}])
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 40, 80))
    assert data.count(offsets) == 1
    lies = data.replace(offsets, offsets[:4] + (2**31 - 9).to_bytes(4, "little") + offsets[8:])
    assert "damaged or cut off" in refusal(make(tmp_path / "a.arrow", lies), "text")
    tracemalloc.start()
    try:
        greedy = make(tmp_path / "b.arrow", data[:4] + (2**30).to_bytes(4, "little") + data[8:])
        assert "damaged or cut off" in refusal(greedy, "text")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_file_that_unpacks_to_itself(tmp_path):
    """Compressions around one another are taken off a few times."""
    data = b"one\ntwo\n"
    for layers in range(1, 6):
        data = gzip.compress(data)
        path = make(tmp_path / f"{layers}.txt.gz", data)
        if layers <= 4:
            assert list(read_documents(path)) == ["one", "two"]
    assert "compressed more than 4 times" in refusal(path, "text")


def test_what_is_unpacked_to_the_disk_is_bounded(tmp_path, monkeypatch):
    """A compressed Parquet file is copied, as long as it is no bomb."""
    path = make(tmp_path / "c.parquet.gz", gzip.compress(parquet_bytes()))
    assert list(read_documents(path)) == TEXTS
    monkeypatch.setattr(corpus_files, "MAX_COPY", 100)
    assert "more than 100 bytes unpacked" in refusal(path, "text")


def test_xz_takes_no_more_memory_than_it_needs(tmp_path):
    """Streams one after the other, with zeros between, are read; a file that asks for a GiB is refused."""
    parts = [lzma.compress(part) for part in (b"one\n", b"two\n")]
    path = make(tmp_path / "c.txt.xz", parts[0] + bytes(8) + parts[1] + bytes(4))
    assert list(read_documents(path)) == ["one", "two"]
    greedy = bytearray(parts[0])  # of its block header the size of its dictionary, and the check sum
    greedy[16] = 35  # 768 MiB
    greedy[20:24] = zlib.crc32(greedy[12:20]).to_bytes(4, "little")
    assert "damaged or cut off (Memory usage limit" in refusal(make(tmp_path / "g.txt.xz", bytes(greedy)), "text")


# other readers


@pytest.mark.parametrize("ending", [".jsonl", ".JSON", ".csv", ".tsv.gz", ".parquet", ".txt"])
def test_parallel_rows(tmp_path, ending):
    """Parallel inputs are read from every form with a field per language, and from JSON lines under any name."""
    rows = [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei"}]
    content = {
        ".jsonl": "\n".join(map(json.dumps, rows)).encode(),
        ".txt": "\n".join(map(json.dumps, rows)).encode(),
        ".JSON": json.dumps(rows, indent=1).encode(),
        ".csv": b"en,de\none,eins\ntwo,zwei\n",
        ".tsv.gz": gzip.compress(b"en\tde\none\teins\ntwo\tzwei\n"),
        ".parquet": parquet_bytes(rows),
    }[ending]
    parallel = read_parallel(make(tmp_path / f"pairs{ending}", content))
    assert (parallel.languages, parallel.prompts) == (["en", "de"], [["one", "eins"], ["two", "zwei"]])


def test_find_corpus(tmp_path):
    """A language's file is found with any ending: `.jsonl`, then `.txt`, then another, if there is only one."""
    assert find_corpus(tmp_path, "zh") is None
    make(tmp_path / "zh.parquet", b""), make(tmp_path / "zh.md", b""), make(tmp_path / "zhx.csv", b"")
    assert find_corpus(tmp_path, "zh") == tmp_path / "zh.parquet"
    make(tmp_path / "zh.CSV.gz", b"")
    with pytest.raises(CorpusError, match=r"zh\.CSV\.gz, zh\.parquet: which one is not known"):
        find_corpus(tmp_path, "zh")
    make(tmp_path / "zh.txt", b"")
    assert find_corpus(tmp_path, "zh") == tmp_path / "zh.txt"
    make(tmp_path / "zh.jsonl", b"")
    assert find_corpus(tmp_path, "zh") == Path(tmp_path, "zh.jsonl")


@pytest.mark.parametrize("rows", ['"Yes, he said.\t1\nNo.\t2\nOk."\t3\n', '1\t"Yes, he said.\n2\tNo.\n3\tOk."\n'])
def test_quotes_that_are_only_text_do_not_swallow_rows(tmp_path, rows):
    """A tab-separated file that quotes nothing, with a quotation over several rows, is not read as one document."""
    path = tmp_path / "c.tsv"
    path.write_text(("text\tid\n" if rows.startswith('"') else "id\ttext\n") + rows)
    with pytest.raises(CorpusError, match='c.tsv, line 4: a " that is closed only lines later, across tabs; quote'):
        list(read_documents(path))


def test_a_quoted_text_of_several_lines_in_a_table_with_tabs(tmp_path):
    """One document, as RFC 4180 has it."""
    path = tmp_path / "c.tsv"
    path.write_text('text\tid\n"a\nb"\t1\n')
    assert list(read_documents(path)) == ["a\nb"]


@pytest.mark.parametrize(
    ("name", "parts", "line"),
    [
        ("x.txt.gz", (b"", b"a" * 2**20, b""), "line 1: longer than 67,108,864 bytes, expected a document a line"),
        ("x.jsonl.gz", (b'{"text": "', b"a" * 2**20, b'"}'), "line 1: longer than 67,108,864 bytes, expected a"),
        ("x.json.gz", (b'[{"text": "', b"a" * 2**20, b'"}]'), "record 1: longer than 67,108,864 bytes, expected a"),
        ("x.csv.gz", (b'text,n\n"', b"a\n" * 2**19, b'",1\n'), "field larger than field limit (67108864)"),
        ("y.jsonl.gz", (b'{"text": [', b"[]," * 2**15, b"0]}"), "line 1: more than 4,194,304 values, expected the"),
        ("y.json.gz", (b'[{"text": [', b"[]," * 2**15, b"0]}]"), "record 1: more than 4,194,304 values, expected the"),
    ],
)
@pytest.mark.slow
def test_bombs(tmp_path, name, parts, line):
    """A few hundred kB that unpack to one line, record, cell or document of any size: refused before memory is full."""
    first, middle, last = parts
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as stream:
        stream.write(first)
        for _ in range(160):
            stream.write(middle)
        stream.write(last)
    tracemalloc.start()
    try:
        assert line in refusal(tmp_path / name, "text")
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()
