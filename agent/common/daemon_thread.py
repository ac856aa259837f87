"""Blocking calls in daemon threads. If a daemon thread hangs, the process can still end.

A hanging thread of an executor would prevent that.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def run_in_thread(
    loop: asyncio.AbstractEventLoop, work: Callable[[], T], done: Callable[[Any], None], name: str = "blocking call"
) -> None:
    """Run `work` in a new thread, then call `done` on the event loop with the result or the exception of `work`."""

    def run() -> None:
        result: Any
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - `done` gets it
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, because the process ends
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, name=name, daemon=True).start()


def set_outcome(future: asyncio.Future[Any], outcome: Any) -> None:
    """Complete a future with a result or an exception. Do nothing if the future is done already."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class CallWithTimeout(Generic[T]):
    """A blocking call with a deadline. While one call is in flight, further calls wait for its result and start no thread."""

    def __init__(self, work: Callable[[], T], seconds: float, name: str) -> None:
        """Set up the call without running it.

        Args:
            work: the call, which runs in a thread.
            seconds: how long to wait for it.
            name: name of the thread.
        """
        self._work = work
        self._seconds = seconds
        self._name = name
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result of the call.

        Raises:
            TimeoutError: the call has not returned in time.
            Exception: the exception of the call.
        """
        loop = asyncio.get_running_loop()
        if self._running is None:
            future: asyncio.Future[T] = loop.create_future()
            run_in_thread(loop, self._work, lambda outcome: set_outcome(future, outcome), self._name)
            self._running = future
        done, _ = await asyncio.wait({self._running}, timeout=self._seconds)
        if not done:
            raise TimeoutError
        finished, self._running = self._running, None
        return finished.result()
