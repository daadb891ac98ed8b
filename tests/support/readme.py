"""The commands and code of a Markdown text, as its reader would type them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

RECORDER = r"""
record() { local IFS=; printf '%s\0' "$@" "" >> "$RECORD"; }
plnd() { record plnd "$@"; if [ "$1" = tasks ]; then echo TASKS; fi; }
for name in lm_eval python pip torchrun accelerate cat less cd export; do
  eval "$name() { record $name \"\$@\"; }"
done
command_not_found_handle() { record "$@"; }
"""


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str, folder: Path) -> list[list[str]]:
    """The programs that a shell block runs, each with its arguments, as bash understands it; nothing is run."""
    record = folder / "commands"
    record.write_bytes(b"")
    environment = {"RECORD": str(record), "PATH": "/nowhere"}
    subprocess.run(["/bin/bash", "-c", RECORDER + block], env=environment, cwd=folder, check=True, timeout=60)
    found: list[list[str]] = [[]]
    for word in record.read_bytes().decode().split("\0")[:-1]:
        if word:
            found[-1].append(word)
        else:
            found.append([])
    return found[:-1]


def spans(text: str) -> list[str]:
    """What is set as code inside of lines."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
