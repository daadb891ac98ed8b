"""A corpus gives its documents in order, from any format, or says where it is not what was expected."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from corpora import TEXTS, json_lines, make, refusal
from plnd.demo_data import demo_model
from plnd.errors import CorpusError
from plnd.io.corpus import corpus_digest, read_documents, read_sections
from plnd.io.corpus_files import READABLE

# formats


@pytest.mark.parametrize("suffix", [".txt", ".text", "", ".md"])
def test_text_is_one_document_a_line(tmp_path, suffix):
    """Any file that is not JSON by its name is text."""
    path = make(tmp_path / f"corpus{suffix}", "\n".join(TEXTS))
    assert list(read_documents(path)) == list(read_documents(str(path))) == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path, suffix):
    """One object a line; the text is in the named field."""
    assert list(read_documents(make(tmp_path / f"corpus{suffix}", json_lines(TEXTS)))) == TEXTS
    assert list(read_documents(make(tmp_path / f"other{suffix}", json_lines(TEXTS, "body")), "body")) == TEXTS


def test_folder_is_one_document_a_file(tmp_path):
    """Files are read by name; line breaks stay inside a document; other files do not count."""
    make(tmp_path / "b.txt", "second\n\nwith a gap\n"), make(tmp_path / "a.txt", "first"), make(tmp_path / "c.md", "no")
    make(tmp_path / "empty.txt", "\n")
    assert list(read_documents(tmp_path)) == ["first", "second\nwith a gap"]


@pytest.mark.parametrize("content", ["\n \n\t\na\n\n\u3000\nb\n\n", "a\r\n\r\nb\r\n", "  a  \n\tb"], ids=repr)
def test_blank_lines_and_line_ends(tmp_path, content):
    """Blank lines are no documents, and the ends of lines no part of them, whichever system wrote them."""
    assert list(read_documents(make(tmp_path / "corpus.txt", content))) == ["a", "b"]


def test_blank_json(tmp_path):
    """Blank lines between rows, and rows whose text is blank, are left out."""
    content = '{"text": "a"}\n\n{"text": " \\n "}\n{"text": ""}\n{"text": "b"}'
    assert list(read_documents(make(tmp_path / "corpus.jsonl", content))) == ["a", "b"]


def test_json_text_is_kept_as_it_is(tmp_path):
    """White space inside a row's text belongs to the text."""
    assert list(read_documents(make(tmp_path / "corpus.jsonl", '{"text": " a\\nb "}'))) == [" a\nb "]


@pytest.mark.parametrize("name, content", [("c.txt", "a\nb"), ("c.jsonl", '{"text": "a"}\n{"text": "b"}')])
def test_byte_order_mark(tmp_path, name, content):
    """A byte order mark at the start, as Windows writes it, is not part of the first document."""
    assert list(read_documents(make(tmp_path / name, b"\xef\xbb\xbf" + content.encode()))) == ["a", "b"]


def test_documents_are_streamed(tmp_path):
    """What is wrong further down does not stop what comes before it."""
    documents = read_documents(make(tmp_path / "corpus.jsonl", '{"text": "a"}\n{"text": "b"}\n{broken'))
    assert [next(documents), next(documents)] == ["a", "b"]
    with pytest.raises(CorpusError):
        next(documents)


# errors


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl"])
@pytest.mark.parametrize("line", [1, 2, 700])
def test_not_utf_8(tmp_path, name, line):
    """The line that is not UTF-8 is named, wherever it is."""
    good, bad = (b"a\n", b"\xe9\n") if name.endswith(".txt") else (b'{"text": "a"}\n', b'{"text": "\xe9"}\n')
    path = make(tmp_path / name, good * (line - 1) + bad + good)
    assert refusal(path) == (
        f"{path}, line {line}: not UTF-8, expected UTF-8 text (byte 0xe9); convert it, from Latin-1 for example with"
        " iconv -f LATIN1 -t UTF-8"
    )


def test_utf_16(tmp_path):
    """Text in another encoding is refused by its name, not read as something else."""
    for encoding in ("UTF-16", "UTF-32"):
        path = make(tmp_path / "corpus.txt", "é\n".encode(encoding))
        assert (
            refusal(path)
            == f"{path}: {encoding} and not UTF-8, expected UTF-8 text; convert it with iconv -f {encoding} -t UTF-8"
        )
    path = make(tmp_path / "corpus.txt", "ab\n".encode("utf-16-le"))
    assert refusal(path).startswith(f"{path}: not text (it has NUL bytes: a binary file, or UTF-16), expected a text")


@pytest.mark.parametrize("broken", ["{", "nonsense", '{"text": "a"', "[" * 100_000, '{"text": "a"}{"text": "b"}'])
def test_broken_json(tmp_path, broken):
    """The line that is not JSON is named; blank lines count."""
    path = make(tmp_path / "corpus.jsonl", '{"text": "a"}\n\n' + broken)
    assert refusal(path) == f"{path}, line 3: not JSON, expected one JSON object a line"


@pytest.mark.parametrize(
    "row, wording",
    [
        ('{"body": "a", "id": 1}', "no field 'text' among body, id; name another with --text-field"),
        ("{}", "no field 'text' among ; name another with --text-field"),
        ('{"text": null}', "field 'text' is None, expected text; name another with --text-field"),
        ('{"text": ["a"]}', "field 'text' is ['a'], expected text; name another with --text-field"),
        ("[1]", "a list, expected an object with the field 'text'"),
        ('"a"', "a str, expected an object with the field 'text'"),
        ('{"text": "a\\ud800"}', "half a surrogate pair, which is not text"),
    ],
)
def test_row_that_is_not_what_was_expected(tmp_path, row, wording):
    """The line is named, with what it has and what was expected."""
    path = make(tmp_path / "corpus.jsonl", '{"text": "a"}\n' + row)
    assert refusal(path) == f"{path}, line 2: {wording}"


def test_long_rows_are_not_repeated(tmp_path):
    """An error does not print a whole document."""
    path = make(tmp_path / "corpus.jsonl", json.dumps({"text": ["long"] * 999}) + "\n")
    assert len(refusal(path)) < 200 + len(str(path))
    path = make(tmp_path / "corpus.jsonl", json.dumps({f"field {n}": 1 for n in range(999)}) + "\n")
    assert len(refusal(path)) < 200 + len(str(path))


@pytest.mark.parametrize("content", ["", "\n\n \n"])
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl", "folder/a.txt"])
def test_empty(tmp_path, name, content):
    """A corpus without a document is an error and not an empty result."""
    (tmp_path / "folder").mkdir()
    path = make(tmp_path / name, content)
    source = path.parent if "/" in name else path
    assert refusal(source) == f"{source}: no document in it"


def test_folder_without_text(tmp_path):
    """A folder of something else is refused as that."""
    make(tmp_path / "a.md", "a")
    assert refusal(tmp_path) == (
        f"{tmp_path}: a folder without .txt files (a document a file), .jsonl, .json, .csv, .tsv, .parquet or .arrow"
    )


@pytest.mark.parametrize("name", ["zh.jsonl", "zh.txt", "./zh", "folder.of/zh.json", "~/zh", "a" * 300 + ".txt"])
def test_missing_file(tmp_path, monkeypatch, name):
    """What looks like a file is not looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    assert refusal(name) == f"{name}: no such file, expected {READABLE}"
    assert refusal(tmp_path / "zh").endswith(f"zh: no such file, expected {READABLE}")


def test_a_path_inside_the_package(tmp_path, monkeypatch):
    """`plnd:…`, which settings of experiments know, is answered with where the file is; a folder `plnd` is read."""
    monkeypatch.chdir(tmp_path)
    name = "corpus/detect/corpora/zh.jsonl"
    place = demo_model().parent / name
    assert refusal(f"plnd:{name}").endswith(f"are for settings of experiments, expected the path itself: {place}")
    assert next(read_documents(place))
    assert "settings of experiments" not in refusal("plnd:zh.jsonl")


# data sets


@pytest.fixture
def data_set(tmp_path, monkeypatch) -> Path:
    """A local data set: a folder with one Parquet file a split, in a working directory of its own."""
    import datasets

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpora"
    folder.mkdir()
    rows = {"text": TEXTS, "other": ["x", "y", "z"]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    datasets.Dataset.from_dict({"text": ["held out"]}).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_data_set_by_name(data_set):
    """`name:config:split` goes to `datasets.load_dataset`; the split is `train` unless it is named."""
    assert list(read_documents("corpora:")) == list(read_documents("corpora:default")) == TEXTS
    assert list(read_documents("corpora:default:test")) == list(read_documents("corpora::test")) == ["held out"]
    assert list(read_documents("corpora:", "other")) == ["x", "y", "z"]


def test_sections_of_a_data_set(data_set, monkeypatch):
    """Its files, or groups of consecutive ones, in order, each read apart; what is no streamed data set has none."""
    import datasets

    assert read_sections("corpora:") is None  # one file
    for number in range(5):
        rows = datasets.Dataset.from_dict({"text": [f"{number}a", "", f"{number}b"]})
        rows.to_parquet(data_set / f"validation-0000{number}-of-00005.parquet")
    sections = read_sections("corpora::validation")
    assert sections is not None and len(sections) == 5 and list(sections[3]) == ["3a", "3b"]
    assert list(sections) == list(read_documents("corpora::validation"))
    monkeypatch.setattr("plnd.io.corpus.SECTIONS", 2)
    halves = read_sections("corpora::validation")
    assert halves is not None and [len(list(halves[n])) for n in range(len(halves))] == [6, 4]
    assert list(halves) == list(sections)
    for other in (data_set / "validation-00000-of-00005.parquet", ["corpora::validation", "corpora::test"]):
        assert read_sections(other) is None


def test_local_data_set_by_path(data_set):
    """A colon after the path of a folder reads the folder as a data set, not as a folder of .txt files."""
    assert list(read_documents(f"{data_set}:")) == list(read_documents("./corpora:")) == TEXTS


def test_data_set_errors(data_set):
    """A missing field, split or data set is one line."""
    assert refusal("corpora:", "body") == (
        "corpora:, row 1: no field 'body' among text, other; name another with --text-field"
    )
    assert refusal("corpora::nowhere").startswith(
        "corpora::nowhere: neither a file nor a data set that can be loaded ("
    )
    assert refusal("nobody/nothing").startswith("nobody/nothing: neither a file nor a data set that can be loaded (")


def test_a_corpus_is_known_by_its_content(tmp_path):
    """One letter changes the digest, another name of the file does not; a pipe is refused."""
    path = tmp_path / "zh.jsonl"
    digests = []
    for text in ("a", "b", "a"):
        path.write_text(json.dumps({"text": text}))
        digests.append(corpus_digest(path))
    assert digests[0] == digests[2] != digests[1]
    path.rename(tmp_path / "x.jsonl")
    assert corpus_digest(tmp_path) == digests[0]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError, match="pipe: a pipe, expected files, which can be read again"):
        corpus_digest(tmp_path / "pipe")
