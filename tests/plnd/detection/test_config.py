"""Settings of detection are checked when they are made."""

from __future__ import annotations

import pytest

from plnd.detection.config import DetectConfig
from plnd.errors import PLNDError


@pytest.mark.parametrize(
    "settings, wording",
    [
        ({"qk": "exakt"}, "unknown qk 'exakt': expected first_order, exact or off"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more, or auto"),
        ({"max_documents": -1}, "max_documents=-1: expected 1 or more"),
        ({"min_length": 0}, "min_length=0: expected 1 or more"),
        ({"max_length": 0}, "max_length=0: expected 1 or more"),
        ({"epsilon": 0}, "epsilon=0: expected a number above 0"),
        ({"epsilon": float("nan")}, "epsilon=nan: expected a number above 0"),
        ({"min_length": 33, "max_length": 32}, "min_length=33 is above max_length=32: no document could be scored"),
    ],
)
def test_settings_that_make_no_sense(settings, wording):
    """A setting out of range is refused before anything is loaded."""
    with pytest.raises(PLNDError) as caught:
        DetectConfig(**settings)
    assert str(caught.value) == wording
