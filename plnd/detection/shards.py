"""Shards of a run: which batches are whose, decided by numbers alone, so that nobody has to ask anybody."""

from __future__ import annotations

import re
from dataclasses import dataclass

from plnd.errors import PLNDError


@dataclass(frozen=True)
class Shard:
    """One of so many shares of the documents that a whole run would score; by default all of them.

    Attributes:
        number: which one, from 1.
        count: how many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/64`: the third of 64.

        Raises:
            PLNDError: if that is not what it is.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(text))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise PLNDError(f"shard {text!r}: expected I/N with I from 1 to N, such as 3/64 for the third of 64")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def within(self, section: int, sections: int) -> Shard | None:
        """Its share of one of a corpus's sections, None if it need not read it.

        Sections go round, one to each shard; where there are fewer than shards, several share one.
        """
        place = self.number - 1
        if sections >= self.count:
            return Shard() if section % self.count == place else None
        if place % sections != section:
            return None
        return Shard(place // sections + 1, len(range(section, self.count, sections)))

    def has(self, window: int, batch: int, rank: int = 0, processes: int = 1) -> bool:
        """Whether a window's batch is this shard's, and within it this process's.

        Batches go round, one to each shard, and those of a shard one to each of its processes. A window's longest
        documents are in its first batch, hence each begins with another one.
        """
        turn, owner = divmod(window + batch, self.count)
        return owner == self.number - 1 and turn % processes == rank
