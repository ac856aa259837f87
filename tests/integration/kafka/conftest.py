"""Every test with a real Kafka runs on the agent's own event loop, with short retries and one secured broker."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.lab.secured_kafka import _all_doors, doors, kafka
from tests.lab.short_retries import short_retries

__all__ = ["_all_doors", "doors", "kafka", "short_retries"]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the loop of one test."""
    return {"uvloop": uvloop.new_event_loop}
