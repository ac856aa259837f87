"""When Python looks for garbage that refers to itself, which stops all else meanwhile: 0.1 s with 500 VMs, seldom and not by chance.

By default CPython (3.11 to 3.13) looks through all there is whenever a quarter of it is new, which the polls of many VMs are every
minute or so, at a moment when an event may be waiting. What we make has such circles only where connections end; all else goes at once.
"""

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from functools import partial

EACH_SECONDS = 120.0
YOUNG = (2_000, 10)
"""How many new objects, and how many times those, are looked through as ever: a few milliseconds at most."""


@contextlib.contextmanager
def scheduled_collection() -> Iterator[None]:
    """Look through all there is every two minutes for as long as the block runs, and never through what was there before it."""
    loop = asyncio.get_running_loop()
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, 1_000_000_000)

    timers: list[asyncio.TimerHandle] = []

    def look(*, collect: bool) -> None:
        if collect:
            gc.collect()
        timers[:] = [loop.call_later(EACH_SECONDS, partial(look, collect=True))]

    look(collect=False)
    try:
        yield
    finally:
        timers[0].cancel()
        gc.set_threshold(*before)
        gc.unfreeze()
