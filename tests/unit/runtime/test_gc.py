"""Garbage that refers to itself goes too, at its own time, and nothing is as it was not when the agent has ended."""

import asyncio
import gc
import weakref

import pytest

from agent.cli.demo.guest import until
from agent.runtime import gc as agent_gc


class Circle:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_circles_are_looked_for_at_times_and_not_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_gc, "EACH_SECONDS", 0.05)
    before = gc.get_threshold(), gc.get_freeze_count()
    with agent_gc.scheduled_collection():
        gone = []
        for _ in range(2):
            circle = Circle()
            gc.collect(0)
            gc.collect(1)  # it is old now: the young ones' turns do not find it
            gone.append(weakref.ref(circle))
            del circle
            await until(lambda: all(one() is None for one in gone), 10)
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_freeze_count() > 1000
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    await asyncio.sleep(0)
