"""The loop these tests run on, which is the agent's own, and waits too short to be waited for."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from agent.delivery import delivery, journal, sink
from tests.delivery.secured import _all_doors, doors, kafka

__all__ = ["_all_doors", "doors", "kafka"]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the loop of one test."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all that waits before it tries again wait next to nothing."""
    monkeypatch.setattr(sink, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sink, "MOST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(journal, "RETRY_SECONDS", 0.03)
    monkeypatch.setattr(journal, "TIDY_SECONDS", 0.02)
    monkeypatch.setattr(delivery, "TELL_SECONDS", 0.0)
