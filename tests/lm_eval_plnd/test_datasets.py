"""The rows of `lm_eval_plnd.datasets`, from local files and from the hub's layout, and its one-line errors."""

import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lm_eval_plnd import datasets as rows
from plnd.errors import CorpusError

QUESTION = {
    "id": "q1",
    "question": "谁？ ",
    "answers": [{"text": "罗洛", "answer_start": 3}, {"text": "他", "answer_start": 0}],
}
SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": " 他叫罗洛。 ", "qas": [QUESTION]}]}]}
ROW = {"id": "q1", "language": "zh", "context": "他叫罗洛。", "question": "谁？", "answers": ["罗洛", "他"]}


def put(path, content):
    """Write `content`, text or what becomes JSON, below folders made on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def error(function, **arguments):
    """The message of the CorpusError that the call raises; it is one line."""
    with pytest.raises(CorpusError) as caught:
        function(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_xquad_reads_squad_files(tmp_path):
    """A local file gives one row a question, with all gold answers; context and question are stripped."""
    put(tmp_path / "xquad" / "xquad.zh.json", SQUAD)
    read = rows.xquad(language="zh", data_dir=str(tmp_path), pretrained="ignored", version=1.0)
    assert read["validation"].features == rows.QUESTIONS
    assert list(read["validation"]) == [ROW]


def test_xquad_reads_the_hubs_layout(tmp_path, monkeypatch):
    """Without data_dir the rows come through `datasets.load_dataset`, in the same columns."""
    hub = datasets.Dataset.from_list(
        [
            {
                "id": "q1",
                "context": " 他叫罗洛。 ",
                "question": "谁？ ",
                "answers": {"text": ["罗洛", "他"], "answer_start": [3, 0]},
            }
        ]
    )
    (tmp_path / "xquad.zh").mkdir()
    hub.to_parquet(tmp_path / "xquad.zh" / "validation-00000-of-00001.parquet")
    files = "[{split: validation, path: xquad.zh/validation-*}]"
    put(tmp_path / "README.md", f"---\nconfigs: [{{config_name: xquad.zh, data_files: {files}}}]\n---\n")
    monkeypatch.setattr(rows, "XQUAD", str(tmp_path))
    read = rows.xquad(language="zh")
    assert read["validation"].features == rows.QUESTIONS
    assert list(read["validation"]) == [ROW]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"data": [', "not JSON (Expecting value: line 1 column 11 (char 10))"),
        ({"version": "1.1"}, "JSON of another shape (KeyError('data'))"),
        ([1, 2], "JSON of another shape (TypeError("),
        ({"data": [{"paragraphs": [{"context": None, "qas": [QUESTION]}]}]}, "JSON of another shape (AttributeError("),
        ({"data": []}, "no question found"),
        (
            {"data": [{"paragraphs": [{"context": "", "qas": [{**QUESTION, "answers": []}]}]}]},
            "question q1 has no answer",
        ),
    ],
)
def test_broken_squad_files(tmp_path, content, found):
    """A file that is not SQuAD v1.1 is refused: what it is, what was expected, what to do."""
    path = tmp_path / "xquad" / "xquad.zh.json"
    put(path, content)
    message = error(rows.xquad, language="zh", data_dir=str(tmp_path))
    assert message.startswith(f"{path}: {found}")
    assert message.endswith(
        "expected SQuAD v1.1 (data, paragraphs, qas, answers): download it again, or leave out data_dir to read the hub"
    )


def test_missing_squad_file(tmp_path):
    """A missing file is named, with what to do."""
    path = tmp_path / "xquad" / "xquad.el.json"
    assert error(rows.xquad, language="el", data_dir=str(tmp_path)) == (
        f"{path}: no such file, expected SQuAD v1.1 (data, paragraphs, qas, answers): download it again, "
        "or leave out data_dir to read the hub"
    )


def test_files_that_are_not_text(tmp_path):
    """Bytes that are not UTF-8 are refused in one line, in both formats."""
    for path in (tmp_path / "xquad" / "xquad.zh.json", tmp_path / "corpora" / "zh.txt"):
        path.parent.mkdir()
        path.write_bytes(b"\xff\xfe\x00")
        read = rows.xquad if path.suffix == ".json" else rows.text
        found = error(read, language="zh", data_dir=str(tmp_path))
        assert found.startswith(str(path)) and "not " in found


@pytest.mark.parametrize("name", ["zh.jsonl", "zh.txt"])
@pytest.mark.parametrize(
    ("documents", "setting", "expected"),
    [
        (3, None, range(2, 3)),
        (4, None, range(2, 4)),
        (999, None, range(500, 999)),
        (1001, None, range(501, 1001)),
        (1200, None, range(700, 1200)),
        (4, "all", range(4)),
        (4, 3, range(1, 4)),
        (4, "3", range(1, 4)),
        (4, 9, range(4)),
    ],
)
def test_text_takes_the_end(tmp_path, name, documents, setting, expected):
    """The last 500 documents, at most the last half, unless the metadata says otherwise; blank ones do not count."""
    lines = [json.dumps({"text": f"d{i}"}) if name == "zh.jsonl" else f"d{i}" for i in range(documents)]
    put(tmp_path / "corpora" / name, "\n\n".join(lines) + "\n" + '{"text": " "}\n' * (name == "zh.jsonl"))
    read = rows.text(language="zh", data_dir=str(tmp_path), text_documents=setting, dtype="ignored")
    assert read["test"].features == rows.TEXTS
    assert read["test"]["text"][:] == [f"d{i}" for i in expected]


def test_text_is_read_unchanged(tmp_path):
    """A document of JSON lines keeps its white space, so that the scored bytes are the document's."""
    put(tmp_path / "corpora" / "fr.jsonl", '{"text": "un"}\n{"text": " deux\\n\\ntrois\\n"}\n')
    assert rows.text(language="fr", data_dir=str(tmp_path))["test"]["text"][:] == [" deux\n\ntrois\n"]


@pytest.mark.parametrize("line", ["plain text", '"text"', '{"txt": "x"}', '{"text": 3}', "[1]"])
def test_broken_json_lines(tmp_path, line):
    """A line without a text is refused by its number."""
    path = tmp_path / "corpora" / "zh.jsonl"
    put(path, f'{{"text": "x"}}\n{line}\n')
    assert error(rows.text, language="zh", data_dir=str(tmp_path)).startswith(f"{path}, line 2: ")


def test_too_few_documents(tmp_path):
    """A corpus whose last half is empty is refused, with the way to score it all; an empty one is refused as such."""
    put(tmp_path / "corpora" / "zh.txt", "one\n")
    message = error(rows.text, language="zh", data_dir=str(tmp_path))
    assert "documents found: 1, expected at least 2" in message and '"text_documents": "all"' in message
    put(tmp_path / "corpora" / "zh.txt", "\n")
    assert "no document in it" in error(rows.text, language="zh", data_dir=str(tmp_path))


def test_missing_corpus(tmp_path):
    """Neither form of a corpus there: both are named."""
    message = error(rows.text, language="sw", data_dir=str(tmp_path))
    assert message.startswith(f"{tmp_path / 'corpora'}: found neither sw.jsonl (")
    assert "nor sw.txt" in message


@pytest.mark.parametrize("setting", [0, -1, True, "many", 2.5, "²"])
def test_text_documents_is_a_count_or_all(tmp_path, setting):
    """Anything but a positive number or "all" is refused."""
    put(tmp_path / "corpora" / "zh.txt", "a\nb\n")
    assert error(rows.text, language="zh", data_dir=str(tmp_path), text_documents=setting) == (
        f'text_documents: found {setting!r}, expected "all" or a number above 0'
    )


def test_wikipedia_is_read_from_its_end(tmp_path, monkeypatch):
    """Without data_dir the last articles of the last files come back in order, and no other row group is read."""
    folder = tmp_path / "20231101.zh"
    folder.mkdir()
    for file in range(3):
        table = pyarrow.table({"id": [str(i) for i in range(10)], "text": [f"{file}-{i}" for i in range(10)]})
        pyarrow.parquet.write_table(table, folder / f"train-0000{file}-of-00003.parquet", row_group_size=4)
    groups = []
    read = pyarrow.parquet.ParquetFile.read_row_group

    def record(file, group, columns):
        groups.append((group, columns))
        return read(file, group, columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", record)
    monkeypatch.setattr(rows, "WIKIPEDIA", str(tmp_path / "20231101.{language}"))
    assert rows.text(language="zh", text_documents=3)["test"]["text"][:] == ["2-7", "2-8", "2-9"]
    assert groups == [(2, ["text"]), (1, ["text"])]
    assert rows.text(language="zh", text_documents=11)["test"]["text"][:] == ["1-9", *(f"2-{i}" for i in range(10))]
    assert len(rows.text(language="zh")["test"]) == 30
    assert "give a number" in error(rows.text, language="zh", text_documents="all")


def test_wikipedia_is_on_the_hub():
    """The address is one that fsspec hands to huggingface_hub."""
    import fsspec

    filesystem, folder = fsspec.core.url_to_fs(rows.WIKIPEDIA.format(language="zh"))
    assert type(filesystem).__name__ == "HfFileSystem"
    assert folder == "datasets/wikimedia/wikipedia/20231101.zh"


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    """What goes wrong at the hub is one line that says how to do without it."""
    monkeypatch.setattr(rows, "XQUAD", str(tmp_path / "nowhere"))
    monkeypatch.setattr(rows, "WIKIPEDIA", str(tmp_path / "nowhere.{language}"))
    for message in (error(rows.xquad, language="zh"), error(rows.text, language="zh")):
        assert message.startswith(os.fspath(tmp_path / "nowhere"))
        assert message.endswith('; connect, or read local files with --metadata \'{"data_dir": "…"}\'')
