"""Neurons as text for a terminal: a paragraph each, with one line a language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plnd.inspection.profiles import IMPORTANCE, Firing, Inspection, NeuronProfile, WrittenToken
from plnd.inspection.text import visible, visible_token

MARKS = "»{}«"
"""Around the token on which a neuron fires."""


def neuron_lines(inspection: Inspection) -> Iterator[str]:
    """Lines that print as they are: nothing in them steers a terminal."""
    for language, read in inspection.corpora.items():
        yield f"{visible(language)}: {read.documents:,} documents, {read.tokens:,} tokens"
    for neuron in inspection.neurons:
        yield ""
        yield heading(neuron)
        yield from _language_lines(inspection, neuron)
        yield from _writing_lines(neuron)


def heading(neuron: NeuronProfile) -> str:
    """What a neuron is, in a line."""
    parts = [visible(neuron.name)]
    if neuron.importance is not None:
        parts.append(f"importance {number(neuron.importance)}")
    if neuron.also:
        parts.append(f"the same as {', '.join(map(visible, neuron.also))}")
    parts.append(f"value: {neuron.value}")
    parts.append(f"large: |value| from {number(neuron.large)}" if neuron.large else "its value is 0 at every token")
    return "   ".join(parts)


def _language_lines(inspection: Inspection, neuron: NeuronProfile) -> Iterator[str]:
    measured = inspection.by_language(neuron)
    scored = inspection.measure == IMPORTANCE
    head = ["", *([inspection.measure] if scored else []), "mean |value|", "mean", "large", "value", "fires most on"]
    rows = []
    for one in neuron.languages:
        importance = measured[one.language]
        row = [visible(one.language), *(["–" if importance is None else number(importance)] if scored else [])]
        row += [number(one.mean_size), number(one.mean, signed=True), f"{one.large:.1%}"]
        best = one.firings[0] if one.firings else None
        rows.append([*row, *(["–", ""] if best is None else [number(best.value, signed=True), _context(best)])])
    yield from _aligned([head, *rows])


def _writing_lines(neuron: NeuronProfile) -> Iterator[str]:
    writing = neuron.writing
    yield f"  writes {writing.how}"
    if writing.promoted:
        yield f"    value > 0: {_tokens(writing.promoted)}"
        yield f"    value < 0: {_tokens(writing.suppressed)}"


def _tokens(tokens: Sequence[WrittenToken]) -> str:
    return "  ".join(visible_token(token.text) for token in tokens)


def _context(firing: Firing) -> str:
    token = MARKS.format(visible_token(firing.token))
    return f"{visible(firing.before)}{token}{visible(firing.after)}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns two apart: the first to the left, numbers to the right, the last, which is text, as it comes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *numbers, text in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True))
        yield "  ".join(("", f"{first:<{widths[0]}}", *cells, text)).rstrip()


def number(value: float, *, signed: bool = False) -> str:
    """Three digits, of large numbers the whole ones, with a true minus sign."""
    form = ",.0f" if 1000 <= abs(value) < 1e6 else ".3g"
    return f"{value:{'+' if signed else ''}{form}}".replace("-", "−")
