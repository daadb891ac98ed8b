"""Corpora in files, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plnd.errors import CorpusError
from plnd.io.corpus import read_documents

TEXTS = ["Ein Satz.", "两个句子。还有一个。", "Три."]


def json_lines(texts, field: str = "text") -> str:
    """One object a line."""
    return "".join(json.dumps({"id": n, field: text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts))


def make(path: Path, content: str | bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(source: str | Path | list, *arguments: str) -> str:
    """What reading the whole corpus says; it must be one line."""
    with pytest.raises(CorpusError) as caught:
        list(read_documents(source, *arguments))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
