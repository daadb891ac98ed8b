"""The task folder, small data for every language, and the demo model."""

import json
from pathlib import Path

import pytest
import yaml

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
    """A data folder with two questions and four documents in every language."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "xquad").mkdir()
    (folder / "corpora").mkdir()
    for language in table["xquad"]:
        qas = [
            {"id": str(n), "question": f"{language}-{n}?", "answers": [{"text": f"answer {n}", "answer_start": 0}]}
            for n in range(2)
        ]
        squad = {
            "version": "1.1",
            "data": [{"title": "", "paragraphs": [{"context": "answer 0 answer 1", "qas": qas}]}],
        }
        (folder / "xquad" / f"xquad.{language}.json").write_text(json.dumps(squad), encoding="utf-8")
    for language in table["text"]:
        text = "".join(f"{language} {n}\n" for n in range(4))
        (folder / "corpora" / f"{language}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def polyglot() -> str:
    """The demo model, from the package or from beside the repository, or a skip."""
    for folder in (ROOT / "plnd" / "data", ROOT.parent / "shared" / "models"):
        if (folder / "polyglot-9m" / "config.json").is_file():
            return str(folder / "polyglot-9m")
    pytest.skip("no demo model: neither plnd/data/polyglot-9m nor ../shared/models/polyglot-9m")
