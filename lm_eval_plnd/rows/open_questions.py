"""The rows of `tasks/confusion` and `tasks/forced_language`: open questions of everyday life, alike in every language.

They come with the tasks, one file for each language, with the words that tell whether an answer is about its question
(`lm_eval_plnd.scoring.relevance`); nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from lm_eval_plnd.rows.sources import RowError, json_lines, reading, text_in
from lm_eval_plnd.scoring.confusion import require_identifiers
from lm_eval_plnd.task_folder import tasks_folder
from plnd.errors import CorpusError

FOLDER = "open_questions"
ASKED = datasets.Features(
    {
        **{column: datasets.Value("string") for column in ("id", "language", "asked_in", "question", "instruction")},
        "prompt": datasets.Value("string"),
        "terms": [{"language": datasets.Value("string"), "concepts": [[datasets.Value("string")]]}],
    }
)

_QUESTIONS = "open questions (id, question, terms with lists of words on each line)"


def open_questions(
    language: str,
    asked_in: str | None = None,
    instruction: str = "",
    questions_dir: str | None = None,
    **_: Any,
) -> datasets.DatasetDict:
    """Open questions that are to be answered in one language: the split `test`, with the columns of `ASKED`.

    Args:
        language: in which the answers are wanted, two-letter code.
        asked_in: in which the questions are asked; None is the same.
        instruction: stands behind each question in the prompt, after a space.
        questions_dir: from the metadata; folder with `{language}.jsonl` of other questions, parallel by their `id`.
    Raises:
        CorpusError: if a file cannot be read, or two languages do not have the same questions.
        PLNDError: if what the answers are read with is not installed, which is better known before they are generated.
    """
    require_identifiers()
    asked_in = asked_in or language
    folder = Path(questions_dir).expanduser() if questions_dir else tasks_folder() / FOLDER
    files = {code: folder / f"{code}.jsonl" for code in (asked_in, language)}
    for code, path in files.items():
        if not path.exists():
            known = ", ".join(sorted(x.stem for x in folder.glob("*.jsonl"))) or "none"
            raise CorpusError(f"{path}: no such file; {folder} has questions in {known}, expected some in {code}, too")
    questions = {code: read_questions(path) for code, path in files.items()}
    asked, wanted = questions[asked_in], questions[language]
    if missing := sorted(asked.keys() ^ wanted.keys()):
        raise CorpusError(
            f"{files[language]}: other questions than in {files[asked_in].name} ({', '.join(missing[:3])}); "
            "expected the same ids in every language"
        )
    rows = [
        {
            "id": key,
            "language": language,
            "asked_in": asked_in,
            "question": row["question"],
            "instruction": instruction,
            "prompt": f"{row['question']} {instruction}".strip(),
            "terms": [{"language": code, "concepts": questions[code][key]["terms"]} for code in questions],
        }
        for key, row in asked.items()
    ]
    return datasets.DatasetDict(test=datasets.Dataset.from_list(rows, features=ASKED))


def read_questions(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The questions of a file by their ids, in its order.

    Raises:
        CorpusError: if the file cannot be read, or says something else.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for place, row in json_lines(path, _QUESTIONS):
        with reading(place, _QUESTIONS):
            key, question, terms = text_in(row, "id"), text_in(row, "question"), row["terms"]
            if key in found:
                raise RowError(f"id: found {key!r} twice")
            if not terms or not all(concept and all(isinstance(word, str) for word in concept) for concept in terms):
                raise RowError(f"terms: found {terms!r}")
            found[key] = {"question": question, "terms": [list(concept) for concept in terms]}
    return found
