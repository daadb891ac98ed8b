"""Reads the documents of some languages for a reference, batch by batch, and writes down which they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from tqdm import tqdm

from plnd.detection.documents import OwnTokenizer, TokenizedCorpus, batched
from plnd.detection.shards import Shard
from plnd.errors import CorpusError, PLNDError
from plnd.io.corpus import Sections
from plnd.models.layout import Layout
from plnd.references.config import ReferenceConfig
from plnd.secrets import published

WINDOW = 16
"""Batches whose documents are sorted by length together."""


def read_corpora(
    layout: Layout,
    corpora: Mapping[str, Iterable[str | Sequence[int]] | Sections],
    config: ReferenceConfig,
    run: Callable[[str, list[list[int]]], None],
    *,
    tokenizer: Any = None,
    sources: Mapping[str, str] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Hands all documents of each language that are long enough to `run`, once, in batches.

    Args:
        layout: of the model.
        corpora: language to texts, or token ids as the model takes them; read once, in order, streamed.
        config: which documents.
        run: takes a language and the token ids of some of its documents.
        tokenizer: for texts; by default the one saved with the model.
        sources: language to where its documents come from.
        progress: show a bar.

    Returns:
        Language to what was read of it, for the metadata.

    Raises:
        CorpusError: if no document of a language is long enough.
        PLNDError: if there is no language, documents are a file's name, or may be longer than the model takes.
    """
    if not corpora:
        raise PLNDError("no corpora, expected one of each language")
    if any(isinstance(documents, str) for documents in corpora.values()):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    layout.check_length(config.max_length)
    tokenizer, said = tokenizer or OwnTokenizer.saved(layout), {}
    for language, documents in corpora.items():
        read = TokenizedCorpus(documents, tokenizer, config.of(language), layout, Shard())
        source, count, tokens = (sources or {}).get(language), 0, 0
        source = source and published(source)
        windows = read.windows(WINDOW * config.batch_size)
        with closing(windows), tqdm(unit=" documents", desc=language, disable=not progress) as bar:
            for _, _, window in windows:
                for batch in batched(sorted(window, key=lambda d: -len(d.ids)), config.batch_size):
                    run(language, [document.ids for document in batch])
                    count, tokens = count + len(batch), tokens + sum(len(document.ids) for document in batch)
                    bar.update(len(batch))
        short = sum(section.short.count for section in read.sections.values())
        if not count:
            raise CorpusError(
                f"{source or language}: no document of {config.min_length} tokens or more ({short} shorter ones)"
            )
        said[language] = {
            "source": source,
            "sha256": read.digest,
            "documents": count,
            "tokens": tokens,
            "max_length": config.max_length,
            "skipped": {},
            "skipped_counts": {f"shorter than {config.min_length} tokens": short} if short else {},
        }
    return said
