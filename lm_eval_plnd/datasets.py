"""The rows of the tasks in `tasks/`: what their YAML files name as `custom_dataset`.

lm-eval calls these functions with a task's metadata, which holds all of `--metadata` and `--model_args`, and with the
YAML's `dataset_kwargs`. `language` comes from the YAML, `data_dir` from the user (`--metadata '{"data_dir": "…"}'`):
with it rows come from files in that folder, without it from the Hugging Face hub, in the same columns. Entries that are
for others are ignored.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet

from plnd.corpus import read_documents
from plnd.errors import CorpusError

XQUAD = "google/xquad"
WIKIPEDIA = "hf://datasets/wikimedia/wikipedia/20231101.{language}"
TEXT_DOCUMENTS = 500

QUESTIONS = datasets.Features(
    {column: datasets.Value("string") for column in ("id", "language", "context", "question")}
    | {"answers": [datasets.Value("string")]}
)
TEXTS = datasets.Features({"text": datasets.Value("string")})

_SQUAD = "SQuAD v1.1 (data, paragraphs, qas, answers): download it again, or leave out data_dir to read the hub"


def xquad(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XQuAD in one language, 1190 questions: the split `validation`, with the columns of `QUESTIONS`.

    All text loses the white space around it, so that no prompt ends with a space.

    Args:
        language: one of XQuAD's, en de es ru zh vi th ar el tr hi ro.
        data_dir: folder with `xquad/xquad.{language}.json` in SQuAD v1.1 format; None reads `google/xquad`.
    Raises:
        CorpusError: if the file or the hub cannot be read, or the file is something else.
    """
    if data_dir is None:
        with _hub(XQUAD):
            hub = datasets.load_dataset(XQUAD, f"xquad.{language}", split="validation")
            rows = [_question(language, row, row["context"], row["answers"]["text"]) for row in hub]
    else:
        rows = _squad(language, Path(data_dir).expanduser() / "xquad" / f"xquad.{language}.json")
    return datasets.DatasetDict(validation=datasets.Dataset.from_list(rows, features=QUESTIONS))


def text(
    language: str, data_dir: str | None = None, text_documents: int | str | None = None, **_: Any
) -> datasets.DatasetDict:
    """The last documents of a corpus, in its order: the split `test`, with the column of `TEXTS`.

    Detection reads a corpus from its start, so evaluation takes its end: the last 500 documents, and never more than
    the last half, unless the metadata says otherwise. What is a document is what `plnd.read_documents` says, for both.

    Args:
        language: two-letter code of the corpus.
        data_dir: folder with `corpora/{language}.jsonl` (a JSON object with a `text` on each line) or, where that is
            missing, `corpora/{language}.txt` (a document on each line); None reads Wikipedia, `wikimedia/wikipedia`
            20231101, of which only the parquet row groups that hold the last 500 articles are downloaded.
        text_documents: from the metadata; "all", or how many to take from the end (all, if there are fewer).
    Raises:
        CorpusError: if the file or the hub cannot be read, or no document is left to take.
    """
    wanted = TEXT_DOCUMENTS if text_documents is None else _count(text_documents)
    if data_dir is None:
        source = WIKIPEDIA.format(language=language)
        if wanted is None:
            raise CorpusError(f'{source}: text_documents "all" would download the whole Wikipedia; give a number')
        with _hub(source):
            taken = _last_articles(source, wanted)
    else:
        path = _corpus(Path(data_dir).expanduser() / "corpora", language)
        last = deque(enumerate(read_documents(path), start=1), maxlen=wanted)
        total = last[-1][0] if last else 0
        first_half = total - total // 2 if text_documents is None else 0
        taken = [document for number, document in last if number > first_half]
        if not taken:
            raise CorpusError(
                f"{path}: documents found: {total}, expected at least 2, to score the last half; add some, "
                'or score all with --metadata \'{"text_documents": "all", …}\''
            )
    return datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": taken}, features=TEXTS))


def _count(text_documents: int | str) -> int | None:
    """The number that the metadata gives, None for "all"."""
    if text_documents == "all":
        return None
    if isinstance(text_documents, bool) or not str(text_documents).isdecimal() or int(text_documents) == 0:
        raise CorpusError(f'text_documents: found {text_documents!r}, expected "all" or a number above 0')
    return int(text_documents)


def _corpus(folder: Path, language: str) -> Path:
    """The file of a language's corpus: .jsonl, else .txt."""
    for path in (folder / f"{language}.jsonl", folder / f"{language}.txt"):
        if path.is_file():
            return path
    raise CorpusError(
        f"{folder}: found neither {language}.jsonl (an object with a `text` on each line) nor {language}.txt "
        "(a document on each line); put one there, or leave out data_dir to read Wikipedia from the hub"
    )


def _last_articles(source: str, count: int) -> list[str]:
    """The `text` of the last `count` rows of a folder of parquet files, in order, reading no row group without one.

    Args:
        source: path or URL of the folder, of any kind that fsspec knows.
        count: number of rows; fewer come back if there are fewer.
    """
    filesystem, folder = fsspec.core.url_to_fs(source)
    articles: list[str] = []
    for name in sorted(filesystem.glob(f"{folder}/*.parquet"), reverse=True):
        with filesystem.open(name) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            for group in reversed(range(parquet.num_row_groups)):
                articles = parquet.read_row_group(group, columns=["text"])["text"].to_pylist() + articles
                if len(articles) >= count:
                    return articles[-count:]
    if not articles:
        raise FileNotFoundError(f"no rows in {folder}/*.parquet")
    return articles


def _squad(language: str, path: Path) -> list[dict[str, Any]]:
    """The questions of a SQuAD v1.1 file as rows with the columns of `QUESTIONS`."""
    try:
        rows = [
            _question(language, qa, paragraph["context"], [answer["text"] for answer in qa["answers"]])
            for article in json.loads(path.read_text(encoding="utf-8-sig"))["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file, expected {_SQUAD}") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}), expected {_SQUAD}") from None
    except ValueError as error:  # of the decoder or the parser, whose text says where
        raise CorpusError(f"{path}: not JSON ({error}), expected {_SQUAD}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: JSON of another shape ({error!r}), expected {_SQUAD}") from None
    if not rows:
        raise CorpusError(f"{path}: no question found, expected {_SQUAD}")
    for row in rows:
        if not row["answers"]:
            raise CorpusError(f"{path}: question {row['id']} has no answer, expected {_SQUAD}")
    return rows


def _question(language: str, qa: Mapping[str, Any], context: str, answers: Sequence[str]) -> dict[str, Any]:
    """One row with the columns of `QUESTIONS`; `qa` gives its id and question."""
    return {
        "id": qa["id"],
        "language": language,
        "context": context.strip(),
        "question": qa["question"].strip(),
        "answers": [answer.strip() for answer in answers],
    }


@contextmanager
def _hub(source: str) -> Iterator[None]:
    """What goes wrong in reading the hub, errors of many libraries, as one line that says how to do without."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CorpusError(
            f"{source}: cannot be read from the Hugging Face hub ({reason}); "
            'connect, or read local files with --metadata \'{"data_dir": "…"}\''
        ) from error
