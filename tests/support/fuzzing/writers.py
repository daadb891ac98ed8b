"""Commands that write, and what they may leave when they are disturbed."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.processes import Outcome, command, forked
from fuzzing.workshop import Workshop

GROWS = ("results.csv", "log.jsonl", "environment.json", "settings.yaml", ".lock", ".checkpoint")
"""Ends of names that may have other bytes while a command is not at its end, and need not be those of another run."""


def digests(folder: Path) -> dict[str, str]:
    """Name to digest of what commands leave, but for logs and locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log.jsonl", "environment.json") and path.suffix != ".lock"
    }


@dataclass
class Writer:
    """A writing command: its arguments, what it leaves, what was there before, and how long it takes."""

    name: str
    argv: str
    shop: Workshop
    whole: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    def run(self, out: Path, **options: Any) -> Outcome:
        """Into a folder."""
        arguments = self.shop.arguments(self.argv, out)
        return forked(lambda: command(*arguments), **options)

    def prepare(self, out: Path) -> None:
        """What is there before it begins."""
        out.mkdir(exist_ok=True)
        if self.name == "overwrite":
            shutil.copytree(self.shop.folder / "model", out / "export")
            (out / "export" / "plnd.json").write_text("{}")

    def measure(self, out: Path) -> None:
        """Runs it once, undisturbed."""
        self.prepare(out)
        self.before = digests(out)
        done = self.run(out)
        if done.status:
            raise SystemExit(f"plnd {self.argv}: status {done.status}\n{done.text}")
        self.whole, self.seconds = digests(out), done.seconds

    def problem(self, out: Path, ended: bool) -> str:
        """What in a folder is neither whole, nor what was there, nor what says that it is not at its end."""
        found = digests(out)
        if ended:
            return "" if found == self.whole else f"other files: {sorted(set(found.items()) ^ set(self.whole.items()))}"
        shown = {name: digest for name, digest in found.items() if ".partial" not in name}
        if self.name == "overwrite" and shown not in (self.before, self.whole):
            return "neither the earlier folder nor the new one"
        for name, digest in shown.items():
            if not name.endswith(GROWS) and digest not in (self.whole.get(name), self.before.get(name)):
                if name in self.whole or self.name not in ("arena",):
                    return f"{name} is not whole"
        return ""
