"""Coalescing of repeated events: the first one is reported at once, later ones once a second with a count. Pure: time is an argument.

With a failing disk and werror=ignore, QEMU 7.2 emits about 270 BLOCK_IO_ERROR events a second (measured). QEMU 9.2 and newer limits them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from agent.qmp.protocol import Event

WINDOW_SECONDS = 1.0

MAX_WINDOWS = 256
"""Maximum number of open windows. QEMU controls the keys, so beyond this limit the oldest window is closed and reported early."""

Key = tuple[object, ...]


@dataclass(slots=True)
class CoalescedEvent:
    """One report for `count` events of the same key.

    Attributes:
        event: the last of these events.
        count: number of events.
        first_ns: time of the first event, in nanoseconds since the epoch.
        last_ns: time of the last event, in nanoseconds since the epoch.
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
    """Coalesces the events of one VM, in one window of time for each key. Times without a unit are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._windows: dict[Key, _Window] = {}

    def take(self, key: Key, event: Event, time_ns: int, now: float) -> Iterator[CoalescedEvent]:
        """Add an event and yield what to report now; `due` yields the rest later."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_WINDOWS:
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
        """Return when the first window ends; `inf` if none is open."""
        return next((window.ends for window in self._windows.values()), inf)

    def due(self, now: float) -> Iterator[CoalescedEvent]:
        """Yield the held events of windows that have ended. A window that held events opens again; an empty one is removed."""
        while self.next_at() <= now:
            key = next(iter(self._windows))  # windows are ordered by their end
            window = self._windows.pop(key)
            if window.held is not None:
                self._windows[key] = _Window(max(now, window.ends) + WINDOW_SECONDS)
                yield window.held

    def flush(self) -> Iterator[CoalescedEvent]:
        """Close all windows and yield the events that they hold, the oldest first."""
        windows, self._windows = self._windows, {}
        held = [window.held for window in windows.values() if window.held is not None]
        yield from sorted(held, key=lambda event: event.last_ns)
