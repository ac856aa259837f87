"""Storms of one event: the first is told at once, those that follow within a second are told as one. Pure: time is given.

A disk that fails with werror=ignore makes some 270 BLOCK_IO_ERROR a second on QEMU 7.2 (measured); QEMU itself holds them back from 9.2 on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from agent.qmp.protocol import Event

WINDOW_SECONDS = 1.0

MAX_STORMS = 256
"""Storms that are followed at once; past it, the oldest is told early, for a subject is what a guest's QEMU says it is."""

Key = tuple[object, ...]


@dataclass(slots=True)
class CoalescedEvent:
    """What is to be told: the last of `count` events that are alike.

    Attributes:
        event: the last of them.
        count: how many.
        first_ns: when the first of them was, nanoseconds since the epoch.
        last_ns: when the last of them was.
    """

    event: Event
    count: int
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class _Window:
    ends: float
    held: CoalescedEvent | None = None


class EventCoalescer:
    """Those of one VM. Times without a unit are seconds on any one monotonic clock."""

    def __init__(self) -> None:
        self._windows: dict[Key, _Window] = {}

    def take(self, key: Key, event: Event, time_ns: int, now: float) -> Iterator[CoalescedEvent]:
        """Yield what is to be told now; what is not, `due` yields in time."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_STORMS:
                oldest = self._windows.pop(next(iter(self._windows)))
                if oldest.held is not None:
                    yield oldest.held
            self._windows[key] = _Window(now + WINDOW_SECONDS)
            yield CoalescedEvent(event, 1, time_ns, time_ns)
        elif window.held is None:
            window.held = CoalescedEvent(event, 1, time_ns, time_ns)
        else:
            held = window.held
            held.event, held.count, held.last_ns = event, held.count + 1, time_ns

    def next_at(self) -> float:
        """Return when `due` has something to do; `inf` is never."""
        return next((window.ends for window in self._windows.values()), inf)

    def due(self, now: float) -> Iterator[CoalescedEvent]:
        """Yield what was held until now. A storm that goes on is told each second; one that does not is forgotten."""
        while self.next_at() <= now:
            key = next(iter(self._windows))  # they are in the order of their ends
            window = self._windows.pop(key)
            if window.held is not None:
                self._windows[key] = _Window(max(now, window.ends) + WINDOW_SECONDS)
                yield window.held

    def end(self) -> Iterator[CoalescedEvent]:
        """Yield all that is held."""
        windows, self._windows = self._windows, {}
        yield from (window.held for window in windows.values() if window.held is not None)
