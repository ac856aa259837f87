"""The garbage collector runs on schedule, and its settings are restored at the end."""

import asyncio
import gc
import weakref

from agent.runtime import gc as agent_gc
from tests.lab.waiting import until


class Cycle:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_cycles_are_collected_on_schedule() -> None:
    before = gc.get_threshold()
    with agent_gc.scheduled_garbage_collection(interval_seconds=0.05):
        references = []
        for _ in range(2):
            cycle = Cycle()
            gc.collect(0)
            gc.collect(1)  # the cycle is in the oldest generation now: a collection of the young ones does not find it
            references.append(weakref.ref(cycle))
            del cycle
            await until(lambda: all(reference() is None for reference in references), 60)
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    await asyncio.sleep(0)
