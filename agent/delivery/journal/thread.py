"""The thread that makes all calls to the journal's disk."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class JournalThread:
    """Runs calls to the disk one at a time, and reports a call that takes too long."""

    def __init__(self, hang_seconds: float, on_hang: Callable[[bool], None]) -> None:
        """Set up the thread. The thread starts at the first call.

        Args:
            hang_seconds: time after which a call counts as hanging.
            on_hang: called with True when a call hangs, and with False whenever a call returns.
        """
        self._hang_seconds = hang_seconds
        self._on_hang = on_hang
        self._executor = ThreadPoolExecutor(1, "journal")
        self._called_at: float | None = None

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Call a blocking function in the thread, and return the function's result."""
        self._called_at = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        try:
            if not (await asyncio.wait({running}, timeout=self._hang_seconds))[0]:
                self._on_hang(True)  # noqa: FBT003 - a callback's only argument
            return await running
        finally:
            self._called_at = None
            self._on_hang(False)  # noqa: FBT003 - a callback's only argument

    def current_call_seconds(self, now: float) -> float:
        """Return how many seconds the current call has taken; 0 if there is no current call.

        Args:
            now: the present time, by time.monotonic.
        """
        return now - self._called_at if self._called_at is not None else 0.0

    def shutdown(self) -> None:
        """End the thread after its current call."""
        self._executor.shutdown(wait=False)
