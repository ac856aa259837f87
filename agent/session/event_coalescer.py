"""Coalescing of repeated events. Pure: time is an argument.

The first event is reported at once. Repetitions are counted, and reported once a second as one event: the last repetition, with the count.
QEMU 7.2 emits about 270 BLOCK_IO_ERROR events a second for a failing disk with werror=ignore (measured). QEMU 9.2 and newer limit the rate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from agent.qmp.protocol import Event

WINDOW_SECONDS = 1.0
"""Seconds during which repetitions of an event are counted before the count is reported."""

MAX_WINDOWS = 256
"""Maximum number of open windows (times in which repetitions are counted). A new window beyond this limit ends the oldest window.

A limit is needed, because QEMU's data determines the number of event keys.
"""

EventKey = tuple[object, ...]
"""Values that are equal for repetitions of one event, such as the event's name and its device."""


@dataclass(slots=True)
class CoalescedEvent:
    """`count` events with the same key, reported as one event.

    Attributes:
        event: the last event.
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
    ends_at: float
    held: CoalescedEvent | None = None  # the events of the window that are not reported yet


class EventCoalescer:
    """Coalesces the events of one VM, with a window of time for each key.

    `now` and returned times are in seconds on one monotonic clock.
    """

    def __init__(self) -> None:
        self._windows: dict[EventKey, _Window] = {}

    def add(self, key: EventKey, event: Event, time_ns: int, now: float) -> Iterator[CoalescedEvent]:
        """Add an event, and yield the events to report now. `pop_due` yields the events to report later.

        Args:
            key: the event's key.
            event: the event.
            time_ns: time of the event, in nanoseconds since the epoch.
            now: the current time.
        """
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

    def next_due_at(self) -> float:
        """Return the time at which the first open window ends; `inf` if no window is open."""
        return next((window.ends_at for window in self._windows.values()), inf)

    def pop_due(self, now: float) -> Iterator[CoalescedEvent]:
        """Yield the events of the windows that have ended. For each yielded event, begin a new window with the same key."""
        while self.next_due_at() <= now:
            key = next(iter(self._windows))  # the windows are in the order of their ends
            window = self._windows.pop(key)
            if window.held is not None:
                self._windows[key] = _Window(max(now, window.ends_at) + WINDOW_SECONDS)
                yield window.held

    def flush(self) -> Iterator[CoalescedEvent]:
        """End all windows. Yield the unreported events of all windows, the oldest first."""
        windows, self._windows = self._windows, {}
        held = [window.held for window in windows.values() if window.held is not None]
        yield from sorted(held, key=lambda event: event.last_ns)
