"""Waits of tests for real processes. A deadline only ends a test that hangs: no process has to be fast."""

from collections.abc import Awaitable, Callable
from typing import Final

from agent.cli.demo import guest

DEADLINE_SECONDS: Final = 600.0
"""Deadline of each step of a test: a multiple of the time for which a loaded machine may suspend a process."""


async def until(
    predicate: Callable[[], object | Awaitable[object]],
    timeout: float = DEADLINE_SECONDS,  # noqa: ASYNC109 - the function is a timeout
) -> None:
    """Call a predicate every 20 ms until it returns a true value.

    Raises:
        TimeoutError: The predicate returns no true value within `timeout` seconds.
    """
    await guest.wait_until(predicate, timeout)
