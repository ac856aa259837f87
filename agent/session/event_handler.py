"""Conversion of the events of one connection into records.

Events are buffered until the VM is identified. Repeated events are coalesced.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from math import inf
from operator import itemgetter

from agent.model.event_definition import EventDefinition
from agent.model.event_table import find_event_definition
from agent.model.record import Record, Severity, Vm
from agent.qmp.protocol import Event
from agent.session.event_coalescer import CoalescedEvent, EventCoalescer
from agent.session.shared_types import SessionObserver

TimedEventCallback = Callable[[Event, int], None]
"""Called with an event and its time in nanoseconds since the epoch."""

MAX_BUFFERED_EVENTS = 1024
"""Maximum number of buffered events. If the buffer is full, a severe event replaces a less severe event. Any other event is dropped."""

ORDERED_EVENTS = frozenset({"STOP", "RESUME", "RESET", "SHUTDOWN"})
"""Events that change the run state. The agent reports all coalesced events before such an event, so that the records stay in order."""


class EventHandler:
    """Converts the events of one connection into records.

    Call `on_event` for each event, `set_vm_and_report_buffered` once the VM is identified, and `close` when the connection ends.
    """

    def __init__(self, observer: SessionObserver) -> None:
        self._observer = observer
        self._callback: TimedEventCallback | None = None
        self._vm: Vm | None = None
        self._arrivals = 0
        self._buffer: list[tuple[int, Event]] = []  # buffered events, each with its number in the order of arrival
        self._severe_buffer: list[tuple[int, Event]] = []
        self._coalescer = EventCoalescer()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def dropped_event_count(self) -> int:
        """Number of events that were dropped because the buffer was full before the VM was identified."""
        return self._arrivals - len(self._buffer) - len(self._severe_buffer)

    def on_event(self, event: Event) -> None:
        """Report an event that has just been read, or buffer the event until `set_vm_and_report_buffered`."""
        if self._vm is not None:
            self._report_event(self._vm, event)
        else:
            self._add_to_buffer(event)

    def _add_to_buffer(self, event: Event) -> None:
        severe = _is_severe(event)
        if len(self._buffer) + len(self._severe_buffer) >= MAX_BUFFERED_EVENTS and severe and self._buffer:
            self._buffer.pop()
        if len(self._buffer) + len(self._severe_buffer) < MAX_BUFFERED_EVENTS:
            (self._severe_buffer if severe else self._buffer).append((self._arrivals, event))
        self._arrivals += 1

    def discard_buffered(self) -> None:
        """Discard the buffered events."""
        self._buffer.clear()
        self._severe_buffer.clear()
        self._arrivals = 0

    def set_vm_and_report_buffered(self, vm: Vm, callback: TimedEventCallback | None = None) -> None:
        """Report the buffered events and all later events as events of this VM.

        Args:
            vm: the VM.
            callback: called after the report of each event.
        """
        self._vm, self._callback = vm, callback
        for _, event in sorted(self._buffer + self._severe_buffer, key=itemgetter(0)):
            self._report_event(vm, event)
        if self.dropped_event_count:
            self._observer.on_events_dropped(vm, "before_attach", self.dropped_event_count)
        self.discard_buffered()

    def close(self) -> None:
        """Report the coalesced events that were not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._vm is not None:
            self._report_coalesced(self._vm, self._coalescer.flush())
        self._callback = None  # breaks a reference cycle with the session

    def _report_event(self, vm: Vm, event: Event) -> None:
        row = find_event_definition(event.name)
        time_ns = time.time_ns() if event.time_ns is None else event.time_ns
        record = _to_record(vm, row, event, time_ns)
        if event.name in ORDERED_EVENTS:
            self._report_coalesced(vm, self._coalescer.flush())
        if row.coalesce_by is None:
            self._observer.on_event(record)
        else:
            key = row.coalesce_key(event.data, row.coalesce_by)
            self._report_coalesced(vm, self._coalescer.add(key, event, time_ns, time.monotonic()))
            self._start_timer(vm)
        self._observer.on_event_before_coalescing(record)
        if self._callback is not None:
            self._callback(event, time_ns)

    def _report_coalesced(self, vm: Vm, coalesced: Iterable[CoalescedEvent]) -> None:
        for group in coalesced:
            record = _to_record(vm, find_event_definition(group.event.name), group.event, group.last_ns)
            if group.count > 1:
                counts = {
                    "count": group.count,
                    "first_timestamp_seconds": group.first_ns / 1e9,
                    "last_timestamp_seconds": group.last_ns / 1e9,
                }
                record = record._replace(data={**record.data, **counts}, sample_rate=group.count)
            self._observer.on_event(record)

    def _start_timer(self, vm: Vm) -> None:
        """Start the timer that reports coalesced events. A poll may be too late to report the events, because a poll waits for replies."""
        if self._timer is None and (due_at := self._coalescer.next_due_at()) < inf:
            delay = max(0.0, due_at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._report_ended_windows, vm)

    def _report_ended_windows(self, vm: Vm) -> None:
        self._timer = None
        self._report_coalesced(vm, self._coalescer.pop_due(time.monotonic()))
        self._start_timer(vm)


def _is_severe(event: Event) -> bool:
    return find_event_definition(event.name).severity_for(event.data) >= Severity.ERROR


def _to_record(vm: Vm, row: EventDefinition, event: Event, time_ns: int) -> Record:
    data = {**row.common_data, "qemu": event.data}
    return Record(row.record_type, vm, data, time_ns, row.subject_of(event.data), row.severity_for(event.data))
