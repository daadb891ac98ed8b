"""Settings for every test, the families of the table, and data that may be absent.

What tests import from each other is in `tests/support`, which `pyproject.toml` puts on the path.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plnd.families import FAMILIES

# Read when torch and huggingface_hub are imported, which nothing above does.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    """Every family of the table in turn."""
    return request.param


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data described in the README, or a skip."""
    path = Path(os.environ.get("PLND_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no evaluation data at {path} (set PLND_DATA)")
    return path
