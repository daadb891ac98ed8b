"""Fixtures of detection."""

from __future__ import annotations

import pytest


@pytest.fixture
def eager_checkpoints(monkeypatch):
    """A checkpoint after every four documents, not every minute."""
    monkeypatch.setattr("plnd.detection.run.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("plnd.detection.run.WINDOW", 4)
