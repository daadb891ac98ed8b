"""The rows of `lm_eval_plnd.rows.benchmarks`, from local files and from the hub's layout, and its one-line errors."""

import json
import os
import re
from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lm_eval_plnd.rows import benchmarks as rows
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
    monkeypatch.setattr(rows, "XQUAD", replace(rows.XQUAD, name=str(tmp_path)))
    read = rows.xquad(language="zh")
    assert read["validation"].features == rows.QUESTIONS
    assert list(read["validation"]) == [ROW]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"data": [', "not JSON (Expecting value: line 1 column 11 (char 10))"),
        ({"version": "1.1"}, "rows of another shape (KeyError('data'))"),
        ([1, 2], "rows of another shape (TypeError("),
        ({"data": [{"paragraphs": [{"context": None, "qas": [QUESTION]}]}]}, "rows of another shape (AttributeError("),
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
        "expected SQuAD v1.1 (data, paragraphs, qas, answers): "
        "download it again, or leave out data_dir to read it from the network"
    )


def test_missing_squad_file(tmp_path):
    """A missing file is named, with what to do."""
    path = tmp_path / "xquad" / "xquad.el.json"
    assert error(rows.xquad, language="el", data_dir=str(tmp_path)) == (
        f"{path}: no such file, expected SQuAD v1.1 (data, paragraphs, qas, answers): download it again, "
        "or leave out data_dir to read it from the network"
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


@pytest.mark.parametrize(
    ("name", "content"), [("fr.CSV", "id,text\n1,un\n2,deux\n"), ("fr.json", '[{"text": "un"}, {"text": "deux"}]')]
)
def test_text_in_another_form(tmp_path, name, content):
    """Where there are neither JSON lines nor text, the language's file in another form is read, as detection does."""
    put(tmp_path / "corpora" / name, content)
    assert rows.text(language="fr", data_dir=str(tmp_path))["test"]["text"][:] == ["deux"]


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
    assert len(rows.text(language="zh", text_documents=500)["test"]) == 30
    assert rows.text(language="zh")["test"]["text"][:] == [
        *(f"1-{i}" for i in range(5, 10)),
        *(f"2-{i}" for i in range(10)),
    ]
    assert "give a number" in error(rows.text, language="zh", text_documents="all")


def test_wikipedia_is_on_the_hub():
    """The address is one that fsspec hands to huggingface_hub."""
    import fsspec

    filesystem, folder = fsspec.core.url_to_fs(rows.WIKIPEDIA.format(language="zh"))
    assert type(filesystem).__name__ == "HfFileSystem"
    assert folder == "datasets/wikimedia/wikipedia/20231101.zh"


OR_LOCAL = (
    '; connect, or read local files with --metadata \'{"data_dir": "…"}\' (plnd experiment: --set metadata.data_dir=…)'
)


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    """What goes wrong at the hub is one line that says how to do without it."""
    monkeypatch.setattr(rows, "XQUAD", replace(rows.XQUAD, name=str(tmp_path / "nowhere")))
    monkeypatch.setattr(rows, "WIKIPEDIA", str(tmp_path / "nowhere.{language}"))
    for message in (error(rows.xquad, language="zh"), error(rows.text, language="zh")):
        assert message.startswith(os.fspath(tmp_path / "nowhere"))
        assert message.endswith(OR_LOCAL)


def lines(*rows):
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def hub_copy(folder, config, splits, features=None):
    """A data set in the hub's layout: a parquet file a split, named in the data card."""
    files = []
    for split, rows_of_split in splits.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        hub = datasets.Dataset.from_list(rows_of_split, features=features)
        hub.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        files.append(f"{{split: {split}, path: {config}/{split}-*}}")
    card = folder / "README.md"
    put(card, f"---\nconfigs: [{{config_name: {config}, data_files: [{', '.join(files)}]}}]\n---\n")
    return str(folder)


def test_a_byte_order_mark_is_no_context(tmp_path):
    """Some contexts of XQuAD begin with one."""
    squad = {"data": [{"paragraphs": [{"context": "\ufeff他叫罗洛。", "qas": [QUESTION]}]}]}
    put(tmp_path / "xquad" / "xquad.zh.json", squad)
    assert rows.xquad(language="zh", data_dir=str(tmp_path))["validation"]["context"][:] == ["他叫罗洛。"]


def test_mgsm(tmp_path, monkeypatch):
    """The published file and the hub's rows give the same problems; quotation marks are no quoting."""
    put(tmp_path / "mgsm" / "mgsm_es.tsv", '¿"Uno" más 1? \t2\n¿Y 2.000 más 125?\t2,125\n')
    local = rows.mgsm(language="es", data_dir=str(tmp_path))
    assert local["test"].features == rows.PROBLEMS
    assert list(local["test"]) == [
        {"language": "es", "question": '¿"Uno" más 1?', "answer": "2"},
        {"language": "es", "question": "¿Y 2.000 más 125?", "answer": "2,125"},
    ]
    published = [
        {"question": '¿"Uno" más 1?', "answer": None, "answer_number": 2, "equation_solution": None},
        {"question": "¿Y 2.000 más 125?", "answer": None, "answer_number": 2125, "equation_solution": None},
    ]
    monkeypatch.setattr(rows, "MGSM", replace(rows.MGSM, name=hub_copy(tmp_path / "hub", "es", {"test": published})))
    hub = list(rows.mgsm(language="es")["test"])
    assert [row["answer"] for row in hub] == ["2", "2125"]
    assert [row["question"] for row in hub] == local["test"]["question"][:]


XCSQA_ROW = {
    "id": "d3",
    "lang": "en",
    "question": {"stem": "Where? ", "choices": [{"label": c, "text": f"place {c}"} for c in "ABCDE"]},
    "answerKey": "C",
}
XCSQA_READ = {"id": "d3", "question": "Where?", "choices": [f"place {c}" for c in "ABCDE"], "label": 2}


def test_xcsqa(tmp_path, monkeypatch):
    """The published file and the hub's schema (lists of labels and texts; Japanese is `jap`) give the same rows."""
    put(tmp_path / "xcsqa" / "ja" / "dev.jsonl", lines(XCSQA_ROW))
    local = rows.xcsqa(language="ja", data_dir=str(tmp_path))
    assert local["validation"].features == rows.CHOICES
    assert list(local["validation"]) == [{"language": "ja"} | XCSQA_READ]
    choices = {"label": list("ABCDE"), "text": [f"place {c}" for c in "ABCDE"]}
    published = XCSQA_ROW | {"question": {"stem": "Where? ", "choices": choices}}
    monkeypatch.setattr(
        rows, "XCSQA", replace(rows.XCSQA, name=hub_copy(tmp_path / "hub", "X-CSQA-jap", {"validation": [published]}))
    )
    assert list(rows.xcsqa(language="ja")["validation"]) == list(local["validation"])


def test_hidden_labels_are_refused(tmp_path):
    """The test split, whose keys are empty, is no data for a task."""
    put(tmp_path / "xcsqa" / "en" / "dev.jsonl", lines(XCSQA_ROW | {"answerKey": ""}))
    assert "line 1: rows of another shape (ValueError(\"'' is not in list\"))" in error(
        rows.xcsqa, language="en", data_dir=str(tmp_path)
    )


def xlsum_rows(count):
    """Rows in the hub's own schema."""
    columns = ("id", "url", "title", "summary", "text")
    return [{column: f"{column} {n}" for column in columns} for n in range(count)]


def test_xlsum_draws_the_same_rows(tmp_path, monkeypatch):
    """500 rows, the same ones every time and from both sources, in the same order; all rows in the data's."""
    put(tmp_path / "xlsum" / "chinese_simplified_test.jsonl", lines(*xlsum_rows(700)))
    local = rows.xlsum(language="zh", data_dir=str(tmp_path))["test"]
    assert local.features == rows.ARTICLES
    assert len(set(local["id"])) == 500
    assert local["id"][:5] == ["id 394", "id 430", "id 41", "id 265", "id 523"]
    assert local[0] == {"language": "zh"} | {c: f"{c} 394" for c in ("id", "title", "text", "summary")}
    every = rows.xlsum(language="zh", data_dir=str(tmp_path), rows="all")["test"]
    assert every["id"][:] == [f"id {n}" for n in range(700)]
    folder = tmp_path / "hub" / "chinese_simplified" / "test"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(xlsum_rows(700)[:400]), folder / "0000.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(xlsum_rows(700)[400:]), folder / "0001.parquet")
    monkeypatch.setattr(rows, "XLSUM_FILES", str(tmp_path / "hub" / "{name}" / "test"))
    assert list(rows.xlsum(language="zh")["test"]) == list(local)


def test_xlsum_of_few_rows(tmp_path):
    """Fewer rows than are drawn are all of them."""
    put(tmp_path / "xlsum" / "english_test.jsonl", lines(*xlsum_rows(3)))
    assert sorted(rows.xlsum(language="en", data_dir=str(tmp_path))["test"]["id"]) == ["id 0", "id 1", "id 2"]


ANSWERS = {"contradiction": "错误", "entailment": "正确", "neutral": "无法确定"}


def test_xnli(tmp_path, monkeypatch):
    """Published files and the hub's class labels give the same pairs, with the prompt's words in the hub's order."""
    published = [
        ("他说。", "他没说。 ", "contradiction", 2),
        ("他说。", "他说了。", "entailment", 0),
        ("他说。", "为何？", "neutral", 1),
    ]
    for split in ("dev", "test"):
        pairs = [{"premise": p, "hypothesis": h, "label": name, "language": "zh"} for p, h, name, _ in published]
        put(tmp_path / "xnli" / f"xnli_{split}_zh.jsonl", lines(*pairs))
    local = rows.xnli(language="zh", answers=ANSWERS, data_dir=str(tmp_path))
    assert local["test"].features == rows.PAIRS
    assert [(row["hypothesis"], row["choices"][row["label"]]) for row in local["test"]] == [
        ("他没说。", "错误"),
        ("他说了。", "正确"),
        ("为何？", "无法确定"),
    ]
    assert local["test"][0]["choices"] == ["正确", "无法确定", "错误"]
    pairs = [{"premise": p, "hypothesis": h, "label": label} for p, h, _, label in published]
    monkeypatch.setattr(
        rows, "XNLI", replace(rows.XNLI, name=hub_copy(tmp_path / "hub", "zh", {"test": pairs, "validation": pairs}))
    )
    hub = rows.xnli(language="zh", answers=ANSWERS)
    assert {split: list(hub[split]) for split in hub} == {split: list(local[split]) for split in local}


def fact(subject, capital):
    """One tuple of mParaRel."""
    return {"sub_uri": "Q1", "obj_uri": "Q2", "obj_label": capital, "sub_label": subject, "lineid": 0}


PATTERNS = ["{subject}: capital", "capital of {subject}:"]
FACTS = [fact("Italy", "Rome"), fact("Fort Bend", "Richmond, Texas"), fact("Italy", "Turin (Piedmont)")]
FACTS += [fact(f"land {n}", f"city {n}") for n in range(12)]


@pytest.mark.parametrize("value", [None, " ", 7])
@pytest.mark.parametrize("column", ["premise", "hypothesis"])
def test_xnli_without_a_premise(tmp_path, monkeypatch, column, value):
    """A premise or hypothesis that is null, blank or no text is refused by its name and line; on the hub, too."""
    row = {"premise": "A.", "hypothesis": "B.", "label": "neutral"}
    for split in ("dev", "test"):
        put(tmp_path / "xnli" / f"xnli_{split}_en.jsonl", json.dumps(row) + "\n" + json.dumps(row | {column: value}))
    answers = {"entailment": "true", "neutral": "inconclusive", "contradiction": "false"}
    message = error(rows.xnli, language="en", answers=answers, data_dir=str(tmp_path))
    found = "nothing" if value == " " else json.dumps(value)
    assert f"xnli_dev_en.jsonl, line 2: {column}: found {found}, expected text" in message
    if value != 7:  # a column of the hub has one type
        hub = [row | {"label": 1}, row | {"label": 1, column: value}]
        monkeypatch.setattr(rows.datasets, "load_dataset", lambda *_, **__: hub)
        assert f"{column}: found {found}, expected text" in error(rows.xnli, language="en", answers=answers)


def test_xnli_without_a_label(tmp_path, monkeypatch):
    """The hub's -1, for pairs without a gold label, is no label."""
    hub = [{"premise": "A.", "hypothesis": "B.", "label": -1}]
    monkeypatch.setattr(rows.datasets, "load_dataset", lambda *_, **__: hub)
    answers = {"entailment": "true", "neutral": "inconclusive", "contradiction": "false"}
    assert "label: found -1, expected 0, 1 or 2" in error(rows.xnli, language="en", answers=answers)


@pytest.mark.parametrize(
    ("name", "file", "content", "found"),
    [
        ("mgsm", "mgsm/mgsm_en.tsv", "1 + 1?\t\n", "answer: found nothing"),
        (
            "xlsum",
            "xlsum/english_test.jsonl",
            {"id": "1", "title": "t", "text": "x", "summary": None},
            "summary: found",
        ),
        ("xcsqa", "xcsqa/en/dev.jsonl", {"id": "1", "question": {"stem": None, "choices": []}}, "stem: found null"),
        (
            "fact_probing",
            "fact_probing/tuples/en.jsonl",
            {"sub_label": "A", "obj_label": ""},
            "obj_label: found nothing",
        ),
        ("mzsre", "mzsre/en-de.json", [{x: {"src": "a?", "alt": None} for x in ("en", "de")}], "alt: found null"),
    ],
)
def test_rows_without_text(tmp_path, name, file, content, found):
    """Nothing where a benchmark has a question or an answer is refused: it would be an answer that is always right."""
    put(tmp_path / file, content)
    arguments = {"context_language": "en", "question_language": "de"} if name == "mzsre" else {"language": "en"}
    more = {"patterns": ["{subject}:"]} if name == "fact_probing" else {}
    assert found in error(getattr(rows, name), data_dir=str(tmp_path), **arguments, **more)


def test_fact_probing(tmp_path, monkeypatch):
    """One fact a subject, with all its answers; every fact once a round, the paraphrases in turn."""
    put(tmp_path / "fact_probing" / "tuples" / "en.jsonl", lines(*FACTS))
    read = rows.fact_probing(language="en", patterns=PATTERNS, data_dir=str(tmp_path))["test"]
    assert read.features == rows.FACTS
    assert len(read) == 14 * 2
    assert read["prompt"][:3] == ["Italy: capital", "capital of Fort Bend:", "land 0: capital"]
    assert read["prompt"][14:16] == ["capital of Italy:", "Fort Bend: capital"]
    assert read["id"][0] == "Q1/0" and read["id"][14] == "Q1/1"
    assert read[0]["answers"] == ["Rome", "Turin (Piedmont)", "Turin"]
    assert read[1]["answers"] == ["Richmond, Texas", "Richmond"]
    for row in read:
        right, others = row["choices"][row["label"]], [c for n, c in enumerate(row["choices"]) if n != row["label"]]
        assert right in row["answers"]
        assert len(set(others)) == 9 and not set(others) & set(row["answers"])
    assert len({row["label"] for row in read}) > 3
    assert read[0]["choices"] == read[14]["choices"]
    assert "Turin" in {choice for row in read for choice in row["choices"]}
    monkeypatch.setattr(rows, "MPARAREL", str(tmp_path / "fact_probing" / "tuples" / "{code}.jsonl"))
    assert list(rows.fact_probing(language="en", patterns=PATTERNS)["test"]) == list(read)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("Richmond, Texas", "Richmond"),
        ("ريتشموند، تكساس", "ريتشموند"),
        ("Boone (Carolina del Norte)", "Boone"),
        ("Манчестер (город, Вермонт)", "Манчестер"),
        ("哈钦森 (堪萨斯州)", "哈钦森"),
        ("德累斯顿市", "德累斯顿"),
        ("津市", "津市"),
        ("Baku", "Baku"),
        (", x", ", x"),
    ],
)
def test_bare_names(name, bare):
    """A place behind a name, and the Chinese word for a city, are not the name."""
    assert rows.bare_name(name) == bare


def test_too_few_capitals(tmp_path):
    """Ten choices need ten capitals."""
    put(tmp_path / "fact_probing" / "tuples" / "zh-hans.jsonl", lines(*FACTS[:3]))
    message = error(rows.fact_probing, language="zh", patterns=PATTERNS, data_dir=str(tmp_path))
    assert "zh-hans.jsonl: capitals found: 3, expected at least 10" in message


EDIT = {
    "en": {"subject": "Bus", "src": "What company made the bus? ", "alt": " Volkswagen"},
    "zh": {"subject": "巴士", "src": "哪家公司制造了巴士？", "alt": "大众"},
}


def test_mzsre(tmp_path, monkeypatch):
    """The context is the edit in one language, question and answer are in the other; the file serves both ways."""
    put(tmp_path / "mzsre" / "en-zh.json", [EDIT])
    read = rows.mzsre(context_language="en", question_language="zh", data_dir=str(tmp_path))["test"]
    assert read.features == rows.EDITS
    assert list(read) == [
        {
            "language": "zh",
            "context": "What company made the bus? Volkswagen",
            "question": "哪家公司制造了巴士？",
            "answers": ["大众"],
        }
    ]
    back = rows.mzsre(context_language="zh", question_language="en", data_dir=str(tmp_path))["test"]
    assert back[0]["context"] == "哪家公司制造了巴士？大众" and back[0]["answers"] == ["Volkswagen"]
    monkeypatch.setattr(rows, "MZSRE", str(tmp_path / "mzsre" / "en-{language}.json"))
    assert list(rows.mzsre(context_language="en", question_language="zh")["test"]) == list(read)


READERS = {
    "mgsm/mgsm_zh.tsv": (rows.mgsm, {"language": "zh"}),
    "xcsqa/zh/dev.jsonl": (rows.xcsqa, {"language": "zh"}),
    "xlsum/chinese_simplified_test.jsonl": (rows.xlsum, {"language": "zh"}),
    "xnli/xnli_dev_zh.jsonl": (rows.xnli, {"language": "zh", "answers": ANSWERS}),
    "fact_probing/tuples/zh-hans.jsonl": (rows.fact_probing, {"language": "zh", "patterns": PATTERNS}),
    "mzsre/en-zh.json": (rows.mzsre, {"context_language": "zh", "question_language": "en"}),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [None, "", "no tab, no object\n", "[1]\n", '{"a": 1}\n', b"\xff\xfe\x00\n"])
def test_broken_files(tmp_path, name, content):
    """A file that is missing, empty or something else is refused in one line: what it is, and what was expected."""
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reader, arguments = READERS[name]
    message = error(reader, data_dir=str(tmp_path), **arguments)
    assert message.startswith(str(path))
    assert message.endswith(": download it again, or leave out data_dir to read it from the network")


@pytest.mark.parametrize("name", READERS)
def test_an_unreachable_network_is_one_line(tmp_path, monkeypatch, name):
    """So is what goes wrong without data_dir."""
    for dataset in ("MGSM", "XCSQA", "XNLI"):
        monkeypatch.setattr(rows, dataset, replace(getattr(rows, dataset), name=str(tmp_path / "nowhere")))
    for address in ("XLSUM_FILES", "MPARAREL", "MZSRE"):
        monkeypatch.setattr(rows, address, str(tmp_path / "nowhere"))
    reader, arguments = READERS[name]
    assert error(reader, **arguments).endswith(OR_LOCAL)


def test_addresses_are_of_the_hub_and_of_fixed_commits():
    """XL-Sum comes from the hub's parquet branch, the other files from a commit, which nobody can change."""
    import fsspec

    filesystem, folder = fsspec.core.url_to_fs(rows.XLSUM_FILES.format(name="english"))
    assert type(filesystem).__name__ == "HfFileSystem"
    assert folder == "datasets/csebuetnlp/xlsum@refs/convert/parquet/english/test"
    for address in (rows.MPARAREL, rows.MZSRE):
        assert re.match(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/", address)
