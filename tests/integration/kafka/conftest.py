"""Every test with a real Kafka runs on the agent's own event loop, against one secured broker."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.lab.secured_kafka import _secured_broker, kafka, listeners

__all__ = ["_secured_broker", "kafka", "listeners"]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the event loop of a test."""
    return {"uvloop": uvloop.new_event_loop}
