"""The task folder, small data for every language, and the demo model."""

import json
from pathlib import Path

import pytest
import yaml

from lm_eval_plnd.rows.sources import MPARAREL_CODES, XLSUM_NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tasks() -> Path:
    """The folder given to lm-eval's `--include_path`."""
    return ROOT / "tasks"


@pytest.fixture(scope="session")
def table(tasks) -> dict:
    """What `tasks/prompts.yaml` holds."""
    return yaml.safe_load((tasks / "prompts.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def small_data(table, tmp_path_factory) -> Path:
    """A data folder with a few rows of every benchmark in every language, in the formats of the publications."""
    folder = tmp_path_factory.mktemp("data")
    for language in table["mgsm"]:
        put(folder / "mgsm" / f"mgsm_{language}.tsv", f"{language} 1 + 1?\t2\n{language} 2000 + 125?\t2,125\n")
    for language in table["xquad"]:
        qas = [
            {"id": str(n), "question": f"{language}-{n}?", "answers": [{"text": f"answer {n}", "answer_start": 0}]}
            for n in range(2)
        ]
        paragraphs = [{"context": "answer 0 answer 1", "qas": qas}]
        squad = {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}
        put(folder / "xquad" / f"xquad.{language}.json", json.dumps(squad))
    for language in table["xcsqa"]:
        choices = [{"label": letter, "text": f"{language} thing {letter}"} for letter in "ABCDE"]
        rows = [
            {
                "id": key,
                "lang": language,
                "question": {"stem": f"{language} {key}?", "choices": choices},
                "answerKey": key,
            }
            for key in "CE"
        ]
        put(folder / "xcsqa" / language / "dev.jsonl", lines(rows))
    for language in table["xlsum"]:
        rows = [
            {"id": str(n), "url": "", "title": f"Title {n}", "summary": f"Sum {n} {language}", "text": f"Text {n}."}
            for n in range(3)
        ]
        put(folder / "xlsum" / f"{XLSUM_NAMES[language]}_test.jsonl", lines(rows))
    for language in table["xnli"]:
        for split in ("dev", "test"):
            rows = [
                {"premise": f"{split} {n}", "hypothesis": f"{language} {n}", "label": label, "language": language}
                for n, label in enumerate(["neutral", "contradiction", "entailment"])
            ]
            put(folder / "xnli" / f"xnli_{split}_{language}.jsonl", lines(rows))
    for language in table["fact_probing"]:
        rows = [
            {"sub_uri": f"Q{n}", "obj_uri": f"Q1{n}", "sub_label": f"Land {n}", "obj_label": f"City {n}", "lineid": n}
            for n in range(12)
        ]
        put(folder / "fact_probing" / "tuples" / f"{MPARAREL_CODES.get(language, language)}.jsonl", lines(rows))
    for language in table["mzsre"]:
        if language != "en":
            edits = [
                {
                    code: {"subject": "s", "src": f"{code} {n}?", "alt": f"{code} answer {n}"}
                    for code in ("en", language)
                }
                for n in range(3)
            ]
            put(folder / "mzsre" / f"en-{language}.json", json.dumps(edits))
    for language in table["text"]:
        put(folder / "corpora" / f"{language}.txt", "".join(f"{language} {n}\n" for n in range(4)))
    return folder


def put(path: Path, text: str) -> None:
    """Write a file below folders made on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lines(rows: list[dict]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def polyglot() -> str:
    """The demo model, from the package or from beside the repository, or a skip."""
    for folder in (ROOT / "plnd" / "data", ROOT.parent / "shared" / "models"):
        if (folder / "polyglot-9m" / "config.json").is_file():
            return str(folder / "polyglot-9m")
    pytest.skip("no demo model: neither plnd/data/polyglot-9m nor ../shared/models/polyglot-9m")
