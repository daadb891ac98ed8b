"""What is to be done until when, and what was found."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.processes import Outcome
from fuzzing.readers import FINDINGS
from fuzzing.workshop import WRITERS, Workshop
from fuzzing.writers import Writer


@dataclass
class Campaign:
    """What is to be done until when, and what was found."""

    shop: Workshop
    seed: int
    kinds: Sequence[str]
    most: dict[str, int]
    names: Sequence[str]
    keep: Path | None
    ends: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    memory: int = 0
    _writers: list[Writer] = field(default_factory=list)

    def goes_on(self, part: str, number: int) -> bool:
        """Whether there is time for more, and more is wanted."""
        return number < self.most[part] and time.monotonic() < self.ends[part]

    def note(self, part: str, what: str, where: str = "") -> None:
        """Counts; a finding is told at once."""
        self.counts.setdefault(part, Counter())[what] += 1
        if what in FINDINGS:
            print(f"{part}: {what}: {where}", flush=True)

    def judge(self, part: str, done: Outcome, where: str, expected: Sequence[int]) -> None:
        """A process must end with an expected status, and without a traceback."""
        if done.hung:
            self.note(part, "hang", where)
        elif "Traceback" in done.text or done.status not in expected:
            self.note(part, "traceback", f"{where}: {done.text[-3000:]}")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new one, gone afterwards."""
        path = Path(tempfile.mkdtemp(dir=self.shop.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def writers(self) -> list[Writer]:
        """The writing commands, each run once."""
        for name in () if self._writers else self.names:
            self._writers.append(Writer(name, WRITERS[name], self.shop))
            out = self.shop.folder / "reference" / name
            out.parent.mkdir(exist_ok=True)
            self._writers[-1].measure(out)
        return self._writers
