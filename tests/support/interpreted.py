"""Triton's kernels in Python on a CPU: what every test of them runs in."""

from __future__ import annotations

import inspect

import pytest


@pytest.fixture
def quick_interpreter(monkeypatch) -> None:
    """The interpreter patches Triton's language at every call of a device function, in 20 ms: here once a launch."""
    from triton import language as tl
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def once(fn):
        langs = {name for name, x in fn.__globals__.items() if inspect.ismodule(x) and x in (tl, tl.core)}
        key = frozenset(id(fn.__globals__[name]) for name in langs)
        if key in patched:
            return None
        launch, scope = not patched, patch(fn)
        patched.add(key)
        if launch:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", once)
