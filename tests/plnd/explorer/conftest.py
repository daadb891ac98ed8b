"""What the tests of the explorer show."""

from __future__ import annotations

import pytest

from exploring import both
from plnd.explorer.contents import Contents


@pytest.fixture(scope="package")
def contents() -> Contents:
    """Two languages, two sets and an inspection of one model."""
    return both()
