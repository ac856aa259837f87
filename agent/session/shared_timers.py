"""Timers that all sessions share. A separate timer of the event loop for each poll would cost as much as the poll itself."""

import asyncio
import time
from math import inf
from typing import Protocol

MAX_TIMER_SECONDS = 86400.0
"""Maximum delay of a timer, because some event loops reject longer delays."""


class TimerWaiter(Protocol):
    """An object that waits for a point in time, such as a VM's next poll."""

    def on_wake(self, at: float) -> None:
        """Handle the wake-up for the time `at`, in seconds on the monotonic clock.

        A wake-up may come after `remove`. If `at` is more than `MAX_TIMER_SECONDS` away, the wake-up comes early.
        """


class WakeTimers:
    """Wakes sleepers at their times. Sleepers with the same time share one timer of the event loop."""

    def __init__(self) -> None:
        self._sleepers: dict[float, dict[TimerWaiter, None]] = {}

    def add(self, at: float, sleeper: TimerWaiter) -> None:
        """Wake a sleeper once, at this time in seconds on the monotonic clock."""
        sleepers = self._sleepers.get(at)
        if sleepers is not None:
            sleepers[sleeper] = None
            return
        self._sleepers[at] = {sleeper: None}
        delay = max(0.0, min(at - time.monotonic(), MAX_TIMER_SECONDS))
        asyncio.get_running_loop().call_later(delay, self._wake, at)

    def remove(self, at: float, sleeper: TimerWaiter) -> None:
        """Cancel the wake-up of a sleeper at this time."""
        self._sleepers.get(at, {}).pop(sleeper, None)

    def _wake(self, at: float) -> None:
        for sleeper in list(self._sleepers.pop(at)):
            sleeper.on_wake(at)


class ReplyWaiter(Protocol):
    """An object that waits for a reply."""

    def on_overdue(self) -> None:
        """Handle an overdue reply."""


class SharedDeadlines:
    """Deadlines of the replies that sessions wait for. Nearly all replies arrive in time, so one timer checks all deadlines."""

    def __init__(self) -> None:
        self._deadlines: dict[ReplyWaiter, float] = {}
        self._check_at = inf

    def add(self, waiter: ReplyWaiter, seconds: float) -> None:
        """Call the waiter's `on_overdue` after `seconds`, unless `remove` is called earlier."""
        self._deadlines[waiter] = at = time.monotonic() + seconds
        if at < self._check_at:
            self._check_at = at
            asyncio.get_running_loop().call_later(min(seconds, MAX_TIMER_SECONDS), self._check, at)

    def remove(self, waiter: ReplyWaiter) -> None:
        """Remove a waiter, because its reply has arrived or no longer matters."""
        self._deadlines.pop(waiter, None)

    def _check(self, checked_at: float) -> None:
        """Call the overdue waiters, and check again at the earliest of the remaining deadlines."""
        if checked_at != self._check_at:
            return  # an earlier deadline has replaced this check
        now = time.monotonic()
        overdue = [waiter for waiter, at in self._deadlines.items() if at <= now]
        for waiter in overdue:
            self._deadlines.pop(waiter, None)
        self._check_at = min(self._deadlines.values(), default=inf)
        if self._check_at < inf:
            asyncio.get_running_loop().call_later(max(0.0, self._check_at - now), self._check, self._check_at)
        for waiter in overdue:
            waiter.on_overdue()
