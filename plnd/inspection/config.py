"""How many neurons to look at, and how much text; knows nothing of how that is done."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from plnd.errors import PLNDError
from plnd.numbers import is_whole


@dataclass(frozen=True)
class InspectConfig:
    """How much to read and to keep. Each field says what it is, here and in `plnd neuron --help`."""

    top: int = field(default=20, metadata={"help": "neurons of the set that are shown, the most important ones"})
    contexts: int = field(default=5, metadata={"help": "tokens kept of each neuron and language, with their contexts"})
    around: int = field(default=12, metadata={"help": "tokens shown before and after one on which a neuron fires"})
    written: int = field(default=10, metadata={"help": "tokens shown that a neuron promotes, and that it suppresses"})
    max_documents: int = field(default=50, metadata={"help": "stop after this many documents of each language"})
    max_length: int = field(default=128, metadata={"help": "tokens kept of each document"})
    batch_size: int = field(
        default=8, metadata={"help": "documents in one forward pass; changes the result by no more than float rounding"}
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not is_whole(value) or value < 1:
                raise PLNDError(
                    f"{one.name}={value!r}: expected {'1 or more' if is_whole(value) else 'a whole number'}"
                )
