"""Pages as a browser shows them: headless Chromium, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


def rendered(page: Path, profile: Path, fragment: str = "") -> tuple[str, list[str]]:
    """The page's elements after its script has run, and what it said on the console."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    ]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, re.findall(r":CONSOLE[:(].*", done.stderr)
