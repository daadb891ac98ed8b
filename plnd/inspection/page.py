"""Neurons as one HTML page to browse: complete in itself, without a script, and the same for the same inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plnd.inspection.profiles import IMPORTANCE, Firing, Inspection, NeuronProfile
from plnd.inspection.table import number
from plnd.inspection.text import visible, visible_token
from plnd.secrets import portable
from plnd.version import __version__

STEPS = 10
"""Shades of a cell of the overview."""


@dataclass(frozen=True)
class Cell:
    """A number of one language, and how large it is among the languages, from 0 to `STEPS`."""

    text: str
    shade: int


def neuron_page(inspection: Inspection) -> str:
    """The page: an overview that leads to a card for each neuron, with a column for each language.

    Languages can be chosen; dark or light is the reader's. Whatever tokens, names and texts hold is shown as text.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("plnd.inspection"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "token": visible_token, "number": number}
    return environment.get_template("neurons.html").render(
        inspection=inspection,
        title=title(inspection),
        languages=list(inspection.corpora),
        overview=[(neuron, _cells(inspection, neuron), strongest(neuron)) for neuron in inspection.neurons],
        cells={neuron.name: _cells(inspection, neuron) for neuron in inspection.neurons},
        scored=inspection.measure == IMPORTANCE,
        version=__version__,
    )


def title(inspection: Inspection) -> str:
    """What the page is about."""
    of = f"{inspection.language} neurons" if inspection.language else "Neurons"
    return f"{of} of {portable(inspection.model)}"


def strongest(neuron: NeuronProfile) -> Firing | None:
    """The token of largest |value| in any language."""
    return max((f for one in neuron.languages for f in one.firings), key=lambda f: abs(f.value), default=None)


def _cells(inspection: Inspection, neuron: NeuronProfile) -> Sequence[Cell]:
    values = list(inspection.by_language(neuron).values())
    largest = max((value for value in values if value is not None), default=0.0)
    return [
        Cell("–", 0) if value is None else Cell(number(value), round(STEPS * value / largest) if largest else 0)
        for value in values
    ]
