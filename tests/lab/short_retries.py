"""Delivery without its usual waits, for tests: retries follow at once."""

import pytest

from agent.delivery import pipeline
from agent.delivery.journal import writer
from agent.delivery.sinks import base


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every wait between retries to some milliseconds."""
    monkeypatch.setattr(base, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(base, "MOST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.03)
    monkeypatch.setattr(writer, "TIDY_SECONDS", 0.02)
    monkeypatch.setattr(pipeline, "TELL_SECONDS", 0.0)
