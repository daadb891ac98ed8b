"""What single neurons are about: one pass over a corpus of each language, and the neurons' directions decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from plnd.addresses import COLUMN_PROJECTIONS, split_address
from plnd.errors import CorpusError, PLNDError
from plnd.inspection.choice import Chosen, choose
from plnd.inspection.config import InspectConfig
from plnd.inspection.firing import Firings, Peak, Tokens, large_from
from plnd.inspection.profiles import (
    IMPORTANCE,
    MEAN_SIZE,
    CorpusRead,
    Firing,
    Inspection,
    LanguageProfile,
    NeuronProfile,
    Writing,
)
from plnd.inspection.text import in_context
from plnd.inspection.values import ValueWatch, reads_shifted
from plnd.inspection.writing import Writer
from plnd.logit_lens.lens import PROVEN_TOKENS, Unembedding
from plnd.model_description import check_model
from plnd.models.layout import Layout
from plnd.models.running import measured
from plnd.neurons.contrast import check_settings
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores

Documents = Iterable[str | Sequence[int]]


@torch.no_grad()
def inspect_neurons(
    model: nn.Module,
    tokenizer: Any,
    neurons: NeuronSet | Sequence[str],
    corpora: Mapping[str, Documents],
    *,
    scores: Mapping[str, Scores] | None = None,
    config: InspectConfig | None = None,
    progress: bool = False,
) -> Inspection:
    """What the most important neurons of a set fire on in each language, and what they write.

    One forward pass over the corpora; what is kept does not grow with them. Every token counts but those that the
    tokenizer puts around a text, and a decoder's start token: there many neurons are large in every language.

    Args:
        model: a transformers model of a known family.
        tokenizer: of the model.
        neurons: a set, of which the `config.top` most important are taken (the three parts of one feed-forward neuron
            as one), or names, `"{block}.{projection}.{index}"`.
        corpora: language to documents, texts or token ids; read once, in order, streamed.
        scores: language to its scores: what a neuron's importance for each language is read from, by default the mean
            `|value|` on the documents.
        config: how much to read and to keep.
        progress: show a progress bar.

    Raises:
        FamilyError: if the model's family is unknown, or its row does not lead to the model's own logits.
        ModelMismatchError: if neurons or scores were made for another model.
        CorpusError: if there is no document of some language.
        PLNDError: if a name is no neuron of the model, the set is empty, scores and corpora do not belong together, the
            configuration does not fit the model, or a value is not finite.
    """
    config, scores = config or InspectConfig(), scores or {}
    layout = Layout(model)
    layout.check_length(config.max_length)
    if not corpora:
        raise PLNDError("no corpus: expected documents of at least one language")
    if any(isinstance(documents, str) for documents in corpora.values()):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    check_origin(layout.description(), neurons, scores, corpora)
    chosen = choose(neurons, config.top, layout.widths)
    readers = {language: _Reader(layout, tokenizer, config, language, docs) for language, docs in corpora.items()}
    with measured(layout.model, [block.module for block in layout.blocks]):
        unembed = Unembedding(layout)
        vocabulary = unembed.prove(next(iter(readers.values())).first[:PROVEN_TOKENS])
        fired = _read(layout, readers, chosen, config, progress)
        written = _written(Writer(layout, tokenizer, unembed, vocabulary, config.written), chosen)
    language, digest = (neurons.metadata.language, neurons.digest) if isinstance(neurons, NeuronSet) else (None, None)
    return Inspection(
        model=layout.description()["name"] or layout.family.name,
        language=language,
        sha256=digest,
        chosen_from=len(neurons),
        measure=IMPORTANCE if scores else MEAN_SIZE,
        corpora={language: CorpusRead(reader.documents, reader.tokens) for language, reader in readers.items()},
        neurons=tuple(
            NeuronProfile(
                address=one.address,
                index=one.index,
                importance=one.importance,
                also=tuple(f"{address}.{one.index}" for address in one.also),
                value=_value_in_words(one),
                writing=written[one.address, one.index],
                **_on_text(tokenizer, one, fired, scores, config),
            )
            for one in chosen
        ),
    )


def check_origin(
    description: Mapping[str, Any],
    neurons: NeuronSet | Sequence[str],
    scores: Mapping[str, Scores],
    corpora: Iterable[str],
) -> None:
    """Refuses neurons and scores of another model, and scores of other languages than the corpora or of several kinds.

    Args:
        description: of the model (`plnd.models.layout.Layout.description`).
        neurons, scores: as of `inspect_neurons`.
        corpora: their languages.
    """
    if isinstance(neurons, NeuronSet):
        neurons.check_model(description)
    for language, one in scores.items():
        check_model(one.metadata.model, description, f"the scores of {language}")
        if language not in corpora:
            raise PLNDError(f"scores of {language}, but there is no corpus of it: give one, or leave its scores out")
        if one.metadata.language not in (None, language):
            raise PLNDError(f"the scores of {language} were made of documents in {one.metadata.language}")
    check_settings(list(scores.values()))


class _Reader:
    """The documents of one language as token ids, and how many were read.

    Attributes:
        first: the first document that has a token.
        documents, tokens: read so far; tokens that count.
    """

    def __init__(
        self, layout: Layout, tokenizer: Any, config: InspectConfig, language: str, documents: Documents
    ) -> None:
        self.layout, self.tokenizer, self.config, self.language = layout, tokenizer, config, language
        self.documents = self.tokens = 0
        found = self._tokenised(documents)
        start = next(found, None)
        if start is None:
            raise CorpusError(f"{language}: no document with a token in the corpus")
        self.first = start[0]
        self._documents = islice(chain([start], found), config.max_documents)

    def batches(self) -> Iterator[list[tuple[list[int], list[bool]]]]:
        """Ids of each document, and which of its tokens count."""
        while batch := list(islice(self._documents, self.config.batch_size)):
            yield batch
            self.documents += len(batch)
            self.tokens += sum(sum(counted) for _, counted in batch)

    def _tokenised(self, documents: Documents) -> Iterator[tuple[list[int], list[bool]]]:
        length = self.config.max_length
        for number, document in enumerate(documents):
            if isinstance(document, str):
                found = self.tokenizer(document, truncation=True, max_length=length, return_special_tokens_mask=True)
                ids, counted = found["input_ids"], [not special for special in found["special_tokens_mask"]]
            else:
                ids = [int(token) for token in document][:length]
                counted = [True] * len(ids)
            self.layout.check_tokens(ids, f"document {number} of the corpus of {self.language}")
            if any(counted):
                yield list(ids), counted


def _read(
    layout: Layout, readers: Mapping[str, _Reader], chosen: Sequence[Chosen], config: InspectConfig, progress: bool
) -> dict[str, dict[tuple[str, int], tuple[Firings, int]]]:
    """Language to site and index to what was kept, and the neuron's number in it."""
    sites: dict[str, list[int]] = {}
    for one in chosen:
        sites.setdefault(one.site, []).append(one.index)
    sites = {site: sorted(set(indices)) for site, indices in sites.items()}
    watch = ValueWatch(layout, {site: torch.tensor(indices) for site, indices in sites.items()})
    kept = {
        language: {site: Firings(len(indices), config.contexts) for site, indices in sites.items()}
        for language in readers
    }
    with watch.attached(), tqdm(unit=" documents", desc="neurons", disable=not progress) as bar:
        for language, reader in readers.items():
            for batch in reader.batches():
                values = watch.read([ids for ids, _ in batch])
                for row, (ids, counted) in enumerate(batch):
                    number = reader.documents + row
                    for site, found in values.items():
                        _check_finite(found[row, : len(ids)], site)
                        kept[language][site].add(found[row, : len(ids)], _seen_by(layout, site, number, ids, counted))
                bar.update(len(batch))
    return {
        language: {
            (site, index): (found, number)
            for site, found in by_site.items()
            for number, index in enumerate(sites[site])
        }
        for language, by_site in kept.items()
    }


def _seen_by(layout: Layout, site: str, number: int, ids: list[int], counted: list[bool]) -> Tokens:
    """A document as the neurons of a site see it."""
    if reads_shifted(layout, site):
        ids, counted = [layout.model.config.decoder_start_token_id or 0, *ids[:-1]], [False, *counted[:-1]]
    return Tokens(number, ids, np.array(counted))


def _check_finite(values: np.ndarray, site: str) -> None:
    if not np.isfinite(values).all():
        raise PLNDError(f"{site}: a value is not finite; try another --dtype")


def _written(writer: Writer, chosen: Sequence[Chosen]) -> dict[tuple[str, int], Writing]:
    """Address and index to what the neuron writes; each projection's weight is read once."""
    by_address: dict[str, list[int]] = {}
    for one in chosen:
        by_address.setdefault(one.address, []).append(one.index)
    return {
        (address, index): writing
        for address, indices in by_address.items()
        for index, writing in zip(indices, writer.writings(address, indices), strict=True)
    }


def _value_in_words(one: Chosen) -> str:
    projection = split_address(one.site)[1]
    return f"{'input column' if projection in COLUMN_PROJECTIONS else 'output row'} of {projection}"


def _on_text(
    tokenizer: Any,
    one: Chosen,
    fired: Mapping[str, Mapping[tuple[str, int], tuple[Firings, int]]],
    scores: Mapping[str, Scores],
    config: InspectConfig,
) -> dict[str, Any]:
    """`large` and `languages` of a neuron's profile."""
    found = {language: by_neuron[one.site, one.index] for language, by_neuron in fired.items()}
    edge = large_from(max(firings.largest(number) for firings, number in found.values()))
    languages = []
    for language, (firings, number) in found.items():
        vector = scores[language].mean.get(one.address) if language in scores else None
        tokens = max(firings.tokens, 1)
        languages.append(
            LanguageProfile(
                language,
                importance=None if vector is None else float(vector[one.index]),
                mean=float(firings.total[number]) / tokens,
                mean_size=float(firings.total_size[number]) / tokens,
                large=firings.share_from(number, edge) if edge else 0.0,
                firings=tuple(_firing(tokenizer, peak, config.around) for peak in firings.peaks(number)),
            )
        )
    return {"large": edge, "languages": tuple(languages)}


def _firing(tokenizer: Any, peak: Peak, around: int) -> Firing:
    document, position = peak.place
    before, token, after = in_context(tokenizer, peak.ids, position, around)
    return Firing(peak.value, token, before, after, document, position, int(peak.ids[position]))
