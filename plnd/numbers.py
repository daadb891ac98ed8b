"""Which values are numbers (from Python come text, None, a flag or a tensor, too), and how changes are written."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_real(value: Any) -> bool:
    """Whether a value is a real number, of Python or numpy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy, 3.0 too; True and False are none."""
    return is_real(value) and (isinstance(value, Integral) or float(value).is_integer())


def signed(value: float, places: int = 3) -> str:
    """A change with its sign and so many decimals; no minus before a zero."""
    return f"{round(value, places) + 0.0:+.{places}f}"
