"""Where the rows of the tasks come from: files in the user's folder, the Hugging Face hub, or an address.

MzsRE and mParaRel are not on the hub as they were published, so they come from a fixed commit of their GitHub
repositories. What cannot be read is one line that says what was found, what was expected, and how to do without.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet

from plnd.errors import CorpusError
from plnd.io import strict_json
from plnd.io.corpus import without_code

MPARAREL = (
    "https://raw.githubusercontent.com/coastalcph/mpararel/7153b7bdc86901fbe23d0c2909a4f2d4609b09d9/"
    "data/mpararel_reviewed/tuples/{code}/P36.jsonl"
)
MZSRE = (
    "https://raw.githubusercontent.com/weixuan-wang123/ReMaKE/975a9e90698d0e9021e44d49809c0ee24b2710a5/"
    "data/MzsRE/mzsre_test_duplicate_en{language}.json"
)
WIKIPEDIA = "hf://datasets/wikimedia/wikipedia/20231101.{language}"
XLSUM_NAMES = {
    code: name
    for pair in (
        "ar arabic|az azerbaijani|bn bengali|cy welsh|en english|es spanish|fa persian|fr french|gu gujarati|"
        "hi hindi|id indonesian|ja japanese|ko korean|mr marathi|ne nepali|pa punjabi|pt portuguese|ru russian|"
        "sw swahili|ta tamil|te telugu|th thai|tr turkish|uk ukrainian|ur urdu|vi vietnamese|zh chinese_simplified"
    ).split("|")
    for code, name in [pair.split()]
}
MPARAREL_CODES = {"zh": "zh-hans"}


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub that has a configuration for every language.

    Attributes:
        name: on the hub.
        config: name of a configuration, with `{code}` for the language.
        codes: the hub's codes of languages, where they are others than here.
    """

    name: str
    config: str = "{code}"
    codes: Mapping[str, str] = field(default_factory=dict)

    def config_of(self, language: str) -> str:
        """The configuration of a language."""
        return self.config.format(code=self.codes.get(language, language))

    def rows(self, language: str, split: str) -> datasets.Dataset:
        """The rows of one language."""
        return datasets.load_dataset(self.name, self.config_of(language), split=split, **without_code())


MGSM = HubDataset("juletxara/mgsm")
XQUAD = HubDataset("google/xquad", "xquad.{code}")
XCSQA = HubDataset("INK-USC/xcsr", "X-CSQA-{code}", {"ja": "jap"})
XLSUM = HubDataset("csebuetnlp/xlsum", codes=XLSUM_NAMES)
XNLI = HubDataset("facebook/xnli")
HUB = {"mgsm": MGSM, "xquad": XQUAD, "xcsqa": XCSQA, "xlsum": XLSUM, "xnli": XNLI}
"""By the name that a benchmark has in the names of plnd's tasks."""
XLSUM_FILES = f"hf://datasets/{XLSUM.name}@refs/convert/parquet/{{name}}/test"
"""The hub's own conversion: the data set itself is a loading script."""


def hub_dataset(task: str) -> HubDataset | None:
    """What one of plnd's tasks reads from the hub; None for other tasks, and for those that read something else."""
    prefix, *parts = task.split("_")
    if prefix == "plnd":
        for part in parts:
            if part in HUB:
                return HUB[part]
    return None


MAX_BYTES = 2**28
"""Of a file of rows in the user's folder."""
OR_LOCAL = 'read local files with --metadata \'{"data_dir": "…"}\' (plnd experiment: --set metadata.data_dir=…)'
OR_HUB = "download it again, or leave out data_dir to read it from the network"


class RowError(ValueError):
    """What is wrong with a row."""


def text_in(row: Mapping[str, Any], column: str, blank: bool = False) -> str:
    """The text in a column, without the white space around it; `blank` says whether none may be left."""
    text = row[column]
    if not isinstance(text, str):
        raise RowError(f"{column}: found {json.dumps(text)}, expected text")
    if not blank and not text.strip():
        raise RowError(f"{column}: found nothing, expected text")
    return text.strip()


def data_file(data_dir: str, *parts: str) -> Path:
    """A file or folder in the user's data folder."""
    return Path(data_dir).expanduser().joinpath(*parts)


def text_of(source: str | Path, expected: str) -> str:
    """The text of a file, or what is at an address."""
    if isinstance(source, Path):
        with reading(source, expected), source.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise RowError(f"larger than {MAX_BYTES:,} bytes")
            return data.decode("utf-8-sig")
    with downloading(source), fsspec.open(source, encoding="utf-8-sig", mode="rt") as file:
        return file.read()


def numbered_lines(source: str | Path, expected: str) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers, at least one."""
    lines = [(n, line) for n, line in enumerate(text_of(source, expected).split("\n"), 1) if line.strip()]
    if not lines:
        raise CorpusError(f"{source}: nothing in it, expected {expected}")
    return lines


def json_lines(source: str | Path, expected: str) -> Iterator[tuple[str, Any]]:
    """What the lines of a file hold, each with where it stands."""
    for number, line in numbered_lines(source, expected):
        place = f"{source}, line {number}"
        with reading(place, expected):
            row = strict_json.parse(line, finite=False)
        yield place, row


@contextmanager
def reading(place: str | Path, expected: str) -> Iterator[None]:
    """What goes wrong in reading a file as one line: what it is, what was expected."""
    try:
        yield
    except RowError as error:
        raise CorpusError(f"{place}: {error}; expected {expected}") from None
    except FileNotFoundError:
        raise CorpusError(f"{place}: no such file, expected {expected}") from None
    except OSError as error:
        raise CorpusError(f"{place}: cannot be read ({error.strerror}), expected {expected}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place}: not UTF-8 ({error}), expected {expected}") from None
    except json.JSONDecodeError as error:  # whose text says where
        raise CorpusError(f"{place}: not JSON ({error}), expected {expected}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{place}: rows of another shape ({error!r}), expected {expected}") from None


@contextmanager
def downloading(source: str) -> Iterator[None]:
    """What goes wrong in reading the hub, errors of many libraries, as one line that says how to do without."""
    try:
        yield
    except RowError as error:
        raise CorpusError(f"{source}: {error}; {OR_LOCAL}") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CorpusError(f"{source}: cannot be downloaded ({reason}); connect, or {OR_LOCAL}") from error


def last_texts(source: str, count: int, *, at_most_half: bool = False) -> list[str]:
    """The `text` of the last `count` rows of a folder of parquet files, in order, reading no row group without one.

    Args:
        source: path or URL of the folder, of any kind that fsspec knows.
        count: number of rows; fewer come back if there are fewer.
        at_most_half: never more than the last half of all rows, so that what reads as many from the start reads others.
    Raises:
        FileNotFoundError: if there is no row to take.
    """
    filesystem, folder = fsspec.core.url_to_fs(source)
    names = sorted(filesystem.glob(f"{folder}/*.parquet"), reverse=True)
    if at_most_half:
        count = min(count, _rows(filesystem, names, 2 * count) // 2)
    articles: list[str] = []
    for name in names:
        if len(articles) >= count:
            break
        with filesystem.open(name) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            for group in reversed(range(parquet.num_row_groups)):
                articles = parquet.read_row_group(group, columns=["text"])["text"].to_pylist() + articles
                if len(articles) >= count:
                    break
    if not articles:
        raise FileNotFoundError(f"too few rows in {folder}/*.parquet, expected at least {2 if at_most_half else 1}")
    return articles[-count:]


def _rows(filesystem: fsspec.AbstractFileSystem, names: Sequence[str], enough: int) -> int:
    """How many rows parquet files have together, by what stands at their ends; counts no further than `enough`."""
    total = 0
    for name in names:
        with filesystem.open(name) as file:
            total += pyarrow.parquet.ParquetFile(file).metadata.num_rows
        if total >= enough:
            break
    return total


def parquet_rows(source: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a folder of parquet files, in order; `source` is a path or URL of any kind that fsspec knows."""
    filesystem, folder = fsspec.core.url_to_fs(source)
    rows: list[dict[str, Any]] = []
    for name in sorted(filesystem.glob(f"{folder}/*.parquet")):
        with filesystem.open(name) as file:
            rows += pyarrow.parquet.read_table(file, columns=list(columns)).to_pylist()
    if not rows:
        raise FileNotFoundError(f"no rows in {folder}/*.parquet")
    return rows
