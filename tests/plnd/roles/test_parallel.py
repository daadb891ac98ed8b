"""Parallel examples from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plnd.demo_data import demo_model
from plnd.errors import CorpusError
from plnd.models.loading import load_tokenizer
from plnd.roles.parallel import Parallel, prompt_digest, read_parallel

ROWS = [{"en": "One cat.", "de": "Eine Katze.", "zh": "一只猫。"}, {"en": "Two", "de": "Zwei", "zh": "二"}]


def put(path: Path, rows) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" if not isinstance(row, str) else row + "\n" for row in rows))
    return path


def test_reading(tmp_path):
    """Languages are the first line's fields, or those asked for; documents are numbered as they come."""
    path = put(tmp_path / "x.jsonl", ROWS)
    found = read_parallel(path)
    assert found.languages == ["en", "de", "zh"] and len(found) == 2 and found.tasks is None
    assert found.prompts[0] == list(ROWS[0].values()) and found.documents == [[0, 0, 0], [1, 1, 1]]
    fewer = read_parallel(path, languages=["zh", "en"], limit=1)
    assert fewer.prompts == [["一只猫。", "One cat."]]
    assert found.of(["zh", "en"]).prompts == [["一只猫。", "One cat."], ["二", "Two"]]


def test_answers_follow_their_prompts(tmp_path):
    """An answer's tokens are those that it adds to the prompt's; a decoder reads it alone."""
    path = put(tmp_path / "x.jsonl", ROWS)
    answers = put(tmp_path / "a.jsonl", [{"en": "cat", "de": "Katze", "zh": "猫"}, {"en": "2", "de": "2", "zh": "2"}])
    found, tokenizer = read_parallel(path, answers=answers), load_tokenizer(str(demo_model()))
    prompts, follow = found.token_ids(tokenizer), found.answer_ids(tokenizer)
    for row, texts, ids, own in zip(found.answers, found.prompts, prompts, follow, strict=True):
        for answer, text, prompt, tokens in zip(row, texts, ids, own, strict=True):
            assert answer.startswith(" ") and prompt + tokens == tokenizer(text + answer)["input_ids"]
    alone = found.answer_ids(tokenizer, separate=True)
    assert alone[0][0] == tokenizer(" cat", add_special_tokens=False)["input_ids"]
    with pytest.raises(CorpusError, match="need the correct answers"):
        read_parallel(path).answer_ids(tokenizer)


def test_digests():
    """The beginning of the SHA-256, the same on every machine."""
    assert prompt_digest("") == int.from_bytes(bytes.fromhex("e3b0c44298fc1c14"), "little", signed=True)
    found = Parallel(["a", "b"], [["x", "y"], ["x", "z"]]).digests()
    assert found.dtype == "int64" and found[0, 0] == found[1, 0] != found[0, 1] != found[1, 1]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "no example in it"),
        (["not json"], {}, "line 1: not JSON, expected one JSON object a line"),
        (["[1]"], {}, "record 1: expected a JSON object"),
        ([{"en": "x"}], {}, "languages en: expected 2 to 16"),
        ([ROWS[0], {"en": "x", "de": "y"}], {}, "example 2: field 'zh' is missing"),
        ([{"en": "x", "de": 3}], {}, "example 1: field 'de' is 3"),
        ([{"en": "x", "de": " "}], {}, "example 1: field 'de' is ' '"),
        (ROWS, {"languages": ["en", "fr"]}, "field 'fr' is missing"),
        (ROWS, {"languages": ["en", "en"]}, "different ones"),
        ([dict.fromkeys(map(str, range(17)), "x")], {}, "2 to 16"),
    ],
)
def test_refusals(tmp_path, rows, options, words):
    """Whatever is not what is expected is one line that names the place."""
    with pytest.raises(CorpusError, match=words):
        read_parallel(put(tmp_path / "x.jsonl", rows), **options)


def test_other_refusals(tmp_path):
    """No file, answers of another number, a language that is not there, a prompt without tokens."""
    path = put(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(CorpusError, match="absent.jsonl: no such file"):
        read_parallel(tmp_path / "absent.jsonl")
    with pytest.raises(CorpusError, match="1 examples, but .* has 2"):
        read_parallel(path, answers=put(tmp_path / "a.jsonl", ROWS[:1]))
    with pytest.raises(CorpusError, match="no language fr in .*: it has en, de, zh"):
        read_parallel(path).of(["en", "fr"])
    with pytest.raises(CorpusError, match="example 0 has no text in b"):
        Parallel(["a", "b"], [["x", ""]]).token_ids(lambda texts: {"input_ids": [[1] * len(t) for t in texts]})
