"""Conversion of a connection's events into records.

Events are buffered until the VM is identified. Repeated events are coalesced.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from math import inf
from operator import itemgetter
from typing import Any

from agent.model.events import EventRow, row_of
from agent.model.record import Record, Severity, Vm
from agent.qmp.protocol import Event
from agent.session.api import SessionObserver
from agent.session.event_coalescer import CoalescedEvent, EventCoalescer

EventCallback = Callable[[Event, int], None]

MAX_BUFFERED_EVENTS = 1024
"""Maximum number of events that are buffered until the VM is identified. Severe events are kept first, then the earliest ones."""

ORDERED_EVENTS = frozenset({"STOP", "RESUME", "RESET", "SHUTDOWN"})
"""Events before which all held events are reported, so that a VM's records keep the order of its events."""


class EventHandler:
    """Handler of one connection's events: `on_event` for each of them, `attach` once the VM is identified, `close` at the end."""

    def __init__(self, observer: SessionObserver) -> None:
        self._observer = observer
        self._callback: EventCallback | None = None
        self._vm: Vm | None = None
        self._arrivals = 0
        self._buffer: list[tuple[int, Event]] = []  # with the order of arrival
        self._severe: list[tuple[int, Event]] = []
        self._coalescer = EventCoalescer()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def dropped(self) -> int:
        """Number of events that were dropped because the VM was not identified in time."""
        return self._arrivals - len(self._buffer) - len(self._severe)

    def on_event(self, event: Event) -> None:
        """Handle an event at the moment it is read."""
        if self._vm is not None:
            self._handle(self._vm, event)
        else:
            self._add_to_buffer(event)

    def _add_to_buffer(self, event: Event) -> None:
        severe = _is_severe(event)
        if len(self._buffer) + len(self._severe) >= MAX_BUFFERED_EVENTS and severe and self._buffer:
            self._buffer.pop()
        if len(self._buffer) + len(self._severe) < MAX_BUFFERED_EVENTS:
            (self._severe if severe else self._buffer).append((self._arrivals, event))
        self._arrivals += 1

    def discard_buffered(self) -> None:
        """Discard the buffered events, because another session has reported them."""
        self._buffer.clear()
        self._severe.clear()
        self._arrivals = 0

    def attach(self, vm: Vm, callback: EventCallback | None = None) -> None:
        """Attribute all events to this VM, the buffered ones included.

        Args:
            vm: the VM.
            callback: called after each event, with its time in nanoseconds since the epoch.
        """
        self._vm, self._callback = vm, callback
        for _, event in sorted(self._buffer + self._severe, key=itemgetter(0)):
            self._handle(vm, event)
        if self.dropped:
            self._observer.on_events_dropped(vm, "before_attach", self.dropped)
        self.discard_buffered()

    def close(self) -> None:
        """Report the events that the coalescer still holds."""
        if self._timer is not None:
            self._timer.cancel()
        if self._vm is not None:
            self._report(self._vm, self._coalescer.flush())
        self._callback = None  # breaks a reference cycle with the session

    def _handle(self, vm: Vm, event: Event) -> None:
        row = row_of(event.name)
        time_ns = time.time_ns() if event.time_ns is None else event.time_ns
        record = _record(vm, row, event, time_ns)
        if event.name in ORDERED_EVENTS:
            self._report(vm, self._coalescer.flush())
        if row.coalesce_by is None:
            self._observer.on_event(record)
        else:
            key = row.coalesce_key(event.data, row.coalesce_by)
            self._report(vm, self._coalescer.take(key, event, time_ns, time.monotonic()))
            self._start_timer(vm)
        self._observer.on_event_read(record)
        if self._callback is not None:
            self._callback(event, time_ns)

    def _report(self, vm: Vm, coalesced: Iterable[CoalescedEvent]) -> None:
        for group in coalesced:
            counts = {
                "count": group.count,
                "first_timestamp_seconds": group.first_ns / 1e9,
                "last_timestamp_seconds": group.last_ns / 1e9,
            }
            row = row_of(group.event.name)
            self._observer.on_event(_record(vm, row, group.event, group.last_ns, **(counts if group.count > 1 else {})))

    def _start_timer(self, vm: Vm) -> None:
        """Schedule the report of held events. A timer reports them, so that it does not wait for QEMU's replies."""
        if self._timer is None and (at := self._coalescer.next_at()) < inf:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._report_due, vm)

    def _report_due(self, vm: Vm) -> None:
        self._timer = None
        self._report(vm, self._coalescer.due(time.monotonic()))
        self._start_timer(vm)


def _is_severe(event: Event) -> bool:
    return row_of(event.name).severity_for(event.data) >= Severity.ERROR


def _record(vm: Vm, row: EventRow, event: Event, time_ns: int, **counts: Any) -> Record:
    data = {**row.data_head, "qemu": event.data, **counts}
    return Record(row.record_type, vm, data, time_ns, row.subject_of(event.data), row.severity_for(event.data))
