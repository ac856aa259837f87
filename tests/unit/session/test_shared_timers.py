"""Timers that sessions share: who is woken, and which responses are overdue."""

import asyncio
import time

from agent.session.shared_timers import SharedDeadlines, WakeTimers
from tests.lab.scripted_peer import TIMEOUT_SECONDS

SHORT_SECONDS = 0.02


class Recorder:
    """A sleeper and a waiter that records its calls.

    Attributes:
        times: The times for which it was woken.
        overdue: How often its response was overdue.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.overdue = 0
        self._called = asyncio.Event()

    def on_wake(self, at: float) -> None:
        self.times.append(at)
        self._called.set()

    def on_overdue(self) -> None:
        self.overdue += 1
        self._called.set()

    async def called(self) -> None:
        """Wait for the next call."""
        self._called.clear()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._called.wait()


async def test_sleepers_of_one_time_are_all_woken() -> None:
    timers, at = WakeTimers(), time.monotonic() + SHORT_SECONDS
    sleepers = [Recorder() for _ in range(20)]
    for sleeper in sleepers:
        timers.add(at, sleeper)
    await sleepers[-1].called()
    assert [sleeper.times for sleeper in sleepers] == [[at]] * len(sleepers)


async def test_a_removed_sleeper_is_not_woken() -> None:
    timers, at = WakeTimers(), time.monotonic() + SHORT_SECONDS
    removed, other = Recorder(), Recorder()
    timers.add(at, removed)
    timers.add(at, other)
    timers.remove(at, removed)
    timers.remove(at, removed)
    timers.remove(at + 1, other)
    await other.called()
    assert removed.times == []


async def test_a_sleeper_is_woken_again_if_it_adds_the_same_time() -> None:
    timers, at = WakeTimers(), time.monotonic()
    sleeper = Recorder()
    timers.add(at, sleeper)
    await sleeper.called()
    timers.add(at, sleeper)
    await sleeper.called()
    assert sleeper.times == [at, at]


async def test_only_responses_that_do_not_arrive_are_overdue_each_once() -> None:
    deadlines = SharedDeadlines()
    answered, late, later = Recorder(), Recorder(), Recorder()
    for waiter in (answered, late):
        deadlines.add(waiter, SHORT_SECONDS)
    deadlines.add(later, 2 * SHORT_SECONDS)
    deadlines.remove(answered)
    await later.called()
    assert [waiter.overdue for waiter in (answered, late, later)] == [0, 1, 1]


async def test_a_shorter_deadline_is_checked_before_a_longer_one() -> None:
    deadlines = SharedDeadlines()
    long, short = Recorder(), Recorder()
    deadlines.add(long, TIMEOUT_SECONDS)
    deadlines.add(short, SHORT_SECONDS)
    await short.called()
    assert (long.overdue, short.overdue) == (0, 1)


async def test_a_waiter_can_wait_again_after_its_response() -> None:
    deadlines = SharedDeadlines()
    waiter = Recorder()
    deadlines.add(waiter, SHORT_SECONDS)
    deadlines.remove(waiter)
    deadlines.add(waiter, SHORT_SECONDS)
    await waiter.called()
    await asyncio.sleep(0)
    assert waiter.overdue == 1
