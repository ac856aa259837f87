"""Blocking calls in daemon threads. The process can end while a call hangs.

Python waits at exit for the threads of an executor, but not for daemon threads.
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
    """Run `work` in a new daemon thread. Then call `done` on the event loop with the result or the exception of `work`."""

    def run() -> None:
        result: Any
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - `done` receives the error
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, because the process ends
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, name=name, daemon=True).start()


def complete_future(future: asyncio.Future[Any], outcome: Any) -> None:
    """Complete a future with a result or an exception. Do nothing if the future is done already."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class BlockingCallWithTimeout(Generic[T]):
    """A blocking function with a timeout. While the function runs, further calls wait for the same result and start no thread."""

    def __init__(self, work: Callable[[], T], seconds: float, name: str) -> None:
        """Store the function without running it.

        Args:
            work: the blocking function, which runs in a daemon thread.
            seconds: timeout of each call.
            name: name of the thread.
        """
        self._work = work
        self._seconds = seconds
        self._name = name
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Run the function, unless it still runs, and return its result.

        Raises:
            TimeoutError: the function has not returned in time.
            Exception: the exception of the function.
        """
        loop = asyncio.get_running_loop()
        if self._running is None:
            future: asyncio.Future[T] = loop.create_future()
            run_in_thread(loop, self._work, lambda outcome: complete_future(future, outcome), self._name)
            self._running = future
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=self._seconds)
        if not done:
            raise TimeoutError
        if self._running is running:  # the first of several callers
            self._running = None
        return running.result()
