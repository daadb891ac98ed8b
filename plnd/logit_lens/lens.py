"""What language a model thinks in: the tokens that its hidden states decode to, block by block (the logit lens).

Figures 1 and 7 of arXiv:2402.18815. A hidden state goes through the model's final norm and its unembedding; the k
tokens of the largest logits are decoded one by one, and each gets a label: English, another language, or non-word. What
a model does to its logits after that (a soft-cap, a scale) leaves their order as it is.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from plnd import notebook
from plnd.addresses import block_of
from plnd.errors import CorpusError, FamilyError, PLNDError
from plnd.io.files import read_bounded, write_csv
from plnd.logit_lens.config import LensConfig
from plnd.logit_lens.language_id import NON_WORD, Identifier, find_identifier, labels
from plnd.models.batches import padded
from plnd.models.blockwise import in_step
from plnd.models.layout import Layout
from plnd.models.running import hooked, measured

INPUT = "input"
"""The place before the first block, beside the blocks' own names."""
WINDOW = 16
"""Batches that are read in step, where a model is read block by block."""
LOGITS_AT_ONCE = 2**24
"""Logits that exist at one time, which bounds memory: positions go through the unembedding in pieces."""
PROVEN_TOKENS = 32
"""Tokens of the first document on which the final norm and the unembedding are held to the model's own logits."""
TOLERANCE = 8
"""How far two of the model's logits may be in another order, in roundings of its largest one."""
MAX_BYTES = 2**26
"""Of a table that is read."""
HEADER = ("model", "language", "identifier", "top_k", "documents", "positions", "block", "decoded", "tokens")
"""Columns of the CSV."""


@dataclass(frozen=True, eq=False)
class LensCounts:
    """How many of the decoded tokens are of which language, block by block.

    Attributes:
        model: name or path of the model.
        language: of the documents.
        identifier: what told the languages, `cld3` or `script`.
        top_k: tokens decoded at each position.
        documents: how many were read.
        positions: the tokens in them.
        blocks: where was decoded: `input`, before the first block, and after each block.
        decoded: the labels that were given, the most frequent first.
        tokens: [blocks, decoded] int64; the sum of a block is positions · top_k.
    """

    model: str
    language: str
    identifier: str
    top_k: int
    documents: int
    positions: int
    blocks: tuple[str, ...]
    decoded: tuple[str, ...]
    tokens: np.ndarray

    def __repr__(self) -> str:
        read = f"{self.documents:,} documents, {self.positions:,} tokens"
        return f"LensCounts({read}, language={self.language!r}, {len(self.blocks)} places, model={self.model!r})"

    def _repr_html_(self) -> str:
        facts = {"language": self.language, "model": self.model, "told by": self.identifier}
        shares = self.shares()
        rows = [(place, *(f"{of[n]:.1%}" for of in shares.values())) for n, place in enumerate(self.blocks)]
        title = f"Logit lens: {self.documents:,} documents, {self.positions:,} tokens, top {self.top_k}"
        return notebook.card(title, facts, notebook.table(("after block", *shares), rows))

    def shares(self) -> dict[str, np.ndarray]:
        """Shares of all decoded tokens, [blocks] float64 each, which sum to 1 in every block.

        By cld3: `English`, `own language` (of the documents; absent where that is English), `other languages` and
        `non-word`. By script: `Latin script`, `own script` (absent where Latin), `other scripts` and `non-word`.
        """
        kind = "script" if self.identifier == "script" else "language"
        english, own = (set(labels(self.identifier, language)) for language in ("en", self.language))
        named = {english_name(self.identifier): english, f"own {kind}": own - english}
        shares = {name: self._share(of) for name, of in named.items() if of}
        rest = set(self.decoded) - english - own - {NON_WORD}
        return {**shares, f"other {kind}s": self._share(rest), NON_WORD: self._share((NON_WORD,))}

    def share_of_words(self, language: str, among: Iterable[str] | None = None) -> np.ndarray:
        """The share of one language in the tokens that are words, [blocks] float64; nan where no token is one.

        Args:
            language: `en` for Figure 1.
            among: the languages whose words are counted, as the published code of the paper does; by default all.
        """
        words = set(self.decoded) - {NON_WORD}
        if among is not None:
            words = {label for one in among for label in labels(self.identifier, one)}
        with np.errstate(invalid="ignore"):
            return self._share(set(labels(self.identifier, language)) & words) / self._share(words)

    def _share(self, of: Iterable[str]) -> np.ndarray:
        chosen = np.isin(self.decoded, list(of))
        return self.tokens[:, chosen].sum(1) / (self.positions * self.top_k)


def english_name(identifier: str) -> str:
    """What the curve of English is called; of a classifier by script it is that of every language in Latin letters."""
    return "Latin script" if identifier == "script" else "English"


def is_foreign(counts: LensCounts) -> bool:
    """Whether the identifier can tell the documents' language from English."""
    return labels(counts.identifier, counts.language) != labels(counts.identifier, "en")


def mean_of_words(counts: Sequence[LensCounts], language: str = "en") -> np.ndarray:
    """One language in the words decoded, mean over the documents' languages: Figures 1 and 7.

    Languages that are not told from English (`is_foreign`) are left out of the mean. Words are those of English and of
    any of the documents' languages, as in the published code of the paper.

    Args:
        counts: of one model and one identifier, a language each.
        language: `en` for Figure 1; for Figure 7 also the one that the model thinks in.

    Returns:
        [blocks] float64; nan where no word was decoded from the documents of a language.

    Raises:
        PLNDError: if they are of several models or identifiers, or of English alone.
    """
    if len({(one.model, one.identifier, one.blocks) for one in counts}) != 1:
        raise PLNDError("expected counts of one model by one identifier")
    foreign = [one for one in counts if is_foreign(one)]
    if not foreign:
        raise PLNDError("expected documents in a language that is told from English")
    among = {"en", *(one.language for one in foreign)}
    return np.mean([one.share_of_words(language, among) for one in foreign], axis=0)


def lens_panels(counts: Sequence[LensCounts]) -> dict[str, dict[str, np.ndarray]]:
    """Curves to draw, in per cent: the shares of each language's documents, and where there are several their mean."""
    by_identifier: dict[str, list[LensCounts]] = defaultdict(list)
    for one in counts:
        by_identifier[one.identifier].append(one)
    panels: dict[str, dict[str, np.ndarray]] = {}
    for identifier, group in by_identifier.items():
        after = f" (by {identifier})"
        foreign = [one.language for one in group if is_foreign(one)]
        if len(foreign) > 1:
            english, name = 100 * mean_of_words(group), english_name(identifier)
            panels[f"words, mean of {', '.join(foreign)}{after}"] = {name: english, f"not {name}": 100 - english}
        for one in group:
            panels[f"{one.language}{after}"] = {name: 100 * share for name, share in one.shares().items()}
    return panels


@dataclass(frozen=True, eq=False)
class DecodedTokens:
    """How often each token of the vocabulary is among the top k, block by block.

    Attributes:
        model, top_k, documents, positions, blocks: as in `LensCounts`.
        counts: [blocks, vocabulary] int64.
    """

    model: str
    top_k: int
    documents: int
    positions: int
    blocks: tuple[str, ...]
    counts: np.ndarray

    def __repr__(self) -> str:
        read = f"{self.documents:,} documents, {self.positions:,} tokens"
        return f"DecodedTokens({read}, top {self.top_k} in {len(self.blocks)} places, model={self.model!r})"

    def labelled(self, tokenizer: Any, identifier: Identifier, language: str) -> LensCounts:
        """Counts by label; each token of the vocabulary that occurs is decoded and classified once."""
        present = np.flatnonzero(self.counts.any(0)).tolist()
        columns: dict[str, list[int]] = defaultdict(list)
        for token, text in zip(present, token_texts(tokenizer, present), strict=True):
            columns[identifier.identify(text)].append(token)
        tokens = {label: self.counts[:, of].sum(1) for label, of in columns.items()}
        decoded = sorted(tokens, key=lambda label: (-tokens[label].sum(), label))
        return LensCounts(
            self.model,
            language,
            identifier.name,
            self.top_k,
            self.documents,
            self.positions,
            self.blocks,
            tuple(decoded),
            np.stack([tokens[label] for label in decoded], axis=1),
        )


def lens(
    model: nn.Module,
    tokenizer: Any,
    documents: Iterable[str | Sequence[int]],
    language: str,
    config: LensConfig | None = None,
    *,
    identifier: str | Identifier = "cld3",
    progress: bool = False,
) -> LensCounts:
    """What languages the hidden states of `model` decode to while it reads `documents`.

    Args:
        model: a transformers model of a known family. Of an encoder and a decoder, the decoder's hidden states are
            decoded; both read the document, the decoder shifted by one token.
        tokenizer: of the model.
        documents: texts, or token ids as the model takes them; read once, in order, streamed.
        language: what the documents are written in.
        config: how much to read and to decode.
        identifier: `cld3`, `script`, or an object like those in `plnd.logit_lens.language_id`.
        progress: show a progress bar.

    Raises:
        FamilyError, CorpusError, PLNDError: as `decode_tokens`; PLNDError also if the identifier is not installed.
    """
    chosen = find_identifier(identifier) if isinstance(identifier, str) else identifier
    decoded = decode_tokens(model, tokenizer, documents, config, progress=progress)
    return decoded.labelled(tokenizer, chosen, language)


@torch.no_grad()
def decode_tokens(
    model: nn.Module,
    tokenizer: Any,
    documents: Iterable[str | Sequence[int]],
    config: LensConfig | None = None,
    *,
    progress: bool = False,
) -> DecodedTokens:
    """The first half of `lens`, before anything is asked about languages: which tokens are decoded how often.

    One forward pass per batch; beyond it this keeps one count per block and token of the vocabulary, and
    `LOGITS_AT_ONCE` logits. All tokens of a document count, also those that the tokenizer puts before it.

    Args:
        model, tokenizer, documents, config, progress: as of `lens`.

    Raises:
        FamilyError: if the model's family is unknown, or its row does not lead to the model's own logits.
        CorpusError: if there is no document.
        PLNDError: if the configuration does not fit the model, or a hidden state is not finite.
    """
    if isinstance(documents, str):
        raise PLNDError("documents are texts or lists of token ids: for those of a file pass plnd.read_documents(file)")
    config = config or LensConfig()
    top_k, max_length = config.top_k, config.max_length
    layout = Layout.of_all(model)
    layout.check_length(max_length)
    sequences: Iterator[list[int]] = islice(_token_ids(layout, documents, tokenizer, max_length), config.max_documents)
    first = next(sequences, None)
    if first is None:
        raise CorpusError("no document with a token to decode in the corpus")
    read, positions = 0, 0
    blocks = [block.module for block in layout.blocks]
    with measured(layout.model, blocks, whole=False):
        unembed = Unembedding(layout)
        vocabulary = unembed.prove(first[:PROVEN_TOKENS])
        if top_k > vocabulary:
            raise PLNDError(f"top_k={top_k}: the model has {vocabulary} tokens; use at most that")
        watch = _Watch(layout, unembed, vocabulary, top_k)
        sequences = chain([first], sequences)
        bar = tqdm(total=config.max_documents, unit=" documents", desc="lens", disable=not progress)
        with watch.attached(), bar:
            batches = iter(lambda: list(islice(sequences, config.batch_size)), [])
            while window := list(islice(batches, WINDOW)):
                for batch in watch.read(window):
                    read += len(batch)
                    positions += sum(map(len, batch))
                    bar.update(len(batch))
    counts = torch.stack([watch.counts[place].cpu() for place in watch.places]).numpy()
    name = layout.description()["name"] or layout.family.name
    return DecodedTokens(name, top_k, read, positions, tuple(watch.places), counts)


def token_texts(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """The text of each token by itself: empty for special tokens and for rows of the unembedding without a token."""
    size = len(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}
    for token in tokens:
        known = token < size and token not in special
        yield tokenizer.decode([token], clean_up_tokenization_spaces=False) if known else ""


def save_lens(counts: Iterable[LensCounts], path: str | Path) -> None:
    """Writes counts as CSV, a row for every block and label that occurs there."""
    rows = [
        (one.model, one.language, one.identifier, one.top_k, one.documents, one.positions, block, label, int(number))
        for one in counts
        for block, numbers in zip(one.blocks, one.tokens, strict=True)
        for label, number in zip(one.decoded, numbers, strict=True)
        if number
    ]
    write_csv(path, HEADER, rows)


def load_lens(path: str | Path) -> list[LensCounts]:
    """Reads what `save_lens` wrote, in its order.

    Raises:
        PLNDError: if the file cannot be read or is not such a table.
    """
    tables: dict[tuple[str, ...], dict[tuple[str, str], int]] = {}
    try:
        header, *rows = csv.reader(io.StringIO(read_bounded(path, MAX_BYTES).decode(), newline=""))
        if tuple(header) != HEADER:
            raise ValueError("other columns")
        for *about, block, label, number in rows:
            tables.setdefault(tuple(about), {})[block, label] = int(number)
        return [_loaded(about, numbers) for about, numbers in tables.items()]
    except (ValueError, csv.Error) as error:
        raise PLNDError(f"{path}: not a table of `plnd lens --csv` ({error})") from None


def _loaded(about: Sequence[str], numbers: Mapping[tuple[str, str], int]) -> LensCounts:
    model, language, identifier, top_k, documents, positions = about
    blocks = tuple(dict.fromkeys(block for block, _ in numbers))
    total: dict[str, int] = defaultdict(int)
    for (_, label), number in numbers.items():
        total[label] += number
    decoded = tuple(sorted(total, key=lambda label: (-total[label], label)))
    tokens = np.array([[numbers.get((block, label), 0) for label in decoded] for block in blocks], dtype=np.int64)
    labels(identifier, language)  # an identifier that is not known
    counts = LensCounts(
        model, language, identifier, int(top_k), int(documents), int(positions), blocks, decoded, tokens
    )
    if (tokens.sum(1) != counts.positions * counts.top_k).any():
        raise ValueError("a block does not have positions · top_k tokens")
    return counts


def _token_ids(
    layout: Layout, documents: Iterable[str | Sequence[int]], tokenizer: Any, max_length: int
) -> Iterator[list[int]]:
    """The documents that have tokens, as token ids that the model knows."""
    for number, document in enumerate(documents):
        if isinstance(document, str):
            document = tokenizer(document, truncation=True, max_length=max_length)["input_ids"]
        ids = [int(token) for token in document][:max_length]
        layout.check_tokens(ids, f"document {number} of the corpus")
        if ids:
            yield ids


class Unembedding:
    """From hidden states to logits, as the model itself goes after its last block.

    Attributes:
        blocks: the blocks whose outputs are decoded, of the decoder alone.
    """

    def __init__(self, layout: Layout) -> None:
        layout.check_predicts("decoding hidden states")
        self.layout = layout
        self.blocks = [b for b in layout.blocks if not b.name.startswith("encoder.") and b.name == block_of(b.name)]
        head, family = layout.model.get_output_embeddings(), layout.family
        if head is None:
            raise FamilyError(f"{type(layout.model).__name__} has no unembedding: nothing can be decoded")
        modules = [layout.at(path) for path in family.final]
        self.modules = [*(module for module in modules if module is not None), head]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits, [..., vocabulary], of hidden states of the last block, [..., hidden]."""
        for module in self.modules:
            hidden = module(hidden)
        return hidden

    def prove(self, ids: Sequence[int]) -> int:
        """Holds what the last block's output becomes here to the model's own logits for the same tokens.

        Returns:
            The number of logits at a position.

        Raises:
            FamilyError: if the two are not in the same order at some position.
        """
        model, family = self.layout.model, self.layout.family
        tokens = torch.tensor([ids], device=self.layout.input_device)
        further = {}
        if getattr(model.config, "is_encoder_decoder", False):
            start = tokens.new_full((1, 1), model.config.decoder_start_token_id or 0)
            further["decoder_input_ids"] = torch.cat((start, tokens[:, :-1]), dim=1)
        hidden: list[Tensor] = []
        with hooked(model), ExitStack() as stack:
            last = self.blocks[-1].module
            handle = last.register_forward_hook(lambda _, __, output: hidden.append(_hidden(output)))
            stack.callback(handle.remove)
            own = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **further).logits[0]
        try:
            logits = self(hidden[0][0]).to(own.device)
        except RuntimeError as error:  # a matrix of another width
            problem = str(error)
        else:
            sorted_by_logits = own.gather(-1, logits.argsort(-1)).double()
            astray = float((sorted_by_logits.cummax(-1).values - sorted_by_logits).amax())
            allowed = TOLERANCE * torch.finfo(logits.dtype).eps * float(own.abs().amax())
            if not torch.isfinite(own).all():
                raise PLNDError(f"the model's logits in {own.dtype} are not finite; try another --dtype")
            if astray <= allowed:
                return own.shape[-1]
            problem = f"logits up to {astray:.3g} in another order"
        raise FamilyError(
            f"{family.name}: {' and '.join(family.final)} and the unembedding do not lead from the last block to the"
            f" model's own logits ({problem}): correct `final` of the family's row (docs/families.md)"
        )


class _Watch:
    """Decodes hidden states where they arise, during a forward pass, and counts the tokens.

    Attributes:
        places: `input`, and the blocks' names.
        counts: place to how often each token was decoded there, [vocabulary] int64.
    """

    def __init__(self, layout: Layout, unembed: Unembedding, vocabulary: int, top_k: int) -> None:
        self.layout, self.unembed, self.vocabulary, self.top_k = layout, unembed, vocabulary, top_k
        self.places = [INPUT, *(block.name for block in unembed.blocks)]
        self.counts: dict[str, Tensor] = {}
        self.real = torch.empty(0, 0, dtype=torch.bool)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watches the model inside the context."""
        blocks = [block.module for block in self.unembed.blocks]
        with hooked(self.layout.model), ExitStack() as stack:
            stack.callback(blocks[0].register_forward_pre_hook(self._before, with_kwargs=True).remove)
            for name, module in zip(self.places[1:], blocks, strict=True):
                stack.callback(module.register_forward_hook(partial(self._after, name)).remove)
            yield

    def read(self, batches: Sequence[list[list[int]]]) -> Iterator[list[list[int]]]:
        """One forward pass of the body for each batch, in step; gives each batch when it is through.

        Args:
            batches: token ids of each document, at least one each.
        """
        inputs = [padded(batch) for batch in batches]

        def turn(number: int) -> None:
            self.real = inputs[number][1].bool()

        device = self.layout.input_device
        passes = [partial(self.layout.forward, ids.to(device), mask.to(device)) for ids, mask in inputs]
        for number, _ in in_step(self.layout.model, passes, turn):
            yield batches[number]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._decode(INPUT, args[0] if args else kwargs["hidden_states"])

    def _after(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        self._decode(name, _hidden(output))

    def _decode(self, place: str, hidden: Tensor) -> None:
        """Counts the top tokens of every real position, [batch, seq, hidden]."""
        states = hidden[self.real.to(hidden.device)]
        if not torch.isfinite(states).all():
            raise PLNDError(f"{place}: a hidden state in {states.dtype} is not finite; try another --dtype")
        for piece in states.split(max(1, LOGITS_AT_ONCE // self.vocabulary)):
            tokens = self.unembed(piece).topk(self.top_k, dim=-1, sorted=False).indices.flatten()
            counted = torch.bincount(tokens, minlength=self.vocabulary)
            self.counts[place] = self.counts[place] + counted if place in self.counts else counted


def _hidden(output: Any) -> Tensor:
    """The hidden states that a block returns."""
    return output[0] if isinstance(output, tuple) else output
