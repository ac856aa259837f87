"""Settings of the unit tests: their event loops, and the effort of hypothesis."""

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.lab.simulated_clock import SimulatedClockLoop

# No deadline and no check for slowness, for machines under load. The same examples in each run: no run fails by chance.
settings.register_profile(
    "quick",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
# Other examples in each run, to search for errors.
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=3000, derandomize=False)
# Few examples for each mutant.
settings.register_profile("mutants", settings.get_profile("quick"), max_examples=10)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

ON_SIMULATED_CLOCK = frozenset({"app", "collectors", "guest", "monitors", "qga", "qmp", "session"})
"""Directories whose tests run both ends of each connection in their event loop."""

ALSO_ON_UVLOOP = frozenset({"test_dial.py", "test_client.py", "test_client_connect.py", "test_client_events.py"})
"""Tests of what talks to the event loop's transports. They also run on the agent's own event loop."""

REAL_PROCESSES = frozenset({"qemu", "start_guest"})
"""Fixtures that start processes, which need a real clock."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the event loops of a test: one with a simulated clock where that is possible, else the agent's own."""
    real = item.get_closest_marker("real_clock") is not None or REAL_PROCESSES & {*getattr(item, "fixturenames", ())}
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if real or item.path.parent.name not in ON_SIMULATED_CLOCK:
        return loops
    simulated: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"simulated_clock": SimulatedClockLoop}
    return loops | simulated if item.path.name in ALSO_ON_UVLOOP else simulated
