"""Scheduled collections of Python's garbage collector.

A full collection stops the process: for 0.1 s with 500 VMs. By default CPython (3.11 to 3.13) starts one when a quarter of all objects is
new. With many VMs, polls cause that about once a minute, and an event may be waiting at that moment. The agent needs few collections: only
connections that end leave reference cycles, and reference counting frees all other objects at once.
"""

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from functools import partial

YOUNG_THRESHOLDS = (2_000, 10)
"""gc thresholds of the two young generations, whose collections take a few milliseconds at most."""


@contextlib.contextmanager
def scheduled_collection(interval_seconds: float = 120.0) -> Iterator[None]:
    """While the block runs, run full garbage collections only at this interval. Objects created before the block are never inspected."""
    loop = asyncio.get_running_loop()
    previous = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG_THRESHOLDS, 1_000_000_000)

    timers: list[asyncio.TimerHandle] = []

    def schedule(*, collect: bool) -> None:
        if collect:
            gc.collect()
        timers[:] = [loop.call_later(interval_seconds, partial(schedule, collect=True))]

    schedule(collect=False)
    try:
        yield
    finally:
        timers[0].cancel()
        gc.set_threshold(*previous)
        gc.unfreeze()
