"""Scheduled collections of Python's garbage collector.

A full collection stops the process for 0.1 s with 500 VMs. By default, CPython 3.11 to 3.13 starts a full collection when a quarter of all
objects is new. With many VMs, polls would cause a full collection about once a minute. Each collection would delay the events that arrive
during the collection.

The agent needs few full collections. Only closed connections leave reference cycles. Reference counting frees all other objects at once.
"""

import asyncio
import contextlib
import gc
from collections.abc import Iterator

YOUNG_THRESHOLDS = (2_000, 10)
"""Thresholds of the two young generations, for `gc.set_threshold`. A collection of these generations takes a few milliseconds at most."""


@contextlib.contextmanager
def scheduled_garbage_collection(interval_seconds: float = 120.0) -> Iterator[None]:
    """Run full garbage collections only at an interval while the `with` block runs.

    These collections skip objects that were created before the block.
    """
    loop = asyncio.get_running_loop()
    previous = gc.get_threshold()
    gc.freeze()  # no gc.collect() before: a collection takes a tenth of the agent's start time, and frees only a few hundred objects
    gc.set_threshold(*YOUNG_THRESHOLDS, 1_000_000_000)

    timers: list[asyncio.TimerHandle] = []

    def start_timer() -> None:
        timers[:] = [loop.call_later(interval_seconds, collect)]

    def collect() -> None:
        gc.collect()
        start_timer()

    start_timer()
    try:
        yield
    finally:
        timers[0].cancel()
        gc.set_threshold(*previous)
        gc.unfreeze()
