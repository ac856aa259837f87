"""An event loop whose clock jumps to the next timer, for tests that run both ends of each connection in one loop.

While the loop of such a test waits, nothing else happens. So the result does not depend on the machine's speed, hours pass in milliseconds,
and a test that hangs reaches its deadline at once.
"""

import asyncio
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple
from unittest import mock

from tests.lab.scripted_peer import TIMEOUT_SECONDS

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

START_SECONDS = 1_000_000.0
"""Time at which a simulated clock starts."""

HANG_SECONDS = 10.0
"""How long, in real time, a call in a thread stops the clock. It limits the duration of tests in which such a call hangs."""

LONGEST_WAIT_SECONDS = 3 * 3600.0
"""Simulated time after which a wait for a condition fails."""


def longest_wait_seconds() -> float:
    """Return the time after which a wait for a condition fails, by the clock of the running event loop."""
    return LONGEST_WAIT_SECONDS if isinstance(asyncio.get_running_loop(), SimulatedClockLoop) else TIMEOUT_SECONDS


class SimulatedClockLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop with a simulated clock. While the loop runs, the functions of `time` also use this clock.

    The clock stands still while callbacks run, while data can be read or written, and while calls run in threads. The loop does not know
    other processes, nor threads that it did not start. A test that waits for them needs a real clock.
    """

    def __init__(self, hang_seconds: float = HANG_SECONDS) -> None:
        self._clock = _AdvancingSelector(hang_seconds)
        self._created_ns = time.time_ns()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return self._clock.now

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        simulated: dict[str, Any] = {
            "monotonic": self.time,
            "time": lambda: self._time_ns() / 1e9,
            "time_ns": self._time_ns,
        }
        with mock.patch.multiple(time, **simulated):
            super().run_forever()

    def _time_ns(self) -> int:
        """Return the nanoseconds since 1970 by the simulated clock."""
        return self._created_ns + round((self._clock.now - START_SECONDS) * 1e9)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        """Call a function in a thread."""
        call = super().run_in_executor(executor, func, *args)
        self._clock.calls_in_threads.add(call)
        call.add_done_callback(self._clock.calls_in_threads.discard)
        return call

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 - asyncio calls it
        """Wait for the end of the threads, without a timeout: Python 3.12 and newer pass one, which the clock would reach at once."""
        await super().shutdown_default_executor()


class _AdvancingSelector(selectors.DefaultSelector):
    """A selector that advances a clock instead of waiting.

    Attributes:
        now: the simulated time in seconds.
        calls_in_threads: calls for whose results the selector waits in real time.
    """

    def __init__(self, hang_seconds: float) -> None:
        super().__init__()
        self.now = START_SECONDS
        self._hang_seconds = hang_seconds
        self.calls_in_threads = set[asyncio.Future[Any]]()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the file objects that are ready. If there are none and no call runs in a thread, advance the clock by the timeout."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.calls_in_threads:
            ready = super().select(self._hang_seconds)
            if ready:
                return ready
            self.calls_in_threads.clear()
        if timeout is None:
            return super().select(None)
        self.now += timeout
        return []
