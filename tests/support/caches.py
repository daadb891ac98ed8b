"""Caches that a test must not find filled, nor leave filled with what it made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def fresh_caches(module: ModuleType) -> Iterator[None]:
    """What the functions of a module have cached is forgotten at the start and at the end."""
    cached = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
    own = [value for value in cached if value.__module__ == module.__name__]
    try:
        for function in own:
            function.cache_clear()
        yield
    finally:
        for function in own:
            function.cache_clear()
